//! The names that the broker has given this client numbers for: topics and services.
//!
//! A name is *held* while it has users, and some without users are kept, those that were used last. The others
//! are *released*: a record in the lane says so, behind the last message with the number. Until the broker has consumed
//! that record the name is *retired*: messages on it may have to be sent again at another broker.
//!
//! Inside the client a name has a place of its own, because its number is another at another broker.

use crate::client::error::Error;
use crate::wire::name::Topic;
use std::collections::{HashMap, VecDeque};

/// The number of a name that the present broker has refused.
pub(crate) const NONE: u32 = u32::MAX;

/// Released topics whose sequence numbers are remembered. Beyond, all topics that are new go on behind the highest.
const MOST_PAST: usize = 4096;

/// A reference to a name, as its user holds it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NameRef {
    pub(crate) at: u32,
    /// Tells it from others that have had the same place.
    pub(crate) id: u64,
    /// Its number in that session.
    pub(crate) number: u32,
    pub(crate) session: u64,
    /// The sequence number of its last message, before it was held.
    pub(crate) past: u64,
}

/// A topic as a lane knows it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TopicNumber {
    pub(crate) id: u64,
    pub(crate) number: u32,
    /// The sequence number of its last message.
    pub(crate) seq: u64,
}

#[derive(Debug)]
struct Held {
    id: u64,
    name: Topic,
    number: u32,
    users: u32,
    /// When it was used last, on the table's own clock.
    used: u64,
    past: u64,
    /// To be released as soon as there is room in the lane.
    leaves: bool,
}

impl Held {
    fn is_idle(&self) -> bool {
        self.users == 0 && !self.leaves
    }
}

#[derive(Debug)]
struct Retired {
    id: u64,
    name: Topic,
    number: u32,
    /// Cells that were claimed in the lane when it was released.
    end: u64,
}

/// The numbers of topics at another broker, by those at the last one. Records are looked at in the order in which they
/// were placed: a number that was released and given again stood for one topic before its release, for another behind.
#[derive(Debug, Default)]
pub(crate) struct Renumbering {
    numbers: HashMap<u32, VecDeque<Option<u32>>>,
}

impl Renumbering {
    /// The topic that had the number `last`, behind those that had it before; `None`: it has none now.
    pub(crate) fn add(&mut self, last: u32, now: Option<u32>) {
        self.numbers.entry(last).or_default().push_back(now);
    }

    /// A message on `last` comes: its number now.
    pub(crate) fn publish(&self, last: u32) -> Option<u32> {
        *self.numbers.get(&last)?.front()?
    }

    /// The release of `last` comes.
    pub(crate) fn release(&mut self, last: u32) {
        if let Some(numbers) = self.numbers.get_mut(&last) {
            numbers.pop_front();
        }
    }
}

/// All names of one kind.
#[derive(Debug, Default)]
pub(crate) struct Names {
    by_name: HashMap<Topic, u32>,
    places: Vec<Option<Held>>,
    free: Vec<u32>,
    leaving: Vec<u32>,
    idle: usize,
    retired: VecDeque<Retired>,
    /// The last sequence numbers of released topics.
    past: HashMap<Topic, u64>,
    /// No sequence number that is forgotten is higher.
    past_max: u64,
    clock: u64,
    last_id: u64,
    /// The numbers that the next broker gives, by id.
    given: HashMap<u64, Result<u32, Error>>,
}

impl Names {
    /// One more user of `name`, if it is held and the present broker has not refused it.
    pub(crate) fn find(&mut self, name: &str, session: u64) -> Option<NameRef> {
        let at = *self.by_name.get(name)?;
        let held = self.places[at as usize].as_mut().filter(|held| held.number != NONE)?;
        self.idle -= usize::from(held.is_idle());
        held.users += 1;
        held.leaves = false;
        self.clock += 1;
        held.used = self.clock;
        Some(NameRef { at, id: held.id, number: held.number, session, past: held.past })
    }

    /// One user less. `keep`: the name is likely to be used again.
    pub(crate) fn leave(&mut self, place: NameRef, keep: bool) {
        let Some(held) = self.places.get_mut(place.at as usize).and_then(Option::as_mut) else { return };
        if held.id != place.id {
            return;
        }
        held.users -= 1;
        if held.users == 0 && keep {
            self.idle += 1;
        } else if held.users == 0 {
            held.leaves = true;
            self.leaving.push(place.at);
        }
    }

    /// The broker has given `name` a number. If it has one already, because it was requested twice at a time, the new
    /// one is to be released.
    pub(crate) fn granted(&mut self, name: Topic, number: u32) {
        let known = self.by_name.get(&name).copied();
        if let Some(at) = known
            && let Some(held) = self.places[at as usize].as_mut().filter(|held| held.number == NONE)
        {
            held.number = number;
            return;
        }
        self.hold(name, number, known.is_some());
    }

    fn hold(&mut self, name: Topic, number: u32, leaves: bool) {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            (self.places.len() - 1) as u32
        });
        self.last_id += 1;
        self.clock += 1;
        let past = self.past.get(&name).copied().unwrap_or(self.past_max);
        if leaves {
            self.leaving.push(at);
        } else {
            self.idle += 1;
            self.by_name.insert(name.clone(), at);
        }
        let (id, used) = (self.last_id, self.clock);
        self.places[at as usize] = Some(Held { id, name, number, users: 0, used, past, leaves });
    }

    /// A name to release: one without users that is not to be kept, or, beyond `kept` of these, the one that was
    /// used longest ago. Its place, its id and its number.
    pub(crate) fn next_to_release(&mut self, kept: usize) -> Option<(u32, u64, u32)> {
        while let Some(at) = self.leaving.last() {
            match self.places[*at as usize].as_ref().filter(|held| held.leaves) {
                Some(held) => return Some((*at, held.id, held.number)),
                None => _ = self.leaving.pop(),
            }
        }
        if self.idle <= kept {
            return None;
        }
        let held = self.places.iter().enumerate().filter_map(|(at, held)| Some((at, held.as_ref()?)));
        let (at, held) = held.filter(|(_, held)| held.is_idle()).min_by_key(|(_, held)| held.used)?;
        Some((at as u32, held.id, held.number))
    }

    /// It is released: the lane has the record. `seq` is the last sequence number, `end` and `consumed` are cells of
    /// the lane.
    pub(crate) fn released(&mut self, at: u32, seq: Option<u64>, end: u64, consumed: u64) {
        let Some(held) = self.places[at as usize].take() else { return };
        self.idle -= usize::from(held.is_idle());
        self.free.push(at);
        if self.by_name.get(&held.name) == Some(&at) {
            self.by_name.remove(&held.name);
        }
        if let Some(seq) = seq.filter(|seq| *seq > 0) {
            if self.past.len() >= MOST_PAST {
                self.past_max = self.past.drain().map(|(_, seq)| seq).fold(self.past_max, u64::max);
            }
            let past = self.past.entry(held.name.clone()).or_default();
            *past = seq.max(*past);
        }
        self.consumed(consumed);
        if held.number != NONE && end > consumed {
            self.retired.push_back(Retired { id: held.id, name: held.name, number: held.number, end });
        }
    }

    /// So many cells of the lane are consumed.
    pub(crate) fn consumed(&mut self, consumed: u64) {
        while self.retired.front().is_some_and(|retired| retired.end <= consumed) {
            self.retired.pop_front();
        }
    }

    /// Whether the broker has yet to hear of a release.
    pub(crate) fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// All names that are requested from another broker, each with its id.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u64, &Topic)> {
        let held = self.places.iter().flatten().map(|held| (held.id, &held.name));
        held.chain(self.retired.iter().map(|retired| (retired.id, &retired.name)))
    }

    /// The names are requested from another broker.
    pub(crate) fn begin_restore(&mut self) {
        self.given.clear();
    }

    /// The other broker has given this number, or refused it.
    pub(crate) fn restored(&mut self, id: u64, given: Result<u32, Error>) {
        self.given.insert(id, given);
    }

    /// The session goes on at the other broker, which has given these numbers. `consumed` are cells of the last lane.
    /// What the last broker had yet to hear of is released at this one.
    pub(crate) fn go_on(
        &mut self,
        consumed: u64,
        placed: &mut Vec<TopicNumber>,
        refused: &mut HashMap<u64, Error>,
    ) -> Renumbering {
        let mut renumbering = Renumbering::default();
        let mut given = std::mem::take(&mut self.given);
        let mut released = Vec::new();
        for retired in std::mem::take(&mut self.retired) {
            let number = given.remove(&retired.id).and_then(Result::ok);
            if retired.end > consumed {
                renumbering.add(retired.number, number);
            }
            released.extend(number.map(|number| (retired.name, number)));
        }
        refused.clear();
        placed.resize(self.places.len(), TopicNumber::default());
        for (held, placed) in self.places.iter_mut().zip(placed) {
            let Some(held) = held else { continue };
            let number = match given.remove(&held.id) {
                Some(Ok(number)) => number,
                Some(Err(error)) => {
                    refused.insert(held.id, error);
                    NONE
                }
                None => NONE,
            };
            if held.number != NONE {
                renumbering.add(held.number, Some(number).filter(|number| *number != NONE));
            }
            held.number = number;
            let seq = if placed.id == held.id { placed.seq } else { held.past };
            *placed = TopicNumber { id: held.id, number, seq };
        }
        for (name, number) in released {
            self.hold(name, number, true);
        }
        renumbering
    }

    /// All numbers are void; a user of a name still finds that it is held no more.
    pub(crate) fn clear(&mut self) {
        *self = Names { clock: self.clock, last_id: self.last_id, ..Names::default() };
    }

    /// How many names are held.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.places.iter().flatten().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::error::Kind;

    fn topic(name: &str) -> Topic {
        name.parse().unwrap()
    }

    /// Releases what is to be released; the broker consumes nothing of it. Returns the numbers.
    fn release(names: &mut Names, kept: usize, seq: u64) -> Vec<u32> {
        let mut numbers = Vec::new();
        while let Some((at, _, number)) = names.next_to_release(kept) {
            numbers.push(number);
            names.released(at, Some(seq), numbers.len() as u64, 0);
        }
        numbers
    }

    #[test]
    fn a_name_that_nobody_uses_is_released_at_once_or_when_others_were_used_later() {
        let mut names = Names::default();
        for (number, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
            names.granted(topic(name), number as u32);
        }
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| names.find(name, 0).unwrap());
        assert_eq!(names.next_to_release(0), None);
        [c, a, b].into_iter().for_each(|place| names.leave(place, true));
        names.leave(d, false);
        assert_eq!(release(&mut names, 2, 1), [d.number, a.number], "it was used first");
        let (again, c) = (names.find("a", 0), names.find("c", 0).unwrap());
        assert!(again.is_none());
        assert_eq!(release(&mut names, 0, 1), [b.number], "one that is used stays");
        names.leave(c, false);
        assert_eq!(
            (names.find("c", 0).unwrap().id, names.next_to_release(0)),
            (c.id, None),
            "found before it was released"
        );
    }

    #[test]
    fn a_name_that_two_asked_for_has_one_number() {
        let mut names = Names::default();
        names.granted(topic("a"), 0);
        names.granted(topic("a"), 1);
        let a = names.find("a", 0).unwrap();
        assert_eq!((a.number, release(&mut names, 9, 0)), (0, vec![1]));
        names.leave(a, true);
        assert_eq!((names.find("a", 0).unwrap().number, names.len()), (0, 1));
    }

    #[test]
    fn sequence_numbers_never_restart_lower() {
        let mut names = Names::default();
        let mut open = |name: &str, seq: u64| {
            names.granted(topic(name), 7);
            let place = names.find(name, 0).unwrap();
            names.leave(place, false);
            assert_eq!(release(&mut names, 9, place.past + seq), [7]);
            names.consumed(u64::MAX);
            place.past
        };
        assert_eq!((open("a", 5), open("a", 1), open("b", 3), open("a", 1)), (0, 5, 0, 6));
        (0..MOST_PAST).for_each(|number| _ = open(&format!("n{number}"), 1));
        assert!(open("a", 1) >= 7, "the exact number is forgotten");
        assert!(names.past.len() <= MOST_PAST);
    }

    #[test]
    fn at_another_broker_names_have_other_numbers_and_one_may_be_refused() {
        let mut names = Names::default();
        // Released, and the record not consumed; then its number is another name's.
        names.granted(topic("gone"), 3);
        assert_eq!(names.next_to_release(0).map(|(at, ..)| names.released(at, Some(9), 20, 10)), Some(()));
        names.granted(topic("a"), 3);
        names.granted(topic("b"), 4);
        let places = ["a", "b"].map(|name| names.find(name, 0).unwrap());
        let mut placed = vec![TopicNumber { id: places[0].id, number: 3, seq: 44 }];
        let ids: Vec<_> = names.all().map(|(id, name)| (id, name.to_string())).collect();
        for (id, name) in ids {
            let refused = || Kind::Timeout.into();
            names.restored(
                id,
                match name.as_str() {
                    "gone" => Ok(0),
                    "a" => Ok(1),
                    _ => Err(refused()),
                },
            );
        }
        let mut refused = HashMap::new();
        let mut numbers = names.go_on(10, &mut placed, &mut refused);
        assert_eq!(numbers.publish(3), Some(0));
        numbers.release(3);
        assert_eq!((numbers.publish(3), numbers.publish(4), numbers.publish(9)), (Some(1), None, None));
        assert_eq!((placed[0].number, placed[0].seq, placed[1].number), (1, 44, NONE));
        assert!(refused.contains_key(&places[1].id) && names.find("b", 1).is_none());
        assert_eq!(names.next_to_release(9).unwrap().2, 0, "the one that is gone is released there, too");
        // There is room again.
        names.granted(topic("b"), 8);
        assert_eq!(names.find("b", 1).map(|place| (place.id, place.number)), Some((places[1].id, 8)));
    }
}

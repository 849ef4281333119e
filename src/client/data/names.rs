//! The names that the broker has given this client numbers for: topics and services.
//!
//! Topics and services are *interned*: the broker gives each name a number. A name keeps its number while it has users;
//! of the names without users, the most recently used ones are kept. The others are *released* by a record in the lane,
//! after the last message with the number. Until the broker has consumed that record the name is *retired*: messages on
//! it may have to be sent again to a restarted broker.
//!
//! Inside the client a name is referred to by its entry, because its number differs between brokers.

use crate::client::error::Error;
use crate::wire::name::Topic;
use rustc_hash::FxHashMap;
use std::collections::{HashMap, VecDeque};

/// The number of a name that the current broker has refused.
pub(crate) const NONE: u32 = u32::MAX;

/// Released topics whose sequence numbers are remembered. Beyond, all topics that are new go on behind the highest.
const MAX_PAST: usize = 4096;

/// A user's reference to a name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NameRef {
    pub(crate) at: u32,
    /// Distinguishes it from earlier names in the same entry.
    pub(crate) id: u64,
    /// Its number in that session.
    pub(crate) number: u32,
    pub(crate) session: u64,
    /// The sequence number of its last message, before this use.
    pub(crate) past: u64,
}

/// The service of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Callee<'a> {
    pub(crate) name: &'a str,
    /// The entry of the name, if the caller is a user of it: then the name is not looked up.
    pub(crate) held: Option<NameRef>,
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
struct Entry {
    id: u64,
    name: Topic,
    number: u32,
    users: u32,
    /// When it was used last, on the table's own clock.
    used: u64,
    past: u64,
    /// To be released as soon as there is room in the lane.
    should_release: bool,
}

impl Entry {
    fn is_idle(&self) -> bool {
        self.users == 0 && !self.should_release
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
    by_name: FxHashMap<Topic, u32>,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    to_release: Vec<u32>,
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
    /// Looks up `name` for a use now, if it has an entry and the current broker has not refused it.
    pub(crate) fn touch(&mut self, name: &str, session: u64) -> Option<NameRef> {
        let at = *self.by_name.get(name)?;
        let entry = self.entries[at as usize].as_mut().filter(|entry| entry.number != NONE)?;
        self.clock += 1;
        entry.used = self.clock;
        Some(NameRef { at, id: entry.id, number: entry.number, session, past: entry.past })
    }

    /// The service of a request, if the current broker has given it a number.
    pub(crate) fn find(&mut self, callee: Callee<'_>, session: u64) -> Option<NameRef> {
        let Some(held) = callee.held else { return self.touch(callee.name, session) };
        let entry = self.entries.get(held.at as usize)?.as_ref();
        let entry = entry.filter(|entry| entry.id == held.id && entry.number != NONE)?;
        Some(NameRef { number: entry.number, session, ..held })
    }

    /// As [`touch`](Self::touch), for a use that lasts until [`remove_user`](Self::remove_user).
    pub(crate) fn add_user(&mut self, name: &str, session: u64) -> Option<NameRef> {
        let name = self.touch(name, session)?;
        let entry = self.entries[name.at as usize].as_mut()?;
        self.idle -= usize::from(entry.is_idle());
        entry.users += 1;
        entry.should_release = false;
        Some(name)
    }

    /// Removes a user. `keep`: the name is likely to be used again.
    pub(crate) fn remove_user(&mut self, name: NameRef, keep: bool) {
        let Some(entry) = self.entries.get_mut(name.at as usize).and_then(Option::as_mut) else { return };
        if entry.id != name.id {
            return;
        }
        entry.users -= 1;
        if entry.users == 0 && keep {
            self.idle += 1;
        } else if entry.users == 0 {
            entry.should_release = true;
            self.to_release.push(name.at);
        }
    }

    /// The broker has given `name` a number. If it has one already, because it was requested twice at a time, the new
    /// one is to be released.
    pub(crate) fn granted(&mut self, name: Topic, number: u32) {
        let known = self.by_name.get(&name).copied();
        if let Some(at) = known
            && let Some(entry) = self.entries[at as usize].as_mut().filter(|entry| entry.number == NONE)
        {
            entry.number = number;
            return;
        }
        self.insert(name, number, known.is_some());
    }

    fn insert(&mut self, name: Topic, number: u32, should_release: bool) {
        let at = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            (self.entries.len() - 1) as u32
        });
        self.last_id += 1;
        self.clock += 1;
        let past = self.past.get(&name).copied().unwrap_or(self.past_max);
        if should_release {
            self.to_release.push(at);
        } else {
            self.idle += 1;
            self.by_name.insert(name.clone(), at);
        }
        let (id, used) = (self.last_id, self.clock);
        self.entries[at as usize] = Some(Entry { id, name, number, users: 0, used, past, should_release });
    }

    /// A name to release: one without users that is not to be kept, or, beyond `kept` of these, the one that was
    /// used longest ago, unless it is `in_use`. Returns its entry, id and number.
    pub(crate) fn next_to_release(&mut self, kept: usize, in_use: impl Fn(u32) -> bool) -> Option<(u32, u64, u32)> {
        while let Some(at) = self.to_release.last() {
            match self.entries[*at as usize].as_ref().filter(|entry| entry.should_release) {
                Some(entry) => return Some((*at, entry.id, entry.number)),
                None => _ = self.to_release.pop(),
            }
        }
        if self.idle <= kept {
            return None;
        }
        let mut oldest: Option<(u32, &Entry)> = None;
        for (at, entry) in (0..).zip(&self.entries) {
            let Some(entry) = entry.as_ref().filter(|entry| entry.is_idle()) else { continue };
            // Asked for few: the question may be a search of its own.
            if oldest.is_none_or(|(_, oldest)| entry.used < oldest.used) && !in_use(at) {
                oldest = Some((at, entry));
            }
        }
        let (at, entry) = oldest?;
        Some((at, entry.id, entry.number))
    }

    /// It is released: the lane has the record. `seq` is the last sequence number, `end` and `consumed` are cells of
    /// the lane.
    pub(crate) fn released(&mut self, at: u32, seq: Option<u64>, end: u64, consumed: u64) {
        let Some(entry) = self.entries[at as usize].take() else { return };
        self.idle -= usize::from(entry.is_idle());
        self.free.push(at);
        if self.by_name.get(&entry.name) == Some(&at) {
            self.by_name.remove(&entry.name);
        }
        if let Some(seq) = seq.filter(|seq| *seq > 0) {
            if self.past.len() >= MAX_PAST {
                self.past_max = self.past.drain().map(|(_, seq)| seq).fold(self.past_max, u64::max);
            }
            let past = self.past.entry(entry.name.clone()).or_default();
            *past = seq.max(*past);
        }
        self.consumed(consumed);
        if entry.number != NONE && end > consumed {
            self.retired.push_back(Retired { id: entry.id, name: entry.name, number: entry.number, end });
        }
    }

    /// So many cells of the lane are consumed.
    pub(crate) fn consumed(&mut self, consumed: u64) {
        while self.retired.front().is_some_and(|retired| retired.end <= consumed) {
            self.retired.pop_front();
        }
    }

    /// Whether the broker has releases to consume.
    pub(crate) fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// All names that are requested from another broker, each with its id.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u64, &Topic)> {
        let entry = self.entries.iter().flatten().map(|entry| (entry.id, &entry.name));
        entry.chain(self.retired.iter().map(|retired| (retired.id, &retired.name)))
    }

    /// The names are requested from another broker.
    pub(crate) fn begin_restore(&mut self) {
        self.given.clear();
    }

    /// The other broker has given this number, or refused it.
    pub(crate) fn restored(&mut self, id: u64, given: Result<u32, Error>) {
        self.given.insert(id, given);
    }

    /// Adopts the numbers of a restarted broker. `consumed` are cells of the previous lane. Names that were retired at
    /// the previous broker are released at this one.
    pub(crate) fn renumber(
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
        placed.resize(self.entries.len(), TopicNumber::default());
        for (entry, placed) in self.entries.iter_mut().zip(placed) {
            let Some(entry) = entry else { continue };
            let number = match given.remove(&entry.id) {
                Some(Ok(number)) => number,
                Some(Err(error)) => {
                    refused.insert(entry.id, error);
                    NONE
                }
                None => NONE,
            };
            if entry.number != NONE {
                renumbering.add(entry.number, Some(number).filter(|number| *number != NONE));
            }
            entry.number = number;
            let seq = if placed.id == entry.id { placed.seq } else { entry.past };
            *placed = TopicNumber { id: entry.id, number, seq };
        }
        for (name, number) in released {
            self.insert(name, number, true);
        }
        renumbering
    }

    /// Another broker knows none of the names. Those that have users stay, and get a number when it is requested; the
    /// others are removed.
    pub(crate) fn forget_numbers(&mut self) {
        let last = std::mem::take(self);
        *self = Names { clock: last.clock, last_id: last.last_id, ..Names::default() };
        for (at, entry) in (0..).zip(last.entries) {
            match entry.filter(|entry| entry.users > 0) {
                Some(entry) => {
                    self.by_name.insert(entry.name.clone(), at);
                    self.entries.push(Some(Entry { number: NONE, ..entry }));
                }
                None => {
                    self.free.push(at);
                    self.entries.push(None);
                }
            }
        }
    }

    /// How many names there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.iter().flatten().count()
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
        while let Some((at, _, number)) = names.next_to_release(kept, |_| false) {
            numbers.push(number);
            names.released(at, Some(seq), numbers.len() as u64, 0);
        }
        numbers
    }

    #[test]
    fn a_name_in_use_is_not_released_and_the_next_oldest_is() {
        let mut names = Names::default();
        (0..3).for_each(|number| names.granted(topic(&format!("s{number}")), number));
        let [second, third, first] = ["s1", "s2", "s0"].map(|name| names.touch(name, 0).unwrap());
        let next =
            |names: &mut Names, used: &[u32]| names.next_to_release(1, |at| used.contains(&at)).map(|(at, ..)| at);
        assert_eq!(next(&mut names, &[]), Some(second.at));
        assert_eq!(next(&mut names, &[second.at]), Some(third.at));
        assert_eq!(next(&mut names, &[third.at]), Some(second.at));
        assert_eq!(next(&mut names, &[second.at, third.at]), Some(first.at));
        assert_eq!(next(&mut names, &[0, 1, 2]), None);
    }

    #[test]
    fn a_name_that_nobody_uses_is_released_at_once_or_when_others_were_used_later() {
        let mut names = Names::default();
        for (number, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
            names.granted(topic(name), number as u32);
        }
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| names.add_user(name, 0).unwrap());
        assert_eq!(names.next_to_release(0, |_| false), None);
        [c, a, b].into_iter().for_each(|place| names.remove_user(place, true));
        names.remove_user(d, false);
        assert_eq!(release(&mut names, 2, 1), [d.number, a.number], "it was used first");
        let (again, c) = (names.add_user("a", 0), names.add_user("c", 0).unwrap());
        assert!(again.is_none());
        assert_eq!(release(&mut names, 0, 1), [b.number], "one that is used stays");
        names.remove_user(c, false);
        assert_eq!(
            (names.add_user("c", 0).unwrap().id, names.next_to_release(0, |_| false)),
            (c.id, None),
            "found before it was released"
        );
    }

    #[test]
    fn at_another_broker_a_service_in_use_keeps_its_entry_and_gets_another_number() {
        let mut names = Names::default();
        ["idle", "held"].into_iter().zip([3, 4]).for_each(|(name, number)| names.granted(topic(name), number));
        let held = names.add_user("held", 0).unwrap();
        let callee = Callee { name: "held", held: Some(held) };
        assert_eq!(names.find(callee, 0).map(|found| (found.number, found.session)), Some((4, 0)));
        names.forget_numbers();
        assert!(names.find(callee, 1).is_none() && names.touch("idle", 1).is_none() && names.len() == 1);
        names.granted(topic("other"), 4);
        names.granted(topic("held"), 7);
        assert_eq!(names.find(callee, 1).map(|found| (found.at, found.number, found.session)), Some((held.at, 7, 1)));
        names.remove_user(held, true);
        names.forget_numbers();
        assert!(names.find(callee, 2).is_none() && names.len() == 0);
        // Its last user is gone, and the entry is another name's.
        names.granted(topic("later"), 1);
        names.granted(topic("last"), 2);
        names.remove_user(held, true);
        assert!(names.find(callee, 2).is_none() && names.touch("last", 2).is_some());
    }

    #[test]
    fn a_name_that_two_asked_for_has_one_number() {
        let mut names = Names::default();
        names.granted(topic("a"), 0);
        names.granted(topic("a"), 1);
        let a = names.add_user("a", 0).unwrap();
        assert_eq!((a.number, release(&mut names, 9, 0)), (0, vec![1]));
        names.remove_user(a, true);
        assert_eq!((names.add_user("a", 0).unwrap().number, names.len()), (0, 1));
    }

    #[test]
    fn sequence_numbers_never_restart_lower() {
        let mut names = Names::default();
        let mut open = |name: &str, seq: u64| {
            names.granted(topic(name), 7);
            let place = names.add_user(name, 0).unwrap();
            names.remove_user(place, false);
            assert_eq!(release(&mut names, 9, place.past + seq), [7]);
            names.consumed(u64::MAX);
            place.past
        };
        assert_eq!((open("a", 5), open("a", 1), open("b", 3), open("a", 1)), (0, 5, 0, 6));
        (0..MAX_PAST).for_each(|number| _ = open(&format!("n{number}"), 1));
        assert!(open("a", 1) >= 7, "the exact number is forgotten");
        assert!(names.past.len() <= MAX_PAST);
    }

    #[test]
    fn at_another_broker_names_have_other_numbers_and_one_may_be_refused() {
        let mut names = Names::default();
        // Released, and the record not consumed; then its number is another name's.
        names.granted(topic("gone"), 3);
        assert_eq!(names.next_to_release(0, |_| false).map(|(at, ..)| names.released(at, Some(9), 20, 10)), Some(()));
        names.granted(topic("a"), 3);
        names.granted(topic("b"), 4);
        let places = ["a", "b"].map(|name| names.add_user(name, 0).unwrap());
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
        let mut numbers = names.renumber(10, &mut placed, &mut refused);
        assert_eq!(numbers.publish(3), Some(0));
        numbers.release(3);
        assert_eq!((numbers.publish(3), numbers.publish(4), numbers.publish(9)), (Some(1), None, None));
        assert_eq!((placed[0].number, placed[0].seq, placed[1].number), (1, 44, NONE));
        assert!(refused.contains_key(&places[1].id) && names.add_user("b", 1).is_none());
        assert_eq!(names.next_to_release(9, |_| false).unwrap().2, 0, "the one that is gone is released there, too");
        // There is room again.
        names.granted(topic("b"), 8);
        assert_eq!(names.add_user("b", 1).map(|place| (place.id, place.number)), Some((places[1].id, 8)));
    }
}

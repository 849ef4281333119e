//! Deduplication: the topics that the broker has numbered for this client, and the last sequence number of each
//! publisher on them, by which a message that is sent again is recognised (S11). A publisher is known by its key, which
//! the broker makes, and not by the id of its connection: that can be another client's at the next broker.

use crate::wire::name::Topic;
use rustc_hash::FxHashMap;
use std::collections::{HashMap, VecDeque};

/// Topics without a number whose last sequence numbers are remembered: more than a lane holds.
const MAX_UNNUMBERED_TOPICS: usize = 4096;

/// Publishers of a topic that are remembered, for each of our subscriptions together. Beyond, those are forgotten that
/// were quiet for longest.
const MAX_SEQUENCES: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Last {
    /// Our own number of the subscription, which outlives a session.
    subscription: u32,
    /// Its key.
    publisher: u64,
    sequence: u64,
    at: u64,
}

/// The last messages in one topic.
#[derive(Debug, Default)]
pub(crate) struct LastSequences {
    known: Vec<Last>,
    /// The entry that was found last: mostly it is the next one, too.
    found: usize,
    clock: u64,
}

impl LastSequences {
    /// Notes that a message came. Returns whether it is a duplicate, which only a message that is sent again can be.
    #[inline]
    pub(crate) fn note(&mut self, subscription: u32, publisher: u64, sequence: u64, is_resent: bool) -> bool {
        self.clock += 1;
        let is = |last: &Last| last.subscription == subscription && last.publisher == publisher;
        if !self.known.get(self.found).is_some_and(is) {
            self.found = match self.known.iter().position(is) {
                Some(found) => found,
                None => self.add(Last { subscription, publisher, sequence: 0, at: 0 }),
            };
        }
        let last = &mut self.known[self.found];
        last.at = self.clock;
        if is_resent && sequence <= last.sequence {
            return true;
        }
        last.sequence = sequence;
        false
    }

    #[cold]
    fn add(&mut self, last: Last) -> usize {
        if self.known.len() < MAX_SEQUENCES {
            self.known.push(last);
            return self.known.len() - 1;
        }
        let quietest = (0..MAX_SEQUENCES).min_by_key(|at| self.known[*at].at).unwrap_or_default();
        self.known[quietest] = last;
        quietest
    }
}

/// A topic that the broker has a number for.
#[derive(Debug)]
pub(crate) struct NumberedTopic {
    pub(crate) topic: Topic,
    pub(crate) seen: LastSequences,
}

/// The topics of received messages, by the numbers of the current broker.
#[derive(Debug, Default)]
pub(crate) struct ReceivedTopics {
    numbered: FxHashMap<u32, NumberedTopic>,
    /// The last messages of topics that the last broker had numbered, or that are gone: a message on one of these may
    /// yet be sent again.
    remembered: HashMap<Topic, LastSequences>,
    /// Those that are gone, in order.
    gone: VecDeque<Topic>,
}

impl ReceivedTopics {
    #[inline]
    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut NumberedTopic> {
        self.numbered.get_mut(&number)
    }

    /// The broker assigns `number` to `topic`.
    pub(crate) fn assign(&mut self, number: u32, topic: Topic) {
        let seen = self.remembered.remove(&topic).unwrap_or_default();
        // The broker may reuse a number without a notice while this client has much to read.
        let gone = self.numbered.insert(number, NumberedTopic { topic, seen });
        self.remember(gone);
    }

    /// The broker has released `number`.
    pub(crate) fn release(&mut self, number: u32) {
        let gone = self.numbered.remove(&number);
        self.remember(gone);
    }

    /// Another broker assigns other numbers.
    pub(crate) fn renew(&mut self) {
        self.remembered.extend(self.numbered.drain().map(|(_, numbered)| (numbered.topic, numbered.seen)));
    }

    fn remember(&mut self, gone: Option<NumberedTopic>) {
        let Some(NumberedTopic { topic, seen }) = gone else { return };
        self.remembered.insert(topic.clone(), seen);
        self.gone.push_back(topic);
        if self.gone.len() > MAX_UNNUMBERED_TOPICS
            && let Some(topic) = self.gone.pop_front()
        {
            self.remembered.remove(&topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_sent_again_can_be_a_double() {
        let mut seen = LastSequences::default();
        assert!(!seen.note(1, 7, 1, false));
        assert!(!seen.note(1, 7, 5, false), "a gap");
        assert!(seen.note(1, 7, 5, true) && seen.note(1, 7, 1, true));
        assert!(!seen.note(2, 7, 5, true), "another subscription");
        assert!(!seen.note(1, 8, 5, true), "another publisher");
        assert!(!seen.note(1, 7, 6, true));
        assert!(seen.note(1, 7, 6, true));
        assert!(!seen.note(1, 7, 1, false), "another run of a publisher with the same number");
    }

    #[test]
    fn publishers_that_come_and_go_are_forgotten_before_those_that_stay() {
        let mut seen = LastSequences::default();
        for publisher in 1..10_000 {
            assert!(!seen.note(1, publisher, 1, true));
            seen.note(1, 0, publisher, false);
        }
        assert_eq!(seen.known.len(), MAX_SEQUENCES);
        assert!(seen.note(1, 0, 9_999, true));
    }
}

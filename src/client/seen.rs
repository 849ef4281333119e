//! Which message came last, by subscription and publisher: so that one that is sent again is not seen twice.

/// Publishers of a topic that are remembered, for each of our subscriptions together. Beyond, those are forgotten that
/// were quiet for longest.
const MOST: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Last {
    /// Our own number of the subscription, which outlives a session.
    subscription: u32,
    publisher: u32,
    sequence: u64,
    at: u64,
}

/// The last messages in one topic.
#[derive(Debug, Default)]
pub(super) struct Seen {
    known: Vec<Last>,
    /// Which of them was found last: mostly it is the next one, too.
    found: usize,
    clock: u64,
}

impl Seen {
    /// Notes that a message came. Answers whether it was there before, which only one can be that was sent again.
    #[inline]
    pub(super) fn note(&mut self, subscription: u32, publisher: u32, sequence: u64, is_resent: bool) -> bool {
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
        if self.known.len() < MOST {
            self.known.push(last);
            return self.known.len() - 1;
        }
        let quietest = (0..MOST).min_by_key(|at| self.known[*at].at).unwrap_or_default();
        self.known[quietest] = last;
        quietest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_sent_again_can_be_a_double() {
        let mut seen = Seen::default();
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
        let mut seen = Seen::default();
        for publisher in 1..10_000 {
            assert!(!seen.note(1, publisher, 1, true));
            seen.note(1, 0, u64::from(publisher), false);
        }
        assert_eq!(seen.known.len(), MOST);
        assert!(seen.note(1, 0, 9_999, true));
    }
}

//! When a broker that follows another takes up the first publish.
//!
//! The subscriptions of the last broker come back one client after the other. A publish that is routed before that
//! misses those that are not back. So publishes wait until each client that the last broker listed is back, or its
//! process has ended, or the grace is over.

use super::roster::Who;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Why publishes wait no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// None is missing.
    AllBack,
    /// So many are missing.
    GraceOver(usize),
}

/// The clients that are not back. Times are nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Missing {
    /// With the start of their processes.
    clients: BTreeMap<Who, u64>,
    until: u64,
    opened: Option<Opened>,
    /// The last one that was looked at.
    looked: Option<Who>,
}

impl Missing {
    /// Waits for `clients` until the grace is over. Without any, or without a grace, it waits for none.
    pub(crate) fn new(clients: impl IntoIterator<Item = (Who, u64)>, now: u64, grace: u64) -> Missing {
        let mut missing = Missing {
            clients: clients.into_iter().collect(),
            until: now.saturating_add(grace),
            opened: None,
            looked: None,
        };
        missing.decide(now);
        missing
    }

    /// How many publishes wait for: 0 once they are taken up.
    pub(crate) fn awaited(&self) -> usize {
        if self.opened.is_some() { 0 } else { self.clients.len() }
    }

    /// The time at which the grace is over.
    pub(crate) fn until(&self) -> u64 {
        self.until
    }

    /// This client's subscriptions are in force again, or it has left. `false`: it was not missing.
    pub(crate) fn back(&mut self, who: &Who) -> bool {
        self.clients.remove(who).is_some()
    }

    /// Leaves out those that do not live any more, and returns them. Looks at `most` at a time, in turn.
    pub(crate) fn look(&mut self, most: usize, mut lives: impl FnMut(&Who, u64) -> bool) -> Vec<Who> {
        let after = self.looked.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.clients.range((after, Bound::Unbounded));
        let begin = self.looked.map(|looked| self.clients.range(..=looked));
        let looked: Vec<_> = rest.chain(begin.into_iter().flatten()).take(most).collect();
        self.looked = looked.last().map(|(who, _)| **who);
        let dead: Vec<Who> =
            looked.into_iter().filter(|(who, start)| !lives(who, **start)).map(|(who, _)| *who).collect();
        self.clients.retain(|who, _| !dead.contains(who));
        dead
    }

    /// Whether publishes are taken up, and why. That does not change any more.
    pub(crate) fn decide(&mut self, now: u64) -> Option<Opened> {
        if self.opened.is_none() {
            self.opened = match self.clients.len() {
                0 => Some(Opened::AllBack),
                missing if now >= self.until => Some(Opened::GraceOver(missing)),
                _ => None,
            };
        }
        self.opened
    }

    /// Those that did not come back in time: none waits for them any more.
    pub(crate) fn give_up(&mut self) -> Vec<Who> {
        std::mem::take(&mut self.clients).into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn who(pid: u32) -> Who {
        Who { uid: 1000, pid, instance: 7 }
    }

    fn missing(pids: std::ops::Range<u32>, grace: u64) -> Missing {
        Missing::new(pids.map(|pid| (who(pid), u64::from(pid))), 100, grace)
    }

    #[test]
    fn without_a_roster_or_a_grace_no_publish_waits() {
        assert_eq!(missing(0..0, 50).decide(100), Some(Opened::AllBack));
        assert_eq!(missing(0..3, 0).decide(100), Some(Opened::GraceOver(3)));
        assert_eq!((missing(0..0, 50).awaited(), missing(0..3, 0).awaited()), (0, 0));
    }

    #[test]
    fn publishes_wait_for_the_last_that_comes_back() {
        let mut missing = missing(0..3, 50);
        assert!(missing.back(&who(0)) && missing.back(&who(2)) && !missing.back(&who(2)) && !missing.back(&who(9)));
        assert_eq!((missing.decide(149), missing.awaited()), (None, 1));
        assert!(missing.back(&who(1)));
        assert_eq!((missing.decide(149), missing.awaited()), (Some(Opened::AllBack), 0));
    }

    #[test]
    fn the_dead_are_not_waited_for() {
        let mut missing = missing(0..3, 50);
        assert_eq!(missing.look(9, |who, start| who.pid == 1 && start == 1), [who(0), who(2)]);
        assert_eq!(missing.decide(101), None);
        assert_eq!(missing.look(9, |_, _| false), [who(1)]);
        assert_eq!(missing.decide(101), Some(Opened::AllBack));
    }

    #[test]
    fn the_grace_ends_it_for_good() {
        let mut missing = missing(0..3, 50);
        assert_eq!((missing.decide(150), missing.awaited()), (Some(Opened::GraceOver(3)), 0));
        assert!(missing.back(&who(0)));
        assert_eq!(missing.give_up(), [who(1), who(2)]);
        assert_eq!(missing.decide(151), Some(Opened::GraceOver(3)));
    }

    #[test]
    fn each_is_looked_at_in_turn() {
        let mut missing = missing(0..5, 50);
        let mut seen = Vec::new();
        for _ in 0..5 {
            missing.look(2, |who, _| {
                seen.push(who.pid);
                true
            });
        }
        assert_eq!(seen, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
    }

    proptest! {
        /// Against a plain list: it opens when the last is back or dead, and at the end of the grace at the latest.
        #[test]
        fn it_opens_when_none_is_missing_or_the_grace_is_over(
            events in prop::collection::vec((0..3u8, 0..6u32, 0..20u64), 0..40),
            listed in 0..6u32,
        ) {
            let (mut missing, mut left, mut now) = (missing(0..listed, 100), (0..listed).collect::<Vec<_>>(), 100);
            let mut opened = missing.decide(now);
            for (what, pid, passed) in events {
                now += passed;
                match what {
                    0 => prop_assert_eq!(missing.back(&who(pid)), left.contains(&pid)),
                    1 => {
                        let dead = missing.look(99, |who, _| who.pid != pid);
                        prop_assert_eq!(dead.len(), usize::from(left.contains(&pid)));
                    }
                    _ => {}
                }
                if what < 2 {
                    left.retain(|other| *other != pid);
                }
                let expected = match left.len() {
                    0 => Some(Opened::AllBack),
                    n if now >= 200 => Some(Opened::GraceOver(n)),
                    _ => None,
                };
                opened = opened.or(expected);
                prop_assert_eq!(missing.decide(now), opened);
                prop_assert_eq!(missing.awaited(), if opened.is_some() { 0 } else { left.len() });
            }
        }
    }
}

//! The grace after a broker's restart, in which publishes wait for the subscribers of the last broker.
//!
//! The clients of the last broker subscribe again one after the other. A publish that is routed too early would miss
//! the late ones. So publishes wait until each listed client is back or its process has ended, or the grace is over.

use super::roster::ClientKey;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Why publishing was enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// No client is missing.
    AllBack,
    /// The number of clients that are still missing.
    GraceOver(usize),
}

/// The missing clients. Times are nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct RestartGrace {
    /// With the start times of their processes.
    clients: BTreeMap<ClientKey, u64>,
    until: u64,
    opened: Option<Opened>,
    /// The client that was checked last.
    looked: Option<ClientKey>,
}

impl RestartGrace {
    /// Waits for `clients` until the grace is over. Without clients or grace it does not wait.
    pub(crate) fn new(clients: impl IntoIterator<Item = (ClientKey, u64)>, now: u64, grace: u64) -> RestartGrace {
        let mut missing = RestartGrace {
            clients: clients.into_iter().collect(),
            until: now.saturating_add(grace),
            opened: None,
            looked: None,
        };
        missing.decide(now);
        missing
    }

    /// The number of awaited clients; 0 once publishing is enabled.
    pub(crate) fn awaited(&self) -> usize {
        if self.opened.is_some() { 0 } else { self.clients.len() }
    }

    /// The time at which the grace is over.
    pub(crate) fn until(&self) -> u64 {
        self.until
    }

    /// A client has restored its subscriptions, or left. `false`: it was not missing.
    pub(crate) fn back(&mut self, client: &ClientKey) -> bool {
        self.clients.remove(client).is_some()
    }

    /// Removes and returns clients whose processes have ended. Checks `most` of them, in turn.
    pub(crate) fn look(&mut self, most: usize, mut lives: impl FnMut(&ClientKey, u64) -> bool) -> Vec<ClientKey> {
        let after = self.looked.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.clients.range((after, Bound::Unbounded));
        let begin = self.looked.map(|looked| self.clients.range(..=looked));
        let looked: Vec<_> = rest.chain(begin.into_iter().flatten()).take(most).collect();
        self.looked = looked.last().map(|(client, _)| **client);
        let dead: Vec<ClientKey> =
            looked.into_iter().filter(|(client, start)| !lives(client, **start)).map(|(client, _)| *client).collect();
        self.clients.retain(|client, _| !dead.contains(client));
        dead
    }

    /// Whether publishing is enabled, and why. Once decided, it does not change.
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

    /// Removes and returns the clients that did not return in time.
    pub(crate) fn expire(&mut self) -> Vec<ClientKey> {
        std::mem::take(&mut self.clients).into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(pid: u32) -> ClientKey {
        ClientKey { uid: 1000, pid, instance: 7 }
    }

    fn missing(pids: std::ops::Range<u32>, grace: u64) -> RestartGrace {
        RestartGrace::new(pids.map(|pid| (client(pid), u64::from(pid))), 100, grace)
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
        assert!(
            missing.back(&client(0))
                && missing.back(&client(2))
                && !missing.back(&client(2))
                && !missing.back(&client(9))
        );
        assert_eq!((missing.decide(149), missing.awaited()), (None, 1));
        assert!(missing.back(&client(1)));
        assert_eq!((missing.decide(149), missing.awaited()), (Some(Opened::AllBack), 0));
    }

    #[test]
    fn the_dead_are_not_waited_for() {
        let mut missing = missing(0..3, 50);
        assert_eq!(missing.look(9, |client, start| client.pid == 1 && start == 1), [client(0), client(2)]);
        assert_eq!(missing.decide(101), None);
        assert_eq!(missing.look(9, |_, _| false), [client(1)]);
        assert_eq!(missing.decide(101), Some(Opened::AllBack));
    }

    #[test]
    fn the_grace_ends_it_for_good() {
        let mut missing = missing(0..3, 50);
        assert_eq!((missing.decide(150), missing.awaited()), (Some(Opened::GraceOver(3)), 0));
        assert!(missing.back(&client(0)));
        assert_eq!(missing.expire(), [client(1), client(2)]);
        assert_eq!(missing.decide(151), Some(Opened::GraceOver(3)));
    }

    #[test]
    fn each_is_looked_at_in_turn() {
        let mut missing = missing(0..5, 50);
        let mut seen = Vec::new();
        for _ in 0..5 {
            missing.look(2, |client, _| {
                seen.push(client.pid);
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
                    0 => prop_assert_eq!(missing.back(&client(pid)), left.contains(&pid)),
                    1 => {
                        let dead = missing.look(99, |client, _| client.pid != pid);
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

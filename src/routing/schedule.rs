//! Which connection the router serves next.
//!
//! ```text
//!            rings                    a quantum is used up
//!   cold ────────────► fresh ───────────────────────────► busy ─┐
//!    ▲                   │ dry                             │ ▲   │ a quantum is used up
//!    │ quiet for long    ▼                            dry  │ └───┘
//!    └───────────────── quiet ◄────────────────────────────┘
//!                        │  something came: fresh
//! ```
//!
//! This is deficit round robin (Shreedhar and Varghese, 1995) with the sparse-flow rule of FQ-CoDel (RFC 8290): a
//! connection that had nothing to say goes ahead of those that have much. The quantum is counted by the router, which
//! ends a connection's turn; fresh ones come first. *Quiet* connections are polled in memory, few at most; *cold* ones
//! ring. So the cost follows activity, not the number of connections.

use std::collections::VecDeque;

/// How many connections are polled although they say nothing.
pub(crate) const MOST_QUIET: usize = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Cold,
    Fresh,
    Busy,
    Quiet,
    /// Being served.
    Turn,
}

/// The order of service. Connections are named by small numbers that come again.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    places: Vec<Place>,
    fresh: VecDeque<u32>,
    busy: VecDeque<u32>,
    quiet: Vec<u32>,
}

impl Schedule {
    /// Makes room for connection `key`; it is cold.
    pub(crate) fn add(&mut self, key: u32) {
        if self.places.len() <= key as usize {
            self.places.resize(key as usize + 1, Place::Cold);
        }
        debug_assert_eq!(self.places[key as usize], Place::Cold);
    }

    /// Forgets connection `key`, wherever it is.
    pub(crate) fn remove(&mut self, key: u32) {
        match self.places[key as usize] {
            Place::Fresh => self.fresh.retain(|k| *k != key),
            Place::Busy => self.busy.retain(|k| *k != key),
            Place::Quiet => self.quiet.retain(|k| *k != key),
            Place::Cold | Place::Turn => {}
        }
        self.places[key as usize] = Place::Cold;
    }

    /// Connection `key` has something to say, or may have.
    pub(crate) fn wake(&mut self, key: u32) {
        match self.places[key as usize] {
            Place::Quiet => self.quiet.retain(|k| *k != key),
            Place::Cold => {}
            Place::Fresh | Place::Busy | Place::Turn => return,
        }
        self.places[key as usize] = Place::Fresh;
        self.fresh.push_back(key);
    }

    /// The next to be served; `yields`, `is_dry` or `cools` must follow.
    pub(crate) fn next(&mut self) -> Option<u32> {
        let key = self.fresh.pop_front().or_else(|| self.busy.pop_front())?;
        self.places[key as usize] = Place::Turn;
        Some(key)
    }

    /// The one that is served has more to say.
    pub(crate) fn yields(&mut self, key: u32) {
        if self.places[key as usize] == Place::Turn {
            self.places[key as usize] = Place::Busy;
            self.busy.push_back(key);
        }
    }

    /// The one that is served has nothing more to say, and is polled from now on. Answers who must cool down instead,
    /// because too many are polled: the one that has been quiet longest.
    pub(crate) fn is_dry(&mut self, key: u32) -> Option<u32> {
        if self.places[key as usize] == Place::Turn {
            self.places[key as usize] = Place::Quiet;
            self.quiet.push(key);
        }
        (self.quiet.len() > MOST_QUIET).then(|| self.quiet[0])
    }

    /// Connection `key` is not polled any more, and will ring.
    pub(crate) fn cools(&mut self, key: u32) {
        self.remove(key);
    }

    /// The connections that are polled, the longest quiet first.
    pub(crate) fn quiet(&self) -> &[u32] {
        &self.quiet
    }

    /// Whether anybody waits to be served.
    pub(crate) fn is_idle(&self) -> bool {
        self.fresh.is_empty() && self.busy.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(connections: u32) -> Schedule {
        let mut schedule = Schedule::default();
        (0..connections).for_each(|key| schedule.add(key));
        schedule
    }

    #[test]
    fn the_quiet_go_ahead_of_the_busy() {
        let mut schedule = schedule(4);
        for key in [0, 1] {
            schedule.wake(key);
            assert_eq!(schedule.next(), Some(key));
            schedule.yields(key);
        }
        schedule.wake(2);
        assert_eq!(schedule.next(), Some(2), "fresh");
        schedule.yields(2);
        assert_eq!((schedule.next(), schedule.next(), schedule.next()), (Some(0), Some(1), Some(2)), "then in turn");
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn a_connection_is_in_one_place_only() {
        let mut schedule = schedule(2);
        schedule.wake(0);
        schedule.wake(0);
        assert_eq!((schedule.next(), schedule.next()), (Some(0), None));
        schedule.wake(0);
        assert_eq!(schedule.is_dry(0), None);
        assert_eq!(schedule.quiet(), [0]);
        schedule.wake(0);
        assert_eq!(schedule.quiet(), [] as [u32; 0]);
        assert_eq!(schedule.next(), Some(0));
        schedule.remove(0);
        schedule.yields(0);
        assert!(schedule.is_idle(), "a removed connection does not come back");
    }

    #[test]
    fn few_are_polled() {
        let mut schedule = schedule(20);
        for key in 0..20 {
            schedule.wake(key);
            schedule.next();
            if let Some(cold) = schedule.is_dry(key) {
                assert_eq!(cold, key - MOST_QUIET as u32);
                schedule.cools(cold);
            }
        }
        assert_eq!(schedule.quiet().len(), MOST_QUIET);
    }
}

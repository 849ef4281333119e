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
//! connection that was idle goes ahead of those that are backlogged. The quantum is counted by the router, which
//! ends a connection's turn; fresh ones come first. *Quiet* connections are polled in memory, few at most; *cold* ones
//! ring. So the cost follows activity, not the number of connections.

use std::collections::VecDeque;

/// How many idle connections are polled.
pub(crate) const MAX_QUIET: usize = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum QueueState {
    #[default]
    Cold,
    Fresh,
    Busy,
    Quiet,
    /// Being served.
    Turn,
}

/// The order of service. Connections are named by small numbers, which are reused.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    states: Vec<QueueState>,
    fresh: VecDeque<u32>,
    busy: VecDeque<u32>,
    quiet: Vec<u32>,
}

impl Schedule {
    /// Adds connection `key`, which is cold.
    pub(crate) fn add(&mut self, key: u32) {
        if self.states.len() <= key as usize {
            self.states.resize(key as usize + 1, QueueState::Cold);
        }
        debug_assert_eq!(self.states[key as usize], QueueState::Cold);
    }

    /// Removes connection `key`, in any state.
    pub(crate) fn remove(&mut self, key: u32) {
        match self.states[key as usize] {
            QueueState::Fresh => self.fresh.retain(|k| *k != key),
            QueueState::Busy => self.busy.retain(|k| *k != key),
            QueueState::Quiet => self.quiet.retain(|k| *k != key),
            QueueState::Cold | QueueState::Turn => {}
        }
        self.states[key as usize] = QueueState::Cold;
    }

    /// Connection `key` may have records.
    pub(crate) fn wake(&mut self, key: u32) {
        match self.states[key as usize] {
            QueueState::Quiet => self.quiet.retain(|k| *k != key),
            QueueState::Cold => {}
            QueueState::Fresh | QueueState::Busy | QueueState::Turn => return,
        }
        self.states[key as usize] = QueueState::Fresh;
        self.fresh.push_back(key);
    }

    /// The next to be served; `requeue`, `mark_idle` or `mark_cold` must follow.
    pub(crate) fn next(&mut self) -> Option<u32> {
        let key = self.fresh.pop_front().or_else(|| self.busy.pop_front())?;
        self.states[key as usize] = QueueState::Turn;
        Some(key)
    }

    /// The served connection has more records.
    pub(crate) fn requeue(&mut self, key: u32) {
        if self.states[key as usize] == QueueState::Turn {
            self.states[key as usize] = QueueState::Busy;
            self.busy.push_back(key);
        }
    }

    /// The served connection has no more records, and is polled from now on. Returns the evicted connection, if too
    /// many are polled: the one that has been quiet longest, for [`Schedule::mark_cold`].
    pub(crate) fn mark_idle(&mut self, key: u32) -> Option<u32> {
        if self.states[key as usize] == QueueState::Turn {
            self.states[key as usize] = QueueState::Quiet;
            self.quiet.push(key);
        }
        (self.quiet.len() > MAX_QUIET).then(|| self.quiet[0])
    }

    /// Connection `key` is no longer polled, and will ring.
    pub(crate) fn mark_cold(&mut self, key: u32) {
        self.remove(key);
    }

    /// The connections that are polled, the longest quiet first.
    pub(crate) fn quiet(&self) -> &[u32] {
        &self.quiet
    }

    /// Whether no connection waits to be served.
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
            schedule.requeue(key);
        }
        schedule.wake(2);
        assert_eq!(schedule.next(), Some(2), "fresh");
        schedule.requeue(2);
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
        assert_eq!(schedule.mark_idle(0), None);
        assert_eq!(schedule.quiet(), [0]);
        schedule.wake(0);
        assert_eq!(schedule.quiet(), [] as [u32; 0]);
        assert_eq!(schedule.next(), Some(0));
        schedule.remove(0);
        schedule.requeue(0);
        assert!(schedule.is_idle(), "a removed connection does not come back");
    }

    #[test]
    fn few_are_polled() {
        let mut schedule = schedule(20);
        for key in 0..20 {
            schedule.wake(key);
            schedule.next();
            if let Some(cold) = schedule.mark_idle(key) {
                assert_eq!(cold, key - MAX_QUIET as u32);
                schedule.mark_cold(cold);
            }
        }
        assert_eq!(schedule.quiet().len(), MAX_QUIET);
    }
}

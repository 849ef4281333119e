//! How long a publish waits for a subscription that would drop it.
//!
//! A subscriber that reads should not lose messages: its ring may still be small, or its reader about to wake. So the
//! publish waits while the subscriber makes progress: each progress gives a *grace* anew. A grace without progress
//! marks it as *stalled*, and nothing waits for a stalled one until it has taken something.
//!
//! All waiting for one subscription comes out of an allowance of twice the grace. It fills by a tenth of the time that
//! passes, and by [`EARNED`] for each cell that is taken. So a subscriber below that pace delays publishers for at most
//! a tenth of the time, and one above it does not slow them below that pace.

/// Time that each cell taken gives, in nanoseconds: a pace of 25,000 cells a second.
const EARNED: u64 = 40_000;
/// The allowance fills by this part of the time.
const SHARE: u64 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reads,
    /// A publish waits for it, and it has made no progress since then.
    Pending {
        since: u64,
    },
    Stalled,
}

/// The resource that a subscription lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// Space in the ring of its connection.
    Space,
    /// Credit.
    Credit,
}

/// The state of one subscription. Times are nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grace {
    state: State,
    /// Of the allowance.
    left: u64,
    counted_at: u64,
    /// Cells taken until it was last asked, by what it lacked.
    taken: [u64; 2],
}

impl Default for Grace {
    /// With the whole allowance.
    fn default() -> Grace {
        Grace { state: State::Reads, left: u64::MAX, counted_at: 0, taken: [0; 2] }
    }
}

impl Grace {
    /// Whether a publish that finds no room waits, and until when: `taken` counts the cells that the subscriber has
    /// ever given room for, of the kind that it lacks.
    pub(crate) fn wait(&mut self, now: u64, lack: Lack, taken: u64, grace: u64) -> Option<u64> {
        let moved = taken.saturating_sub(std::mem::replace(&mut self.taken[lack as usize], taken));
        self.count(now, grace);
        self.left = self.left.saturating_add(moved.saturating_mul(EARNED)).min(2 * grace);
        // What is left is used in pieces that are worth the while.
        let least = grace / 8;
        match self.state {
            State::Stalled if moved == 0 => None,
            State::Pending { since } if moved == 0 && (now >= since + grace || self.left <= least) => {
                self.state = State::Stalled;
                None
            }
            State::Pending { since } if moved == 0 => Some((since + grace).min(now + self.left)),
            _ if self.left <= least => {
                self.state = State::Reads;
                None
            }
            _ => {
                self.state = State::Pending { since: now };
                Some(now + grace.min(self.left))
            }
        }
    }

    /// It got a message.
    #[inline]
    pub(crate) fn got(&mut self, now: u64, grace: u64) {
        if self.state != State::Reads {
            self.count(now, grace);
            self.state = State::Reads;
        }
    }

    /// Resets the waiting time: no router observed the subscriber's progress.
    pub(crate) fn forget(&mut self, now: u64) {
        (self.state, self.counted_at) = (State::Reads, now);
    }

    fn count(&mut self, now: u64, grace: u64) {
        let passed = now - std::mem::replace(&mut self.counted_at, now);
        if matches!(self.state, State::Pending { .. }) {
            // A publish waits no longer than that without asking again.
            self.left = self.left.min(2 * grace).saturating_sub(passed.min(grace));
        }
        self.left = self.left.saturating_add(passed / SHARE).min(2 * grace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const GRACE: u64 = 50 * MS;
    const START: u64 = 10_000 * MS;

    #[test]
    fn a_stopped_subscriber_delays_a_publish_once() {
        let mut grace = Grace::default();
        assert_eq!(grace.wait(START, Lack::Space, 7, GRACE), Some(START + GRACE));
        assert_eq!(grace.wait(START + 49 * MS, Lack::Space, 7, GRACE), Some(START + GRACE));
        for later in [50, 51, 1_000, 100_000] {
            assert_eq!(grace.wait(START + later * MS, Lack::Space, 7, GRACE), None, "{later} ms later");
        }
        let now = START + 200_000 * MS;
        assert_eq!(grace.wait(now, Lack::Space, 8, GRACE), Some(now + GRACE), "it has taken something");
    }

    #[test]
    fn a_subscriber_that_reads_fast_is_waited_for_without_end() {
        let (mut grace, mut now) = (Grace::default(), START);
        for cells in (0..1_000_000).step_by(100) {
            assert!(grace.wait(now, Lack::Space, cells, GRACE).is_some(), "after {cells} cells");
            now += MS;
        }
    }

    #[test]
    fn a_subscriber_that_reads_slowly_delays_publishers_a_tenth_of_the_time() {
        let (mut grace, mut now, mut waited) = (Grace::default(), START, 0);
        for cell in 0..1_000 {
            // It takes a cell each ten milliseconds, and each time there is another publish.
            if let Some(until) = grace.wait(now, Lack::Credit, cell, GRACE) {
                let time = (until - now).min(10 * MS);
                waited += time / MS;
                grace.got(now + time, GRACE);
            }
            now += 10 * MS;
        }
        assert!((900..1_250).contains(&waited), "{waited} ms of 10 s");
    }

    #[test]
    fn a_time_that_is_over_is_not_followed_by_shorter_ones() {
        let (mut grace, mut now, mut waits) = (Grace::default(), 30 * MS, 0);
        while let Some(until) = grace.wait(now, Lack::Space, 0, GRACE) {
            (now, waits) = (until, waits + 1);
        }
        assert_eq!((now, waits), (30 * MS + GRACE, 1));
    }

    #[test]
    fn space_is_no_progress_where_credit_is_lacking() {
        let mut grace = Grace::default();
        assert!(grace.wait(START, Lack::Credit, 0, GRACE).is_some());
        assert!(grace.wait(START + MS, Lack::Space, 1_000, GRACE).is_some());
        assert_eq!(grace.wait(START + 60 * MS, Lack::Credit, 0, GRACE), None);
    }

    #[test]
    fn without_a_grace_nothing_waits() {
        let mut grace = Grace::default();
        assert_eq!(grace.wait(START, Lack::Space, 1, 0), None);
        assert_eq!(grace.wait(START + MS, Lack::Space, 2, 0), None);
    }
}

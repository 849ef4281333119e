//! A share of the router's time for what the traffic of one user causes to others.
//!
//! A token bucket (RFC 2697 has the idea for bytes): it fills by a given part of the time that passes, up to a burst.
//! Work is done first and paid for afterwards, so the account may be overdrawn; then the user waits until it is not. So
//! no piece of work is too large, and in the long run the user gets no more than its part.

/// The part of the time that a user may cause as work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkShare {
    /// Of the time, in percent; 100 and more: no limit.
    pub(crate) percent: u32,
    /// What can be saved up: the part of so many nanoseconds.
    pub(crate) window: u64,
}

/// The account of one user. Times are nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkAccount {
    /// Work that may be done; below zero: work that is not paid for yet.
    left: i64,
    filled_at: u64,
}

impl WorkAccount {
    /// A full account.
    pub(crate) fn new(share: WorkShare, now: u64) -> WorkAccount {
        WorkAccount { left: share.burst(), filled_at: now }
    }

    /// Whether more may be done.
    #[inline]
    pub(crate) fn has_time(&mut self, share: WorkShare, now: u64) -> bool {
        self.fill(share, now);
        self.left > 0
    }

    /// Whether as much is saved up as can be.
    pub(crate) fn is_full(&mut self, share: WorkShare, now: u64) -> bool {
        self.fill(share, now);
        self.left >= share.burst()
    }

    /// Pays for work that took this many nanoseconds.
    #[inline]
    pub(crate) fn pay(&mut self, nanos: u64) {
        self.left = self.left.saturating_sub_unsigned(nanos);
    }

    /// When more may be done.
    pub(crate) fn next(&self, share: WorkShare) -> u64 {
        if share.is_unlimited() || self.left > 0 {
            return self.filled_at;
        }
        let missing = self.left.unsigned_abs().saturating_add(1);
        self.filled_at.saturating_add(missing.saturating_mul(100) / u64::from(share.percent.max(1)) + 1)
    }

    /// What is left.
    #[cfg(test)]
    pub(crate) fn left(&self) -> i64 {
        self.left
    }

    #[inline]
    fn fill(&mut self, share: WorkShare, now: u64) {
        let more = now.saturating_sub(self.filled_at).saturating_mul(u64::from(share.percent)) / 100;
        // Otherwise small pieces of time would be rounded away.
        if more > 0 {
            self.filled_at = now;
            self.left = self.left.saturating_add_unsigned(more).min(share.burst());
        }
        if share.is_unlimited() {
            self.left = share.burst();
        }
    }
}

impl WorkShare {
    fn burst(self) -> i64 {
        i64::try_from(self.window.saturating_mul(u64::from(self.percent.min(100))) / 100).unwrap_or(i64::MAX)
    }

    fn is_unlimited(self) -> bool {
        self.percent >= 100
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: u64 = 100_000_000;
    const SHARE: WorkShare = WorkShare { percent: 5, window: WINDOW };

    #[test]
    fn an_overdrawn_account_is_filled_again() {
        let mut account = WorkAccount::new(SHARE, 1000);
        assert!(account.has_time(SHARE, 1000));
        account.pay(6_000_000);
        assert!(!account.has_time(SHARE, 1000));
        let next = account.next(SHARE);
        assert!(!account.has_time(SHARE, next - 100) && account.has_time(SHARE, next), "{next}");
        assert!((20_000_000..20_002_000).contains(&next), "a millisecond is missing: {next}");
    }

    #[test]
    fn a_share_of_all_is_no_limit() {
        let all = WorkShare { percent: 100, window: WINDOW };
        let mut account = WorkAccount::new(all, 0);
        account.pay(u64::MAX);
        assert!(account.has_time(all, 0));
        assert_eq!(account.next(all), 0);
    }

    proptest! {
        /// Whatever comes when, the work that is done is the burst, the share, and one piece.
        #[test]
        fn no_more_than_the_share_is_done(
            percent in 1u32..100,
            steps in prop::collection::vec((0u64..20_000_000, 1u64..50_000_000), 1..300),
        ) {
            let share = WorkShare { percent, window: WINDOW };
            let (mut account, mut now, mut done, mut largest) = (WorkAccount::new(share, 0), 0, 0, 0);
            for (pause, piece) in steps {
                now += pause;
                if account.has_time(share, now) {
                    account.pay(piece);
                    (done, largest) = (done + piece, largest.max(piece));
                } else {
                    prop_assert!(account.next(share) > now);
                }
            }
            prop_assert!(done <= (WINDOW + now) * u64::from(percent) / 100 + largest);
        }
    }
}

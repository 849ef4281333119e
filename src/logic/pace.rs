//! The usual reply time of a service: a deadline shorter than that does not count as a failure (rule B2).
//!
//! A deadline is the requester's choice. One that is shorter than the service's usual time is no evidence
//! against the service, and must not open its breaker for others. The usual time is the median of the last replies: a
//! few fast or slow ones do not change it, and a service that hangs keeps its last value. Before the first reply,
//! deadlines of at least [`UNKNOWN`] count.

/// Remembered replies.
const KEPT: usize = 15;

/// The assumed usual time of a service before its first reply, in nanoseconds.
pub(crate) const UNKNOWN: u64 = 100_000_000;

/// The times of a service's last replies.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    /// In microseconds, rounded down.
    times: [u32; KEPT],
    /// The count of remembered times.
    kept: u8,
    /// The index of the next one.
    next: u8,
}

impl Pace {
    /// A reply has begun, this many nanoseconds after the service could begin it.
    #[inline]
    pub(crate) fn replied(&mut self, nanos: u64) {
        self.times[usize::from(self.next)] = u32::try_from(nanos / 1000).unwrap_or(u32::MAX);
        self.next = (self.next + 1) % KEPT as u8;
        self.kept = (self.kept + 1).min(KEPT as u8);
    }

    /// The usual time to a reply, in nanoseconds.
    pub(crate) fn usual(&self) -> u64 {
        let kept = usize::from(self.kept);
        if kept == 0 {
            return UNKNOWN;
        }
        let mut times = self.times;
        let (_, median, _) = times[..kept].select_nth_unstable(kept / 2);
        u64::from(*median) * 1000
    }

    /// Whether a deadline of this many nanoseconds that has passed is the service's failure.
    pub(crate) fn is_fair(&self, nanos: u64) -> bool {
        nanos >= self.usual()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn pace(ms: impl IntoIterator<Item = u64>) -> Pace {
        let mut pace = Pace::default();
        ms.into_iter().for_each(|ms| pace.replied(ms * MS));
        pace
    }

    #[test]
    fn a_deadline_shorter_than_the_usual_time_is_not_fair() {
        let pace = pace([20, 22, 21]);
        assert_eq!(pace.usual(), 21 * MS);
        assert!(!pace.is_fair(MS) && !pace.is_fair(20 * MS));
        assert!(pace.is_fair(21 * MS) && pace.is_fair(1000 * MS));
    }

    #[test]
    fn a_service_without_a_reply_is_measured_by_a_fixed_time() {
        let pace = Pace::default();
        assert!(!pace.is_fair(MS) && !pace.is_fair(UNKNOWN - 1) && pace.is_fair(UNKNOWN));
    }

    #[test]
    fn a_few_quick_or_slow_replies_do_not_move_it_and_the_last_ones_do() {
        assert_eq!(pace([20; 15].into_iter().chain([0; 7])).usual(), 20 * MS);
        assert_eq!(pace([20; 15].into_iter().chain([60_000; 7])).usual(), 20 * MS);
        assert_eq!(pace([20; 15].into_iter().chain([50; 8])).usual(), 50 * MS);
        assert_eq!(pace((0..1000).map(|n| n / 500)).usual(), MS);
    }

    #[test]
    fn a_time_beyond_the_count_is_the_longest() {
        let mut pace = Pace::default();
        pace.replied(u64::MAX);
        assert_eq!(pace.usual(), u64::from(u32::MAX) * 1000);
    }
}

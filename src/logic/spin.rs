//! How long a side that waits spins before it sleeps, learned from what became of its waits.
//!
//! 1. Work that came soon after the side fell asleep shows that a longer spin would have paid: the time doubles, up to
//!    a maximum. Work that came late halves it.
//! 2. A wake can take longer than the maximum itself, where an idle virtual CPU has halted. Then no sleep is short, and
//!    by rule 1 alone the time would stay at its minimum, though the work was there within microseconds. So one of
//!    [`EXPLORE`] waits spins for the maximum, and if work comes, the time becomes twice what that took.

/// Of so many waits one explores.
const EXPLORE: u32 = 16;
/// The shortest spin, in nanoseconds.
const MIN: u64 = 2_000;

/// The time to spin. Times are nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpinTime {
    now: u64,
    min: u64,
    max: u64,
    waits: u32,
}

/// One wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spin {
    /// How long to spin.
    pub(crate) time: u64,
    /// Whether [`SpinTime::found`] wants to know when work came.
    pub(crate) explores: bool,
}

impl SpinTime {
    /// Spins for `max` at first; 0: never.
    pub(crate) fn new(max: u64) -> SpinTime {
        SpinTime { now: max, min: MIN.min(max), max, waits: 0 }
    }

    /// The next wait begins.
    #[inline]
    pub(crate) fn begin(&mut self) -> Spin {
        if self.now == self.max {
            return Spin { time: self.max, explores: false };
        }
        self.waits = self.waits.wrapping_add(1);
        let explores = self.waits.is_multiple_of(EXPLORE);
        Spin { time: if explores { self.max } else { self.now }, explores }
    }

    /// Whether more than the shortest spin has paid lately.
    #[inline]
    pub(crate) fn pays(&self) -> bool {
        self.now > self.min
    }

    /// In a wait that explores, work came after spinning for so long.
    pub(crate) fn found(&mut self, after: u64) {
        self.now = after.saturating_mul(2).clamp(self.now, self.max);
    }

    /// The side has slept for so long after it spun in vain.
    pub(crate) fn slept(&mut self, time: u64) {
        let next = if time < self.max { self.now.saturating_mul(2) } else { self.now / 2 };
        self.now = next.clamp(self.min, self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: u64 = 50_000;

    /// Waits for work that comes after `work`, on a machine where a wake takes `wake`. Returns the latency.
    fn wait(spin: &mut SpinTime, work: u64, wake: u64) -> u64 {
        let Spin { time, explores } = spin.begin();
        if work < time {
            if explores {
                spin.found(work);
            }
            return work;
        }
        spin.slept(work - time + wake);
        work + wake
    }

    fn waits(spin: &mut SpinTime, count: usize, work: u64, wake: u64) -> Vec<u64> {
        (0..count).map(|_| wait(spin, work, wake)).collect()
    }

    #[test]
    fn rare_work_is_slept_for_and_frequent_work_is_not() {
        let mut spin = SpinTime::new(MAX);
        waits(&mut spin, 10, 1_000_000, 5_000);
        assert!(!spin.pays());
        assert_eq!(spin.begin().time, MIN);
        waits(&mut spin, 10, 10_000, 5_000);
        assert_eq!(wait(&mut spin, 10_000, 5_000), 10_000);
    }

    #[test]
    fn slow_wakes_do_not_hide_that_work_comes_soon() {
        let mut spin = SpinTime::new(MAX);
        // Nothing came for a while, so it sleeps; then work comes soon, but a wake takes twice the longest spin.
        waits(&mut spin, 10, 1_000_000, 100_000);
        let latencies = waits(&mut spin, 40, 10_000, 100_000);
        assert_eq!(latencies[0], 110_000);
        assert_eq!(
            latencies.iter().filter(|latency| **latency > 10_000).count(),
            EXPLORE as usize - 10,
            "the first wait of all has the maximum"
        );
        assert_eq!(wait(&mut spin, 19_000, 100_000), 19_000, "twice the time that it took");
    }

    #[test]
    fn a_side_that_may_not_spin_does_not() {
        let mut spin = SpinTime::new(0);
        assert_eq!(waits(&mut spin, 40, 10, 10), [20; 40]);
        assert_eq!(spin.begin(), Spin { time: 0, explores: false });
    }

    proptest! {
        #[test]
        fn the_time_stays_within_its_bounds(
            max in 0u64..100_000,
            works in prop::collection::vec((0u64..200_000, 0u64..200_000), 0..200),
        ) {
            let mut spin = SpinTime::new(max);
            let mut spun = 0;
            for (work, wake) in &works {
                wait(&mut spin, *work, *wake);
                prop_assert!((MIN.min(max)..=max).contains(&spin.now));
                spun += u64::from(spin.begin().time == max);
            }
            // What rare work costs: the way down from the maximum, and one of the waits.
            if works.iter().all(|(work, _)| *work > 2 * max) && max > MIN {
                prop_assert!(spun <= 8 + works.len() as u64 * 2 / u64::from(EXPLORE));
            }
        }
    }
}

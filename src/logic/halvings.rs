//! A time that is halved by each event that speaks against waiting, and doubled again by each quiet [`PERIOD`].

/// Without an event for this long, one halving is forgotten, in nanoseconds.
pub(crate) const PERIOD: u64 = 10_000_000_000;

/// The halvings in force.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Halvings {
    count: u32,
    /// When the last one was, or one was forgotten.
    at: u64,
}

impl Halvings {
    /// Adds one, up to `most`.
    pub(crate) fn halve(&mut self, most: u32, now: u64) {
        self.forget(now);
        *self = Halvings { count: (self.count + 1).min(most), at: now };
    }

    /// How many are in force.
    pub(crate) fn count(&mut self, now: u64) -> u32 {
        self.forget(now);
        self.count
    }

    /// When the last one was, or one was forgotten.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    fn forget(&mut self, now: u64) {
        let periods = u32::try_from(now.saturating_sub(self.at) / PERIOD).unwrap_or(u32::MAX);
        self.count = self.count.saturating_sub(periods);
        self.at += u64::from(periods) * PERIOD;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_periods_forget_halvings_one_by_one() {
        let mut halvings = Halvings::default();
        (0..9).for_each(|at| halvings.halve(7, 3 * PERIOD + at));
        assert_eq!((halvings.count(3 * PERIOD + 8), halvings.at()), (7, 3 * PERIOD + 8));
        assert_eq!(halvings.count(5 * PERIOD + 7), 6);
        assert_eq!(halvings.count(5 * PERIOD + 8), 5);
        halvings.halve(7, 6 * PERIOD);
        assert_eq!(halvings.count(7 * PERIOD - 1), 6);
        assert_eq!(halvings.count(u64::MAX), 0);
    }
}

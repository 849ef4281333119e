//! Histograms of which the bounds double: one addition to a plain number for each observation, and no memory but their
//! own.
//!
//! The first bound is `BASE`, each further one twice the one before. So a quantile that is read out of them is wrong by
//! a factor of two at most, wherever it lies, and the bucket follows from the number's leading zeros. Finer ones would
//! cost the memory of each service and the lines of each scrape; those of two a decade are wrong by a factor of three.

/// Bounds for times in nanoseconds: from 100 ns to 13.4 s.
pub(crate) type Durations = Histogram<100, 28>;
/// Bounds for counts: from 1 to 2,048.
pub(crate) type Sizes = Histogram<1, 12>;

/// A histogram: observation counts in `BUCKETS` buckets with a bound, and one beyond them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Histogram<const BASE: u64, const BUCKETS: usize> {
    counts: [u64; BUCKETS],
    beyond: u64,
    sum: u64,
}

impl<const BASE: u64, const BUCKETS: usize> Default for Histogram<BASE, BUCKETS> {
    fn default() -> Self {
        Histogram { counts: [0; BUCKETS], beyond: 0, sum: 0 }
    }
}

impl<const BASE: u64, const BUCKETS: usize> Histogram<BASE, BUCKETS> {
    /// The upper bounds of the buckets; each belongs to its bucket.
    pub(crate) fn bounds() -> impl Iterator<Item = u64> {
        (0..BUCKETS).map(|bucket| BASE << bucket)
    }

    /// `value` was observed so many times.
    #[inline]
    pub(crate) fn observe(&mut self, value: u64, times: u64) {
        // The first bucket whose bound, in units of the base, is not below the value.
        let bucket = value.div_ceil(BASE).saturating_sub(1).checked_ilog2().map_or(0, |log| log as usize + 1);
        match self.counts.get_mut(bucket) {
            Some(count) => *count += times,
            None => self.beyond += times,
        }
        self.sum = self.sum.saturating_add(value.saturating_mul(times));
    }

    /// Adds what another one has observed.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.beyond += other.beyond;
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// Observations in each bucket, those before it not included.
    pub(crate) fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Observations in all.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.beyond
    }

    /// The sum of all that was observed.
    pub(crate) fn sum(&self) -> u64 {
        self.sum
    }

    /// Below what a share of the observations lies, as if they were spread evenly within their bucket: what Prometheus
    /// makes of the same buckets. What lies beyond the last bound counts as that. 0 if there are none.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        let (wanted, mut below) = (share * self.count() as f64, 0);
        for (bucket, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let upper = BASE << bucket;
            let lower = if bucket == 0 { 0 } else { upper / 2 };
            if (below + count) as f64 >= wanted {
                let within = (wanted - below as f64).max(0.0) / *count as f64;
                return lower + ((upper - lower) as f64 * within) as u64;
            }
            below += count;
        }
        if self.beyond > 0 { BASE << (BUCKETS - 1) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn observed(values: &[u64]) -> Durations {
        let mut histogram = Durations::default();
        values.iter().for_each(|value| histogram.observe(*value, 1));
        histogram
    }

    /// The obvious way: the first bound that is not below it.
    fn bucket_of(value: u64) -> usize {
        Durations::bounds().position(|bound| value <= bound).unwrap_or(28)
    }

    fn value() -> impl Strategy<Value = u64> {
        // Near the bounds, and of all magnitudes.
        let near = (0..30u32, -2..=2i64).prop_map(|(k, by)| (100u64 << k).saturating_add_signed(by));
        let any = (0..63u32).prop_flat_map(|bits| 0..=(1u64 << bits));
        prop_oneof![near, any]
    }

    proptest! {
        #[test]
        fn each_value_is_counted_in_its_bucket(values in prop::collection::vec(value(), 0..100)) {
            let histogram = observed(&values);
            let mut oracle = [0; 29];
            values.iter().for_each(|value| oracle[bucket_of(*value)] += 1);
            prop_assert_eq!(histogram.counts(), &oracle[..28]);
            prop_assert_eq!(histogram.count(), values.len() as u64);
            prop_assert_eq!(histogram.sum(), values.iter().fold(0u64, |sum, value| sum.saturating_add(*value)));
        }

        #[test]
        fn a_quantile_is_in_the_bucket_of_the_value_that_has_its_rank(
            values in prop::collection::vec(0..20_000_000_000u64, 1..200), share in 0.001..1.0f64,
        ) {
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let rank = (share * values.len() as f64).ceil() as usize;
            let bucket = bucket_of(sorted[rank.clamp(1, values.len()) - 1]);
            let estimate = observed(&values).quantile(share);
            let last = 100u64 << 27;
            let (from, to) = if bucket == 28 { (last, last) } else {
                (if bucket == 0 { 0 } else { 50 << bucket }, 100 << bucket)
            };
            prop_assert!((from..=to).contains(&estimate), "{} is not from {} to {}", estimate, from, to);
        }

        #[test]
        fn two_together_are_as_one_that_has_seen_all(
            a in prop::collection::vec(value(), 0..50), b in prop::collection::vec(value(), 0..50),
        ) {
            let mut both = observed(&a);
            both.merge(&observed(&b));
            prop_assert_eq!(both, observed(&[a, b].concat()));
        }
    }

    #[test]
    fn bounds_double_from_the_base() {
        let bounds: Vec<_> = Durations::bounds().collect();
        assert_eq!((bounds[0], bounds[1], bounds[27], bounds.len()), (100, 200, 13_421_772_800, 28));
        assert_eq!(Sizes::bounds().last(), Some(2048));
        let mut sizes = Sizes::default();
        for size in [1, 2, 3, 4, 5, 2048, 2049] {
            sizes.observe(size, 1);
        }
        assert_eq!(sizes.counts(), [1, 1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(sizes.count(), 7);
    }

    #[test]
    fn quantiles_are_spread_over_the_bucket() {
        let mut histogram = Durations::default();
        assert_eq!(histogram.quantile(0.5), 0, "nothing was observed");
        histogram.observe(150, 4);
        assert_eq!((histogram.quantile(0.5), histogram.quantile(1.0)), (150, 200));
        assert_eq!(histogram.sum(), 600);
    }
}

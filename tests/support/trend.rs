//! Whether a series of measurements grows: the Theil–Sen slope with its confidence interval.
//!
//! It is the median of the slopes of all pairs of values, so that single values far from the others (pages that go
//! back to the system a moment late) do not move it. The interval is Sen's: P. K. Sen, *Estimates of the regression
//! coefficient based on Kendall's tau*, Journal of the American Statistical Association 63 (1968).

/// A slope per step, and its 95 % confidence interval.
#[derive(Clone, Copy, Debug)]
pub struct Trend {
    pub slope: f64,
    pub low: f64,
    pub high: f64,
}

impl Trend {
    /// Of at least 12 values.
    pub fn of(series: &[f64]) -> Trend {
        assert!(series.len() >= 12, "{} values make no trend", series.len());
        let pairs = (0..series.len()).flat_map(|from| (from + 1..series.len()).map(move |to| (from, to)));
        let mut slopes: Vec<f64> = pairs.map(|(from, to)| (series[to] - series[from]) / (to - from) as f64).collect();
        slopes.sort_by(f64::total_cmp);
        let n = series.len() as f64;
        let margin = 1.96 * (n * (n - 1.0) * (2.0 * n + 5.0) / 18.0).sqrt();
        let rank = |rank: f64| slopes[(rank.round().max(0.0) as usize).min(slopes.len() - 1)];
        let count = slopes.len() as f64;
        Trend { slope: rank(count / 2.0), low: rank((count - margin) / 2.0), high: rank((count + margin) / 2.0) }
    }

    /// Whether the series does not grow: the interval reaches zero, or the slope is below `unseen`.
    pub fn is_flat(self, unseen: f64) -> bool {
        self.low <= 0.0 || self.slope <= unseen
    }
}

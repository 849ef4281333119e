//! Whether a series of measurements grows: the slope of its regression line, with the confidence of the slope.

/// A slope per step.
#[derive(Clone, Copy, Debug)]
pub struct Trend {
    pub slope: f64,
    /// Half the width of the slope's 95 % confidence interval.
    pub confidence: f64,
}

/// Student's t for 95 %, two-sided; the approximation is right to about 1 % from 4 degrees of freedom on.
fn student(degrees: f64) -> f64 {
    1.96 + 2.4 / degrees + 3.0 / (degrees * degrees)
}

impl Trend {
    /// Least squares over at least 12 values. Memory values depend on their predecessors, so the correlation of
    /// neighbours lowers the effective number of observations.
    pub fn of(series: &[f64]) -> Trend {
        assert!(series.len() >= 12, "{} values make no trend", series.len());
        let n = series.len() as f64;
        let middle = (n - 1.0) / 2.0;
        let mean = series.iter().sum::<f64>() / n;
        let at = |index: usize| index as f64 - middle;
        let spread: f64 = (0..series.len()).map(|i| at(i).powi(2)).sum();
        let slope = series.iter().enumerate().map(|(i, y)| at(i) * (y - mean)).sum::<f64>() / spread;
        let rest: Vec<f64> = series.iter().enumerate().map(|(i, y)| y - mean - slope * at(i)).collect();
        let squares: f64 = rest.iter().map(|r| r * r).sum();
        let neighbours: f64 = rest.windows(2).map(|pair| pair[0] * pair[1]).sum();
        let correlation = if squares > 0.0 { (neighbours / squares).clamp(0.0, 0.95) } else { 0.0 };
        let effective = (n * (1.0 - correlation) / (1.0 + correlation)).max(6.0);
        let error = (squares / (n - 2.0) / spread * n / effective).sqrt();
        Trend { slope, confidence: student(effective - 2.0) * error }
    }

    /// Whether the series does not grow: the interval reaches zero, or the slope is below `unseen`.
    pub fn is_flat(self, unseen: f64) -> bool {
        self.slope - self.confidence <= 0.0 || self.slope <= unseen
    }
}

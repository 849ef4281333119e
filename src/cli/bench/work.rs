//! The input of a measurement, and a result that several have.

use std::time::Duration;

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) size: usize,
    pub(super) warm_up: Duration,
    pub(super) measured: Duration,
}

/// A count.
#[derive(Debug)]
pub(super) struct Throughput {
    /// Replies, or deliveries to all subscribers together.
    pub(super) samples: u64,
    pub(super) elapsed: Duration,
    pub(super) subscribers: Option<usize>,
    pub(super) outstanding: Option<usize>,
}

impl Throughput {
    pub(super) fn msgs_per_s(&self) -> f64 {
        self.samples as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

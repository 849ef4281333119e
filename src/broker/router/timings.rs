//! Timings of the router's visits to connections, and their records. Plain numbers of the router's thread.
//!
//! One clock read a batch says when a batch ended, but not when it began: the router may have polled in vain before. So
//! each 16th visit has the clock read before it; the next read, which comes anyway, ends it. Each message of a visit
//! is counted with the time of the whole visit, which is how long it took at most. The sizes of batches are those of
//! the same visits: a histogram costs nanoseconds, of which a visit that brings one message has few.

use crate::logic::histogram::{Durations, Sizes};
use crate::logic::services::CallTimes;
use crate::wire::name::Name;

/// One visit of this number is timed.
const TIMED: u32 = 16;

/// The timings since the start.
#[derive(Debug, Default)]
pub(super) struct Timings {
    pub(super) in_broker: Durations,
    pub(super) batches: Sizes,
    /// Visits to skip before the next timed one.
    passed_over: u32,
    /// The clock was read just now, for the next visit.
    is_begun: bool,
    /// Records of a visit that was begun, and is over when the clock is read next.
    timed: u64,
    /// Probes, and their CPU time on this thread, in nanoseconds.
    pub(super) probes: (u64, u64),
}

/// The router's metrics that are not part of the status.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouterMetrics {
    pub(crate) in_broker: Durations,
    pub(crate) batches: Sizes,
    /// Messages dropped at the router, in the order of `DeliveryPolicy`.
    pub(crate) dropped: [u64; 3],
    pub(crate) services: Vec<ServiceMetrics>,
    /// Of removed services.
    pub(crate) forgotten: CallTimes,
    /// Probes, and their CPU time on the router's thread, in nanoseconds.
    pub(crate) probes: (u64, u64),
}

/// The metrics of one service.
#[derive(Clone, Debug)]
pub(crate) struct ServiceMetrics {
    pub(crate) name: Name,
    pub(crate) times: CallTimes,
    /// Transitions of its breaker into each state, in the order of `GateState::ALL`.
    pub(crate) transitions: [u64; 5],
}

impl Timings {
    /// Whether the clock is to be read before the next visit.
    #[inline]
    pub(super) fn wants_clock(&self) -> bool {
        self.passed_over == 0 && !self.is_begun
    }

    /// It was.
    #[inline]
    pub(super) fn begins(&mut self) {
        self.is_begun = true;
    }

    /// Notes a visit and its records.
    #[inline]
    pub(super) fn visited(&mut self, records: u64) {
        if records == 0 {
            return;
        }
        if self.passed_over > 0 {
            self.passed_over -= 1;
        } else if std::mem::take(&mut self.is_begun) {
            self.passed_over = TIMED - 1;
            self.timed = records;
            self.batches.observe(records, 1);
        }
    }

    /// The clock was read, so long after it was before.
    #[inline]
    pub(super) fn clock_read(&mut self, since: u64) {
        if self.timed > 0 {
            let records = std::mem::take(&mut self.timed);
            self.in_broker.observe(since, records);
        }
    }

    /// What was begun is not to be timed: its end is not its own.
    pub(super) fn forget(&mut self) {
        (self.is_begun, self.timed) = (false, 0);
    }
}

//! What the router's visits to connections tell: how long, and how many records. Plain numbers of the router's own.
//!
//! One clock read a batch says when a batch ended, but not when it began: the router may have polled in vain before. So
//! each 16th visit has the clock read before it; the next read, which comes anyway, ends it. Each message of a visit
//! is counted with the time of the whole visit, which is how long it took at most. The sizes of batches are those of
//! the same visits: a histogram costs nanoseconds, of which a visit that brings one message has few.

use super::state::RouterState;
use crate::routing::histogram::{Durations, Sizes};
use crate::routing::services::CallTimes;
use crate::wire::control::{LatencyStatus, QuantileStatus};
use crate::wire::name::Name;

/// Of so many visits one is timed.
const TIMED: u32 = 16;

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct Timings {
    in_broker: Durations,
    batches: Sizes,
    /// Visits that are not looked at before one is.
    passed_over: u32,
    /// The clock was read just now, for the next visit.
    is_begun: bool,
    /// Records of a visit that was begun, and is over when the clock is read next.
    timed: u64,
    /// Surveys, and the CPU time that they have cost this thread, in nanoseconds.
    pub(super) surveys: (u64, u64),
}

/// The router's figures that are no part of the status.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouterFigures {
    pub(crate) in_broker: Durations,
    pub(crate) batches: Sizes,
    /// Messages dropped at the router, in the order of `DeliveryPolicy`.
    pub(crate) dropped: [u64; 3],
    pub(crate) services: Vec<ServiceFigures>,
    /// Of services that were forgotten.
    pub(crate) forgotten: CallTimes,
    /// Surveys, and the CPU time that they have cost the router's thread, in nanoseconds.
    pub(crate) surveys: (u64, u64),
}

/// The same, of one service.
#[derive(Clone, Debug)]
pub(crate) struct ServiceFigures {
    pub(crate) name: Name,
    pub(crate) times: CallTimes,
    /// How often its breaker has come to stand where, in the order of `Stand::ALL`.
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

    /// A visit has brought so many records.
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

impl RouterState {
    /// The figures that are no part of the status.
    pub(super) fn figures(&self) -> RouterFigures {
        let services = self.services.iter().filter_map(|service| {
            let times = (**service.times.as_ref()?).clone();
            Some(ServiceFigures { name: service.name.clone(), times, transitions: service.gate.transitions() })
        });
        RouterFigures {
            in_broker: self.timings.in_broker.clone(),
            batches: self.timings.batches.clone(),
            dropped: self.counters.dropped,
            services: services.collect(),
            forgotten: self.services.forgotten.clone(),
            surveys: self.timings.surveys,
        }
    }

    /// How long things take, of all services together.
    pub(super) fn latency(&self) -> LatencyStatus {
        let mut times = self.services.forgotten.clone();
        self.services.iter().filter_map(|service| service.times.as_deref()).for_each(|more| times.merge(more));
        LatencyStatus {
            in_broker: quantiles(&self.timings.in_broker),
            round_trip: quantiles(&times.round_trip),
            first_chunk: quantiles(&times.first_chunk),
        }
    }
}

fn quantiles(histogram: &Durations) -> QuantileStatus {
    QuantileStatus {
        count: histogram.count(),
        p50_ns: histogram.quantile(0.5),
        p95_ns: histogram.quantile(0.95),
        p99_ns: histogram.quantile(0.99),
    }
}

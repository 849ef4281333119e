//! Counters kept outside the router, by actors on several threads: refused connections, and the outcomes of sessions
//! with a lost socket.

use super::stderr;
use crate::sync::{AtomicU64, Ordering};
use crate::wire::control::RefusedCode;

/// Why a connection was refused, as the metrics label it.
const REFUSALS: [(RefusedCode, &str); 8] = [
    (RefusedCode::Version, "version"),
    (RefusedCode::NotAllowed, "not_allowed"),
    (RefusedCode::TooManyConnections, "too_many_connections"),
    (RefusedCode::Malformed, "malformed"),
    (RefusedCode::Draining, "draining"),
    (RefusedCode::BadToken, "bad_token"),
    (RefusedCode::ResumeFailed, "resume_failed"),
    (RefusedCode::GivenUp, "given_up"),
];

/// Why a detached session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::broker) enum SessionLoss {
    /// The resume window expired.
    Expired,
    ProcessEnded,
    RouterEnded,
    Shutdown,
    /// The restart limit of its connection was reached.
    GivenUp,
}

impl SessionLoss {
    const ALL: [SessionLoss; 5] = [
        SessionLoss::Expired,
        SessionLoss::ProcessEnded,
        SessionLoss::RouterEnded,
        SessionLoss::Shutdown,
        SessionLoss::GivenUp,
    ];

    /// The metrics' label.
    fn as_str(self) -> &'static str {
        match self {
            SessionLoss::Expired => "expired",
            SessionLoss::ProcessEnded => "process_ended",
            SessionLoss::RouterEnded => "router_ended",
            SessionLoss::Shutdown => "shutdown",
            SessionLoss::GivenUp => "given_up",
        }
    }

    /// The reason in the log.
    pub(in crate::broker) fn reason(self) -> &'static str {
        match self {
            SessionLoss::Expired => "resume window expired",
            SessionLoss::ProcessEnded => "client process ended",
            SessionLoss::RouterEnded => "ended by the router",
            SessionLoss::Shutdown => "shutting down",
            SessionLoss::GivenUp => "restart limit reached",
        }
    }
}

/// The counters. They are independent, so no order between them matters.
#[derive(Debug, Default)]
pub(in crate::broker) struct Counters {
    refused: [AtomicU64; REFUSALS.len()],
    resumed: AtomicU64,
    lost: [AtomicU64; SessionLoss::ALL.len()],
}

/// The values of the counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::broker) struct CounterValues {
    /// By reason; all reasons are listed.
    pub(in crate::broker) refused: Vec<(&'static str, u64)>,
    pub(in crate::broker) resumed: u64,
    /// By reason; all reasons are listed.
    pub(in crate::broker) lost: Vec<(&'static str, u64)>,
    pub(in crate::broker) log_lines_dropped: u64,
}

impl Counters {
    /// A connection was refused.
    pub(in crate::broker) fn refused(&self, code: RefusedCode) {
        if let Some(at) = REFUSALS.iter().position(|(known, _)| *known == code) {
            self.refused[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A client resumed its session.
    pub(in crate::broker) fn resumed(&self) {
        self.resumed.fetch_add(1, Ordering::Relaxed);
    }

    /// A detached session ended.
    pub(in crate::broker) fn lost(&self, loss: SessionLoss) {
        self.lost[loss as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The values so far.
    pub(in crate::broker) fn values(&self) -> CounterValues {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CounterValues {
            refused: REFUSALS.iter().zip(&self.refused).map(|((_, reason), count)| (*reason, read(count))).collect(),
            resumed: read(&self.resumed),
            lost: SessionLoss::ALL.iter().zip(&self.lost).map(|(loss, count)| (loss.as_str(), read(count))).collect(),
            log_lines_dropped: stderr::dropped(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_under_its_reason() {
        let counters = Counters::default();
        for (times, (code, _)) in REFUSALS.iter().enumerate() {
            (0..times).for_each(|_| counters.refused(*code));
        }
        for (times, loss) in SessionLoss::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| counters.lost(loss));
        }
        counters.resumed();
        let values = counters.values();
        for (times, ((code, _), (reason, count))) in REFUSALS.iter().zip(values.refused).enumerate() {
            assert_eq!((count, serde_json::to_value(code).unwrap()), (times as u64, reason.into()), "as on the wire");
        }
        let expected = [("expired", 0), ("process_ended", 1), ("router_ended", 2), ("shutdown", 3), ("given_up", 4)];
        assert_eq!((values.resumed, values.lost), (1, expected.to_vec()));
    }
}

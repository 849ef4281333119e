//! What is counted outside the router, by actors on several threads: connections that were refused, and what became of
//! sessions whose socket was lost.

use super::stderr;
use crate::sync::{AtomicU64, Ordering};
use crate::wire::control::RefusedCode;

/// Why a connection is refused, as metrics name it.
const REFUSALS: [(RefusedCode, &str); 7] = [
    (RefusedCode::Version, "version"),
    (RefusedCode::NotAllowed, "not_allowed"),
    (RefusedCode::TooManyConnections, "too_many_connections"),
    (RefusedCode::Malformed, "malformed"),
    (RefusedCode::Draining, "draining"),
    (RefusedCode::BadToken, "bad_token"),
    (RefusedCode::ResumeFailed, "resume_failed"),
];

/// Why a session ended while it waited for its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The window was over.
    Expired,
    ProcessEnded,
    RouterEnded,
    BrokerEnds,
}

impl Loss {
    const ALL: [Loss; 4] = [Loss::Expired, Loss::ProcessEnded, Loss::RouterEnded, Loss::BrokerEnds];

    /// As metrics name it.
    fn as_str(self) -> &'static str {
        match self {
            Loss::Expired => "expired",
            Loss::ProcessEnded => "process_ended",
            Loss::RouterEnded => "router_ended",
            Loss::BrokerEnds => "broker_ends",
        }
    }

    /// As the log says it.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Loss::Expired => "resume window expired",
            Loss::ProcessEnded => "client process ended",
            Loss::RouterEnded => "ended by the router",
            Loss::BrokerEnds => "shutting down",
        }
    }
}

/// The counters. Each stands alone, so no order between them matters.
#[derive(Debug, Default)]
pub(super) struct Tally {
    refused: [AtomicU64; REFUSALS.len()],
    resumed: AtomicU64,
    lost: [AtomicU64; Loss::ALL.len()],
}

/// The counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// By reason, all of them.
    pub(super) refused: Vec<(&'static str, u64)>,
    pub(super) resumed: u64,
    /// By reason, all of them.
    pub(super) lost: Vec<(&'static str, u64)>,
    pub(super) log_lines_dropped: u64,
}

impl Tally {
    /// A connection was refused.
    pub(super) fn refused(&self, code: RefusedCode) {
        if let Some(at) = REFUSALS.iter().position(|(known, _)| *known == code) {
            self.refused[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A session was taken up again by its client.
    pub(super) fn resumed(&self) {
        self.resumed.fetch_add(1, Ordering::Relaxed);
    }

    /// A session ended while it waited for its peer.
    pub(super) fn lost(&self, loss: Loss) {
        self.lost[loss as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub(super) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            refused: REFUSALS.iter().zip(&self.refused).map(|((_, reason), count)| (*reason, read(count))).collect(),
            resumed: read(&self.resumed),
            lost: Loss::ALL.iter().zip(&self.lost).map(|(loss, count)| (loss.as_str(), read(count))).collect(),
            log_lines_dropped: stderr::dropped(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_under_its_reason() {
        let tally = Tally::default();
        for (times, (code, _)) in REFUSALS.iter().enumerate() {
            (0..times).for_each(|_| tally.refused(*code));
        }
        for (times, loss) in Loss::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| tally.lost(loss));
        }
        tally.resumed();
        let counts = tally.counts();
        for (times, ((code, _), (reason, count))) in REFUSALS.iter().zip(counts.refused).enumerate() {
            assert_eq!((count, serde_json::to_value(code).unwrap()), (times as u64, reason.into()), "as on the wire");
        }
        let expected = [("expired", 0), ("process_ended", 1), ("router_ended", 2), ("broker_ends", 3)];
        assert_eq!((counts.resumed, counts.lost), (1, expected.to_vec()));
    }
}

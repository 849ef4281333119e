//! How long a call may take, if its broker does not say when it is over.

use super::error::{Error, Kind};
use super::inner::{Inner, deadline};
use super::request::RequestOptions;
use crate::wire::record::Outcome;
use std::time::{Duration, Instant};

/// How much longer than a call may take the broker's word for its end is waited for.
const SLACK: Duration = Duration::from_millis(250);

/// Without the broker's word, time over is the deadline exceeded.
pub(super) fn late(error: Error) -> Error {
    if error.is_timeout() {
        Kind::Outcome { outcome: Outcome::DeadlineExceeded, retry_after: None }.into()
    } else {
        error
    }
}

/// The time of one call. It begins when the call is first waited for: one whose answer is there by then costs no look
/// at the clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallTime {
    /// Of the whole call.
    total: Option<Duration>,
    /// Of a stream: to its first chunk now, then between chunks.
    step: Option<Duration>,
    idle: Duration,
    /// When the whole call is over.
    ends: Option<Instant>,
    until: Option<Instant>,
}

impl CallTime {
    /// When the call ends here, if the broker says nothing.
    pub(super) fn until(&mut self) -> Option<Instant> {
        if self.until.is_none() {
            self.ends = self.ends.or_else(|| deadline(self.total));
            self.until = deadline(self.step).into_iter().chain(self.ends).min();
        }
        self.until
    }

    /// A chunk came: the time to the next begins.
    pub(super) fn progressed(&mut self) {
        if self.step.is_some() {
            (self.step, self.until) = (Some(self.idle), None);
        }
    }

    /// Whether that is past.
    pub(super) fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

impl Inner {
    /// The time of a call with these options. A stream that asks for no total has none.
    pub(super) fn call_time(&self, options: RequestOptions, stream: bool) -> CallTime {
        let ms = |ms: u32| Duration::from_millis(ms.into());
        let most = ms(self.limits.max_request_timeout_ms());
        let default = (!stream).then(|| ms(self.limits.default_request_timeout_ms()));
        let total = options.timeout.or(default).map(|total| total.min(most).saturating_add(SLACK));
        let step =
            |asked: Option<Duration>, default| asked.map_or(ms(default), |asked| asked.min(most)).saturating_add(SLACK);
        let idle = step(options.idle, self.limits.stream_idle_ms());
        let first = stream.then(|| step(options.first_chunk, self.limits.stream_first_chunk_ms()));
        CallTime { total, step: first, idle, ends: None, until: None }
    }
}

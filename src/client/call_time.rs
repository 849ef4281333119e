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
    most: Duration,
    until: Option<Instant>,
    /// The time is that to the first chunk and between chunks, not that of the whole call.
    is_idle_time: bool,
}

impl CallTime {
    /// When the call ends here, if the broker says nothing.
    pub(super) fn until(&mut self) -> Option<Instant> {
        self.until = self.until.or_else(|| deadline(Some(self.most)));
        self.until
    }

    /// A chunk came: an idle time begins anew.
    pub(super) fn progressed(&mut self) {
        if self.is_idle_time {
            self.until = None;
        }
    }

    /// Whether that is past.
    pub(super) fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

impl Inner {
    /// The time of a call with these options. A stream that asks for no total has an idle time instead.
    pub(super) fn call_time(&self, options: RequestOptions, stream: bool) -> CallTime {
        let ms = |ms: u32| Duration::from_millis(ms.into());
        let timeout = options.timeout.unwrap_or(ms(self.limits.default_request_timeout_ms()));
        let is_idle_time = stream && options.timeout.is_none();
        let most = timeout.min(ms(self.limits.max_request_timeout_ms())).saturating_add(SLACK);
        CallTime { most, until: None, is_idle_time }
    }
}

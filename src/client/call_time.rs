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

impl Inner {
    /// When a call with these options ends here, if the broker says nothing.
    pub(super) fn call_ends(&self, options: RequestOptions) -> Option<Instant> {
        let ms = |ms: u32| Duration::from_millis(ms.into());
        let timeout = options.timeout.unwrap_or(ms(self.limits.default_request_timeout_ms));
        deadline(Some(timeout.min(ms(self.limits.max_request_timeout_ms)) + SLACK))
    }
}

//! Asking again what may be carried out twice.

use super::error::Result;
use super::inner::{Inner, deadline};
use super::request::RequestOptions;
use std::time::{Duration, Instant};

/// How long an idempotent request waits for responders that come back to a restarted broker, and how often it looks.
const AGAIN: Duration = Duration::from_secs(2);
const AGAIN_PAUSE: Duration = Duration::from_millis(20);

/// Whether a request is asked again.
pub(super) struct Again {
    options: RequestOptions,
    /// When all of it is to be over, if it may be asked again.
    until: Option<Instant>,
    /// When its session was lost.
    lost: Option<Instant>,
}

impl Again {
    pub(super) fn new(options: RequestOptions) -> Again {
        // Nothing else is asked twice, and the broker keeps the time of what is asked once.
        let until = if options.idempotent { deadline(options.timeout) } else { None };
        Again { options, until, lost: None }
    }

    /// How to ask now: for the time that is left.
    pub(super) fn options(&self) -> RequestOptions {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        RequestOptions { timeout: left.or(self.options.timeout), ..self.options }
    }

    /// After such an outcome: how long to wait before it is asked again; `None`: it is not.
    pub(super) fn pause<T>(&mut self, inner: &Inner, outcome: &Result<T>) -> Option<Duration> {
        let error = outcome.as_ref().err().filter(|_| self.options.idempotent)?;
        if error.is_disconnected() && inner.closed().is_none() {
            self.lost = Some(Instant::now());
            return Some(Duration::ZERO);
        }
        // Those who served it may take as long to come back as we did.
        let may_come = error.is_no_responders() && self.lost.is_some_and(|lost| lost.elapsed() < AGAIN);
        may_come.then_some(AGAIN_PAUSE)
    }
}

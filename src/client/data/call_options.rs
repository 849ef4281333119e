//! How a call is made: its options, its deadline at this side, and the retry of an idempotent request.

use super::limits::CurrentLimits;
use super::lock::deadline;
use crate::client::error::{Error, Kind, Result};
use crate::wire::record::Outcome;
use std::time::{Duration, Instant};

/// The options of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestOptions {
    /// The deadline of the request, retries included; `None`: the broker's default
    /// ([`Limits::default_request_timeout_ms`](crate::client::Limits::default_request_timeout_ms)); a stream then has
    /// no total limit, only the next two. The broker enforces the deadline and notifies the responder. If the broker is
    /// stopped or overloaded, the client ends the request itself with the same outcome, a quarter of a second after the
    /// deadline, counted from the first wait for the reply.
    pub timeout: Option<Duration>,
    /// Whether the request may be executed twice. If the broker ends while it is outstanding, it is then sent again
    /// instead of ending as disconnected; its responders have two seconds to reconnect. (A stream is not sent again:
    /// the caller may have received a part of it.)
    pub idempotent: bool,
    /// The time limit of the first chunk of a stream; `None`: the broker's default
    /// ([`Limits::stream_first_chunk_ms`](crate::client::Limits::stream_first_chunk_ms)).
    pub first_chunk: Option<Duration>,
    /// The time limit between chunks of a stream; `None`: the broker's default
    /// ([`Limits::stream_idle_ms`](crate::client::Limits::stream_idle_ms)).
    pub idle: Option<Duration>,
}

/// How much longer than its deadline a call waits for the broker's outcome.
const SLACK: Duration = Duration::from_millis(250);

/// A wait that timed out without an outcome from the broker is an exceeded deadline.
pub(crate) fn timeout_as_deadline(error: Error) -> Error {
    if error.is_timeout() {
        Kind::Outcome { outcome: Outcome::DeadlineExceeded, retry_after: None }.into()
    } else {
        error
    }
}

/// The time of one call. It begins when the call is first waited for: one whose reply is there by then costs no look
/// at the clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallDeadline {
    /// Of the whole call.
    total: Option<Duration>,
    /// Of a stream: to its first chunk now, then between chunks.
    step: Option<Duration>,
    idle: Duration,
    /// When the whole call is over.
    ends: Option<Instant>,
    until: Option<Instant>,
}

impl CallDeadline {
    /// The time of a call with these options, within the `limits` of the broker. A stream without a total has no end.
    pub(crate) fn new(limits: &CurrentLimits, options: RequestOptions, stream: bool) -> CallDeadline {
        let ms = |ms: u32| Duration::from_millis(ms.into());
        let most = ms(limits.max_request_timeout_ms());
        let default = (!stream).then(|| ms(limits.default_request_timeout_ms()));
        let total = options.timeout.or(default).map(|total| total.min(most).saturating_add(SLACK));
        let step = |requested: Option<Duration>, default| {
            requested.map_or(ms(default), |requested| requested.min(most)).saturating_add(SLACK)
        };
        let idle = step(options.idle, limits.stream_idle_ms());
        let first = stream.then(|| step(options.first_chunk, limits.stream_first_chunk_ms()));
        CallDeadline { total, step: first, idle, ends: None, until: None }
    }

    /// The deadline at which the client ends the call itself, without an outcome from the broker.
    pub(crate) fn until(&mut self) -> Option<Instant> {
        if self.until.is_none() {
            self.ends = self.ends.or_else(|| deadline(self.total));
            self.until = deadline(self.step).into_iter().chain(self.ends).min();
        }
        self.until
    }

    /// What is left of the whole call for a request that is sent now; `None`: it has no end.
    pub(crate) fn left(&mut self) -> Option<Duration> {
        let _ = self.until();
        self.ends.map(|ends| ends.saturating_duration_since(Instant::now()).saturating_sub(SLACK))
    }

    /// A chunk came: the time to the next begins.
    pub(crate) fn progressed(&mut self) {
        if self.step.is_some() {
            (self.step, self.until) = (Some(self.idle), None);
        }
    }

    /// Whether that is past.
    pub(crate) fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

/// How long an idempotent request waits for its responders to reconnect after a restart of the broker, and the poll
/// interval.
const AGAIN: Duration = Duration::from_secs(2);
const AGAIN_PAUSE: Duration = Duration::from_millis(20);

/// Whether a request is sent again.
pub(crate) struct IdempotentRetry {
    options: RequestOptions,
    /// The deadline of all attempts, if it may be sent again.
    until: Option<Instant>,
    /// When its session was lost.
    lost: Option<Instant>,
}

impl IdempotentRetry {
    pub(crate) fn new(options: RequestOptions) -> IdempotentRetry {
        // Nothing else is sent twice, and the broker keeps the time of a request that is sent once.
        let until = if options.idempotent { deadline(options.timeout) } else { None };
        IdempotentRetry { options, until, lost: None }
    }

    /// The options of the next attempt: with the time that is left.
    pub(crate) fn options(&self) -> RequestOptions {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        RequestOptions { timeout: left.or(self.options.timeout), ..self.options }
    }

    /// How long to wait before the request is sent again after this outcome; `None`: it is not sent again.
    pub(crate) fn pause<T>(&mut self, outcome: &Result<T>, is_closed: impl FnOnce() -> bool) -> Option<Duration> {
        let error = outcome.as_ref().err().filter(|_| self.options.idempotent)?;
        if error.is_disconnected() && !is_closed() {
            self.lost = Some(Instant::now());
            return Some(Duration::ZERO);
        }
        // Its responders may take as long to reconnect as this client.
        let may_come = error.is_no_responders() && self.lost.is_some_and(|lost| lost.elapsed() < AGAIN);
        may_come.then_some(AGAIN_PAUSE)
    }
}

//! What follows a 429 or 503: no request is sent for a while. A pure state machine that takes `now`.

use crate::logic::backoff::Backoff;
use std::time::{Duration, Instant};

const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(30), jitter: 0.2 };
/// The longest `Retry-After` that is respected.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// The time until the engine may be sent a request again.
#[derive(Debug, Default)]
pub(super) struct Busy {
    /// Refusals since the last success.
    refusals: u32,
    until: Option<Instant>,
}

impl Busy {
    /// The engine was busy. `retry_after`: as it said; `random`: uniform in `0.0..1.0`.
    pub(super) fn refused(&mut self, now: Instant, retry_after: Option<Duration>, random: f64) {
        let pause = BACKOFF.delay(self.refusals, random);
        self.refusals = self.refusals.saturating_add(1);
        // `Retry-After: 0` of an engine that stays busy must not become a loop.
        let pause = retry_after.map_or(pause, |time| time.clamp(BACKOFF.first, RETRY_AFTER_MAX));
        // Another request may have been told a later time.
        self.until = self.until.max(Some(now + pause));
    }

    /// The engine took a request.
    pub(super) fn accepted(&mut self) {
        *self = Busy::default();
    }

    /// When a request may be sent; `None`: now.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_until_the_engine_takes_a_request() {
        let (mut busy, mut now) = (Busy::default(), Instant::now());
        assert_eq!(busy.until(now), None);
        for pause in [500, 1000, 2000] {
            busy.refused(now, None, 0.5);
            let until = busy.until(now).unwrap();
            assert_eq!(until - now, Duration::from_millis(pause));
            now = until;
            assert_eq!(busy.until(now), None);
        }
        busy.accepted();
        busy.refused(now, None, 0.5);
        assert_eq!(busy.until(now).unwrap() - now, Duration::from_millis(500));
    }

    #[test]
    fn retry_after_is_respected_up_to_a_limit() {
        let (mut busy, now) = (Busy::default(), Instant::now());
        busy.refused(now, Some(Duration::from_secs(7)), 0.5);
        assert_eq!(busy.until(now).unwrap() - now, Duration::from_secs(7));
        busy.refused(now, Some(Duration::from_secs(1)), 0.5);
        assert_eq!(busy.until(now).unwrap() - now, Duration::from_secs(7), "the later time holds");
        busy.refused(now, Some(Duration::from_secs(1_000_000)), 0.5);
        assert_eq!(busy.until(now).unwrap() - now, RETRY_AFTER_MAX);
        busy.accepted();
        busy.refused(now, Some(Duration::ZERO), 0.5);
        assert_eq!(busy.until(now).unwrap() - now, BACKOFF.first);
    }
}

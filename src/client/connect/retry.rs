//! When to try again to reach the broker: exponential backoff with jitter. Pure: time and chance are arguments.

use crate::logic::backoff::Backoff;
use std::time::{Duration, Instant};

/// How a client reconnects after its socket was lost.
///
/// The first attempt is made at once, further ones when the socket's path reappears (inotify), otherwise with
/// exponential backoff.
///
/// ```
/// use lapce_ipc::client::{Client, ReconnectOptions};
/// use std::time::Duration;
///
/// let patient = ReconnectOptions { max_attempts: None, ..ReconnectOptions::default() };
/// let builder = Client::builder().reconnect(patient);
/// assert_eq!(ReconnectOptions::default().max_delay, Duration::from_secs(5));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ReconnectOptions {
    /// The delay after the first failed attempt; 100 ms by default. Each further failure doubles it.
    pub first_delay: Duration,
    /// The longest delay; 5 s by default.
    pub max_delay: Duration,
    /// Random jitter, as a fraction of the delay, so that not all clients return at once; 0.2 by default.
    pub jitter: f64,
    /// Attempts after which the client gives up; 30 by default, which takes about two minutes. `None`: no limit.
    /// Attempts caused by a reappearing path do not count.
    pub max_attempts: Option<u32>,
}

impl Default for ReconnectOptions {
    fn default() -> ReconnectOptions {
        ReconnectOptions {
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(5),
            jitter: 0.2,
            max_attempts: Some(30),
        }
    }
}

impl ReconnectOptions {
    /// Checks the options.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.jitter {
            jitter if (0.0..=1.0).contains(&jitter) => Ok(()),
            jitter => Err(format!("jitter {jitter} is out of range 0..=1")),
        }
    }
}

/// What is beyond the clock's end is as good as never: 136 years.
const NEVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Attempts in quick succession when the path has reappeared, after 1 ms, 2 ms, 4 ms …
const SOON: u32 = 6;

/// The attempts since a socket was lost.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    options: ReconnectOptions,
    /// Attempts that failed and count.
    failed: u32,
    /// Failures since the delay was reset.
    doublings: u32,
    /// The next attempt is for the path's sake.
    is_free: bool,
    /// Attempts since the path appeared: a broker that binds its socket there listens only a moment later.
    soon: u32,
    at: Instant,
}

impl Retry {
    /// The socket was lost `now`: the first attempt is due.
    pub(crate) fn new(options: ReconnectOptions, now: Instant) -> Retry {
        Retry { options, failed: 0, doublings: 0, is_free: false, soon: 0, at: now }
    }

    /// When the next attempt is due.
    pub(crate) fn at(&self) -> Instant {
        self.at
    }

    /// Its number, from 1.
    pub(crate) fn attempt(&self) -> u32 {
        self.failed.saturating_add(1)
    }

    /// The attempt failed. Returns the delay until the next, by a `chance` in 0..1; `None`: that was the last.
    pub(crate) fn failed(&mut self, now: Instant, chance: f64) -> Option<Duration> {
        if self.soon > 0 {
            let delay = Duration::from_millis(1 << (SOON - self.soon));
            self.soon -= 1;
            self.at = now + delay;
            return Some(delay);
        }
        if !std::mem::take(&mut self.is_free) {
            self.failed = self.failed.saturating_add(1);
        }
        if self.options.max_attempts.is_some_and(|most| self.failed >= most) {
            return None;
        }
        let ReconnectOptions { first_delay, max_delay, jitter, .. } = self.options;
        let delay = Backoff { first: first_delay, max: max_delay, jitter }.delay(self.doublings, chance);
        self.doublings = self.doublings.saturating_add(1);
        self.at = now.checked_add(delay).unwrap_or(now + NEVER);
        Some(delay)
    }

    /// The attempt brought something: the next one is due, as a part of it.
    pub(crate) fn once_more(&mut self, now: Instant) {
        self.at = now;
    }

    /// Something appeared at the path: the next attempt is due, and the delay is reset.
    pub(crate) fn path_appeared(&mut self, now: Instant) {
        (self.doublings, self.is_free, self.soon, self.at) = (0, true, SOON, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(jitter: f64, max_attempts: Option<u32>) -> ReconnectOptions {
        ReconnectOptions { jitter, max_attempts, ..ReconnectOptions::default() }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn delays_double_up_to_the_longest_and_the_limit_ends_them() {
        let now = Instant::now();
        let mut retry = Retry::new(options(0.0, Some(9)), now);
        assert_eq!((retry.at(), retry.attempt()), (now, 1), "at once");
        let delays: Vec<_> = std::iter::from_fn(|| retry.failed(now, 0.5)).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000].map(ms));
        let mut patient = Retry::new(options(0.2, None), now);
        assert!((0..10_000).all(|_| patient.failed(now, 0.9).is_some_and(|delay| delay <= ms(5000))));
    }

    #[test]
    fn the_longest_delays_are_waited_for_and_what_is_no_jitter_is_said() {
        let now = Instant::now();
        let longest = ReconnectOptions { first_delay: Duration::MAX, max_delay: Duration::MAX, ..options(1.0, None) };
        for chance in [0.5, 1.0] {
            let mut retry = Retry::new(longest.clone(), now);
            assert!(retry.failed(now, chance).is_some_and(|delay| delay > NEVER));
            assert_eq!(retry.at(), now + NEVER);
        }
        assert_eq!(options(1.0, None).check(), Ok(()));
        for (jitter, named) in [(f64::NAN, "NaN"), (-0.1, "-0.1"), (1.5, "1.5"), (f64::INFINITY, "inf")] {
            let said = options(jitter, None).check().unwrap_err();
            assert!(said.contains("jitter") && said.contains(named), "{said}");
        }
    }

    #[test]
    fn a_path_that_reappears_is_tried_at_once_and_counts_for_nothing() {
        let now = Instant::now();
        let mut retry = Retry::new(options(0.0, Some(3)), now);
        assert_eq!(retry.failed(now, 0.5), Some(ms(100)));
        assert_eq!(retry.failed(now, 0.5), Some(ms(200)));
        for _ in 0..10 {
            retry.path_appeared(now);
            assert_eq!((retry.at(), retry.attempt()), (now, 3));
            let soon: Vec<_> = (0..SOON).filter_map(|_| retry.failed(now, 0.5)).collect();
            assert_eq!(soon, [1, 2, 4, 8, 16, 32].map(ms));
            assert_eq!(retry.failed(now, 0.5), Some(ms(100)), "the delay begins anew");
        }
        assert_eq!(retry.failed(now, 0.5), None);
    }
}

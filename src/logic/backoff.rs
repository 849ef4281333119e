//! Exponential backoff with jitter: of a client that reconnects, and of a supervisor that restarts an actor.

use std::time::Duration;

/// The delays before attempts that follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Backoff {
    /// The first delay; each further one doubles it.
    pub(crate) first: Duration,
    /// The longest delay, jitter included.
    pub(crate) max: Duration,
    /// Random jitter, as a fraction of the delay.
    pub(crate) jitter: f64,
}

impl Backoff {
    /// The delay after `doublings` doublings, with a `random` that is uniform in `0.0..1.0`.
    pub(crate) fn delay(&self, doublings: u32, random: f64) -> Duration {
        let doubled = self.first.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX));
        let factor = 1.0 + self.jitter * (2.0 * random.clamp(0.0, 1.0) - 1.0);
        let moved = Duration::try_from_secs_f64(doubled.min(self.max).as_secs_f64() * factor);
        // A delay that no `Duration` can hold is longer than the longest.
        moved.unwrap_or(self.max).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(5), jitter: 0.2 };

    #[test]
    fn delays_double_up_to_the_longest() {
        let delays: Vec<_> = (0..8).map(|doublings| BACKOFF.delay(doublings, 0.5).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn chance_moves_a_delay_by_the_jitter_and_never_beyond_the_longest() {
        for (random, first, last) in [(0.0, 80, 4000), (0.25, 90, 4500), (0.75, 110, 5000), (1.0, 120, 5000)] {
            assert_eq!(BACKOFF.delay(0, random).as_millis(), first, "{random}");
            assert_eq!(BACKOFF.delay(u32::MAX, random).as_millis(), last, "{random}");
        }
    }

    #[test]
    fn the_longest_delays_saturate() {
        let longest = Backoff { first: Duration::MAX, max: Duration::MAX, jitter: 1.0 };
        assert_eq!((longest.delay(u32::MAX, 1.0), longest.delay(0, 0.0)), (Duration::MAX, Duration::ZERO));
    }
}

//! Options that several commands share.

use crate::client::{DeliveryPolicy, WaitStrategy};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use std::time::Duration;

/// The wait strategy.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct WaitOption {
    /// Wait strategy: adaptive (spin briefly, then sleep), busy (never sleep), block (sleep at once)
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub(super) wait: Wait,
}

/// A wait strategy, as it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Wait {
    /// Spin while the broker is awake on another CPU, then sleep.
    #[default]
    Adaptive,
    /// Never sleep: the shortest latency, for a whole CPU.
    Busy,
    /// Sleep at once.
    Block,
}

impl Wait {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Wait::Adaptive => "adaptive",
            Wait::Busy => "busy",
            Wait::Block => "block",
        }
    }
}

impl From<Wait> for WaitStrategy {
    fn from(wait: Wait) -> WaitStrategy {
        match wait {
            Wait::Adaptive => WaitStrategy::Adaptive,
            Wait::Busy => WaitStrategy::Busy,
            Wait::Block => WaitStrategy::Block,
        }
    }
}

/// A delivery policy, as it is written on the command line and in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Policy {
    /// Publishers wait; nothing is lost
    #[default]
    Block,
    /// The oldest messages are dropped
    DropOldest,
    /// The newest messages are dropped
    DropNewest,
}

impl From<Policy> for DeliveryPolicy {
    fn from(policy: Policy) -> DeliveryPolicy {
        match policy {
            Policy::Block => DeliveryPolicy::Block,
            Policy::DropOldest => DeliveryPolicy::DropOldest,
            Policy::DropNewest => DeliveryPolicy::DropNewest,
        }
    }
}

/// Reads how many there are to be.
pub(super) fn at_least_one(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| format!("expected a number from 1 to {}", u64::MAX))
}

/// Reads a time such as `500ms`, `2s`, `1.5s` or `1m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const WANTED: &str = "a number with a unit: us, ms, s, m or h, as in 500ms";
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(WANTED)?;
    let (number, unit) = text.split_at(unit_at);
    let seconds = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(WANTED.to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| WANTED)?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err("must be greater than zero".to_owned()),
        Err(_) => Err("too long".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, ms) in [("500ms", 500), ("2s", 2000), ("1.5s", 1500), ("1m", 60_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(duration("7us"), Ok(Duration::from_micros(7)));
        for text in ["", "2", "s", "2 s", "-1s", "0s", "1d", "1.2.3s", "9999999999999999999999h", "infs", "nans"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}

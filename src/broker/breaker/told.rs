//! What is said of a breaker's change: one line of the log, and one event.

use crate::broker::router::breaker_state;
use crate::broker::telemetry::events::BreakerChange;
use crate::wire::control::BreakerState;
use crate::wire::name::{Name, Topic};

/// A change as pairs of a key and a value.
fn pairs(change: &BreakerChange) -> Vec<(&'static str, String)> {
    let BreakerChange { service, transition, by } = change;
    let to = breaker_state(transition.to);
    let mut pairs = vec![
        ("service", service.to_string()),
        ("from", breaker_state(transition.from).as_str().to_owned()),
        ("to", to.as_str().to_owned()),
        ("reason", transition.reason.as_str().to_owned()),
    ];
    if to == BreakerState::Open {
        pairs.push(("failures", transition.failures.to_string()));
    }
    if let Some(lasts) = transition.lasts {
        let key = if to == BreakerState::ForcedClosed { "for_ms" } else { "retry_after_ms" };
        pairs.push((key, lasts.div_ceil(1_000_000).to_string()));
    }
    pairs.extend(by.map(|connection| ("connection", connection.to_string())));
    pairs
}

pub(super) fn log_line(change: &BreakerChange) -> String {
    let pairs = pairs(change).into_iter().map(|(key, value)| format!(" {key}={value}"));
    pairs.fold("breaker".to_owned(), |line, pair| line + &pair)
}

/// The event as JSON. Names need no escaping.
pub(super) fn event(change: &BreakerChange) -> String {
    let member = |(key, value): (&str, String)| match value.parse::<u64>() {
        Ok(number) if key != "service" => format!(r#""{key}":{number}"#),
        _ => format!(r#""{key}":"{value}""#),
    };
    format!("{{{}}}", pairs(change).into_iter().map(member).collect::<Vec<_>>().join(","))
}

/// `$sys.breaker.SERVICE`. A name that is too long for that loses its last tokens; the event has all of it.
pub(super) fn topic(service: &Name) -> String {
    let mut name = service.as_str();
    loop {
        let topic = format!("$sys.breaker.{name}");
        match name.rsplit_once('.') {
            Some((shorter, _)) if Topic::parse_system(&topic).is_err() => name = shorter,
            _ => return topic,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::breaker::{Failure, Reason, Stand, Transition};

    fn change(service: &str, to: Stand, lasts: Option<u64>, by: Option<u32>) -> BreakerChange {
        let reason = if by.is_some() { Reason::Manual } else { Reason::Failed(Failure::Deadline) };
        let transition = Transition { from: Stand::Closed, to, reason, failures: 5, lasts, generation: 1 };
        BreakerChange { service: service.parse().unwrap(), transition, by }
    }

    #[test]
    fn a_line_and_an_event_say_the_same() {
        let opened = change("a.b", Stand::Open, Some(29_999_000_001), None);
        assert_eq!(
            log_line(&opened),
            "breaker service=a.b from=closed to=open reason=deadline_exceeded failures=5 retry_after_ms=30000"
        );
        let json: serde_json::Value = serde_json::from_str(&event(&opened)).unwrap();
        assert_eq!((&json["service"], &json["retry_after_ms"]), (&"a.b".into(), &30_000.into()));
        let forced = change("7", Stand::ForcedClosed, Some(5_000_000), Some(3));
        assert_eq!(
            event(&forced),
            r#"{"service":"7","from":"closed","to":"forced_closed","reason":"manual","for_ms":5,"connection":3}"#
        );
    }

    #[test]
    fn the_longest_names_have_a_topic() {
        assert_eq!(topic(&"a.b".parse().unwrap()), "$sys.breaker.a.b");
        let many = ["t"; 16].join(".");
        assert_eq!(topic(&many.parse().unwrap()), format!("$sys.breaker.{}", ["t"; 14].join(".")));
        let long = ["x".repeat(63), "x".repeat(63), "x".repeat(63), "x".repeat(63)].join(".");
        assert!(Topic::parse_system(&topic(&long.parse().unwrap())).is_ok());
    }
}

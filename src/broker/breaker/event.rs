//! The log line and the event of a breaker's change.

use crate::broker::router::breaker_state;
use crate::broker::telemetry::events::BreakerChange;
use crate::wire::control::BreakerState;
use crate::wire::name::{Name, Topic};
use serde::Serialize;

/// A change as it is published; the log line has the same fields.
#[derive(Serialize)]
struct Event<'a> {
    service: &'a str,
    from: &'static str,
    to: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    failures: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    for_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<u32>,
}

impl Event<'_> {
    fn new(change: &BreakerChange) -> Event<'_> {
        let BreakerChange { service, transition, by } = change;
        let to = breaker_state(transition.to);
        let lasts_ms = transition.lasts.map(|nanos| nanos.div_ceil(1_000_000));
        let is_forced_closed = to == BreakerState::ForcedClosed;
        Event {
            service: service.as_str(),
            from: breaker_state(transition.from).as_str(),
            to: to.as_str(),
            reason: transition.reason.as_str(),
            failures: (to == BreakerState::Open).then_some(transition.failures),
            retry_after_ms: lasts_ms.filter(|_| !is_forced_closed),
            for_ms: lasts_ms.filter(|_| is_forced_closed),
            connection: *by,
        }
    }
}

pub(super) fn log_line(change: &BreakerChange) -> String {
    let Event { service, from, to, reason, failures, retry_after_ms, for_ms, connection } = Event::new(change);
    let numbers = [
        ("failures", failures.map(u64::from)),
        ("retry_after_ms", retry_after_ms),
        ("for_ms", for_ms),
        ("connection", connection.map(u64::from)),
    ];
    let numbers = numbers.into_iter().filter_map(|(key, value)| Some(format!(" {key}={}", value?)));
    numbers.fold(format!("breaker service={service} from={from} to={to} reason={reason}"), |line, pair| line + &pair)
}

/// The event as JSON.
pub(super) fn json(change: &BreakerChange) -> String {
    // Strings and numbers always serialise.
    serde_json::to_string(&Event::new(change)).unwrap_or_default()
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
    use crate::logic::breaker::{Failure, GateState, Reason, Transition};

    fn change(service: &str, to: GateState, lasts: Option<u64>, by: Option<u32>) -> BreakerChange {
        let reason = if by.is_some() { Reason::Manual } else { Reason::Failed(Failure::Deadline) };
        let transition = Transition { from: GateState::Closed, to, reason, failures: 5, lasts, generation: 1 };
        BreakerChange { service: service.parse().unwrap(), transition, by }
    }

    #[test]
    fn a_line_and_an_event_say_the_same() {
        let opened = change("a.b", GateState::Open, Some(29_999_000_001), None);
        assert_eq!(
            log_line(&opened),
            "breaker service=a.b from=closed to=open reason=deadline_exceeded failures=5 retry_after_ms=30000"
        );
        let reason = "deadline_exceeded";
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json(&opened)).unwrap(),
            serde_json::json!({ "service": "a.b", "from": "closed", "to": "open", "reason": reason, "failures": 5,
                "retry_after_ms": 30_000 })
        );
        let forced = change("7", GateState::ForcedClosed, Some(5_000_000), Some(3));
        assert_eq!(
            json(&forced),
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

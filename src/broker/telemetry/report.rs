//! The status of the broker, as the control socket and the health endpoints tell it: one struct, one JSON.

use super::holdings::listed;
use crate::broker::context::Broker;
use crate::logic::quotas::Quotas;
use crate::wire::control::{BreakerStatus, QuantileStatus, SessionState, StatusReport};
use std::time::Instant;

/// How long ago something was, in milliseconds.
pub(in crate::broker) fn ms_since(then: Instant) -> u64 {
    u64::try_from(then.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The longest text of unknown origin in a report, in bytes: why an actor has ended, and the like.
const TEXT_BYTES_MAX: usize = 1024;

/// Fills in what the router does not know.
pub(in crate::broker) fn complete(report: &mut StatusReport, broker: &Broker) {
    report.uptime_ms = ms_since(broker.started);
    report.version = env!("CARGO_PKG_VERSION").to_owned();
    report.pid = std::process::id();
    report.socket = broker.config().ipc.socket_path.display().to_string();
    report.config_file = broker.config_file.as_ref().map(|path| path.display().to_string());
    report.draining = broker.phase.borrow().is_ending();
    report.actors = broker.tree.report();
    *report.health = broker.location.status();
    report.socket_lost.clone_from(&broker.socket_lost.borrow());
    report.awaited_sessions = broker.roster.awaited();
    // Connections are in no quota.
    let (none, connections) = (Quotas::default(), broker.permits.users());
    let mut holdings: Vec<_> =
        listed(&none, "connections", Some("ipc.max_connections"), connections.into_iter()).collect();
    holdings.append(&mut report.holdings);
    // The order of a user's resources stays.
    holdings.sort_by(|one, other| (one.uid, &one.quota).cmp(&(other.uid, &other.quota)));
    report.holdings = holdings;
    let waiting = broker.sessions.waiting();
    for connection in report.connections.iter_mut().filter(|connection| waiting.contains(&connection.id)) {
        connection.state = SessionState::AwaitingPeer;
    }
    let reasons = report.actors.iter_mut().map(|actor| &mut actor.last_reason);
    reasons.chain([&mut report.health.reason, &mut report.socket_lost]).flatten().for_each(shorten);
}

/// Cuts a text, so that it fits a page of the report.
fn shorten(text: &mut String) {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..TEXT_BYTES_MAX - 3).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push_str("...");
    }
}

/// The report as JSON: with the state of each service's breaker beside its numbers (the broker's own have none), and
/// times in seconds.
pub(crate) fn status_json(report: &StatusReport, breakers: &[BreakerStatus]) -> serde_json::Value {
    // Strings and numbers always serialise.
    let mut json = serde_json::to_value(report).unwrap_or_default();
    let services = json.get_mut("services").and_then(|services| services.as_array_mut());
    for (service, shown) in report.services.iter().zip(services.into_iter().flatten()) {
        let breaker = breakers.iter().find(|breaker| breaker.service == service.name);
        shown["breaker"] = breaker.map(|breaker| breaker.state.as_str()).into();
    }
    let latency = &report.latency;
    json["latency"] = serde_json::json!({
        "in_broker": in_seconds(&latency.in_broker),
        "round_trip": in_seconds(&latency.round_trip),
        "first_chunk": in_seconds(&latency.first_chunk),
    });
    json
}

fn in_seconds(times: &QuantileStatus) -> serde_json::Value {
    let seconds = |ns: u64| ns as f64 / 1e9;
    serde_json::json!({
        "count": times.count,
        "p50": seconds(times.p50_ns),
        "p95": seconds(times.p95_ns),
        "p99": seconds(times.p99_ns),
    })
}

//! The status of the broker, as the control socket and the health endpoints tell it: one struct, one JSON.

use super::connection::Broker;
use crate::wire::control::{BreakerStatus, SessionState, StatusReport};

/// Fills in what the router does not know.
pub(super) fn complete(report: &mut StatusReport, broker: &Broker) {
    report.uptime_ms = u64::try_from(broker.started.elapsed().as_millis()).unwrap_or(u64::MAX);
    report.version = env!("CARGO_PKG_VERSION").to_owned();
    report.pid = std::process::id();
    report.socket = broker.config.ipc.socket_path.display().to_string();
    report.config_file = broker.config_file.as_ref().map(|path| path.display().to_string());
    report.draining = broker.phase.borrow().is_ending();
    report.actors = broker.tree.report();
    let waiting = broker.sessions.waiting();
    for connection in report.connections.iter_mut().filter(|connection| waiting.contains(&connection.id)) {
        connection.state = SessionState::AwaitingPeer;
    }
}

/// The report as JSON, with the state of each service's breaker beside its numbers; the broker's own have none.
pub(crate) fn status_json(report: &StatusReport, breakers: &[BreakerStatus]) -> serde_json::Value {
    // Strings and numbers always serialise.
    let mut json = serde_json::to_value(report).unwrap_or_default();
    let services = json.get_mut("services").and_then(|services| services.as_array_mut());
    for (service, shown) in report.services.iter().zip(services.into_iter().flatten()) {
        let breaker = breakers.iter().find(|breaker| breaker.service == service.name);
        shown["breaker"] = breaker.map(|breaker| breaker.state.as_str()).into();
    }
    json
}

//! Collects the state of the broker at one moment, from which readiness, health and metrics follow.

use super::probe::LastReply;
use crate::broker::context::Broker;
use crate::broker::session::upstream;
use crate::broker::telemetry::report::ms_since;
use crate::logic::readiness::Snapshot;
use crate::sync::Ordering;
use std::time::Duration;

/// The state now, with the last reply of the router, and whether that is fresh.
pub(in crate::broker) fn snapshot(broker: &Broker, seen: Option<&LastReply>, router_responds: bool) -> Snapshot {
    let restart = &broker.config().restart;
    let users = broker.permits.users();
    let router_snapshot = seen.map(|seen| &seen.router_snapshot);
    Snapshot {
        version: env!("CARGO_PKG_VERSION"),
        uptime_ms: ms_since(broker.started),
        late: broker.late.load(Ordering::Relaxed),
        late_non_vital: broker.late_non_vital.load(Ordering::Relaxed),
        draining: broker.phase.borrow().is_ending(),
        all_running: *broker.ready.borrow(),
        socket_lost: broker.socket_lost.borrow().clone(),
        actors: broker.tree.report(),
        restarted: broker.tree.restarted_within(Duration::from_secs(restart.period_secs)),
        period_secs: restart.period_secs,
        max_restarts: restart.max_restarts,
        connections: users.iter().map(|user| user.held as u64).sum(),
        max_connections: broker.config().ipc.max_connections.into(),
        users,
        router_responds,
        heartbeat_age_ms: seen.map(|seen| ms_since(seen.at)),
        slots: router_snapshot
            .map(|router_snapshot| (router_snapshot.report.slots_used, router_snapshot.report.slots_total)),
        breakers: router_snapshot.map(|router_snapshot| router_snapshot.breakers.clone()).unwrap_or_default(),
        upstreams: upstream::statuses(&broker.upstreams, &broker.tree),
    }
}

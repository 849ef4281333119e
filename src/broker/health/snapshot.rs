//! The snapshot from which readiness, health and metrics follow, and its collection.

use super::probe::LastReply;
use crate::broker::context::Broker;
use crate::broker::session::upstream;
use crate::broker::supervision::supervisor::RecentRestarts;
use crate::broker::telemetry::counters::CounterValues;
use crate::broker::telemetry::report::ms_since;
use crate::sync::Ordering;
use std::time::Duration;

use crate::wire::control::{ActorStatus, BreakerStatus, UpstreamStatus};

/// The state of the broker at one moment.
#[derive(Clone, Debug)]
pub(in crate::broker) struct Snapshot {
    pub(super) version: &'static str,
    pub(super) uptime_ms: u64,
    /// Stuck threads of the broker: reason to end the process.
    pub(super) late: u64,
    /// Stuck threads of the health endpoints: no reason to end a working broker.
    pub(super) late_non_vital: u64,
    pub(super) draining: bool,
    /// Whether all actors of the root run.
    pub(super) all_running: bool,
    /// Why clients cannot reach the socket, if they cannot.
    pub(super) socket_lost: Option<String>,
    pub(super) actors: Vec<ActorStatus>,
    /// Actors restarted within the period of the restart limit.
    pub(super) restarted: Vec<RecentRestarts>,
    pub(super) period_secs: u64,
    pub(super) max_restarts: u32,
    /// Permits taken, by connections and by handshakes.
    pub(in crate::broker) connections: u64,
    pub(super) max_connections: u64,
    /// Whether the router has just responded.
    pub(super) router_responds: bool,
    /// The age of its last reply.
    pub(super) heartbeat_age_ms: Option<u64>,
    pub(super) slots: Option<(u32, u32)>,
    pub(super) breakers: Vec<BreakerStatus>,
    /// The restarts of each actor, by reason.
    pub(super) restarts: Vec<(String, Vec<(&'static str, u64)>)>,
    /// The counters kept outside the router.
    pub(super) counts: CounterValues,
    pub(super) upstreams: Vec<UpstreamStatus>,
}

impl Snapshot {
    /// The state now, with the last reply of the router, and whether that is fresh.
    pub(in crate::broker) fn of(broker: &Broker, seen: Option<&LastReply>, router_responds: bool) -> Snapshot {
        let restart = &broker.config().restart;
        let max_connections = u64::from(broker.config().ipc.max_connections);
        let surveyed = seen.map(|seen| &seen.surveyed);
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
            connections: max_connections.saturating_sub(broker.permits.available_permits() as u64),
            max_connections,
            router_responds,
            heartbeat_age_ms: seen.map(|seen| ms_since(seen.at)),
            slots: surveyed.map(|surveyed| (surveyed.report.slots_used, surveyed.report.slots_total)),
            breakers: surveyed.map(|surveyed| surveyed.breakers.clone()).unwrap_or_default(),
            restarts: broker.tree.restarts_by_cause(),
            counts: broker.counters.values(),
            upstreams: upstream::statuses(&broker.upstreams, &broker.tree),
        }
    }
}

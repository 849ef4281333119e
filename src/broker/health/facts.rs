//! Where the facts come from that are judged.

use super::judge::Facts;
use super::survey::Seen;
use crate::broker::connection::Broker;
use crate::broker::report::ms_since;
use crate::broker::upstream;
use crate::sync::Ordering;
use std::time::Duration;

impl Facts {
    /// What is known now, with what the router said last, and whether that was just now.
    pub(in crate::broker) fn of(broker: &Broker, seen: Option<&Seen>, answers: bool) -> Facts {
        let restart = &broker.config().restart;
        let max_connections = u64::from(broker.config().ipc.max_connections);
        let surveyed = seen.map(|seen| &seen.surveyed);
        Facts {
            version: env!("CARGO_PKG_VERSION"),
            uptime_ms: ms_since(broker.started),
            late: broker.late.load(Ordering::Relaxed),
            late_beside: broker.late_beside.load(Ordering::Relaxed),
            draining: broker.phase.borrow().is_ending(),
            whole: *broker.ready.borrow(),
            socket_lost: broker.socket_lost.borrow().clone(),
            actors: broker.tree.report(),
            restarted: broker.tree.restarted_within(Duration::from_secs(restart.period_secs)),
            period_secs: restart.period_secs,
            max_restarts: restart.max_restarts,
            connections: max_connections.saturating_sub(broker.permits.available_permits() as u64),
            max_connections,
            answers,
            answered_ms_ago: seen.map(|seen| ms_since(seen.at)),
            slots: surveyed.map(|surveyed| (surveyed.report.slots_used, surveyed.report.slots_total)),
            breakers: surveyed.map(|surveyed| surveyed.breakers.clone()).unwrap_or_default(),
            restarts: broker.tree.restarts_by_cause(),
            counts: broker.tally.counts(),
            upstreams: upstream::statuses(broker),
        }
    }
}

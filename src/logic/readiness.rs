//! Liveness, readiness and health: what follows from the state of the broker at one moment.
//!
//! | check | fails when |
//! |---|---|
//! | liveness | a thread is stuck: the process should be killed and restarted |
//! | readiness | not live; the router does not respond; a root actor is down or near its restart limit; draining |
//! | health | `unhealthy`: not ready, except while draining; `degraded`: working, but needs attention |

use super::shares::Holding;
use super::supervision::group::ROOT;
use super::supervision::restart::RecentRestarts;
use crate::wire::control::{ActorState, ActorStatus, BreakerState, BreakerStatus, UpstreamStatus};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The state of the broker at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) version: &'static str,
    pub(crate) uptime_ms: u64,
    /// Stuck threads of the broker: reason to end the process.
    pub(crate) late: u64,
    /// Stuck threads of the health endpoints: no reason to end a working broker.
    pub(crate) late_non_vital: u64,
    pub(crate) draining: bool,
    /// Whether all actors of the root run.
    pub(crate) all_running: bool,
    /// Why clients cannot reach the socket, if they cannot.
    pub(crate) socket_lost: Option<String>,
    pub(crate) actors: Vec<ActorStatus>,
    /// Actors restarted within the period of the restart limit.
    pub(crate) restarted: Vec<RecentRestarts>,
    pub(crate) period_secs: u64,
    pub(crate) max_restarts: u32,
    /// Permits taken, by connections and by handshakes, of all users.
    pub(crate) connections: u64,
    /// What one user alone may take; all together may take more.
    pub(crate) max_connections: u64,
    /// The same by user.
    pub(crate) users: Vec<Holding>,
    /// Whether the router has just responded.
    pub(crate) router_responds: bool,
    /// The age of its last reply.
    pub(crate) heartbeat_age_ms: Option<u64>,
    pub(crate) slots: Option<(u32, u32)>,
    pub(crate) breakers: Vec<BreakerStatus>,
    pub(crate) upstreams: Vec<UpstreamStatus>,
}

/// The condition of the broker or of a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Condition {
    /// Works.
    Healthy,
    /// Works partly, or perhaps not for long.
    Degraded,
    /// Does not work.
    Unhealthy,
}

/// The response of `/health`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Health {
    pub(crate) status: Condition,
    pub(crate) version: &'static str,
    pub(crate) uptime_ms: u64,
    pub(crate) live: bool,
    pub(crate) ready: bool,
    /// Why it is not ready.
    pub(crate) reasons: Vec<String>,
    pub(crate) components: BTreeMap<&'static str, Component>,
}

/// A part of the broker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Component {
    pub(crate) status: Condition,
    #[serde(flatten)]
    pub(crate) details: Value,
}

impl Snapshot {
    /// Whether no thread is stuck.
    pub(crate) fn is_live(&self) -> bool {
        self.late == 0
    }

    /// Why the broker is not ready; empty if it is.
    pub(crate) fn unready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.is_live() {
            let late = self.late;
            reasons.push(if late == 1 { "1 thread is stuck".to_owned() } else { format!("{late} threads are stuck") });
        }
        if !self.router_responds {
            reasons.push("the router does not respond".to_owned());
        }
        if self.draining {
            reasons.push("the broker is shutting down".to_owned());
        }
        let mut down = self.root_actors().filter(|actor| actor.state != ActorState::Running).peekable();
        if down.peek().is_none() && !self.all_running {
            reasons.push("the broker is starting".to_owned());
        }
        if let Some(why) = &self.socket_lost {
            reasons.push(format!("clients cannot reach the socket: {why}"));
        }
        // While draining, actors are stopped on purpose.
        reasons.extend(down.filter(|_| !self.draining).map(|actor| format!("{} is not running", actor.name)));
        let near = self.near_restart_limit().filter(|actor| actor.supervisor == ROOT);
        reasons.extend(near.map(|actor| format!("{} is near its restart limit", actor.name)));
        reasons
    }

    fn root_actors(&self) -> impl Iterator<Item = &ActorStatus> {
        self.actors.iter().filter(|actor| actor.supervisor == ROOT)
    }

    /// Actors that have used four fifths of their restart limit.
    fn near_restart_limit(&self) -> impl Iterator<Item = &RecentRestarts> {
        let many = |limit: u32| (limit as usize * 4).div_ceil(5).max(1);
        self.restarted.iter().filter(move |actor| actor.limit.is_some_and(|limit| actor.times >= many(limit)))
    }

    /// Health with all components.
    pub(crate) fn evaluate(&self) -> Health {
        let components = self.components();
        let worst = components.values().map(|component| component.status).max().unwrap_or(Condition::Healthy);
        let reasons = self.unready();
        let status = match (reasons.is_empty(), self.draining) {
            (true, _) => worst,
            (false, true) => worst.max(Condition::Degraded),
            (false, false) => Condition::Unhealthy,
        };
        Health {
            status,
            version: self.version,
            uptime_ms: self.uptime_ms,
            live: self.is_live(),
            ready: reasons.is_empty(),
            reasons,
            components,
        }
    }

    fn components(&self) -> BTreeMap<&'static str, Component> {
        use Condition::{Degraded, Healthy, Unhealthy};
        let component = |status, details| Component { status, details };
        let if_not = |good, bad| if good { Healthy } else { bad };
        let mut components = BTreeMap::new();
        let turn = if self.is_live() { if_not(self.late_non_vital == 0, Degraded) } else { Unhealthy };
        let threads = component(turn, json!({ "late": self.late, "late_non_vital": self.late_non_vital }));
        components.insert("threads", threads);
        let heartbeat = json!({ "heartbeat_age_ms": self.heartbeat_age_ms });
        components.insert("router", component(if_not(self.router_responds, Unhealthy), heartbeat));
        let acceptor = self.root_actors().find(|actor| actor.name == "acceptor");
        let accepts = acceptor.is_some_and(|actor| actor.state == ActorState::Running) && self.socket_lost.is_none();
        let accepting = component(
            if_not(accepts, if self.draining { Degraded } else { Unhealthy }),
            json!({ "listening": accepts }),
        );
        components.insert("acceptor", accepting);
        let (used, limit) = (self.connections, self.max_connections);
        let connections = if_not(!self.users.iter().any(|user| user.is_near_limit()), Degraded);
        components.insert("connections", component(connections, json!({ "now": used, "limit": limit })));
        if let Some((used, total)) = self.slots {
            // A full budget is normal: rings stay smaller, and nothing fails.
            components.insert("slots", component(Healthy, json!({ "used": used, "limit": total })));
        }
        components.insert("breakers", self.breakers());
        components.insert("actors", self.actors());
        if !self.upstreams.is_empty() {
            components.insert("upstreams", self.upstreams());
        }
        components
    }

    fn breakers(&self) -> Component {
        // A breaker that was closed by hand is as intended.
        let is_shut = |state| matches!(state, BreakerState::Closed | BreakerState::ForcedClosed);
        let not_closed = self.breakers.iter().filter(|breaker| !is_shut(breaker.state));
        let not_closed: BTreeMap<_, _> =
            not_closed.map(|breaker| (breaker.service.as_str(), breaker.state.as_str())).collect();
        let status = if not_closed.is_empty() { Condition::Healthy } else { Condition::Degraded };
        Component { status, details: json!({ "services": self.breakers.len(), "not_closed": not_closed }) }
    }

    fn upstreams(&self) -> Component {
        let absent = self.upstreams.iter().filter(|upstream| upstream.connection.is_none());
        let absent: BTreeMap<_, _> = absent
            .map(|upstream| (upstream.name.as_str(), upstream.last_reason.as_deref().unwrap_or("dialling")))
            .collect();
        let status = if absent.is_empty() { Condition::Healthy } else { Condition::Degraded };
        Component { status, details: json!({ "configured": self.upstreams.len(), "absent": absent }) }
    }

    fn actors(&self) -> Component {
        let restarts: BTreeMap<_, _> = self.restarted.iter().map(|actor| (actor.name.as_str(), actor.times)).collect();
        let down = self.actors.iter().filter(|actor| actor.state != ActorState::Running);
        let down: BTreeMap<_, _> =
            down.map(|actor| (actor.name.as_str(), actor.last_reason.as_deref().unwrap_or("stopped"))).collect();
        let near: Vec<_> = self.near_restart_limit().map(|actor| actor.name.as_str()).collect();
        let is_bad = self.root_actors().any(|actor| actor.state != ActorState::Running) && !self.draining;
        let status = match (is_bad, !near.is_empty() || !down.is_empty()) {
            (true, _) => Condition::Unhealthy,
            (false, true) => Condition::Degraded,
            (false, false) => Condition::Healthy,
        };
        let details = json!({
            "not_running": down,
            "near_restart_limit": near,
            "restarts": restarts,
            "within_secs": self.period_secs,
            "restarts_limit": self.max_restarts,
        });
        Component { status, details }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::shares::uid;

    fn actor(name: &str, supervisor: &str, state: ActorState) -> ActorStatus {
        let (name, supervisor) = (name.to_owned(), supervisor.to_owned());
        ActorStatus { name, supervisor, state, restarts: 0, failures: 0, last_reason: None }
    }

    fn snapshot() -> Snapshot {
        let running = |name| actor(name, "root", ActorState::Running);
        Snapshot {
            version: "1",
            uptime_ms: 5,
            late: 0,
            late_non_vital: 0,
            draining: false,
            all_running: true,
            socket_lost: None,
            actors: vec![running("breaker"), running("router"), running("acceptor")],
            restarted: Vec::new(),
            period_secs: 60,
            max_restarts: 10,
            connections: 1,
            max_connections: 10,
            users: vec![Holding { user: uid(7), held: 1, most: 10 }],
            router_responds: true,
            heartbeat_age_ms: Some(3),
            slots: Some((5, 100)),
            breakers: Vec::new(),
            upstreams: Vec::new(),
        }
    }

    fn breaker(state: BreakerState) -> BreakerStatus {
        BreakerStatus {
            service: "a.b".parse().unwrap(),
            state,
            failures: 0,
            failed_trials: 0,
            probes: 0,
            successes: 0,
            ends_in_ms: None,
            opened: 0,
            rejected: 0,
            failure_threshold: 5,
            success_threshold: 2,
            half_open_max_requests: 3,
        }
    }

    /// Live, ready, and how it is, with this changed.
    fn judged(change: impl FnOnce(&mut Snapshot)) -> (bool, bool, Condition) {
        let mut snapshot = snapshot();
        change(&mut snapshot);
        let health = snapshot.evaluate();
        (health.live, health.ready, health.status)
    }

    #[test]
    fn each_fact_has_its_consequence() {
        use Condition::{Degraded, Healthy, Unhealthy};
        let restarted = |supervisor: &str, times, limit| {
            vec![RecentRestarts { name: "x".to_owned(), supervisor: supervisor.to_owned(), times, limit }]
        };
        assert_eq!(judged(|_| {}), (true, true, Healthy));
        assert_eq!(judged(|snapshot| snapshot.late = 1), (false, false, Unhealthy));
        assert_eq!(judged(|snapshot| snapshot.late_non_vital = 1), (true, true, Degraded));
        assert_eq!(judged(|snapshot| snapshot.router_responds = false), (true, false, Unhealthy));
        assert_eq!(judged(|snapshot| snapshot.all_running = false), (true, false, Unhealthy));
        assert_eq!(judged(|snapshot| snapshot.socket_lost = Some("gone".to_owned())), (true, false, Unhealthy));
        assert_eq!(judged(|snapshot| snapshot.draining = true), (true, false, Degraded));
        assert_eq!(judged(|snapshot| snapshot.restarted = restarted("root", 7, Some(10))), (true, true, Healthy));
        assert_eq!(judged(|snapshot| snapshot.restarted = restarted("root", 8, Some(10))), (true, false, Unhealthy));
        assert_eq!(judged(|snapshot| snapshot.restarted = restarted("root", 8, Some(20))), (true, true, Healthy));
        assert_eq!(judged(|snapshot| snapshot.restarted = restarted("upstreams", 7, Some(10))), (true, true, Healthy));
        assert_eq!(judged(|snapshot| snapshot.restarted = restarted("upstreams", 8, Some(10))), (true, true, Degraded));
        assert_eq!(judged(|snapshot| snapshot.restarted = restarted("health", 8, None)), (true, true, Healthy));
        let two = |held| vec![Holding { user: uid(7), held: 8, most: 9 }, Holding { user: uid(8), held, most: 10 }];
        assert_eq!(judged(|snapshot| snapshot.users = two(8)), (true, true, Healthy));
        assert_eq!(judged(|snapshot| snapshot.users = two(9)), (true, true, Degraded));
        assert_eq!(judged(|snapshot| snapshot.slots = Some((100, 100))), (true, true, Healthy));
        assert_eq!(
            judged(|snapshot| snapshot.actors.push(actor("x", "y", ActorState::GaveUp))),
            (true, true, Degraded)
        );
        let waits = ActorState::Restarting { next_in_ms: 5 };
        assert_eq!(judged(|snapshot| snapshot.actors[1].state = waits), (true, false, Unhealthy));
        for (state, condition) in [
            (BreakerState::Closed, Healthy),
            (BreakerState::ForcedClosed, Healthy),
            (BreakerState::HalfOpen, Degraded),
            (BreakerState::Open, Degraded),
            (BreakerState::ForcedOpen, Degraded),
        ] {
            assert_eq!(
                judged(|snapshot| snapshot.breakers = vec![breaker(state)]),
                (true, true, condition),
                "{state:?}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let mut snapshot = snapshot();
        snapshot.actors[2].state = ActorState::GaveUp;
        snapshot.router_responds = false;
        assert_eq!(snapshot.unready(), ["the router does not respond", "acceptor is not running"]);
        snapshot.late = 1;
        assert_eq!(snapshot.unready()[0], "1 thread is stuck");
        snapshot.draining = true;
        snapshot.late = 2;
        let reasons = ["2 threads are stuck", "the router does not respond", "the broker is shutting down"];
        assert_eq!(snapshot.unready(), reasons);
        snapshot.breakers = vec![breaker(BreakerState::Open)];
        let health = serde_json::to_value(snapshot.evaluate()).unwrap();
        assert_eq!(health["components"]["breakers"]["not_closed"]["a.b"], "open");
        assert_eq!(health["components"]["router"]["heartbeat_age_ms"], 3);
        assert_eq!(health["components"]["connections"], json!({ "status": "healthy", "now": 1, "limit": 10 }));
        assert_eq!(health["status"], "unhealthy");
    }
}

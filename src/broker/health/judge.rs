//! What is made of the facts: whether the broker lives, is ready, and how its parts are. Pure.
//!
//! | question | no, when |
//! |---|---|
//! | does it live? | a thread does not turn: whoever can should end the process and start it anew |
//! | is it ready? | it does not live; no answer of the router; a root actor is down or near its limit; it ends |
//! | is it healthy? | `unhealthy`: not ready though it is not ending; `degraded`: it works, and yet look at it |

use super::super::supervisor::{ROOT, Restarted};
use super::super::tally::Counts;
use crate::wire::control::{ActorState, ActorStatus, BreakerState, BreakerStatus, UpstreamStatus};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How the broker, or a part of it, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Condition {
    /// All is well.
    Healthy,
    /// It works, but not all of it, or not for long.
    Degraded,
    /// It does not work.
    Unhealthy,
}

/// What is known.
#[derive(Clone, Debug)]
pub(in crate::broker) struct Facts {
    pub(super) version: &'static str,
    pub(super) uptime_ms: u64,
    /// Threads that do not turn, and for which the process should be ended.
    pub(super) late: u64,
    /// Threads of the health endpoints that do not turn: no reason to end a broker that works.
    pub(super) late_beside: u64,
    pub(super) draining: bool,
    /// Whether all actors of the root run.
    pub(super) whole: bool,
    /// Why clients do not find the socket, if they do not.
    pub(super) socket_lost: Option<String>,
    pub(super) actors: Vec<ActorStatus>,
    /// Who was started again within the period in which restarts are counted.
    pub(super) restarted: Vec<Restarted>,
    pub(super) period_secs: u64,
    pub(super) max_restarts: u32,
    /// Permits taken, by connections and those that would be some.
    pub(in crate::broker) connections: u64,
    pub(super) max_connections: u64,
    /// Whether the router has answered just now.
    pub(super) answers: bool,
    /// When it did the last time, in milliseconds before now.
    pub(super) answered_ms_ago: Option<u64>,
    pub(super) slots: Option<(u32, u32)>,
    pub(super) breakers: Vec<BreakerStatus>,
    /// How often each actor was started again, by reason.
    pub(super) restarts: Vec<(String, Vec<(&'static str, u64)>)>,
    /// What is counted outside the router.
    pub(super) counts: Counts,
    pub(super) upstreams: Vec<UpstreamStatus>,
}

/// The answer of `/health`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Health {
    pub(super) status: Condition,
    pub(super) version: &'static str,
    pub(super) uptime_ms: u64,
    pub(super) live: bool,
    pub(super) ready: bool,
    /// Why it is not ready.
    pub(super) reasons: Vec<String>,
    pub(super) components: BTreeMap<&'static str, Component>,
}

/// A part of the broker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Component {
    pub(super) status: Condition,
    #[serde(flatten)]
    pub(super) details: Value,
}

impl Facts {
    /// Whether the process should go on.
    pub(super) fn is_live(&self) -> bool {
        self.late == 0
    }

    /// Why the broker is not ready; nothing if it is.
    pub(in crate::broker) fn unready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.is_live() {
            let late = self.late;
            reasons.push(if late == 1 { "1 thread is stuck".to_owned() } else { format!("{late} threads are stuck") });
        }
        if !self.answers {
            reasons.push("the router does not respond".to_owned());
        }
        if self.draining {
            reasons.push("the broker is shutting down".to_owned());
        }
        let mut down = self.root_actors().filter(|actor| actor.state != ActorState::Running).peekable();
        if down.peek().is_none() && !self.whole {
            reasons.push("the broker is starting".to_owned());
        }
        if let Some(why) = &self.socket_lost {
            reasons.push(format!("clients cannot reach the socket: {why}"));
        }
        // While it ends, its actors are stopped on purpose.
        reasons.extend(down.filter(|_| !self.draining).map(|actor| format!("{} is not running", actor.name)));
        let near = self.near_the_limit().filter(|actor| actor.supervisor == ROOT);
        reasons.extend(near.map(|actor| format!("{} is near its restart limit", actor.name)));
        reasons
    }

    fn root_actors(&self) -> impl Iterator<Item = &ActorStatus> {
        self.actors.iter().filter(|actor| actor.supervisor == ROOT)
    }

    /// Actors that have used up four fifths of their restarts.
    fn near_the_limit(&self) -> impl Iterator<Item = &Restarted> {
        let many = |limit: u32| (limit as usize * 4).div_ceil(5).max(1);
        self.restarted.iter().filter(move |actor| actor.limit.is_some_and(|limit| actor.times >= many(limit)))
    }

    /// The whole picture.
    pub(super) fn judge(&self) -> Health {
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
        let turn = if self.is_live() { if_not(self.late_beside == 0, Degraded) } else { Unhealthy };
        let threads = component(turn, json!({ "late": self.late, "late_beside": self.late_beside }));
        components.insert("threads", threads);
        let heartbeat = json!({ "heartbeat_age_ms": self.answered_ms_ago });
        components.insert("router", component(if_not(self.answers, Unhealthy), heartbeat));
        let acceptor = self.root_actors().find(|actor| actor.name == "acceptor");
        let accepts = acceptor.is_some_and(|actor| actor.state == ActorState::Running) && self.socket_lost.is_none();
        let accepting = component(
            if_not(accepts, if self.draining { Degraded } else { Unhealthy }),
            json!({ "listening": accepts }),
        );
        components.insert("acceptor", accepting);
        let (used, limit) = (self.connections, self.max_connections);
        let connections = if_not(used.saturating_mul(10) < limit.saturating_mul(9), Degraded);
        components.insert("connections", component(connections, json!({ "now": used, "limit": limit })));
        if let Some((used, total)) = self.slots {
            // All lent out is what it is there for: rings stay smaller then, and nothing fails.
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
        // Somebody who closes a breaker by hand wants it so.
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
        let near: Vec<_> = self.near_the_limit().map(|actor| actor.name.as_str()).collect();
        let is_bad = self.root_actors().any(|actor| actor.state != ActorState::Running) && !self.draining;
        let status = match (is_bad, !near.is_empty() || !down.is_empty()) {
            (true, _) => Condition::Unhealthy,
            (false, true) => Condition::Degraded,
            (false, false) => Condition::Healthy,
        };
        let details = json!({
            "not_running": down,
            "near_the_limit": near,
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

    fn actor(name: &str, supervisor: &str, state: ActorState) -> ActorStatus {
        let (name, supervisor) = (name.to_owned(), supervisor.to_owned());
        ActorStatus { name, supervisor, state, restarts: 0, failures: 0, last_reason: None }
    }

    fn facts() -> Facts {
        let running = |name| actor(name, "root", ActorState::Running);
        Facts {
            version: "1",
            uptime_ms: 5,
            late: 0,
            late_beside: 0,
            draining: false,
            whole: true,
            socket_lost: None,
            actors: vec![running("breaker"), running("router"), running("acceptor")],
            restarted: Vec::new(),
            period_secs: 60,
            max_restarts: 10,
            connections: 1,
            max_connections: 10,
            answers: true,
            answered_ms_ago: Some(3),
            slots: Some((5, 100)),
            breakers: Vec::new(),
            restarts: Vec::new(),
            counts: Counts::default(),
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
    fn told(change: impl FnOnce(&mut Facts)) -> (bool, bool, Condition) {
        let mut facts = facts();
        change(&mut facts);
        let health = facts.judge();
        (health.live, health.ready, health.status)
    }

    #[test]
    fn each_fact_has_its_consequence() {
        use Condition::{Degraded, Healthy, Unhealthy};
        let restarted = |supervisor: &str, times, limit| {
            vec![Restarted { name: "x".to_owned(), supervisor: supervisor.to_owned(), times, limit }]
        };
        assert_eq!(told(|_| {}), (true, true, Healthy));
        assert_eq!(told(|facts| facts.late = 1), (false, false, Unhealthy));
        assert_eq!(told(|facts| facts.late_beside = 1), (true, true, Degraded));
        assert_eq!(told(|facts| facts.answers = false), (true, false, Unhealthy));
        assert_eq!(told(|facts| facts.whole = false), (true, false, Unhealthy));
        assert_eq!(told(|facts| facts.socket_lost = Some("gone".to_owned())), (true, false, Unhealthy));
        assert_eq!(told(|facts| facts.draining = true), (true, false, Degraded));
        assert_eq!(told(|facts| facts.restarted = restarted("root", 7, Some(10))), (true, true, Healthy));
        assert_eq!(told(|facts| facts.restarted = restarted("root", 8, Some(10))), (true, false, Unhealthy));
        assert_eq!(told(|facts| facts.restarted = restarted("root", 8, Some(20))), (true, true, Healthy));
        assert_eq!(told(|facts| facts.restarted = restarted("upstreams", 7, Some(10))), (true, true, Healthy));
        assert_eq!(told(|facts| facts.restarted = restarted("upstreams", 8, Some(10))), (true, true, Degraded));
        assert_eq!(told(|facts| facts.restarted = restarted("health", 8, None)), (true, true, Healthy));
        assert_eq!(told(|facts| facts.connections = 9), (true, true, Degraded));
        assert_eq!(told(|facts| facts.slots = Some((100, 100))), (true, true, Healthy));
        assert_eq!(told(|facts| facts.actors.push(actor("x", "y", ActorState::GaveUp))), (true, true, Degraded));
        let waits = ActorState::Restarting { next_in_ms: 5 };
        assert_eq!(told(|facts| facts.actors[1].state = waits), (true, false, Unhealthy));
        for (state, condition) in [
            (BreakerState::Closed, Healthy),
            (BreakerState::ForcedClosed, Healthy),
            (BreakerState::HalfOpen, Degraded),
            (BreakerState::Open, Degraded),
            (BreakerState::ForcedOpen, Degraded),
        ] {
            assert_eq!(told(|facts| facts.breakers = vec![breaker(state)]), (true, true, condition), "{state:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let mut facts = facts();
        facts.actors[2].state = ActorState::GaveUp;
        facts.answers = false;
        assert_eq!(facts.unready(), ["the router does not respond", "acceptor is not running"]);
        facts.late = 1;
        assert_eq!(facts.unready()[0], "1 thread is stuck");
        facts.draining = true;
        facts.late = 2;
        let reasons = ["2 threads are stuck", "the router does not respond", "the broker is shutting down"];
        assert_eq!(facts.unready(), reasons);
        facts.breakers = vec![breaker(BreakerState::Open)];
        let health = serde_json::to_value(facts.judge()).unwrap();
        assert_eq!(health["components"]["breakers"]["not_closed"]["a.b"], "open");
        assert_eq!(health["components"]["router"]["heartbeat_age_ms"], 3);
        assert_eq!(health["components"]["connections"], json!({ "status": "healthy", "now": 1, "limit": 10 }));
        assert_eq!(health["status"], "unhealthy");
    }
}

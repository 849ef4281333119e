//! The supervision tree, as `status` shows it: the state of each actor, its restarts and their reasons.

use crate::broker::telemetry::events::{Events, SystemEvent};
use crate::logic::supervision::restart::{Limits, RecentRestarts};
use crate::wire::control::{ActorState, ActorStatus};
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The most restarts of an actor whose times are kept, unless its limit is higher.
const RECENT: usize = 1024;

/// An actor's entry in the tree, for the life of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::broker) struct NodeId(usize);

/// The state of an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    RestartsAt(Instant),
    GaveUp,
    Stopped,
}

/// Why an actor was restarted, as the metrics label it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::broker) enum Cause {
    Panic,
    /// It ended with an error.
    Failure,
    /// It ended without an error, although it should run.
    Ended,
    /// It was stopped because another one had ended (rest-for-one).
    Sibling,
}

impl Cause {
    const ALL: [Cause; 4] = [Cause::Panic, Cause::Failure, Cause::Ended, Cause::Sibling];

    fn as_str(self) -> &'static str {
        match self {
            Cause::Panic => "panic",
            Cause::Failure => "failure",
            Cause::Ended => "ended",
            Cause::Sibling => "sibling",
        }
    }
}

#[derive(Debug)]
struct Node {
    name: String,
    supervisor: String,
    /// It stands for any number of children, and has no state of its own.
    many: bool,
    /// Its actor is configured no more; its place is free.
    is_removed: bool,
    /// Its restart limits, if it has any.
    limits: Option<Limits>,
    state: State,
    restarts: u64,
    /// In the order of `Cause::ALL`. `restarts` does not count those because of a sibling.
    causes: [u64; Cause::ALL.len()],
    failures: u64,
    reason: Option<String>,
    /// The times of the latest restarts.
    recent: VecDeque<Instant>,
}

/// The tree. Only supervisors write it; the lock is held briefly, and never by the router.
#[derive(Debug)]
pub(in crate::broker) struct Tree {
    nodes: Mutex<Vec<Node>>,
    /// Where restarts are published.
    events: Option<Events>,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree::new(None)
    }
}

impl Tree {
    /// An empty tree. Restarts are published as events.
    pub(in crate::broker) fn new(events: Option<Events>) -> Tree {
        Tree { nodes: Mutex::default(), events }
    }

    /// Publishes an event of an actor on `$sys.actor.{what}`; `details` is a JSON object.
    pub(in crate::broker) fn publish(&self, what: &str, details: &serde_json::Value) {
        if let Some(events) = &self.events {
            events.actor(SystemEvent { topic: format!("$sys.actor.{what}"), text: details.to_string() });
        }
    }

    /// Adds a node for one actor, with its restart limits, if it has any. All nodes but those of engines are added
    /// when the broker starts, and the place of a removed one is used again: so the tree does not grow.
    pub(in crate::broker) fn add(&self, name: &str, supervisor: &str, limits: Option<Limits>) -> NodeId {
        self.add_node(name, supervisor, false, limits)
    }

    /// Adds one node for any number of actors that come and go.
    pub(in crate::broker) fn add_many(&self, name: &str, supervisor: &str) -> NodeId {
        self.add_node(name, supervisor, true, None)
    }

    fn add_node(&self, name: &str, supervisor: &str, many: bool, limits: Option<Limits>) -> NodeId {
        let (name, supervisor) = (name.to_owned(), supervisor.to_owned());
        let state = if many { State::Running } else { State::Stopped };
        let node = Node {
            name,
            supervisor,
            many,
            is_removed: false,
            limits,
            state,
            restarts: 0,
            causes: [0; Cause::ALL.len()],
            failures: 0,
            reason: None,
            recent: VecDeque::new(),
        };
        let mut nodes = self.nodes();
        if let Some(free) = nodes.iter().position(|node| node.is_removed) {
            nodes[free] = node;
            return NodeId(free);
        }
        nodes.push(node);
        NodeId(nodes.len() - 1)
    }

    /// Removes the node of an actor that has ended and will not be started again.
    pub(in crate::broker) fn remove(&self, id: NodeId) {
        self.change(id, |node| node.is_removed = true);
    }

    /// The actor runs.
    pub(in crate::broker) fn running(&self, id: NodeId) {
        self.change(id, |node| node.state = State::Running);
    }

    /// The actor has failed.
    pub(in crate::broker) fn failed(&self, id: NodeId, reason: &str) {
        self.change(id, |node| {
            node.failures += 1;
            node.reason = Some(reason.to_owned());
        });
    }

    /// The actor will be restarted after `delay`.
    pub(in crate::broker) fn restarts(&self, id: NodeId, cause: Cause, reason: &str, delay: Duration) {
        let at = Instant::now() + delay;
        self.change(id, |node| {
            node.restarts += 1;
            node.causes[cause as usize] += 1;
            // Enough to see whether the actor is near its limit.
            let kept = node.limits.map_or(RECENT, |limits| RECENT.max(limits.max_restarts as usize));
            node.recent.truncate(kept - 1);
            node.recent.push_front(Instant::now());
            node.reason = Some(reason.to_owned());
            node.state = State::RestartsAt(at);
        });
    }

    /// The actor was stopped because of a sibling, and will be restarted after `delay`.
    pub(in crate::broker) fn restarts_with_sibling(&self, id: NodeId, delay: Duration) {
        self.change(id, |node| node.causes[Cause::Sibling as usize] += 1);
        self.restarts_in(id, delay);
    }

    /// The actor is down, and will be started after `delay`.
    pub(in crate::broker) fn restarts_in(&self, id: NodeId, delay: Duration) {
        let at = Instant::now() + delay;
        self.change(id, |node| node.state = State::RestartsAt(at));
    }

    /// The actor has reached its restart limit.
    pub(in crate::broker) fn gave_up(&self, id: NodeId, reason: &str) {
        self.change(id, |node| {
            node.reason = Some(reason.to_owned());
            node.state = State::GaveUp;
        });
    }

    /// The actor was stopped, or is done.
    pub(in crate::broker) fn stopped(&self, id: NodeId) {
        self.change(id, |node| node.state = State::Stopped);
    }

    /// All actors, supervisors before their children.
    pub(in crate::broker) fn report(&self) -> Vec<ActorStatus> {
        let now = Instant::now();
        let status = |node: &Node| ActorStatus {
            name: node.name.clone(),
            supervisor: node.supervisor.clone(),
            state: match node.state {
                State::Running => ActorState::Running,
                State::GaveUp => ActorState::GaveUp,
                State::Stopped => ActorState::Stopped,
                State::RestartsAt(at) => {
                    let left = at.saturating_duration_since(now).as_millis();
                    ActorState::Restarting { next_in_ms: u64::try_from(left).unwrap_or(u64::MAX) }
                }
            },
            restarts: node.restarts,
            failures: node.failures,
            last_reason: node.reason.clone(),
        };
        self.nodes().iter().filter(|node| !node.is_removed).map(status).collect()
    }

    /// The actors that were restarted within the period of their limits, or else within `time`, with the number of
    /// restarts, as far as their times are kept.
    pub(in crate::broker) fn restarted_within(&self, time: Duration) -> Vec<RecentRestarts> {
        let now = Instant::now();
        let nodes = self.nodes();
        let restarted = nodes.iter().filter(|node| !node.is_removed).map(|node| {
            let period = node.limits.map_or(time, |limits| Duration::from_nanos(limits.period));
            let times = node.recent.iter().take_while(|at| now.saturating_duration_since(**at) < period).count();
            let limit = node.limits.map(|limits| limits.max_restarts);
            RecentRestarts { name: node.name.clone(), supervisor: node.supervisor.clone(), times, limit }
        });
        restarted.filter(|restarted| restarted.times > 0).collect()
    }

    /// The restarts of each actor by cause.
    pub(in crate::broker) fn restarts_by_cause(&self) -> Vec<(String, Vec<(&'static str, u64)>)> {
        let by_cause =
            |node: &Node| Cause::ALL.iter().map(|cause| (cause.as_str(), node.causes[*cause as usize])).collect();
        let nodes = self.nodes();
        let nodes = nodes.iter().filter(|node| !node.is_removed);
        nodes.map(|node| (node.name.clone(), by_cause(node))).collect()
    }

    fn change(&self, id: NodeId, change: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes().get_mut(id.0) {
            let state = node.state;
            change(node);
            if node.many {
                node.state = state;
            }
        }
    }

    fn nodes(&self) -> std::sync::MutexGuard<'_, Vec<Node>> {
        // No change panics half way.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_node_is_shown_no_more_and_its_place_is_used_again() {
        let tree = Tree::default();
        let (first, last) = (tree.add("engine a", "engines", None), tree.add("engine b", "engines", None));
        tree.restarts(first, Cause::Failure, "exited with 1", Duration::ZERO);
        tree.remove(first);
        let names = || tree.report().into_iter().map(|actor| actor.name).collect::<Vec<_>>();
        assert_eq!(names(), ["engine b"]);
        assert!(tree.restarted_within(Duration::from_secs(60)).is_empty());
        assert_eq!(tree.restarts_by_cause().len(), 1);
        let next = tree.add("engine c", "engines", None);
        assert_eq!((next, names()), (first, vec!["engine c".to_owned(), "engine b".to_owned()]));
        assert_eq!(tree.report()[0].restarts, 0);
        assert_ne!(next, last);
    }

    #[test]
    fn states_are_told_with_what_led_to_them() {
        let tree = Tree::default();
        let (router, many) = (tree.add("router", "root", None), tree.add_many("connections", "root"));
        let state = |at: usize| tree.report()[at].state;
        assert_eq!((state(0), state(1)), (ActorState::Stopped, ActorState::Running));
        tree.running(router);
        assert_eq!(state(0), ActorState::Running);
        tree.failed(router, "panicked: x");
        tree.restarts(router, Cause::Panic, "panicked: x", Duration::from_secs(3600));
        assert!(matches!(state(0), ActorState::Restarting { next_in_ms: 3_590_000.. }));
        tree.gave_up(router, "panicked: y");
        assert_eq!(state(0), ActorState::GaveUp);
        tree.failed(many, "panicked: z");
        tree.gave_up(many, "panicked: z");
        assert_eq!(state(1), ActorState::Running, "one of them is not all of them");
        let report = tree.report();
        assert_eq!((report[0].restarts, report[0].failures, report[1].failures), (1, 1, 1));
        assert_eq!(report[0].last_reason.as_deref(), Some("panicked: y"));
    }

    #[test]
    fn restarts_are_told_by_their_cause() {
        let tree = Tree::default();
        let (router, acceptor) = (tree.add("router", "root", None), tree.add("acceptor", "root", None));
        tree.restarts(router, Cause::Panic, "panicked: x", Duration::ZERO);
        tree.restarts(router, Cause::Failure, "y", Duration::ZERO);
        tree.restarts(router, Cause::Failure, "z", Duration::ZERO);
        tree.restarts_with_sibling(acceptor, Duration::ZERO);
        let counts = |panic, failure, ended, sibling| {
            vec![("panic", panic), ("failure", failure), ("ended", ended), ("sibling", sibling)]
        };
        let expected = [("router".to_owned(), counts(1, 2, 0, 0)), ("acceptor".to_owned(), counts(0, 0, 0, 1))];
        assert_eq!(tree.restarts_by_cause(), expected);
        assert_eq!(tree.report()[1].restarts, 0, "what a sibling is to blame for is none of its own");
    }

    #[test]
    fn the_latest_restarts_are_counted_up_to_what_is_kept() {
        let tree = Tree::default();
        let (router, _) = (tree.add("router", "root", None), tree.add("acceptor", "root", None));
        assert_eq!(tree.restarted_within(Duration::from_secs(3600)), []);
        for _ in 0..RECENT + 3 {
            tree.restarts(router, Cause::Panic, "panicked: x", Duration::ZERO);
        }
        let (name, supervisor) = ("router".to_owned(), "root".to_owned());
        let restarted = RecentRestarts { name, supervisor, times: RECENT, limit: None };
        assert_eq!(tree.restarted_within(Duration::from_secs(3600)), [restarted]);
        assert_eq!(tree.restarted_within(Duration::ZERO), []);
    }

    #[test]
    fn a_high_limit_of_restarts_is_seen_to_be_near() {
        let tree = Tree::default();
        let limits = |max_restarts, period| {
            let stable = u64::MAX;
            Some(Limits { initial_delay: 1, max_delay: 1, jitter: 0.0, max_restarts, period, stable })
        };
        let router = tree.add("router", "root", limits(2000, u64::MAX));
        let brief = tree.add("upstream x", "upstreams", limits(3, 0));
        for _ in 0..1600 {
            tree.restarts(router, Cause::Panic, "panicked: x", Duration::ZERO);
            tree.restarts(brief, Cause::Panic, "panicked: x", Duration::ZERO);
        }
        // Each within the period of its own.
        let [RecentRestarts { times: 1600, limit: Some(2000), .. }] =
            tree.restarted_within(Duration::from_secs(3600))[..]
        else {
            panic!("{:?}", tree.restarted_within(Duration::from_secs(3600)))
        };
    }
}

//! Supervisors: a supervisor observes the end of its actors, builds the next incarnation from a factory, and publishes
//! its address.
//!
//! ```text
//!   Supervisor (main)                       Seat::host (the actor's thread)
//!   logic::supervision::group decides        Start ────► factory, Context::into_future, spawn
//!                               Stop  ────► Stop to the actor; after the deadline the actor is dropped
//!   logs, status, readiness   ◄──── End     normal end, error, panic
//!                                           the address, or none, is published by `watch`
//! ```
//!
//! | file | idea |
//! |---|---|
//! | `incarnation` | one incarnation of an actor, and its end |
//! | `single` | one-for-one supervision of a child that is created at run time |
//! | `tree` | the supervision tree, for the status |
//!
//! actix has a supervisor, too, but it does not restart an actor that panics. Here a panic is an end like any other.

mod incarnation;
mod single;
#[cfg(test)]
mod tests;
mod tree;

pub(in crate::broker) use incarnation::{End, Exit, Stop, install_panic_hook};
pub(in crate::broker) use single::{Child, Outcome, supervise};
pub(in crate::broker) use tree::{NodeId, Tree};

use crate::broker::clock::elapsed;
use crate::config;
use crate::logic::supervision::group::{Action, Group};
use crate::logic::supervision::restart::{Decision, Limits, NEVER, Restart, UNTIL_TOLD};
use crate::shm::segment::fill_random;
use actix::prelude::*;
use incarnation::Incarnation;
use log::Level;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Consecutive attempts that are all logged; without a restart limit, later ones are logged at powers of two.
const LOGGED_ATTEMPTS: u32 = 16;
/// The longest reason in an event, in characters.
const REASON_MAX: usize = 200;

/// The specification of a child.
#[derive(Clone, Copy, Debug)]
pub(in crate::broker) struct Spec {
    pub(in crate::broker) name: &'static str,
    pub(in crate::broker) restart: Restart,
    pub(in crate::broker) limits: Limits,
    /// The capacity of its mailbox.
    pub(in crate::broker) mailbox: usize,
    /// How long it may take to stop before it is dropped.
    pub(in crate::broker) stop_within: Duration,
}

/// A child has reached its restart limit and failed once more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{actor} failed {} times within {period_secs} s, the last time: {reason}", u64::from(*restarts) + 1)]
pub struct GaveUp {
    /// The name of the actor.
    pub actor: String,
    /// Restarts within the period.
    pub restarts: u32,
    /// The period in which they are counted.
    pub period_secs: u64,
    /// Its last end.
    pub reason: String,
}

/// The limits of the configuration, in nanoseconds.
pub(in crate::broker) fn limits(restart: &config::Restart) -> Limits {
    const MS: u64 = 1_000_000;
    Limits {
        initial_delay: restart.initial_delay_ms * MS,
        max_delay: restart.max_delay_ms * MS,
        jitter: restart.jitter,
        max_restarts: restart.max_restarts,
        period: restart.period_secs * 1000 * MS,
        stable: restart.stable_secs * 1000 * MS,
    }
}

/// The limits for connections. A restart has no delay, because the client has a backoff; a resume makes it stable.
pub(in crate::broker) fn connection_limits(restart: &config::Restart) -> Limits {
    Limits {
        initial_delay: 0,
        max_delay: 0,
        jitter: 0.0,
        max_restarts: restart.connection_max_restarts,
        period: restart.connection_period_secs * 1_000_000_000,
        stable: UNTIL_TOLD,
    }
}

#[derive(Clone, Copy, Debug)]
enum Command {
    Start,
    Stop,
}

type Ended = (usize, End);

/// The supervisor's entry of a child.
struct ChildEntry {
    spec: Spec,
    node: NodeId,
    commands: mpsc::Sender<Command>,
    /// Wakes the child's thread, if it does not sleep in its runtime.
    wake: Box<dyn Fn()>,
    last: End,
}

/// The supervisor of a group of permanent children.
pub(in crate::broker) struct Supervisor {
    name: &'static str,
    group: Group,
    children: Vec<ChildEntry>,
    /// The ends of children, by their numbers.
    ends: (mpsc::Sender<Ended>, mpsc::Receiver<Ended>),
    tree: Arc<Tree>,
    whole: watch::Sender<bool>,
    clock: Instant,
}

/// Why `drive` returned.
#[derive(Debug)]
enum Halt {
    Retired,
    GaveUp(GaveUp),
}

impl Supervisor {
    /// A supervisor without children. `whole` tells whether all of them run.
    pub(in crate::broker) fn new(name: &'static str, tree: Arc<Tree>, whole: watch::Sender<bool>) -> Supervisor {
        // A child has one end under way at most: it is started again only after that was read.
        let ends = mpsc::channel(16);
        Supervisor { name, group: Group::new(), children: Vec::new(), ends, tree, whole, clock: Instant::now() }
    }

    /// Adds a child after the others. It starts at its seat once the supervisor runs; `wake` is called after each
    /// command to it.
    pub(in crate::broker) fn add(&mut self, spec: Spec, wake: impl Fn() + 'static) -> Seat {
        let number = self.group.add(spec.restart, spec.limits, 0);
        let (commands, orders) = mpsc::channel(4);
        let node = self.tree.add(spec.name, self.name, Some(spec.limits));
        self.children.push(ChildEntry { spec, node, commands, wake: Box::new(wake), last: End::Normal });
        Seat { number, spec, orders, ends: self.ends.0.clone() }
    }

    /// Keeps the children running until one is given up; then all have been stopped, in reverse order. May be cancelled
    /// and called again.
    pub(in crate::broker) async fn run(&mut self) -> GaveUp {
        loop {
            match self.drive().await {
                Halt::GaveUp(gave_up) => return gave_up,
                Halt::Retired => {}
            }
        }
    }

    /// Stops the children from number `first` on, the last one first, each within its deadline, for good; the others
    /// are supervised meanwhile.
    pub(in crate::broker) async fn retire(&mut self, first: usize) {
        self.group.retire(first);
        while let Halt::GaveUp(_) = self.drive().await {}
        // So that their factories are dropped, too.
        self.children.iter_mut().skip(first).for_each(|child| {
            child.commands = mpsc::channel(1).0;
            (child.wake)();
        });
    }

    async fn drive(&mut self) -> Halt {
        loop {
            let now = self.now();
            while let Some((child, attempt)) = self.group.became_stable(now) {
                log::info!("actor stable actor={} attempt={attempt}", self.children[child].spec.name);
            }
            while let Some(action) = self.group.next(now) {
                match action {
                    Action::Start(child) => self.order(child, Command::Start),
                    Action::Stop(child) => self.order(child, Command::Stop),
                    Action::Retired => return Halt::Retired,
                    Action::Escalate(child) => return Halt::GaveUp(self.gave_up(child)),
                }
            }
            let whole = self.group.is_whole();
            self.whole.send_if_modified(|was| std::mem::replace(was, whole) != whole);
            let timer = sleep_until(self.clock, self.group.wake_at());
            tokio::select! {
                Some((child, end)) = self.ends.1.recv() => self.ended(child, end),
                () = timer => {}
            }
        }
    }

    fn order(&mut self, child: usize, command: Command) {
        let entry = &self.children[child];
        match command {
            Command::Start => self.tree.running(entry.node),
            Command::Stop => {}
        }
        // The child has read earlier commands, and its seat exists until it is retired. Without a seat its thread has
        // ended, which is reported as its end.
        if entry.commands.try_send(command).is_err() {
            let number = child;
            let end = End::Failed("thread ended".to_owned());
            let _ = self.ends.0.try_send((number, end));
        }
        (entry.wake)();
    }

    fn ended(&mut self, child: usize, end: End) {
        let now = self.now();
        let decision = self.group.ended(child, end.is_failure(), now, random());
        let entry = &mut self.children[child];
        let (name, node) = (entry.spec.name, entry.node);
        match decision {
            None => {
                if end.is_failure() || end == End::Dropped {
                    log::warn!("actor did not stop cleanly actor={name} id=- reason={:?}", end.reason());
                }
                match self.group.due(child) {
                    Some(due) => {
                        let delay = Duration::from_nanos(due.saturating_sub(now));
                        self.tree.restarts_with_sibling(node, delay);
                    }
                    None => self.tree.stopped(node),
                }
            }
            Some(decision) => report(name, "-", &end, decision, self.group.period(child), &self.tree, node, true),
        }
        entry.last = end;
        if self.group.has_given_up() {
            // Before anything else is stopped.
            self.whole.send_replace(false);
        }
    }

    fn gave_up(&self, child: usize) -> GaveUp {
        let entry = &self.children[child];
        GaveUp {
            actor: entry.spec.name.to_owned(),
            restarts: entry.spec.limits.max_restarts,
            period_secs: self.group.period(child) / 1_000_000_000,
            reason: entry.last.reason(),
        }
    }

    fn now(&self) -> u64 {
        elapsed(self.clock)
    }
}

/// The seat of a child: runs its incarnations on the child's thread.
pub(in crate::broker) struct Seat {
    number: usize,
    spec: Spec,
    orders: mpsc::Receiver<Command>,
    ends: mpsc::Sender<Ended>,
}

impl Seat {
    /// The child's number, in the order of starting.
    pub(in crate::broker) fn number(&self) -> usize {
        self.number
    }

    /// Builds an incarnation at each start command, and publishes its address. To be spawned on the child's thread;
    /// ends when the child is retired.
    pub(in crate::broker) async fn host<A>(
        mut self,
        address: watch::Sender<Option<Addr<A>>>,
        mut factory: impl FnMut(Exit) -> A,
    ) where
        A: Actor<Context = Context<A>> + Handler<Stop>,
    {
        while let Some(command) = self.orders.recv().await {
            let Command::Start = command else {
                // It ended while being stopped; the end is already on its way.
                continue;
            };
            let end = match Incarnation::start(self.spec.mailbox, None, &mut factory) {
                Ok(incarnation) => self.live(incarnation, &address).await,
                Err(end) => end,
            };
            if self.ends.send((self.number, end)).await.is_err() {
                return;
            }
        }
    }

    async fn live<A>(&mut self, mut incarnation: Incarnation<A>, address: &watch::Sender<Option<Addr<A>>>) -> End
    where
        A: Actor<Context = Context<A>> + Handler<Stop>,
    {
        address.send_replace(Some(incarnation.address.clone()));
        let end = loop {
            tokio::select! {
                end = incarnation.ended() => break Some(end),
                order = self.orders.recv() => match order {
                    Some(Command::Start) => {}
                    Some(Command::Stop) | None => break None,
                },
            }
        };
        // The address is withdrawn, also while the actor stops.
        address.send_replace(None);
        match end {
            Some(end) => end,
            None => incarnation.stop(self.spec.stop_within).await,
        }
    }
}

/// Reports an end and the decision in the status; and in the log and as an event, if it `may`.
#[allow(clippy::too_many_arguments, reason = "all that there is to tell")]
fn report(name: &str, id: &str, end: &End, decision: Decision, period: u64, tree: &Tree, node: NodeId, may: bool) {
    let reason = end.reason();
    if end.is_failure() {
        tree.failed(node, &reason);
    }
    match decision {
        Decision::Restart { attempt, limit, delay } => {
            let delay = Duration::from_nanos(delay);
            tree.restarts(node, end.cause(), &reason, delay);
            if !may {
                return;
            }
            let ms = delay.as_millis();
            let (is_limited, limit) = (limit != NEVER, (limit != NEVER).then_some(limit));
            let details = serde_json::json!({
                "actor": name, "id": id, "reason": short(&reason), "attempt": attempt, "limit": limit, "delay_ms": ms,
            });
            tree.publish("restarted", &details);
            let limit = limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
            // Without a limit the attempts may go on for days: the log skips more and more of them.
            let level = if is_limited || attempt <= LOGGED_ATTEMPTS || attempt.is_power_of_two() {
                Level::Warn
            } else {
                Level::Debug
            };
            log::log!(
                level,
                "restarting actor actor={name} id={id} reason={reason:?} attempt={attempt} limit={limit} delay_ms={ms}"
            );
        }
        Decision::GiveUp { restarts } => {
            tree.gave_up(node, &reason);
            if !may {
                return;
            }
            let secs = period / 1_000_000_000;
            let details = serde_json::json!({
                "actor": name, "id": id, "reason": short(&reason), "restarts": restarts, "period_secs": secs,
            });
            tree.publish("gave_up", &details);
            log::error!(
                "giving up on actor actor={name} id={id} reason={reason:?} restarts={restarts} period_secs={secs}"
            );
        }
        Decision::Done => {
            tree.stopped(node);
            if end.is_failure() {
                log::warn!("actor failed actor={name} id={id} reason={reason:?}");
            }
        }
    }
}

/// A reason, cut to the length that an event may have.
fn short(reason: &str) -> String {
    reason.chars().take(REASON_MAX).collect()
}

/// Sleeps until a time of the clock; without one, for ever.
async fn sleep_until(clock: Instant, at: Option<u64>) {
    match at.and_then(|at| clock.checked_add(Duration::from_nanos(at))) {
        // Boxed: a connection waits for no such time, and would hold the timer's memory.
        Some(at) => Box::pin(tokio::time::sleep_until(at.into())).await,
        None => std::future::pending().await,
    }
}

/// Uniform in `0.0..1.0`.
pub(in crate::broker) fn random() -> f64 {
    let mut bytes = [0; 4];
    match fill_random(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        // Without entropy: no jitter.
        Err(_) => 0.5,
    }
}

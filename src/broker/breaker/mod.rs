//! `BreakerActor`: owns the breakers of all services. It sets their rules, ends timed states, executes manual orders,
//! and publishes each change in the log and on `$sys.breaker.SERVICE`.
//!
//! Before each request the router checks the *gate* of the service (`logic::breaker::Gate`), a lock-free cell that both
//! share; so the last failure counts before the next request, and no request waits for this actor. Through a queue the
//! router sends new gates and the changes that outcomes caused.
//!
//! ```text
//!   ShmRouter                        Gate (one for each service)             BreakerActor
//!   admit, record  ────────────────► state, generation, counts ◄──────────── rules, time, orders
//!        │ new gate, change            (compare-and-swap)                        ▲   │
//!        └─────────────────────────── bounded queue ─────────────────────────────┘   ▼
//!                                                                          log, $sys.breaker.SERVICE
//! ```
//!
//! While the actor is down the gates work by their last rules, and changes wait in the queue. The next incarnation
//! requests all gates from the router and continues.
//!
//! | file | idea |
//! |---|---|
//! | `table` | the gates of all services, and the operations on them; pure |
//! | `event` | the log line and the event of a change |

mod event;
mod table;

pub(super) use table::{Breakers, Order};

use super::router::{Gates, RouterHandle};
use crate::broker::clock::elapsed;
use crate::broker::supervision::fault;
use crate::broker::supervision::supervisor::Stop;
use crate::broker::telemetry::events::{BreakerChange, BreakerEvent, Events, SystemEvent};
use crate::logic::breaker::{GateState, RuleBook};
use crate::wire::control::{BreakerOrder, BreakerStatus, BrokerFrame, FailedCode};
use crate::wire::name::Name;
use actix::prelude::*;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The longest timer. A longer state costs one check in vain.
const TIMER_MAX: Duration = Duration::from_secs(86_400);

/// A manual order for a breaker. Returns the new status, or the reason of a refusal.
#[derive(Message)]
#[rtype(result = "Result<BreakerStatus, (FailedCode, String)>")]
pub(super) struct SetBreaker {
    connection: u32,
    service: Name,
    order: BreakerOrder,
    /// 0: without end.
    for_ms: u64,
}

/// The rules have changed. The reply comes when all gates have them.
#[derive(Message)]
#[rtype(result = "()")]
struct NewRules;

/// The state that outlives an incarnation of the actor.
#[derive(Clone)]
pub(super) struct Shared {
    router: RouterHandle,
    events: Events,
    /// The rules in force.
    rules: watch::Receiver<Arc<RuleBook>>,
    /// The zero of the router's time.
    epoch: Instant,
    /// Changes to publish, oldest first. A change is removed after it was published.
    unpublished: Rc<RefCell<VecDeque<BreakerChange>>>,
}

impl Shared {
    /// The state before the first incarnation.
    pub(super) fn new(
        router: RouterHandle,
        events: Events,
        rules: watch::Receiver<Arc<RuleBook>>,
        epoch: Instant,
    ) -> Shared {
        Shared { router, events, rules, epoch, unpublished: Rc::default() }
    }
}

/// The actor of all breakers.
pub(super) struct BreakerActor {
    shared: Shared,
    breakers: Breakers,
    /// The time of the next check, and its timer.
    next: Option<(Instant, SpawnHandle)>,
}

impl BreakerActor {
    /// An incarnation that continues from the shared state.
    pub(super) fn new(shared: Shared) -> BreakerActor {
        let breakers = Breakers::new(shared.rules.borrow().clone());
        BreakerActor { shared, breakers, next: None }
    }

    /// Handles the router's events as they come.
    fn listen(&mut self, ctx: &mut Context<Self>) {
        let events = self.shared.events.breakers();
        let listen = async move { events.came().await };
        ctx.spawn(listen.into_actor(self).map(|(), actor, ctx| {
            actor.drain_router_events(ctx);
            actor.listen(ctx);
        }));
    }

    /// Handles all queued events of the router, and publishes pending changes.
    fn drain_router_events(&mut self, ctx: &mut Context<Self>) {
        let events = self.shared.events.breakers();
        while let Some(event) = events.pop() {
            match event {
                BreakerEvent::Gate(service, gate) => self.breakers.insert(service, gate),
                BreakerEvent::Changed(change) => self.enqueue(change),
            }
        }
        let missed = events.take_missed();
        if missed > 0 {
            log::warn!("breaker events lost count={missed} reason=queue_full");
            ctx.spawn(self.request_gates().map(|(), actor, ctx| actor.tick(ctx)));
        }
        self.publish_all(ctx);
    }

    /// Queues a change to publish, in the order of generations: the router's event of an earlier one may come later.
    fn enqueue(&mut self, change: BreakerChange) {
        let mut unpublished = self.shared.unpublished.borrow_mut();
        let is_later = |other: &BreakerChange| {
            let ahead = other.transition.generation.wrapping_sub(change.transition.generation);
            other.service == change.service && ahead < u32::MAX / 2
        };
        let at = unpublished.iter().position(is_later).unwrap_or(unpublished.len());
        unpublished.insert(at, change);
    }

    fn publish_all(&mut self, ctx: &mut Context<Self>) {
        while self.publish_first(ctx) {}
    }

    /// Publishes the oldest change, then removes it: a panic of the actor neither loses nor repeats a change.
    fn publish_first(&mut self, ctx: &mut Context<Self>) -> bool {
        let unpublished = self.shared.unpublished.clone();
        let mut unpublished = unpublished.borrow_mut();
        let Some(change) = unpublished.front() else { return false };
        fault::point("breaker.event", 0);
        let level = if change.transition.to == GateState::Open { log::Level::Warn } else { log::Level::Info };
        log::log!(level, "{}", event::log_line(change));
        self.shared.events.actor(SystemEvent { topic: event::topic(&change.service), text: event::json(change) });
        let lasts = change.transition.lasts;
        unpublished.pop_front();
        if let Some(lasts) = lasts {
            self.schedule_tick(Duration::from_nanos(lasts), ctx);
        }
        true
    }

    /// Schedules a check after `time` at the latest.
    fn schedule_tick(&mut self, time: Duration, ctx: &mut Context<Self>) {
        let time = time.min(TIMER_MAX);
        let at = Instant::now() + time;
        if self.next.is_some_and(|(next, _)| next <= at) {
            return;
        }
        if let Some((_, later)) = self.next.take() {
            ctx.cancel_future(later);
        }
        let timer = ctx.run_later(time, |actor, ctx| {
            actor.next = None;
            actor.tick(ctx);
        });
        self.next = Some((at, timer));
    }

    /// Ends expired states, and schedules the check for the next one.
    fn tick(&mut self, ctx: &mut Context<Self>) {
        fault::point("breaker.timer", 0);
        let (changes, next) = self.breakers.tick(self.now());
        self.publish_changes(changes, ctx);
        if let Some(next) = next {
            self.schedule_tick(next, ctx);
        }
    }

    /// Publishes changes that this actor made.
    fn publish_changes(&mut self, changes: Vec<BreakerChange>, ctx: &mut Context<Self>) {
        // A breaker at rest is no reason to keep a service without users.
        let closes = changes.iter().any(|change| change.transition.to == GateState::Closed);
        changes.into_iter().for_each(|change| self.enqueue(change));
        self.drain_router_events(ctx);
        if closes {
            ctx.spawn(self.request_gates());
        }
    }

    /// Requests all gates from the router, and sets their rules.
    fn request_gates(&self) -> impl ActorFuture<Self, Output = ()> + use<> {
        let (router, rules) = (self.shared.router.clone(), self.shared.rules.borrow().clone());
        let gates = async move { router.send(Gates(rules)).await };
        gates.into_actor(self).map(|gates, actor, _| {
            // Without a router there are no gates.
            if let Ok(gates) = gates {
                actor.breakers.replace_all(gates);
            }
        })
    }

    /// Executes an order. `None`: the service is unknown.
    fn execute(&mut self, message: &SetBreaker, ctx: &mut Context<Self>) -> Option<BreakerStatus> {
        self.drain_router_events(ctx);
        let SetBreaker { connection, service, order, for_ms } = message;
        let time = (*for_ms > 0).then(|| Duration::from_millis(*for_ms));
        let order = Order { service, order: *order, time, by: *connection };
        let (status, changes) = self.breakers.execute(&order, self.now())?;
        changes.into_iter().for_each(|change| self.enqueue(change));
        fault::point("breaker.ordered", 1);
        self.drain_router_events(ctx);
        if status.state == crate::wire::control::BreakerState::Closed {
            ctx.spawn(self.request_gates());
        }
        Some(status)
    }

    fn now(&self) -> u64 {
        elapsed(self.shared.epoch)
    }
}

impl Actor for BreakerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        fault::point("breaker.started", 0);
        // The previous incarnation may have had gates and timers.
        ctx.spawn(self.request_gates().map(|(), actor, ctx| {
            actor.drain_router_events(ctx);
            actor.tick(ctx);
        }));
        self.listen(ctx);
    }
}

impl Handler<Stop> for BreakerActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Handler<NewRules> for BreakerActor {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: NewRules, _: &mut Self::Context) -> Self::Result {
        self.breakers.adopt(self.shared.rules.borrow().clone());
        Box::pin(self.request_gates())
    }
}

impl Handler<SetBreaker> for BreakerActor {
    type Result = ResponseActFuture<Self, Result<BreakerStatus, (FailedCode, String)>>;

    fn handle(&mut self, message: SetBreaker, ctx: &mut Self::Context) -> Self::Result {
        fault::point("breaker.ordered", 0);
        let refused = if message.order == BreakerOrder::Auto && message.for_ms > 0 {
            Some((FailedCode::Invalid, "order `auto` does not take a duration".to_owned()))
        } else {
            table::refusal(&message.service).map(|why| (FailedCode::Unknown, why))
        };
        let done = match refused {
            Some(refused) => Some(Err(refused)),
            None => self.execute(&message, ctx).map(Ok),
        };
        match done {
            Some(done) => Box::pin(std::future::ready(done).into_actor(self)),
            // The event of its gate may have been lost to a full queue.
            None => Box::pin(self.request_gates().map(move |(), actor, ctx| {
                let unknown = || (FailedCode::Unknown, table::unknown(&message.service));
                actor.execute(&message, ctx).ok_or_else(unknown)
            })),
        }
    }
}

/// A handle to `BreakerActor` for other actors.
pub(super) struct BreakerHandle {
    address: watch::Receiver<Option<Addr<BreakerActor>>>,
    rules: watch::Sender<Arc<RuleBook>>,
}

impl BreakerHandle {
    /// A handle to the current incarnation, whose address is in `address`.
    pub(super) fn new(
        address: watch::Receiver<Option<Addr<BreakerActor>>>,
        rules: watch::Sender<Arc<RuleBook>>,
    ) -> BreakerHandle {
        BreakerHandle { address, rules }
    }

    /// Sets other rules for all breakers; states and counts stay. While the actor is down, the next incarnation begins
    /// with them.
    pub(super) async fn adopt(&self, rules: Arc<RuleBook>) {
        self.rules.send_replace(rules);
        let actor = self.address.borrow().clone();
        if let Some(actor) = actor {
            let _ = actor.send(NewRules).await;
        }
    }

    /// Forwards an order of a connection, and returns the reply frame.
    pub(super) async fn set(
        &self,
        connection: u32,
        serial: u32,
        service: Name,
        order: BreakerOrder,
        for_ms: u64,
    ) -> BrokerFrame {
        let actor = self.address.borrow().clone();
        let set = match actor {
            Some(actor) => actor.send(SetBreaker { connection, service, order, for_ms }).await,
            // The actor waits for its restart.
            None => Err(MailboxError::Closed),
        };
        match set {
            Ok(Ok(status)) => BrokerFrame::Breakers { serial, breakers: vec![status], next: None },
            Ok(Err((code, message))) => BrokerFrame::Failed { serial, code, message },
            Err(error) => {
                let message = format!("cannot set breakers: {error}");
                BrokerFrame::Failed { serial, code: FailedCode::Limit, message }
            }
        }
    }
}

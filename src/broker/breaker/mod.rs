//! `BreakerActor`: owns the breakers of all services. It sets their rules, ends states whose time is over, obeys orders
//! that people give, and tells the log and `$sys.breaker.SERVICE` of each change.
//!
//! What the router asks before each request is the *gate* of a service (`logic::breaker::Gate`), a cell without a
//! lock that both share; so the last failure counts before the next request, and no request waits for this actor. The
//! router tells it, through a queue, of gates that it has made and of changes that outcomes have brought about.
//!
//! ```text
//!   ShmRouter                        Gate (one for each service)             BreakerActor
//!   admit, record  ────────────────► state, generation, counts ◄──────────── rules, time, orders
//!        │ new gate, change            (compare-and-swap)                        ▲   │
//!        └─────────────────────────── bounded queue ─────────────────────────────┘   ▼
//!                                                                          log, $sys.breaker.SERVICE
//! ```
//!
//! While there is no actor the gates work on by their last rules, and what is to be told waits in the queue. The next
//! one asks the router for all gates and goes on.
//!
//! | file | idea |
//! |---|---|
//! | `table` | the gates that the actor knows, and what it does to them; pure |
//! | `told` | the log line and the event of a change |

mod table;
mod told;

pub(super) use table::{Breakers, Order};

use super::router::{Gates, RouterHandle};
use crate::broker::supervision::fault;
use crate::broker::supervision::supervisor::Stop;
use crate::broker::telemetry::events::{BreakerChange, BreakerNews, Events, SystemEvent};
use crate::logic::breaker::{RuleBook, Stand};
use crate::wire::control::{BreakerOrder, BreakerStatus, BrokerFrame, FailedCode};
use crate::wire::name::Name;
use actix::prelude::*;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The longest time that a timer is set for; then it is looked once in vain.
const LONGEST: Duration = Duration::from_secs(86_400);

/// An order for a breaker. Returns the state that follows, or why the order was refused.
#[derive(Message)]
#[rtype(result = "Result<BreakerStatus, (FailedCode, String)>")]
pub(super) struct SetBreaker {
    connection: u32,
    service: Name,
    order: BreakerOrder,
    /// 0: without end.
    for_ms: u64,
}

/// The rules have changed. Answered when all gates have them.
#[derive(Message)]
#[rtype(result = "()")]
struct NewRules;

/// What one actor of the breakers leaves to the next.
#[derive(Clone)]
pub(super) struct Kept {
    router: RouterHandle,
    events: Events,
    /// The rules in force.
    rules: watch::Receiver<Arc<RuleBook>>,
    /// Since when the router counts its time.
    epoch: Instant,
    /// Changes that are to be told, the first first. One stays here until that is done.
    untold: Rc<RefCell<VecDeque<BreakerChange>>>,
}

impl Kept {
    /// The beginning, when nothing is to be told.
    pub(super) fn new(
        router: RouterHandle,
        events: Events,
        rules: watch::Receiver<Arc<RuleBook>>,
        epoch: Instant,
    ) -> Kept {
        Kept { router, events, rules, epoch, untold: Rc::default() }
    }
}

/// The actor of all breakers.
pub(super) struct BreakerActor {
    kept: Kept,
    breakers: Breakers,
    /// When it is looked next, and the timer that does it.
    next: Option<(Instant, SpawnHandle)>,
}

impl BreakerActor {
    /// One that goes on where the last one stopped, if there was one.
    pub(super) fn new(kept: Kept) -> BreakerActor {
        let breakers = Breakers::new(kept.rules.borrow().clone());
        BreakerActor { kept, breakers, next: None }
    }

    /// Takes up what comes from the router, in order, and goes on so.
    fn listen(&mut self, ctx: &mut Context<Self>) {
        let news = self.kept.events.breakers();
        let listen = async move { news.came().await };
        ctx.spawn(listen.into_actor(self).map(|(), actor, ctx| {
            actor.take_up(ctx);
            actor.listen(ctx);
        }));
    }

    /// Takes up what has come from the router, and tells what is to be told.
    fn take_up(&mut self, ctx: &mut Context<Self>) {
        let news = self.kept.events.breakers();
        while let Some(news) = news.pop() {
            match news {
                BreakerNews::Gate(service, gate) => self.breakers.know(service, gate),
                BreakerNews::Changed(change) => self.leave(change),
            }
        }
        let missed = news.take_missed();
        if missed > 0 {
            log::warn!("breaker events lost count={missed} reason=queue_full");
            ctx.spawn(self.ask_for_gates().map(|(), actor, ctx| actor.look(ctx)));
        }
        self.tell(ctx);
    }

    /// Leaves a change to be told: after those that came before it, of which the router may have told later.
    fn leave(&mut self, change: BreakerChange) {
        let mut untold = self.kept.untold.borrow_mut();
        let is_later = |other: &BreakerChange| {
            let ahead = other.transition.generation.wrapping_sub(change.transition.generation);
            other.service == change.service && ahead < u32::MAX / 2
        };
        let at = untold.iter().position(is_later).unwrap_or(untold.len());
        untold.insert(at, change);
    }

    fn tell(&mut self, ctx: &mut Context<Self>) {
        while self.tell_one(ctx) {}
    }

    /// Tells the first change, which is off the list only then: an actor that dies tells no change twice and loses
    /// none.
    fn tell_one(&mut self, ctx: &mut Context<Self>) -> bool {
        let untold = self.kept.untold.clone();
        let mut untold = untold.borrow_mut();
        let Some(change) = untold.front() else { return false };
        fault::point("breaker.event", 0);
        let level = if change.transition.to == Stand::Open { log::Level::Warn } else { log::Level::Info };
        log::log!(level, "{}", told::log_line(change));
        self.kept.events.actor(SystemEvent { topic: told::topic(&change.service), text: told::event(change) });
        let lasts = change.transition.lasts;
        untold.pop_front();
        if let Some(lasts) = lasts {
            self.look_after(Duration::from_nanos(lasts), ctx);
        }
        true
    }

    /// Looks after so long, or before.
    fn look_after(&mut self, time: Duration, ctx: &mut Context<Self>) {
        let time = time.min(LONGEST);
        let at = Instant::now() + time;
        if self.next.is_some_and(|(next, _)| next <= at) {
            return;
        }
        if let Some((_, later)) = self.next.take() {
            ctx.cancel_future(later);
        }
        let timer = ctx.run_later(time, |actor, ctx| {
            actor.next = None;
            actor.look(ctx);
        });
        self.next = Some((at, timer));
    }

    /// Ends the states whose time is over, and looks again when the next one's is.
    fn look(&mut self, ctx: &mut Context<Self>) {
        fault::point("breaker.timer", 0);
        let (changes, next) = self.breakers.tick(self.now());
        self.changed(changes, ctx);
        if let Some(next) = next {
            self.look_after(next, ctx);
        }
    }

    /// Tells of changes that this actor has made.
    fn changed(&mut self, changes: Vec<BreakerChange>, ctx: &mut Context<Self>) {
        // A breaker at rest is no reason to keep a service without users.
        let closes = changes.iter().any(|change| change.transition.to == Stand::Closed);
        changes.into_iter().for_each(|change| self.leave(change));
        self.take_up(ctx);
        if closes {
            ctx.spawn(self.ask_for_gates());
        }
    }

    /// Asks the router for all gates, and gives them the rules.
    fn ask_for_gates(&self) -> impl ActorFuture<Self, Output = ()> + use<> {
        let (router, rules) = (self.kept.router.clone(), self.kept.rules.borrow().clone());
        let gates = async move { router.send(Gates(rules)).await };
        gates.into_actor(self).map(|gates, actor, _| {
            // Without a router there are none.
            if let Ok(gates) = gates {
                actor.breakers.know_all(gates);
            }
        })
    }

    /// Carries an order out. `None`: no such service is known.
    fn obey(&mut self, message: &SetBreaker, ctx: &mut Context<Self>) -> Option<BreakerStatus> {
        self.take_up(ctx);
        let SetBreaker { connection, service, order, for_ms } = message;
        let time = (*for_ms > 0).then(|| Duration::from_millis(*for_ms));
        let order = Order { service, order: *order, time, by: *connection };
        let (status, changes) = self.breakers.obey(&order, self.now())?;
        changes.into_iter().for_each(|change| self.leave(change));
        fault::point("breaker.ordered", 1);
        self.take_up(ctx);
        if status.state == crate::wire::control::BreakerState::Closed {
            ctx.spawn(self.ask_for_gates());
        }
        Some(status)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.kept.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Actor for BreakerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        fault::point("breaker.started", 0);
        // One before it may have known of gates and of times.
        ctx.spawn(self.ask_for_gates().map(|(), actor, ctx| {
            actor.take_up(ctx);
            actor.look(ctx);
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
        self.breakers.adopt(self.kept.rules.borrow().clone());
        Box::pin(self.ask_for_gates())
    }
}

impl Handler<SetBreaker> for BreakerActor {
    type Result = ResponseActFuture<Self, Result<BreakerStatus, (FailedCode, String)>>;

    fn handle(&mut self, message: SetBreaker, ctx: &mut Self::Context) -> Self::Result {
        fault::point("breaker.ordered", 0);
        let refused = if message.order == BreakerOrder::Auto && message.for_ms > 0 {
            Some((FailedCode::Invalid, "auto is not for a time".to_owned()))
        } else {
            table::refusal(&message.service).map(|why| (FailedCode::Unknown, why))
        };
        let done = match refused {
            Some(refused) => Some(Err(refused)),
            None => self.obey(&message, ctx).map(Ok),
        };
        match done {
            Some(done) => Box::pin(std::future::ready(done).into_actor(self)),
            // The router may have lost word of it to a full queue.
            None => Box::pin(self.ask_for_gates().map(move |(), actor, ctx| {
                let unknown = || (FailedCode::Unknown, table::unknown(&message.service));
                actor.obey(&message, ctx).ok_or_else(unknown)
            })),
        }
    }
}

/// How others reach the actor of the breakers.
pub(super) struct BreakerHandle {
    address: watch::Receiver<Option<Addr<BreakerActor>>>,
    rules: watch::Sender<Arc<RuleBook>>,
}

impl BreakerHandle {
    /// A handle to whichever actor is in `address`.
    pub(super) fn new(
        address: watch::Receiver<Option<Addr<BreakerActor>>>,
        rules: watch::Sender<Arc<RuleBook>>,
    ) -> BreakerHandle {
        BreakerHandle { address, rules }
    }

    /// Other rules for all breakers, whose states and counts stay. While there is no actor, the next one begins with
    /// them.
    pub(super) async fn adopt(&self, rules: Arc<RuleBook>) {
        self.rules.send_replace(rules);
        let actor = self.address.borrow().clone();
        if let Some(actor) = actor {
            let _ = actor.send(NewRules).await;
        }
    }

    /// Passes an order of a connection on, and answers the frame for it.
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
            // It waits for its restart.
            None => Err(MailboxError::Closed),
        };
        match set {
            Ok(Ok(status)) => BrokerFrame::Breakers { serial, breakers: vec![status] },
            Ok(Err((code, message))) => BrokerFrame::Failed { serial, code, message },
            Err(error) => {
                let message = format!("breakers cannot be set now: {error}");
                BrokerFrame::Failed { serial, code: FailedCode::Limit, message }
            }
        }
    }
}

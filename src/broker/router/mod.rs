//! `ShmRouter`: the actor that owns every ring. It runs on an arbiter of its own.
//!
//! ```text
//!             clients                                                    clients
//!                │ records                                                  ▲ records
//!   ┌────────────┼──────────────────────────── Ports ───────────────────────┼───────────┐
//!   │        ingresses ───► one record ──┬──────────────────────────► egresses          │
//!   └────────────────────────────────────┼──────────────────────────────────────────────┘
//!                        bulk: PubSub    │    express: Calls
//!   RouterState: owns the three, serves one connection a step, opens and closes connections, recovers
//! ```
//!
//! Each file uses only files that stand above it in this table.
//!
//! | file | idea |
//! |---|---|
//! | `settings`, `counters`, `timings` | limits in the router's units; numbers; durations |
//! | `connection` | how a connection is known, and why it was closed |
//! | `reclaim`, `memory` | leases of the rings' extensions; their pages go back on threads of their own |
//! | `keeping`, `egress`, `egress_kept` | the half of a connection that goes to its client |
//! | `journal` | the record or timer under way, for the next router if this one dies |
//! | `message`, `ingress` | a message that is routed; the half of a connection that comes from its client |
//! | `ports` | all connections, with time, timers, counters and the journal |
//! | `parking`, `polling` | bulk lanes that wait; polled and sleeping connections |
//! | `pubsub` | publish and subscribe: the bulk lane |
//! | `calls` | requests, replies, streams, cancels, credit: the express lane |
//! | `state` | owner of the parts; one step of the work |
//! | `ask`, `snapshot`, `membership` | control requests; the state at one moment; connections open and close |
//! | `recovery` | a new router completes what the last one had under way |
//! | `turn` | the loop: work, spin, sleep; clients that are not polled ring |
//!
//! The actor is a shell: `RouterState` carries out its messages, and the loop in `turn` routes the traffic.

mod ask;
mod calls;
mod connection;
mod counters;
mod egress;
mod egress_kept;
mod ingress;
mod journal;
mod keeping;
mod membership;
mod memory;
mod message;
mod parking;
mod polling;
mod ports;
mod pubsub;
mod reclaim;
mod recovery;
mod settings;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod timings;
mod turn;

pub(crate) use self::calls::ECHO;
pub(in crate::broker) use self::calls::{state as breaker_state, status as breaker_status};
pub(crate) use self::state::RouterState;
pub(crate) use connection::CloseReason;
pub(crate) use settings::Settings;
pub(crate) use timings::{RouterFigures, ServiceFigures};
pub(crate) use turn::Shared;

use crate::broker::supervision::fault;
use crate::broker::supervision::supervisor::Stop;
use crate::logic::breaker::{Gate, RuleBook};
use crate::shm::doorbell::{BrokerBells, RouterWaker};
use crate::shm::peer::Credentials;
use crate::shm::segment::Segment;
use crate::wire::control::{BreakerStatus, BrokerFrame, ClientFrame, StatusReport};
use crate::wire::name::Name;
use actix::prelude::*;
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::watch;

/// Adds a connection. Returns its key and id.
#[derive(Message, Clone)]
#[rtype(result = "io::Result<(u32, u32)>")]
pub(crate) struct Attach {
    pub(crate) name: Name,
    pub(crate) nonce: u64,
    pub(crate) peer: Credentials,
    pub(crate) segment: Arc<Segment>,
    pub(crate) bells: Arc<BrokerBells>,
    /// Where the router reports that it has closed the connection.
    pub(crate) owner: watch::Sender<Option<CloseReason>>,
}

/// The client of a connection is gone: its socket has ended.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub(crate) struct Gone {
    pub(crate) key: u32,
    pub(crate) id: u32,
    /// It broke the protocol: nothing of it is routed any more. (If the router itself found that out, it knows
    /// already.)
    pub(crate) close: Option<CloseReason>,
}

/// A control request. Returns the frame to send, if the connection still exists.
#[derive(Message, Clone)]
#[rtype(result = "Option<BrokerFrame>")]
pub(crate) struct Ask {
    pub(crate) key: u32,
    pub(crate) id: u32,
    /// The connection's count of its questions.
    pub(crate) number: u64,
    pub(crate) frame: ClientFrame,
}

/// Requests the gates of all services, of which those at rest without users are forgotten first. Gates that are made
/// from now on begin with these rules.
#[derive(Message, Clone)]
#[rtype(result = "Vec<(Name, Arc<Gate>)>")]
pub(crate) struct Gates(pub(crate) Arc<RuleBook>);

/// Takes other settings up. Those that geometry and memory were made by are the same.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub(crate) struct Adopt(pub(crate) Settings);

/// Publishes on the broker's own topics: pairs of topic and text.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub(crate) struct Announce(pub(crate) Vec<(String, String)>);

/// Opens the bulk lanes, if they are closed.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub(crate) struct OpenLanes;

/// Whether no record, call or backlog is left.
#[derive(Message, Clone, Copy)]
#[rtype(result = "bool")]
pub(crate) struct IsQuiescent;

/// Requests a snapshot of the router, for the health endpoints.
#[derive(Message, Clone, Copy)]
#[rtype(result = "Surveyed")]
pub(crate) struct Survey {
    /// With the list of connections.
    pub(crate) connections: bool,
}

/// What the router knows of the broker at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Surveyed {
    /// As for `status`, with only what the router knows.
    pub(crate) report: StatusReport,
    pub(crate) breakers: Vec<BreakerStatus>,
    pub(crate) figures: RouterFigures,
    /// Whether the list of connections is there.
    pub(crate) has_connections: bool,
}

/// How others reach the router: its thread sleeps on its bells, so a message is followed by a ring.
///
/// The router may die and be built anew; then a message without a reply is sent to the next one. So each message is
/// idempotent.
#[derive(Clone)]
pub(crate) struct RouterHandle {
    address: watch::Receiver<Option<Addr<ShmRouter>>>,
    bell: Arc<RouterWaker>,
}

/// There will be no router any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the router has ended")]
pub(crate) struct RouterGone;

impl RouterHandle {
    /// A handle to whichever router is in `address`; `None` while there is none, closed when there will be none.
    pub(crate) fn new(address: watch::Receiver<Option<Addr<ShmRouter>>>, bell: RouterWaker) -> RouterHandle {
        RouterHandle { address, bell: Arc::new(bell) }
    }

    /// Sends a message and waits for its result.
    ///
    /// # Errors
    ///
    /// If there is no router and there will be none.
    pub(crate) async fn send<M>(&self, message: M) -> Result<M::Result, RouterGone>
    where
        M: Message<Result: Send> + Clone + Send + 'static,
        ShmRouter: Handler<M>,
    {
        let mut address = self.address.clone();
        loop {
            let router = match &*address.wait_for(Option::is_some).await.map_err(|_| RouterGone)? {
                Some(router) => router.clone(),
                None => continue,
            };
            address.mark_unchanged();
            // Put into the mailbox by the call itself, for it is never full; so the ring comes after it.
            let sent = router.send(message.clone());
            self.bell.ring();
            match sent.await {
                Ok(result) => return Ok(result),
                // It died first. The address that is there now may be the dead one's still.
                Err(_) if *address.borrow() == Some(router) => address.changed().await.map_err(|_| RouterGone)?,
                Err(_) => {}
            }
        }
    }

    /// Whether there is no router at the moment.
    pub(crate) fn is_absent(&self) -> bool {
        self.address.borrow().is_none()
    }

    /// Wakes the router's thread, for what its arbiter has to do.
    pub(crate) fn wake(&self) {
        self.bell.ring();
    }
}

/// The router.
pub(crate) struct ShmRouter {
    shared: Rc<Shared>,
}

impl ShmRouter {
    /// A router that goes on where the last one stopped, if there was one.
    pub(crate) fn new(shared: Rc<Shared>) -> ShmRouter {
        ShmRouter { shared }
    }

    fn with<T>(&mut self, work: impl FnOnce(&mut RouterState) -> T) -> T {
        let now = self.shared.now();
        let result = {
            let state = &mut *self.shared.state.borrow_mut();
            state.set_now(now);
            fault::point("router.message", 0);
            let result = work(state);
            fault::point("router.answering", 0);
            state.close_pending();
            state.pubsub.watch_kept(&mut state.ports);
            state.ports.egresses.flush();
            result
        };
        self.shared.tell_ended();
        result
    }
}

impl Actor for ShmRouter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.shared.state.borrow_mut().recover();
        let run = turn::run(self.shared.clone());
        ctx.spawn(run.into_actor(self).map(|(), _, ctx| ctx.stop()));
    }
}

impl Handler<Stop> for ShmRouter {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Handler<Attach> for ShmRouter {
    type Result = io::Result<(u32, u32)>;

    fn handle(&mut self, message: Attach, _: &mut Self::Context) -> Self::Result {
        let Attach { name, nonce, peer, segment, bells, owner } = message;
        let attached = self.with(|state| state.attach(name, nonce, peer, segment, bells))?;
        self.shared.owners.borrow_mut().insert(attached.1, owner);
        Ok(attached)
    }
}

impl Handler<Gone> for ShmRouter {
    type Result = ();

    fn handle(&mut self, message: Gone, _: &mut Self::Context) {
        self.shared.owners.borrow_mut().remove(&message.id);
        self.with(|state| match message.close {
            Some(close) => state.close(message.key, message.id, close),
            None => state.client_gone(message.key, message.id),
        });
    }
}

impl Handler<Ask> for ShmRouter {
    type Result = MessageResult<Ask>;

    fn handle(&mut self, message: Ask, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.with(|state| state.ask(message.key, message.id, message.number, message.frame)))
    }
}

impl Handler<Gates> for ShmRouter {
    type Result = MessageResult<Gates>;

    fn handle(&mut self, Gates(rules): Gates, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.with(|state| state.calls.gates(rules.clone())))
    }
}

impl Handler<Adopt> for ShmRouter {
    type Result = ();

    fn handle(&mut self, Adopt(settings): Adopt, _: &mut Self::Context) {
        self.with(|state| state.adopt(settings));
    }
}

impl Handler<Announce> for ShmRouter {
    type Result = ();

    fn handle(&mut self, Announce(news): Announce, _: &mut Self::Context) {
        self.with(|state| {
            news.iter().for_each(|(topic, text)| state.pubsub.publish_system(&mut state.ports, topic, text))
        });
    }
}

impl Handler<Survey> for ShmRouter {
    type Result = MessageResult<Survey>;

    fn handle(&mut self, message: Survey, _: &mut Self::Context) -> Self::Result {
        let began = cpu_time();
        let Survey { connections: has_connections } = message;
        let mut surveyed = self.with(|state| Surveyed {
            report: state.report(has_connections),
            breakers: state.breakers(),
            figures: state.figures(),
            has_connections,
        });
        let surveys = &mut self.shared.state.borrow_mut().timings.surveys;
        *surveys = (surveys.0 + 1, surveys.1 + cpu_time().saturating_sub(began));
        // This one is among them.
        surveyed.figures.surveys = *surveys;
        MessageResult(surveyed)
    }
}

impl Handler<OpenLanes> for ShmRouter {
    type Result = ();

    fn handle(&mut self, _: OpenLanes, _: &mut Self::Context) {
        self.with(|state| state.ports.open_lanes());
    }
}

impl Handler<IsQuiescent> for ShmRouter {
    type Result = bool;

    fn handle(&mut self, _: IsQuiescent, _: &mut Self::Context) -> bool {
        self.with(RouterState::is_quiescent)
    }
}

/// How long this thread has run, in nanoseconds.
fn cpu_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)).unwrap_or(0)
}

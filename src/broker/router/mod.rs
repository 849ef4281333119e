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
//! | `settings`, `counters`, `timings` | limits in the router's units; counters; histograms of durations |
//! | `connection` | the identity of a connection; close reasons |
//! | `reclaim`, `memory` | threads that give pages back to the system; leases of the rings' extensions |
//! | `egress` | the egress half of a connection, and its overflow queues |
//! | `journal` | the record or timer that is handled, from which the next incarnation continues |
//! | `runs` | records that are alike, handled with one decision: the loop over them |
//! | `message`, `ingress` | a message that is routed; the ingress half of a connection |
//! | `ports` | all connections, with time, timers, counters and the journal |
//! | `parking`, `polling` | bulk lanes that wait for credit or space; polled and sleeping connections |
//! | `pubsub` | publish and subscribe: the bulk lane |
//! | `calls` | requests, replies, streams, cancels, credit: the express lane |
//! | `state` | the parts and their owner; serving one connection |
//! | `control_request`, `attachment` | control requests; opening and closing connections |
//! | `snapshot`, `holdings` | the status; what users hold |
//! | `recovery` | a new incarnation completes the step that the last one had begun |
//! | `event_loop` | the loop: work, spin, sleep; reading doorbells |
//! | `in_process` | clients on the router's thread, for `stepped`, `fuzzed` and the tests |
//! | `fuzzed` | the router with hostile clients, for the fuzzer: programs of actions, and what must hold behind them |
//! | `stepped` | the hot path without the loop, on one thread with its clients, to count instructions |
//!
//! The actor is a shell: `RouterState` carries out its messages, and the loop in `event_loop` routes the traffic.

mod attachment;
mod calls;
mod connection;
mod control_request;
mod counters;
mod egress;
mod event_loop;
#[cfg(any(test, fuzzing))]
pub(in crate::broker) mod fuzzed;
mod holdings;
#[cfg(any(test, fuzzing, feature = "cli"))]
mod in_process;
mod ingress;
mod journal;
mod memory;
mod message;
mod parking;
mod polling;
mod ports;
mod pubsub;
mod reclaim;
mod recovery;
mod runs;
mod settings;
mod snapshot;
mod state;
#[cfg(feature = "cli")]
pub(crate) mod stepped;
#[cfg(test)]
mod tests;
mod timings;

pub(crate) use self::calls::ECHO;
pub(in crate::broker) use self::calls::{state as breaker_state, status as breaker_status};
pub(crate) use self::state::RouterState;
pub(crate) use connection::{CloseReason, CloseReceiver, CloseSender, close_report};
pub(crate) use event_loop::Shared;
pub(crate) use settings::{Settings, quotas};
pub(crate) use timings::{RouterMetrics, ServiceMetrics};

use crate::broker::supervision::fault;
use crate::broker::supervision::supervisor::Stop;
use crate::logic::breaker::{Gate, RuleBook};
use crate::logic::shares::Principal;
use crate::shm::doorbell::{BrokerBells, RouterWaker};
use crate::shm::peer::Credentials;
use crate::shm::segment::Segment;
use crate::wire::control::{BreakerStatus, BrokerFrame, ClientFrame, StatusReport};
use crate::wire::name::Name;
use actix::prelude::*;
use egress::Flush;
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
    /// The key of its publisher, of which its id is made.
    pub(crate) publisher: u64,
    pub(crate) peer: Credentials,
    /// The user that it is charged to.
    pub(crate) principal: Principal,
    pub(crate) segment: Arc<Segment>,
    pub(crate) bells: Arc<BrokerBells>,
    /// Where the router reports that it has closed the connection.
    pub(crate) on_close: CloseSender,
}

/// The session of a connection has ended: the router ends the connection.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub(crate) struct EndConnection {
    pub(crate) key: u32,
    pub(crate) id: u32,
    /// A protocol violation: no more records are routed. (One that the router itself detected is known to it.)
    pub(crate) close: Option<CloseReason>,
}

/// A control request. Returns the frame to send, if the connection still exists.
#[derive(Message, Clone)]
#[rtype(result = "Option<Handled>")]
pub(crate) struct ControlRequest {
    pub(crate) key: u32,
    pub(crate) id: u32,
    /// The connection's count of its control requests.
    pub(crate) number: u64,
    pub(crate) frame: ClientFrame,
}

/// A control request that was carried out.
#[derive(Clone, Debug)]
pub(crate) struct Handled {
    pub(crate) reply: BrokerFrame,
    /// How long the router's thread was at it, in nanoseconds, and what evictions of the client cost beside.
    pub(crate) took: u64,
}

/// Requests the gates of all services, after those at rest without users were removed. New gates begin with these
/// rules.
#[derive(Message, Clone)]
#[rtype(result = "Vec<(Name, Arc<Gate>)>")]
pub(crate) struct Gates(pub(crate) Arc<RuleBook>);

/// Applies other settings. Geometry and memory do not change.
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

/// Closes the bulk lanes for good: the broker ends, and clients re-send what it did not consume to the next one.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub(crate) struct CloseLanes;

/// Whether no record, call or backlog is left.
#[derive(Message, Clone, Copy)]
#[rtype(result = "bool")]
pub(crate) struct IsQuiescent;

/// Requests a snapshot of the router, for the health endpoints and for the status.
#[derive(Message, Clone, Copy)]
#[rtype(result = "RouterSnapshot")]
pub(crate) struct ProbeRouter {
    /// With the list of connections.
    pub(crate) connections: bool,
}

/// The router's part of the broker's state at one moment.
#[derive(Clone, Debug)]
pub(crate) struct RouterSnapshot {
    /// The router's part of the status.
    pub(crate) report: StatusReport,
    pub(crate) breakers: Vec<BreakerStatus>,
    pub(crate) metrics: RouterMetrics,
    /// Whether the list of connections is there.
    pub(crate) has_connections: bool,
    /// CPU time of the router's thread that the snapshot took, in nanoseconds.
    pub(crate) cost: u64,
}

/// A handle to the router. Its thread sleeps on its doorbells, so each message is followed by a ring.
///
/// A message without a reply is sent again to the next incarnation. So each message is idempotent.
#[derive(Clone)]
pub(crate) struct RouterHandle {
    address: watch::Receiver<Option<Addr<ShmRouter>>>,
    bell: Arc<RouterWaker>,
}

/// The router has ended for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the router has ended")]
pub(crate) struct RouterGone;

impl RouterHandle {
    /// A handle to the incarnation in `address`; `None` while the router is down, closed when it has ended.
    pub(crate) fn new(address: watch::Receiver<Option<Addr<ShmRouter>>>, bell: RouterWaker) -> RouterHandle {
        RouterHandle { address, bell: Arc::new(bell) }
    }

    /// Sends a message and waits for its result.
    ///
    /// # Errors
    ///
    /// If the router has ended for good.
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

    /// Whether the router is down.
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
    /// An incarnation that continues from the shared state.
    pub(crate) fn new(shared: Rc<Shared>) -> ShmRouter {
        ShmRouter { shared }
    }

    fn with<T>(&mut self, work: impl FnOnce(&mut RouterState) -> T) -> T {
        let now = self.shared.now();
        let result = {
            let state = &mut *self.shared.state.borrow_mut();
            state.set_now(now);
            fault::point("router.message", 0);
            // What the message asks for may take long.
            state.ports.egresses.flush(Flush::All);
            let result = work(state);
            fault::point("router.answering", 0);
            state.end_batch();
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
        let run = event_loop::run(self.shared.clone());
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
        let Attach { name, publisher, peer, principal, segment, bells, on_close } = message;
        let attached = self.with(|state| state.attach(name, publisher, (peer, principal), segment, bells))?;
        self.shared.on_close.borrow_mut().insert(attached.1, on_close);
        Ok(attached)
    }
}

impl Handler<EndConnection> for ShmRouter {
    type Result = ();

    fn handle(&mut self, message: EndConnection, _: &mut Self::Context) {
        self.shared.on_close.borrow_mut().remove(&message.id);
        self.with(|state| match message.close {
            Some(close) => state.close(message.key, message.id, close),
            None => state.client_ended(message.key, message.id),
        });
    }
}

impl Handler<ControlRequest> for ShmRouter {
    type Result = MessageResult<ControlRequest>;

    fn handle(&mut self, message: ControlRequest, _: &mut Self::Context) -> Self::Result {
        let began = self.shared.now();
        let reply = self.with(|state| state.handle_request(message.key, message.id, message.number, message.frame));
        let took = self.shared.now() - began + self.with(|state| state.take_debt(message.key));
        MessageResult(reply.map(|reply| Handled { reply, took }))
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

    fn handle(&mut self, Announce(events): Announce, _: &mut Self::Context) {
        self.with(|state| {
            events.iter().for_each(|(topic, text)| state.pubsub.publish_system(&mut state.ports, topic, text))
        });
    }
}

impl Handler<ProbeRouter> for ShmRouter {
    type Result = MessageResult<ProbeRouter>;

    fn handle(&mut self, message: ProbeRouter, _: &mut Self::Context) -> Self::Result {
        let began = cpu_time();
        let ProbeRouter { connections: has_connections } = message;
        let mut router_snapshot = self.with(|state| RouterSnapshot {
            report: state.report(has_connections),
            breakers: state.breakers(),
            metrics: state.metrics(),
            has_connections,
            cost: 0,
        });
        router_snapshot.cost = cpu_time().saturating_sub(began);
        let probes = &mut self.shared.state.borrow_mut().timings.probes;
        *probes = (probes.0 + 1, probes.1 + router_snapshot.cost);
        // This probe included.
        router_snapshot.metrics.probes = *probes;
        MessageResult(router_snapshot)
    }
}

impl Handler<OpenLanes> for ShmRouter {
    type Result = ();

    fn handle(&mut self, _: OpenLanes, _: &mut Self::Context) {
        self.with(|state| state.ports.open_lanes());
    }
}

impl Handler<CloseLanes> for ShmRouter {
    type Result = ();

    fn handle(&mut self, _: CloseLanes, _: &mut Self::Context) {
        self.with(|state| state.close_lanes(u64::MAX));
    }
}

impl Handler<IsQuiescent> for ShmRouter {
    type Result = bool;

    fn handle(&mut self, _: IsQuiescent, _: &mut Self::Context) -> bool {
        self.with(RouterState::is_quiescent)
    }
}

/// The CPU time of this thread, in nanoseconds.
fn cpu_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)).unwrap_or(0)
}

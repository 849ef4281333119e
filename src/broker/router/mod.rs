//! `ShmRouter`: the actor that owns every ring. It runs on an arbiter of its own.
//!
//! | file | idea |
//! |---|---|
//! | `settings` | the limits, in the router's units |
//! | `state` | what the router owns; one step of its work |
//! | `membership` | connections come and go |
//! | `inlet`, `outlet` | the two halves of a connection |
//! | `polling` | who is polled, who rings |
//! | `memory` | leases of the rings' extensions, and the audit |
//! | `reclaim` | giving their pages back, on threads of its own |
//! | `journal` | what is under way, for the next router if this one dies |
//! | `publish` | the bulk lane: publish and subscribe |
//! | `release` | numbers of topics and services are given back |
//! | `lanes` | whether bulk lanes are open yet |
//! | `drops`, `kept` | subscriptions that drop: who does without, and what is kept for the newest |
//! | `aside` | messages whose rest will not come |
//! | `calls` | the express lane: requests, answers, streams, cancels, credit |
//! | `outcomes` | how calls end otherwise than by their answer |
//! | `breakers` | the gates of the services: which request passes |
//! | `ask` | what comes over the control socket |
//! | `timings` | how long visits and calls take |
//! | `turn` | the loop: work, spin, sleep |
//!
//! The actor is a shell: its messages are carried out by [`state::RouterState`], and so is the traffic, by the loop in
//! `turn`.

mod aside;
mod ask;
mod breakers;
mod calls;
mod drops;
mod inlet;
mod journal;
mod keeping;
mod kept;
mod lanes;
mod membership;
mod memory;
mod outcomes;
mod outlet;
mod polling;
mod publish;
mod reclaim;
mod release;
mod settings;
mod state;
#[cfg(test)]
mod tests;
mod timings;
mod turn;

pub(crate) use self::breakers::{state as breaker_state, status as breaker_status};
pub(crate) use self::state::{ECHO, RouterState};
pub(crate) use outlet::Doom;
pub(crate) use settings::Settings;
pub(crate) use timings::{RouterFigures, ServiceFigures};

use crate::broker::fault;
use crate::broker::supervisor::Stop;
use crate::routing::breaker::{Gate, RuleBook};
use crate::shm::doorbell::{BrokerBells, RouterWaker};
use crate::shm::peer::Credentials;
use crate::shm::segment::Segment;
use crate::wire::control::{BreakerStatus, BrokerFrame, ClientFrame, StatusReport};
use crate::wire::name::Name;
use actix::prelude::*;
use rustix::time::{ClockId, clock_gettime};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// Takes a connection in. Answers its key and id.
#[derive(Message, Clone)]
#[rtype(result = "io::Result<(u32, u32)>")]
pub(crate) struct Attach {
    pub(crate) name: Name,
    pub(crate) nonce: u64,
    pub(crate) peer: Credentials,
    pub(crate) segment: Arc<Segment>,
    pub(crate) bells: Arc<BrokerBells>,
    /// Where to say if the connection must end. Whoever holds the session then sees it.
    pub(crate) owner: watch::Sender<Option<Doom>>,
}

/// The client of a connection is gone: its socket has ended.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub(crate) struct Gone {
    pub(crate) key: u32,
    pub(crate) id: u32,
    /// It broke the protocol: nothing of it is routed any more. (If the router itself found that out, it knows
    /// already.)
    pub(crate) doom: Option<Doom>,
}

/// A question from the control socket. Answers the frame to send, if the connection still exists.
#[derive(Message, Clone)]
#[rtype(result = "Option<BrokerFrame>")]
pub(crate) struct Ask {
    pub(crate) key: u32,
    pub(crate) id: u32,
    /// The connection's count of its questions.
    pub(crate) number: u64,
    pub(crate) frame: ClientFrame,
}

/// Asks for the gates of all services, of which those at rest without users are forgotten first. Gates that are made
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

/// Asks whether nothing is under way.
#[derive(Message, Clone, Copy)]
#[rtype(result = "bool")]
pub(crate) struct IsQuiescent;

/// Asks how the broker is, for the health endpoints.
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
/// The router may die and be built anew; then a message that was not answered is sent to the next one. So each message
/// is such that carrying it out twice is as good as once.
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

/// What a router leaves to the next one, and shares with its loop. All of them run on one thread, and none keeps a
/// borrow across an await.
pub(crate) struct Shared {
    state: RefCell<RouterState>,
    owners: RefCell<HashMap<u32, watch::Sender<Option<Doom>>>>,
    epoch: Instant,
}

impl Shared {
    /// What routers need, of which times count from `epoch`.
    pub(crate) fn new(state: RouterState, epoch: Instant) -> Rc<Shared> {
        Rc::new(Shared { state: RefCell::new(state), owners: RefCell::default(), epoch })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Tells who holds the sessions of connections that the router has ended.
    fn tell_ended(&self) {
        loop {
            let Some((info, doom)) = self.state.borrow_mut().ended.pop() else { return };
            if let Some(owner) = self.owners.borrow_mut().remove(&info.id) {
                owner.send_replace(Some(doom));
            }
        }
    }
}

impl ShmRouter {
    /// A router that goes on where the last one stopped, if there was one.
    pub(crate) fn new(shared: Rc<Shared>) -> ShmRouter {
        ShmRouter { shared }
    }

    fn with<T>(&mut self, work: impl FnOnce(&mut RouterState) -> T) -> T {
        let now = self.shared.now();
        let result = {
            let mut state = self.shared.state.borrow_mut();
            state.set_now(now);
            fault::point("router.message", 0);
            let result = work(&mut state);
            fault::point("router.answering", 0);
            state.end_doomed();
            state.watch_kept();
            state.outlets.flush();
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
        self.with(|state| match message.doom {
            Some(doom) => state.doom(message.key, message.id, doom),
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
        MessageResult(self.with(|state| state.gates(rules.clone())))
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
        self.with(|state| news.iter().for_each(|(topic, text)| state.publish_system(topic, text)));
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
        self.with(RouterState::open_lanes);
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

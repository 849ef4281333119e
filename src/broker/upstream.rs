//! `UpstreamActor`: one for each process that the broker dials (`[[upstream]]`). It owns the outgoing socket; once that
//! is connected it is as a connection, and the other side speaks first, as every client does.
//!
//! Its session does not outlive its socket. When the connection is over, for whatever reason, the actor ends with that
//! reason, and its supervisor dials again by the restart policy. Bad peers cost their own log lines and one dial at a
//! time. The other side may offer only the services that its table names; the log has those that are late.
//!
//! An upstream is never given up unless its own table sets `max_restarts`. Two events end the delay before a dial: the
//! socket appears at its path (`appearance`), and the command `lapce-ipc upstream dial`.

use super::appearance;
use super::connection::{self, Accepted, Admitted, Broker, Kept, Phase, all_taken};
use super::fault;
use super::supervisor::{self, Child, Exit, NodeId, Outcome, Stop, supervise};
use crate::config;
use crate::routing::restart::{Limits, NEVER, Restart};
use crate::shm::peer;
use crate::sync::{AtomicU64, Ordering};
use crate::wire::control::{ActorState, ActorStatus, BrokerFrame, ClientFrame, FailedCode, UpstreamStatus};
use crate::wire::name::Name;
use actix::prelude::*;
use std::cell::RefCell;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;

/// Their supervisor in the tree: not the root, whose actors are vital.
const SUPERVISOR: &str = "upstreams";
/// Messages that may wait: one `Stop` in a life.
const MAILBOX: usize = 4;
/// How long its final frames may take, beyond the drain timeout.
const STOP: Duration = Duration::from_secs(2);

/// One configured upstream.
#[derive(Debug)]
pub(super) struct Upstream {
    name: Name,
    path: PathBuf,
    services: Vec<Name>,
    limits: Limits,
    node: NodeId,
    /// Counts what ends the delay before the next dial.
    hurry: watch::Sender<u64>,
    /// Counts the commands to dial.
    asked: watch::Sender<u64>,
    /// The number of its connection; 0: none.
    connection: AtomicU64,
}

impl Upstream {
    /// All that are configured, each with its node in the tree.
    pub(super) fn all(config: &config::Config, tree: &supervisor::Tree) -> Vec<Arc<Upstream>> {
        let upstream = |upstream: &config::Upstream| {
            let mut limits = supervisor::limits(&config.restart_for(&upstream.name));
            if limits.max_restarts == 0 {
                limits.max_restarts = NEVER;
            }
            // The configuration lets only names through.
            Some(Arc::new(Upstream {
                name: Name::parse(&upstream.name).ok()?,
                path: upstream.socket_path.clone(),
                services: upstream.services.iter().filter_map(|name| Name::parse(name).ok()).collect(),
                limits,
                node: tree.add(
                    &actor_name(&upstream.name),
                    SUPERVISOR,
                    (limits.max_restarts != NEVER).then_some(limits),
                ),
                hurry: watch::Sender::default(),
                asked: watch::Sender::default(),
                connection: AtomicU64::new(0),
            }))
        };
        config.upstream.iter().filter_map(upstream).collect()
    }

    /// Keeps it dialled, on this thread, until the broker ends. After its restart limit it waits for a dial command.
    pub(super) async fn keep(self: Arc<Self>, broker: Arc<Broker>) {
        let mut phase = broker.phase.clone();
        loop {
            let mut asked = self.asked.subscribe();
            let outcome = tokio::select! {
                outcome = self.clone().dial(&broker) => outcome,
                never = appearance::watch(&self.path, || self.hurry.send_modify(|count| *count += 1)) => match never {},
            };
            let Outcome::GaveUp(_) = outcome else { return };
            tokio::select! {
                Ok(()) = asked.changed() => {}
                _ = phase.wait_for(Phase::is_ending) => return,
            }
        }
    }

    /// Dials until the broker ends or the limit is exceeded.
    async fn dial(self: Arc<Self>, broker: &Arc<Broker>) -> Outcome {
        let upstream = self;
        let child = Child {
            name: "upstream",
            restart: Restart::Permanent,
            limits: upstream.limits,
            mailbox: MAILBOX,
            stop_within: Duration::from_millis(broker.config().ipc.drain_timeout_ms) + STOP,
            tree: &broker.tree,
            node: upstream.node,
            hurry: Some(&upstream.hurry),
            goes_on: None,
            limited: None,
        };
        let mut phase = broker.phase.clone();
        let stop = async move {
            // A connection that stands sees the phase by itself; what must end is the dialling.
            let _ = phase.wait_for(Phase::is_ending).await;
        };
        let last = Last::default();
        let factory =
            |exit| UpstreamActor { upstream: upstream.clone(), broker: broker.clone(), last: last.clone(), exit };
        let outcome = supervise(&child, || upstream.name.to_string(), stop, factory).await;
        end_last(&last, broker).await;
        outcome
    }

    /// The number of its connection, while it is connected.
    fn connection(&self) -> Option<u32> {
        u32::try_from(self.connection.load(Ordering::Relaxed)).ok().filter(|id| *id != 0)
    }

    fn status(&self, actors: &[ActorStatus]) -> UpstreamStatus {
        let name = actor_name(self.name.as_str());
        let actor = actors.iter().find(|actor| actor.name == name);
        UpstreamStatus {
            name: self.name.clone(),
            socket: self.path.display().to_string(),
            services: self.services.clone(),
            connection: self.connection(),
            state: actor.map_or(ActorState::Stopped, |actor| actor.state),
            restarts: actor.map_or(0, |actor| actor.restarts),
            last_reason: actor.and_then(|actor| actor.last_reason.clone()),
        }
    }
}

/// The name of an upstream's actor in the tree.
fn actor_name(upstream: &str) -> String {
    format!("upstream {upstream}")
}

/// The reply to [`ClientFrame::Upstreams`].
pub(super) fn list(broker: &Broker, serial: u32) -> BrokerFrame {
    BrokerFrame::Upstreams { serial, upstreams: statuses(broker) }
}

/// The state of all.
pub(super) fn statuses(broker: &Broker) -> Vec<UpstreamStatus> {
    let actors = broker.tree.report();
    broker.upstreams.iter().map(|upstream| upstream.status(&actors)).collect()
}

/// Handles [`ClientFrame::DialUpstream`]: ends the backoff, and restarts an upstream that was given up.
pub(super) fn dial(broker: &Broker, connection: u32, serial: u32, name: &Name) -> BrokerFrame {
    let Some(upstream) = broker.upstreams.iter().find(|upstream| upstream.name == *name) else {
        let message = format!("unknown upstream: {name}");
        return BrokerFrame::Failed { serial, code: FailedCode::Unknown, message };
    };
    if upstream.connection().is_none() {
        log::info!("upstream dialled on request upstream={name} connection={connection}");
        upstream.asked.send_modify(|count| *count += 1);
        upstream.hurry.send_modify(|count| *count += 1);
    }
    BrokerFrame::Upstreams { serial, upstreams: vec![upstream.status(&broker.tree.report())] }
}

/// What the last incarnation had of a session: one that panicked has left it.
type Last = Rc<RefCell<Option<Rc<Kept>>>>;

async fn end_last(last: &Last, broker: &Broker) {
    if let Some(session) = last.take().and_then(|kept| kept.take_session()) {
        session.end(broker, None).await;
    }
}

/// The actor of one dialled process.
struct UpstreamActor {
    upstream: Arc<Upstream>,
    broker: Arc<Broker>,
    last: Last,
    exit: Exit,
}

impl Actor for UpstreamActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        fault::point("upstream.started", 0);
        let run = run(self.upstream.clone(), self.broker.clone(), self.last.clone());
        ctx.spawn(run.into_actor(self).map(|reason, this, ctx| {
            this.exit.fail(reason);
            ctx.stop();
        }));
    }
}

impl Handler<Stop> for UpstreamActor {
    type Result = ();

    /// Nothing: the session sees for itself that the broker ends, and finishes what is under way.
    fn handle(&mut self, _: Stop, _: &mut Self::Context) {}
}

/// Dials, and serves the connection to its end. Returns why it ended.
async fn run(upstream: Arc<Upstream>, broker: Arc<Broker>, last: Last) -> String {
    end_last(&last, &broker).await;
    let Ok(permit) = broker.permits.clone().try_acquire_owned() else { return all_taken(&broker) };
    let path = upstream.path.display();
    let stream = match UnixStream::connect(&upstream.path).await {
        Ok(stream) => stream,
        Err(error) => return format!("cannot connect to {path}: {error}"),
    };
    fault::point("upstream.dialled", 0);
    // Before anything is sent: the listening process must belong to an allowed user.
    let peer = match peer::credentials(stream.as_fd()) {
        Ok(peer) => peer,
        Err(error) => return format!("cannot read the credentials of {path}: {error}"),
    };
    let trusted = [peer::own_uid(), 0].contains(&peer.uid) || broker.config().ipc.allowed_uids.contains(&peer.uid);
    if !trusted {
        return format!("the process listening at {path} runs as untrusted user {} (ipc.allowed_uids)", peer.uid);
    }
    let within = Duration::from_millis(broker.config().ipc.handshake_timeout_ms);
    let dialled = Dialled { missing: RefCell::new(upstream.services.clone()), upstream, within };
    let stream = match stream.into_std() {
        Ok(stream) => stream,
        Err(error) => return error.to_string(),
    };
    let admitted = Admitted { permit: Some(permit), _resuming: None };
    // Its session does not outlive its socket.
    let kept = Rc::new(Kept::new(Accepted { stream, peer, admitted }, Duration::ZERO));
    last.replace(Some(kept.clone()));
    match connection::dialled(&kept, &dialled, &broker).await {
        Ok(()) => "closed by peer".to_owned(),
        Err(reason) => reason,
    }
}

/// The state of a dialled session: the services that the peer is still to offer.
pub(super) struct Dialled {
    upstream: Arc<Upstream>,
    /// Services not yet offered.
    missing: RefCell<Vec<Name>>,
    within: Duration,
}

impl Drop for Dialled {
    /// However the session ended, also by a panic.
    fn drop(&mut self) {
        self.upstream.connection.store(0, Ordering::Relaxed);
    }
}

impl Dialled {
    /// The connection stands.
    pub(super) fn connected(&self, id: u32) {
        self.upstream.connection.store(id.into(), Ordering::Relaxed);
        log::info!("upstream connected upstream={} connection={id}", self.upstream.name);
    }

    /// The error reply to a frame that this peer must not send.
    pub(super) fn refusal(&self, frame: &ClientFrame) -> Option<BrokerFrame> {
        let ClientFrame::Serve { serial, service, .. } = frame else { return None };
        if self.upstream.services.contains(service) {
            return None;
        }
        let name = &self.upstream.name;
        log::warn!("upstream service refused upstream={name} service={service} reason=not_configured");
        let message = format!("upstream {name} is not configured to offer {service}");
        Some(BrokerFrame::Failed { serial: *serial, code: FailedCode::NotAllowed, message })
    }

    /// A reply was sent.
    pub(super) fn answered(&self, offered: Option<&Name>, answer: &BrokerFrame) {
        if let (Some(offered), BrokerFrame::Serving { .. }) = (offered, answer) {
            self.missing.borrow_mut().retain(|missing| missing != offered);
        }
    }

    /// Logs missing services when the time for them is over; never returns.
    pub(super) async fn look_for_missing(&self, id: u32) -> std::convert::Infallible {
        tokio::time::sleep(self.within).await;
        let missing = self.missing.borrow().iter().map(Name::to_string).collect::<Vec<_>>().join(",");
        if !missing.is_empty() {
            let (name, ms) = (&self.upstream.name, self.within.as_millis());
            log::warn!(
                "upstream lacks configured services upstream={name} connection={id} missing={missing} waited_ms={ms}"
            );
        }
        std::future::pending().await
    }
}

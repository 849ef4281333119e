//! `UpstreamActor`: one per upstream (`[[upstream]]`). It owns the outgoing socket; once that is connected it serves it
//! like an accepted one: the other side sends the Hello.
//!
//! Its session does not outlive its socket. When the connection is over, for whatever reason, the actor ends with that
//! reason, and its supervisor dials again by the restart policy. Bad peers cost their own log lines and one dial at a
//! time. The other side may offer only the services that its table names; the log has those that are late.
//!
//! Its permit is the broker's own, not that of a user: what is dialled is what the configuration names.
//!
//! An upstream is never given up unless its own table sets `max_restarts`. Two events end the delay before a dial: the
//! socket appears at its path (`path_watch`), and the command `lapce-ipc upstream dial`.

use super::connection::serve_dialled;
use super::permits::{PermitKind, at_capacity};
use super::state::{Accepted, ConnectionContext};
use super::upstream::{Dialled, Upstream};
use crate::broker::context::{Broker, Phase};
use crate::broker::listener::path_watch::appearances;
use crate::broker::supervision::fault;
use crate::broker::supervision::supervisor::{Child, Exit, Outcome, Stop, supervise};
use crate::logic::shares::BROKER;
use crate::logic::supervision::restart::Restart;
use crate::shm::{descriptors, peer};
use actix::prelude::*;
use std::cell::RefCell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;

/// The mailbox: one `Stop` per incarnation.
const MAILBOX: usize = 4;
/// How long its final frames may take, beyond the drain timeout.
const STOP: Duration = Duration::from_secs(2);

/// Keeps the upstream connected, on this thread, until the broker shuts down. After its restart limit it waits for a
/// dial command.
pub(in crate::broker) async fn keep(upstream: Arc<Upstream>, broker: Arc<Broker>) {
    let mut phase = broker.phase.clone();
    loop {
        let mut asked = upstream.asked.subscribe();
        let outcome = tokio::select! {
            outcome = dial(upstream.clone(), &broker) => outcome,
            never = appearances(&upstream.path, || upstream.end_backoff()) => match never {},
        };
        let Outcome::GaveUp(_) = outcome else { return };
        tokio::select! {
            Ok(()) = asked.changed() => {}
            _ = phase.wait_for(Phase::is_ending) => return,
        }
    }
}

/// Dials until the broker ends or the limit is exceeded.
async fn dial(upstream: Arc<Upstream>, broker: &Arc<Broker>) -> Outcome {
    let child = Child {
        name: "upstream",
        restart: Restart::Permanent,
        limits: upstream.limits,
        mailbox: MAILBOX,
        stop_within: Duration::from_millis(broker.config().ipc.drain_timeout_ms) + STOP,
        tree: &broker.tree,
        node: upstream.node,
        retry_now: Some(&upstream.retry_now),
        can_continue: None,
        limited: None,
    };
    let mut phase = broker.phase.clone();
    let stop = std::pin::pin!(async move {
        // An established connection follows the phase itself; only dialling must be stopped.
        let _ = phase.wait_for(Phase::is_ending).await;
    });
    let last = Last::default();
    let factory = |exit| UpstreamActor { upstream: upstream.clone(), broker: broker.clone(), last: last.clone(), exit };
    let outcome = supervise(&child, || upstream.name.to_string(), stop, factory).await;
    end_last(&last, broker).await;
    outcome
}

/// The session of the last incarnation, which a panic leaves behind.
type Last = Rc<RefCell<Option<Rc<ConnectionContext>>>>;

async fn end_last(last: &Last, broker: &Broker) {
    if let Some(session) = last.take().and_then(|context| context.take_session()) {
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

    /// Does nothing: the session follows the phase, and finishes outstanding work.
    fn handle(&mut self, _: Stop, _: &mut Self::Context) {}
}

/// Dials, and serves the connection to its end. Returns why it ended.
async fn run(upstream: Arc<Upstream>, broker: Arc<Broker>, last: Last) -> String {
    end_last(&last, &broker).await;
    let permit = match broker.permits.take(PermitKind::Connection, BROKER) {
        Ok(permit) => permit,
        Err(reached) => return at_capacity(reached),
    };
    let path = upstream.path.display();
    let stream = match UnixStream::connect(&upstream.path).await {
        Ok(stream) => stream,
        Err(error) => return format!("cannot connect to {path}: {error}"),
    };
    if let Err(error) = descriptors::refuse(stream.as_fd()) {
        return format!("cannot set options of the socket to {path}: {error}");
    }
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
    let dialled = Dialled::new(upstream, within);
    let stream = match stream.into_std() {
        Ok(stream) => stream,
        Err(error) => return error.to_string(),
    };
    // Its session does not outlive its socket.
    let context = Rc::new(ConnectionContext::new(Accepted { stream, peer, permit }, Duration::ZERO));
    last.replace(Some(context.clone()));
    match serve_dialled(&context, &dialled, &broker).await {
        Ok(()) => "closed by peer".to_owned(),
        Err(reason) => reason,
    }
}

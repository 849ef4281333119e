//! `Acceptor`: accepts connections. Each holds a permit of `max_connections` until its actor has ended.

use super::listening::Listening;
use crate::broker::context::{Broker, Phase};
use crate::broker::session::connection::ConnectionActor;
use crate::broker::session::handshake::at_capacity;
use crate::broker::session::state::{Accepted, Admitted, ConnectionContext};
use crate::broker::session::stream::FrameStream;
use crate::broker::supervision::fault;
use crate::broker::supervision::supervisor::{self, Child, Exit, Outcome, Stop, supervise};
use crate::broker::telemetry::log_limit::{Kind, OTHERS, may_log};
use crate::logic::supervision::restart::Restart;
use crate::shm::peer::{self, Credentials};
use crate::wire::control::{BrokerFrame, PROTOCOL_VERSION, RefusedCode};
use actix::prelude::*;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// How long to wait when the system has no descriptor for the next connection.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(100);
/// The timeout for sending a refusal.
const REFUSAL: Duration = Duration::from_secs(1);
/// Refusals that are sent at a time; further connections are closed without one.
const MAX_REFUSALS: usize = 16;
/// Handshakes beyond the connection limit while a detached session exists (S8).
const MAX_RESUMING: usize = 16;

/// The mailbox of a connection's actor: one `Stop`, and one socket at a time.
const CONNECTION_MAILBOX: usize = 4;
/// How long a connection's actor may take to stop, its final frame included.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The acceptor. All incarnations share the listening socket.
pub(in crate::broker) struct Acceptor {
    listening: Rc<Listening>,
    exit: Exit,
    broker: Arc<Broker>,
    workers: Vec<ArbiterHandle>,
}

impl Acceptor {
    pub(in crate::broker) fn new(
        listening: Rc<Listening>,
        broker: Arc<Broker>,
        workers: Vec<ArbiterHandle>,
        exit: Exit,
    ) -> Acceptor {
        Acceptor { listening, broker, workers, exit }
    }
}

impl Actor for Acceptor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        fault::point("acceptor.started", 0);
        let accept = accept(self.listening.clone(), self.broker.clone(), self.workers.clone());
        ctx.spawn(accept.into_actor(self).map(|result, this, ctx| {
            if let Err(error) = result {
                this.exit.fail(error);
            }
            ctx.stop();
        }));
    }
}

impl Handler<Stop> for Acceptor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

/// Accepts until it is stopped or fails.
async fn accept(listening: Rc<Listening>, broker: Arc<Broker>, workers: Vec<ArbiterHandle>) -> io::Result<()> {
    let mut listener = UnixListener::from_std(listening.listener()?)?;
    let mut made_anew = Box::pin(listening.clone().made_anew());
    let refusals = Arc::new(tokio::sync::Semaphore::new(MAX_REFUSALS));
    let resuming = Arc::new(tokio::sync::Semaphore::new(MAX_RESUMING));
    let mut next = workers.iter().cycle();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            anew = &mut made_anew => {
                listener = UnixListener::from_std(anew?)?;
                made_anew = Box::pin(listening.clone().made_anew());
                continue;
            }
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if may_log(Kind::NotAccepted, OTHERS) {
                    log::warn!("connection not accepted reason={error:?}");
                }
                tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
                continue;
            }
        };
        fault::point("acceptor.accepted", 0);
        let refused = match admit(&stream, &broker, &resuming) {
            Ok((peer, admitted)) => {
                let Some(worker) = next.next() else { return Ok(()) };
                let (stream, broker) = (stream.into_std()?, broker.clone());
                worker.spawn_fn(move || {
                    let context = ConnectionContext::new(Accepted { stream, peer, admitted }, broker.sessions.window());
                    actix::spawn(serve(Rc::new(context), broker));
                });
                continue;
            }
            Err(refused) => refused,
        };
        broker.counters.refused(refused.0);
        let user = peer::credentials(stream.as_fd()).map_or(OTHERS, |peer| peer.uid);
        if may_log(Kind::Refused, user) {
            log::warn!("connection refused reason={:?}", refused.1);
        }
        if let Ok(permit) = refusals.clone().try_acquire_owned() {
            actix::spawn(async move {
                let _permit = permit;
                refuse(stream, refused).await;
            });
        }
    }
}

/// Supervises one connection: its handshake and its session.
async fn serve(context: Rc<ConnectionContext>, broker: Arc<Broker>) {
    let can_continue = || context.can_continue();
    let child = Child {
        name: "connection",
        restart: Restart::Transient,
        limits: supervisor::connection_limits(&broker.config().restart),
        mailbox: CONNECTION_MAILBOX,
        stop_within: STOP_TIMEOUT,
        tree: &broker.tree,
        node: broker.connections,
        retry_now: None,
        can_continue: Some(&can_continue),
        limited: Some((Kind::Restarted, context.uid())),
    };
    let mut phase = broker.phase.clone();
    let stop = pin!(async move {
        let _ = phase.wait_for(|phase| *phase == Phase::Closing).await;
    });
    let factory = |exit| ConnectionActor::new(context.clone(), broker.clone(), exit);
    if let Outcome::GaveUp(_) = supervise(&child, || context.id(), stop, factory).await {
        Box::pin(context.give_up(&broker)).await;
    }
}

/// Checks whether a connection may be accepted.
fn admit(
    stream: &UnixStream,
    broker: &Broker,
    resuming: &Arc<tokio::sync::Semaphore>,
) -> Result<(Credentials, Admitted), (RefusedCode, String)> {
    let peer = peer::credentials(stream.as_fd()).map_err(|error| (RefusedCode::NotAllowed, error.to_string()))?;
    if !broker.may_connect(peer.uid) {
        return Err((RefusedCode::NotAllowed, format!("user {} may not connect", peer.uid)));
    }
    if let Ok(permit) = broker.permits.clone().try_acquire_owned() {
        return Ok((peer, Admitted { permit: Some(permit), _resuming: None }));
    }
    if broker.sessions.has_waiting()
        && let Ok(resuming) = resuming.clone().try_acquire_owned()
    {
        return Ok((peer, Admitted { permit: None, _resuming: Some(resuming) }));
    }
    Err((RefusedCode::TooManyConnections, at_capacity(broker)))
}

async fn refuse(stream: UnixStream, (code, message): (RefusedCode, String)) {
    let refused = BrokerFrame::Refused { code, message, version: PROTOCOL_VERSION };
    let Ok(bytes) = refused.encode() else { return };
    let mut stream = FrameStream::new(stream);
    let _ = tokio::time::timeout(REFUSAL, stream.write(&bytes, &[])).await;
}

//! `Acceptor`: accepts connections. Each holds a permit of its user until its actor has ended, and waits for its turn
//! if the user connects too often (`logic::session::permits`). Nothing that a user does keeps `accept` from the next
//! socket.

use super::listening::Listening;
use crate::broker::context::{Broker, Phase};
use crate::broker::session::connection::ConnectionActor;
use crate::broker::session::permits::{Permit, PermitKind, at_capacity};
use crate::broker::session::state::{Accepted, ConnectionContext};
use crate::broker::session::stream::FrameStream;
use crate::broker::supervision::fault;
use crate::broker::supervision::supervisor::{self, Child, Exit, Outcome, Stop, supervise};
use crate::broker::telemetry::log_limit::{Kind, OTHERS, may_log};
use crate::logic::shares::Principal;
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
        let Some(worker) = next.next() else { return Ok(()) };
        match peer::credentials(stream.as_fd()) {
            Ok(peer) => admit(Candidate { stream, peer, worker: worker.clone(), broker: broker.clone() }),
            Err(error) => report(&broker, OTHERS, &(RefusedCode::NotAllowed, error.to_string())),
        }
    }
}

/// An accepted socket.
struct Candidate {
    stream: UnixStream,
    peer: Credentials,
    /// Will serve it.
    worker: ArbiterHandle,
    broker: Arc<Broker>,
}

/// Why a socket is refused.
type Refusal = (RefusedCode, String);

/// Admits a socket with a permit, or refuses it; both when its turn comes.
fn admit(candidate: Candidate) {
    let Candidate { peer: Credentials { uid, .. }, broker, .. } = &candidate;
    let user = Principal::of_uid(*uid);
    let percent = broker.config().limits.user_work_percent;
    let refused = if broker.may_connect(*uid) {
        match broker.permits.take(PermitKind::Connection, user) {
            Ok(permit) => {
                let wait = broker.permits.pay(user, percent);
                return candidate.begin(permit, wait);
            }
            Err(reached) => (RefusedCode::TooManyConnections, at_capacity(reached)),
        }
    } else {
        (RefusedCode::NotAllowed, format!("user {uid} may not connect"))
    };
    match broker.permits.take(PermitKind::Refusal, user) {
        Ok(permit) => {
            let wait = broker.permits.pay(user, percent);
            actix::spawn(candidate.resume_or_refuse(permit, wait, refused));
        }
        // Too many wait for theirs: it is closed without one.
        Err(_) => report(broker, user, &refused),
    }
}

impl Candidate {
    /// Begins its handshake when its turn comes.
    fn begin(self, permit: Permit, wait: Duration) {
        let Candidate { stream, peer, worker, broker } = self;
        let Ok(stream) = stream.into_std() else { return };
        let accepted = Accepted { stream, peer, permit };
        worker.spawn_fn(move || {
            // Boxed, as all that is over when the connection is idle.
            let first = Box::pin(admitted(accepted, broker.clone(), wait));
            actix::spawn(async move {
                if let Some(context) = first.await {
                    serve(context, broker).await;
                }
            });
        });
    }

    /// When its turn comes, it may resume, if its user is at its share and has a detached session (S8), or is refused.
    async fn resume_or_refuse(self, permit: Permit, wait: Duration, refused: Refusal) {
        let Candidate { stream, peer: Credentials { uid, .. }, broker, .. } = &self;
        let user = Principal::of_uid(*uid);
        if !turn(broker, stream, wait).await {
            return report(broker, user, &refused);
        }
        if refused.0 == RefusedCode::TooManyConnections
            && broker.sessions.has_waiting(*uid)
            && let Ok(resume) = broker.permits.take(PermitKind::Resume, user)
        {
            return self.begin(resume, Duration::ZERO);
        }
        report(broker, user, &refused);
        refuse(self.stream, refused).await;
        drop(permit);
    }
}

/// Waits for the turn of a socket. Returns its connection; `None`: its peer is gone.
async fn admitted(accepted: Accepted, broker: Arc<Broker>, wait: Duration) -> Option<Rc<ConnectionContext>> {
    let is_there = turn(&broker, &accepted.stream, wait).await;
    is_there.then(|| Rc::new(ConnectionContext::new(accepted, broker.sessions.window())))
}

/// Waits for the turn of a socket. Returns whether its peer is still there.
async fn turn(broker: &Broker, stream: &impl AsFd, wait: Duration) -> bool {
    if wait.is_zero() {
        return true;
    }
    let mut phase = broker.phase.clone();
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        // It is told so in its handshake.
        _ = phase.wait_for(Phase::is_ending) => {}
    }
    !peer::has_hung_up(stream.as_fd())
}

/// Counts and logs a refusal.
fn report(broker: &Broker, user: Principal, refused: &Refusal) {
    broker.counters.refused(refused.0);
    if may_log(Kind::Refused, user) {
        log::warn!("connection refused reason={:?}", refused.1);
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
        limited: Some((Kind::Restarted, context.principal())),
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

async fn refuse(stream: UnixStream, (code, message): Refusal) {
    let refused = BrokerFrame::Refused { code, message, version: PROTOCOL_VERSION };
    let Ok(bytes) = refused.encode() else { return };
    let mut stream = FrameStream::new(stream);
    let _ = tokio::time::timeout(REFUSAL, stream.write(&bytes, &[])).await;
}

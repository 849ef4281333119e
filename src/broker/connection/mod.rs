//! `ConnectionActor`: one for each control socket. It holds a session while its socket lasts; the rings are the
//! router's.

mod greeting;

pub(super) use greeting::all_taken;

use super::breaker::BreakerHandle;
use super::counters::Counters;
use super::fault;
use super::health::{Access, Location};
use super::holder::{Holder, Kept, SessionTable};
use super::reload::{self, Source};
use super::report;
use super::roster::Roster;
use super::router::{Ask, Doom, RouterHandle, Settings};
use super::stream::{FrameStream, ReadError};
use super::supervisor::{NodeId, Stop, Tree};
use super::upstream::{self, Dialled, Upstream};
use crate::broker::log_limit::{Kind, may_log};
use crate::config::Config;
use crate::shm::peer::{self, Credentials};
use crate::sync::AtomicU64;
use crate::wire::control::{BrokerFrame, ClientFrame, ClosingCode, FailedCode};
use actix::prelude::*;
use greeting::let_in;
use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How long a client may take to read the last frame, or to send its own.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Where the broker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Everything is served.
    Running,
    /// Nothing new is let in; what is under way is finished within so many milliseconds.
    Draining(u32),
    /// Connections are closed.
    Closing,
}

impl Phase {
    pub(super) fn is_ending(&self) -> bool {
        *self != Phase::Running
    }
}

/// What all connections share.
pub(super) struct Broker {
    /// What is in force.
    pub(super) config: watch::Sender<Arc<Config>>,
    pub(super) source: Source,
    /// Who may read the endpoints.
    pub(super) access: watch::Sender<Arc<Access>>,
    pub(super) config_file: Option<PathBuf>,
    pub(super) settings: Settings,
    pub(super) router: RouterHandle,
    pub(super) breaker: BreakerHandle,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) sessions: SessionTable,
    pub(super) roster: Arc<Roster>,
    pub(super) started: Instant,
    pub(super) tree: Arc<Tree>,
    pub(super) counters: Counters,
    pub(super) upstreams: Vec<Arc<Upstream>>,
    /// Where all connections are in the tree.
    pub(super) connections: NodeId,
    /// Whether all actors of the root run: what `/ready` is about.
    pub(super) ready: watch::Receiver<bool>,
    /// Why clients do not find the socket, if they do not.
    pub(super) socket_lost: watch::Receiver<Option<String>>,
    /// How many threads do not turn: what `/live` is about.
    pub(super) late: Arc<AtomicU64>,
    /// How many threads of the endpoints do not turn.
    pub(super) late_non_vital: Arc<AtomicU64>,
    /// Where the endpoints listen.
    pub(super) location: Arc<Location>,
}

impl Broker {
    /// The configuration that is in force now.
    pub(super) fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// Whether a user may connect. Root can read everything in any case.
    pub(super) fn may_connect(&self, uid: u32) -> bool {
        [peer::own_uid(), 0].contains(&uid) || self.config().ipc.allowed_uids.contains(&uid)
    }

    /// Whether a user may give orders that change others.
    fn is_operator(&self, uid: u32) -> bool {
        [peer::own_uid(), 0].contains(&uid) || self.config().ipc.operator_uids.contains(&uid)
    }
}

/// What a connection was let in with.
pub(super) struct Admitted {
    /// One of `max_connections`. `None`: all are taken, but some session waits for its peer: the connection may resume
    /// that, and nothing else (S8).
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// One of those who may try, then.
    pub(super) _resuming: Option<OwnedSemaphorePermit>,
}

/// What a connection is called in the log once the router has taken it in: its id.
pub(super) type Named = Rc<Cell<Option<u32>>>;

/// What a connection's actor begins with.
pub(super) struct Accepted {
    pub(super) stream: UnixStream,
    pub(super) peer: Credentials,
    pub(super) admitted: Admitted,
    pub(super) named: Named,
}

/// The actor of one control socket. If it panics, its session waits for the peer, as if the socket had been lost: the
/// guard that it holds sees to that.
pub(super) struct ConnectionActor {
    start: Option<Accepted>,
    broker: Arc<Broker>,
}

impl ConnectionActor {
    pub(super) fn new(start: Option<Accepted>, broker: Arc<Broker>) -> ConnectionActor {
        ConnectionActor { start, broker }
    }
}

impl Actor for ConnectionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        fault::point("connection.started", 0);
        let Some(start) = self.start.take() else { return ctx.stop() };
        let session = session(start, None, self.broker.clone());
        ctx.spawn(session.into_actor(self).map(|_, _, ctx| ctx.stop()));
    }
}

impl Handler<Stop> for ConnectionActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

/// From the first byte to the last. The error, which the log has already, is for whoever dials again.
///
/// Most connections rest most of the time, in `serve`. What the way in, the way out and a question need besides is on
/// the heap as long as they last, so that nobody pays for it at rest.
pub(super) async fn session(start: Accepted, dialled: Option<&Dialled>, broker: Arc<Broker>) -> Result<(), String> {
    let (mut stream, mut holder) = Box::pin(let_in(start, dialled, &broker)).await?;
    let end = serve(&mut stream, &broker, dialled, holder.kept()).await;
    Box::pin(leave(stream, holder, end, dialled.is_some())).await
}

/// Ends a session, or lets it wait for its peer if only its socket is lost and it was not we who dialled.
async fn leave(mut stream: FrameStream, mut holder: Holder, end: End, is_dialled: bool) -> Result<(), String> {
    let is_announced = holder.kept().is_announced();
    let Kept { id, name, listing, .. } = holder.kept();
    let (mut doom, mut result) = (None, Ok(()));
    match end {
        End::Left => {
            listing.left();
            let level = if is_announced { log::Level::Info } else { log::Level::Debug };
            if log::log_enabled!(level) && may_log(Kind::Closed) {
                log::log!(level, "connection closed connection={id} name={name}");
            }
        }
        End::Lost(reason) => {
            if may_log(Kind::Lost) {
                log::warn!("connection lost connection={id} name={name} reason={reason:?}");
            }
            if !is_dialled {
                // Dropping the guard lets the session wait for its peer (S2); the socket goes first.
                drop(stream);
                drop(holder);
                return Err(reason);
            }
            result = Err(reason);
        }
        End::Closed(closed) => {
            result = Err(closed.reason.clone());
            let Doom { code, reason } = closed.clone();
            if may_log(Kind::Lost) {
                log::warn!("connection ended connection={id} name={name} code={code:?} reason={reason:?}");
            }
            doom = Some(closed);
            last_words(&mut stream, &BrokerFrame::Closing { code, message: reason }).await;
        }
        End::Shutdown => {
            let message = "the broker ends".to_owned();
            last_words(&mut stream, &BrokerFrame::Closing { code: ClosingCode::Shutdown, message }).await;
        }
    }
    holder.end(doom).await;
    result
}

async fn send(stream: &mut FrameStream, frame: &BrokerFrame, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    stream.write(&frame.encode().map_err(std::io::Error::other)?, fds).await
}

/// How it came that a socket is served no more.
enum End {
    /// The client said goodbye.
    Left,
    /// The socket ended or failed.
    Lost(String),
    /// The router ended it, or what came over the socket made no sense.
    Closed(Doom),
    /// The broker ends.
    Shutdown,
}

/// Serves a session until it ends or its socket is lost.
async fn serve(stream: &mut FrameStream, broker: &Broker, dialled: Option<&Dialled>, kept: &mut Kept) -> End {
    let mut missing = dialled.map(|dialled| Box::pin(dialled.look_for_missing(kept.id)));
    let mut phase = broker.phase.clone();
    // A command of the shell connects, asks and leaves: that is no news.
    let short = Duration::from_millis(broker.config().logging.short_connection_ms);
    let mut lasts = (!kept.is_announced()).then(|| Box::pin(tokio::time::sleep(short)));
    loop {
        let lasting = async {
            match &mut lasts {
                Some(lasts) => lasts.await,
                None => std::future::pending().await,
            }
        };
        let missing = async {
            match &mut missing {
                Some(missing) => missing.await,
                None => std::future::pending().await,
            }
        };
        let body = tokio::select! {
            biased;
            doom = ended(&mut kept.ended) => return End::Closed(doom),
            Ok(()) = phase.changed() => {
                let now = *phase.borrow_and_update();
                match now {
                    Phase::Running => {}
                    Phase::Closing => return End::Shutdown,
                    Phase::Draining(deadline_ms) => {
                        let told = Box::pin(send(stream, &BrokerFrame::Draining { deadline_ms }, &[])).await;
                        if let Err(error) = told {
                            return End::Lost(error.to_string());
                        }
                    }
                }
                continue;
            }
            never = missing => match never {},
            () = lasting => {
                kept.announce();
                lasts = None;
                continue;
            }
            read = stream.read() => match read {
                Ok(None) => return End::Lost("its socket has ended".to_owned()),
                Err(ReadError::Io(error)) => return End::Lost(error.to_string()),
                Err(ReadError::Codec(error)) => return End::Closed(violation(error)),
                Ok(Some(body)) => body,
            },
        };
        if !std::mem::replace(&mut kept.confirmed, true) {
            broker.sessions.confirm(kept.id);
        }
        if let Some(end) = Box::pin(heed(stream, broker, dialled, kept, body)).await {
            return end;
        }
    }
}

/// Does what a frame asks for. Answers how it comes that there is nothing more to serve, if so.
async fn heed(
    stream: &mut FrameStream,
    broker: &Broker,
    dialled: Option<&Dialled>,
    kept: &mut Kept,
    body: Vec<u8>,
) -> Option<End> {
    let frame = match ClientFrame::decode(&body) {
        Ok(ClientFrame::Bye) => return Some(End::Left),
        Ok(ClientFrame::Resumed) => return None,
        Ok(ClientFrame::Restored) => {
            kept.listing.restored();
            return None;
        }
        Ok(ClientFrame::Hello { .. }) => return Some(End::Closed(violation("a second hello"))),
        Err(error) => return Some(End::Closed(violation(error))),
        Ok(frame) => frame,
    };
    let Some(answer) = answer(broker, dialled, kept, frame).await else {
        // The router has ended the connection, and says so.
        return Some(End::Closed(ended(&mut kept.ended).await));
    };
    // A client that does not read is no reason to miss its end, or the broker's.
    let mut phase = broker.phase.clone();
    let sent = tokio::select! {
        biased;
        doom = ended(&mut kept.ended) => return Some(End::Closed(doom)),
        Ok(_) = phase.wait_for(|phase| *phase == Phase::Closing) => return Some(End::Shutdown),
        sent = send(stream, &answer, &[]) => sent,
    };
    match sent {
        Ok(()) => None,
        Err(error) => Some(unheard(stream, error).await),
    }
}

/// The peer does not hear us any more. Whether it has said goodbye stands in what it sent before.
async fn unheard(stream: &mut FrameStream, error: std::io::Error) -> End {
    let goodbye = async {
        while let Ok(Some(body)) = stream.read().await {
            if let Ok(ClientFrame::Bye) = ClientFrame::decode(&body) {
                return End::Left;
            }
        }
        End::Lost(error.to_string())
    };
    tokio::time::timeout(LAST_WORDS, goodbye).await.unwrap_or_else(|_| End::Lost(error.to_string()))
}

/// Why the router has ended the connection, when it has.
async fn ended(ended: &mut watch::Receiver<Option<Doom>>) -> Doom {
    match ended.wait_for(Option::is_some).await.map(|doom| doom.clone()) {
        Ok(Some(doom)) => doom,
        // Neither the connection nor the router exists any more.
        _ => Doom { code: ClosingCode::Shutdown, reason: "the connection has ended".to_owned() },
    }
}

/// Answers a question: as it was, if it comes again over a later socket (S6); not, if this peer may not ask it.
async fn answer(
    broker: &Broker,
    dialled: Option<&Dialled>,
    kept: &mut Kept,
    frame: ClientFrame,
) -> Option<BrokerFrame> {
    let serial = frame.serial()?;
    if let Some(answer) = kept.answers.find(serial) {
        return Some(answer);
    }
    if let Some(refusal) = dialled.and_then(|dialled| dialled.refusal(&frame)) {
        return Some(refusal);
    }
    let offered = match &frame {
        ClientFrame::Serve { service, .. } if dialled.is_some() => Some(service.clone()),
        _ => None,
    };
    if let Some(refusal) = refusal(broker, kept, &frame) {
        return Some(refusal);
    }
    let answer = ask(broker, Ask { key: kept.key, id: kept.id, number: kept.questions, frame }).await?;
    kept.questions += 1;
    if matches!(answer, BrokerFrame::Subscribed { .. }) {
        kept.listing.subscribed();
    }
    kept.answers.keep(serial, &answer);
    if let Some(dialled) = dialled {
        dialled.answered(offered.as_ref(), &answer);
    }
    Some(answer)
}

/// The answer to an order that this user may not give.
fn refusal(broker: &Broker, kept: &Kept, frame: &ClientFrame) -> Option<BrokerFrame> {
    let (serial, order) = match frame {
        ClientFrame::SetBreaker { serial, .. } => (*serial, "set breakers"),
        ClientFrame::DialUpstream { serial, .. } => (*serial, "dial upstreams"),
        ClientFrame::Reload { serial } => (*serial, "reload the configuration"),
        _ => return None,
    };
    if broker.is_operator(kept.uid) {
        return None;
    }
    log::warn!("order refused connection={} uid={} order={order:?}", kept.id, kept.uid);
    let message = format!("user {} may not {order} (ipc.operator_uids)", kept.uid);
    Some(BrokerFrame::Failed { serial, code: FailedCode::NotAllowed, message })
}

fn violation(reason: impl ToString) -> Doom {
    Doom { code: ClosingCode::ProtocolViolation, reason: reason.to_string() }
}

async fn ask(broker: &Broker, question: Ask) -> Option<BrokerFrame> {
    fault::point("connection.asked", 0);
    let question = match question {
        Ask { id, frame: ClientFrame::SetBreaker { serial, service, order, for_ms }, .. } => {
            return Some(broker.breaker.set(id, serial, service, order, for_ms).await);
        }
        Ask { frame: ClientFrame::Upstreams { serial }, .. } => return Some(upstream::list(broker, serial)),
        Ask { id, frame: ClientFrame::DialUpstream { serial, name }, .. } => {
            return Some(upstream::dial(broker, id, serial, &name));
        }
        Ask { id, frame: ClientFrame::Reload { serial }, .. } => {
            return Some(reload::answer(broker, id, serial).await);
        }
        question => question,
    };
    let mut answer = broker.router.send(question).await.ok()??;
    fault::point("connection.answered", 0);
    if let BrokerFrame::Status { report, .. } = &mut answer {
        report::complete(report, broker);
    }
    Some(answer)
}

async fn last_words(stream: &mut FrameStream, frame: &BrokerFrame) {
    let Ok(bytes) = frame.encode() else { return };
    let _ = tokio::time::timeout(LAST_WORDS, stream.write(&bytes, &[])).await;
}

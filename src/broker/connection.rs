//! `ConnectionActor`: one for each control socket. It holds a session while its socket lasts; the rings are the
//! router's.

use super::breaker::{self, BreakerActor};
use super::fault;
use super::holder::{Holder, Kept, SessionTable};
use super::report;
use super::router::{Ask, Attach, Doom, Gone, RouterHandle, Settings};
use super::sessions::ResumeError;
use super::stream::{FrameStream, ReadError};
use super::supervisor::{Place, Stop, Tree};
use super::tally::Tally;
use super::upstream::Dialled;
use crate::config::Config;
use crate::shm::doorbell::{BrokerBells, ClientDescriptors};
use crate::shm::peer::{Credentials, watch_process};
use crate::shm::segment::{Nonces, Segment};
use crate::sync::AtomicU64;
use crate::wire::control::{
    self, BrokerFrame, ClientFrame, ClosingCode, Geometry, Limits, PROTOCOL_VERSION, RefusedCode, Token,
};
use crate::wire::name::Name;
use actix::prelude::*;
use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How long a client may take to read the last frame.
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
    pub(super) config: Config,
    pub(super) config_file: Option<PathBuf>,
    pub(super) settings: Settings,
    pub(super) router: RouterHandle,
    pub(super) breaker: watch::Receiver<Option<Addr<BreakerActor>>>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) sessions: SessionTable,
    pub(super) started: Instant,
    pub(super) tree: Arc<Tree>,
    pub(super) tally: Tally,
    /// Where all connections are in the tree.
    pub(super) connections: Place,
    /// Whether all actors of the root run: what `/ready` is about.
    pub(super) ready: watch::Receiver<bool>,
    /// How many threads do not turn: what `/live` is about.
    pub(super) late: Arc<AtomicU64>,
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
        let broker = self.broker.clone();
        let session = async move { session(start, None, broker).await };
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
pub(super) async fn session(start: Accepted, dialled: Option<&Dialled>, broker: Arc<Broker>) -> Result<(), String> {
    let Accepted { stream, peer, admitted, named } = start;
    let stream = stream.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stream));
    let max = broker.config.ipc.max_control_frame_bytes as usize;
    let mut stream = match stream {
        Ok(stream) => FrameStream::new(stream, max),
        Err(error) => {
            log::warn!("connection lost pid={} reason={error:?}", peer.pid);
            return Err(error.to_string());
        }
    };
    let timeout = Duration::from_millis(broker.config.ipc.handshake_timeout_ms);
    let hello = match tokio::time::timeout(timeout, read_hello(&mut stream)).await {
        Ok(Some(hello)) => hello,
        Ok(None) => return Err("it left without a hello".to_owned()),
        Err(_) => Err((RefusedCode::Malformed, format!("no hello within {} ms", timeout.as_millis()))),
    };
    let greeted = match hello {
        Ok(hello) => greet(&mut stream, &broker, peer, admitted, hello, timeout).await,
        Err(refused) => Err(Some(refused)),
    };
    let (code, message) = match greeted {
        Ok(mut holder) => {
            named.set(Some(holder.kept().id));
            fault::point("connection.welcomed", 0);
            if let Some(dialled) = dialled {
                dialled.connected(holder.kept().id);
                // Its peer does not come back to us: we dial it again.
                holder.kept().process = None;
            }
            return hold(stream, &broker, dialled, holder).await;
        }
        Err(None) => return Err("it left before it was welcome".to_owned()),
        Err(Some(refused)) => refused,
    };
    broker.tally.refused(code);
    // Who tries tokens could fill the log: that is said there, within limits.
    if !matches!(code, RefusedCode::ResumeFailed | RefusedCode::BadToken) {
        log::warn!("connection refused pid={} uid={} reason={message:?}", peer.pid, peer.uid);
    }
    let refused = BrokerFrame::Refused { code, message: message.clone(), version: PROTOCOL_VERSION };
    last_words(&mut stream, &refused).await;
    Err(message)
}

/// What a client says first.
struct Hello {
    name: Name,
    nonce: u64,
    resume: Option<Token>,
}

/// Answers a Hello: a new session, or one that is resumed. `Err(None)`: the client is gone again.
async fn greet(
    stream: &mut FrameStream,
    broker: &Arc<Broker>,
    peer: Credentials,
    admitted: Admitted,
    hello: Hello,
    limit: Duration,
) -> Result<Holder, Option<(RefusedCode, String)>> {
    let refused = |error: &dyn std::fmt::Display| {
        (RefusedCode::TooManyConnections, format!("no memory or descriptors for another connection: {error}"))
    };
    if broker.phase.borrow().is_ending() {
        return Err(Some((RefusedCode::Draining, "the broker ends".to_owned())));
    }
    let process = watch_process(peer.pid);
    let Hello { name, nonce, resume } = hello;
    if let Some(token) = resume {
        let resumed = Holder::resume(broker, token, peer.uid, nonce, stream.socket(), limit).await;
        let (mut holder, token) = resumed.map_err(|error| {
            broker.sessions.tell_refusal(peer, error);
            Some(match error {
                ResumeError::Held(_) => (RefusedCode::BadToken, "another connection holds this session".to_owned()),
                // The same for all, so that a guess learns nothing.
                _ => (RefusedCode::ResumeFailed, "no session waits for this token".to_owned()),
            })
        })?;
        let kept = holder.kept();
        kept.process = process;
        broker.tally.resumed();
        log::info!("session resumed connection={} name={} pid={}", kept.id, kept.name, peer.pid);
        let frame = welcome(broker, kept, token);
        // Lost again before it was welcome: the session waits further, with the token before good still (S4).
        send(stream, &frame, &[]).await.map_err(|_| None)?;
        return Ok(holder);
    }
    let Some(permit) = admitted.permit else {
        return Err(Some((RefusedCode::TooManyConnections, all_taken(broker))));
    };
    let attached = attach(broker, &name, nonce, peer).await.map_err(|error| refused(&error))?;
    let Attached { key, id, nonces, segment, descriptors, ended } = attached;
    log::info!("connection opened connection={id} name={name} pid={} uid={}", peer.pid, peer.uid);
    let kept = Kept::new((key, id), name, nonces, process, ended, permit);
    let (mut holder, token) = match Holder::open(broker, kept, peer.uid, nonce, stream.socket()) {
        Ok(opened) => opened,
        Err(error) => {
            let _ = broker.router.send(Gone { key, id, doom: None }).await;
            return Err(Some(refused(&error)));
        }
    };
    let frame = welcome(broker, holder.kept(), token);
    let ClientDescriptors { ring, wait } = &descriptors;
    // In this order; ours are closed when this returns.
    if let Err(error) = send(stream, &frame, &[segment.as_fd(), ring.as_fd(), wait.as_fd()]).await {
        log::warn!("connection lost connection={id} reason={:?}", error.to_string());
        // Nobody has its token.
        holder.end(None).await;
        return Err(None);
    }
    Ok(holder)
}

/// Why nobody else is let in.
pub(super) fn all_taken(broker: &Broker) -> String {
    format!("all {} connections are taken (ipc.max_connections)", broker.config.ipc.max_connections)
}

/// Serves a session until it ends or its socket is lost.
async fn hold(
    mut stream: FrameStream,
    broker: &Broker,
    dialled: Option<&Dialled>,
    mut holder: Holder,
) -> Result<(), String> {
    let end = serve(&mut stream, broker, dialled, holder.kept()).await;
    let Kept { id, name, .. } = holder.kept();
    let (mut doom, mut result) = (None, Ok(()));
    match end {
        End::Left => log::info!("connection closed connection={id} name={name}"),
        End::Lost(reason) => {
            log::warn!("connection lost connection={id} name={name} reason={reason:?}");
            if dialled.is_none() {
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
            log::warn!("connection ended connection={id} name={name} code={code:?} reason={reason:?}");
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

/// `None`: the peer left without a word.
async fn read_hello(stream: &mut FrameStream) -> Option<Result<Hello, (RefusedCode, String)>> {
    let malformed = |error: &dyn std::fmt::Display| Some(Err((RefusedCode::Malformed, error.to_string())));
    let body = match stream.read().await {
        Ok(Some(body)) => body,
        Ok(None) | Err(ReadError::Io(_)) => return None,
        Err(error) => return malformed(&error),
    };
    match control::peek_hello(&body) {
        Ok(PROTOCOL_VERSION) => {}
        Ok(version) => {
            let message = format!("the client speaks version {version}, the broker {PROTOCOL_VERSION}");
            return Some(Err((RefusedCode::Version, message)));
        }
        Err(error) => return malformed(&error),
    }
    match ClientFrame::decode(&body) {
        Ok(ClientFrame::Hello { name, nonce, resume, .. }) => Some(Ok(Hello { name, nonce, resume })),
        Ok(_) => malformed(&"the first frame is no hello"),
        Err(error) => malformed(&error),
    }
}

/// A connection that the router has taken in, and what its client gets.
struct Attached {
    key: u32,
    id: u32,
    nonces: Nonces,
    segment: OwnedFd,
    descriptors: ClientDescriptors,
    ended: watch::Receiver<Option<Doom>>,
}

async fn attach(broker: &Broker, name: &Name, nonce: u64, peer: Credentials) -> std::io::Result<Attached> {
    let nonces = Nonces::random()?;
    let segment = Segment::create(broker.settings.geometry, nonces, broker.settings.permissions);
    let segment = segment.map_err(std::io::Error::other)?;
    let (bells, descriptors) = BrokerBells::new()?;
    let file = segment.as_fd().try_clone_to_owned()?;
    let (owner, ended) = watch::channel(None);
    let name = name.clone();
    let attach = Attach { name, nonce, peer, segment: Arc::new(segment), bells: Arc::new(bells), owner };
    let (key, id) = broker.router.send(attach).await.map_err(std::io::Error::other)??;
    Ok(Attached { key, id, nonces, segment: file, descriptors, ended })
}

fn welcome(broker: &Broker, kept: &Kept, token: Token) -> BrokerFrame {
    let (config, settings) = (&broker.config, &broker.settings);
    let ms = |ms: u64| u32::try_from(ms).unwrap_or(u32::MAX);
    let Nonces { bulk, express, egress } = kept.nonces;
    BrokerFrame::Welcome {
        version: PROTOCOL_VERSION,
        connection: kept.id,
        token,
        broker: concat!("lapce-ipc ", env!("CARGO_PKG_VERSION")).to_owned(),
        limits: Limits {
            max_message_size: config.ipc.max_message_size,
            slot_size: settings.geometry.slot_size(),
            stream_credit_cells: settings.stream_credit,
            subscription_credit_cells: settings.subscription_credit,
            default_request_timeout_ms: ms(config.limits.default_request_timeout_ms),
            max_request_timeout_ms: ms(config.limits.max_request_timeout_ms),
            max_requests: config.limits.max_requests_per_connection,
        },
        geometry: Geometry {
            segment_bytes: settings.geometry.segment_bytes() as u64,
            nonce_egress: egress,
            nonce_bulk: bulk,
            nonce_express: express,
            slot_size: settings.geometry.slot_size(),
            extension_cells: settings.geometry.extension_cells(),
        },
    }
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

async fn serve(stream: &mut FrameStream, broker: &Broker, dialled: Option<&Dialled>, kept: &mut Kept) -> End {
    let id = kept.id;
    let mut missing = std::pin::pin!(async {
        match dialled {
            Some(dialled) => dialled.look_for_missing(id).await,
            None => std::future::pending().await,
        }
    });
    let mut phase = broker.phase.clone();
    loop {
        let frame = tokio::select! {
            biased;
            doom = ended(&mut kept.ended) => return End::Closed(doom),
            Ok(()) = phase.changed() => {
                let now = *phase.borrow_and_update();
                match now {
                    Phase::Running => continue,
                    Phase::Closing => return End::Shutdown,
                    Phase::Draining(deadline_ms) => BrokerFrame::Draining { deadline_ms },
                }
            }
            never = &mut missing => match never {},
            read = stream.read() => match read {
                Ok(None) => return End::Lost("its socket has ended".to_owned()),
                Err(ReadError::Io(error)) => return End::Lost(error.to_string()),
                Err(ReadError::Codec(error)) => return End::Closed(violation(error)),
                Ok(Some(body)) => {
                    if !std::mem::replace(&mut kept.confirmed, true) {
                        broker.sessions.confirm(kept.id);
                    }
                    match ClientFrame::decode(&body) {
                        Ok(ClientFrame::Bye) => return End::Left,
                        Ok(ClientFrame::Resumed) => continue,
                        Ok(ClientFrame::Hello { .. }) => return End::Closed(violation("a second hello")),
                        Err(error) => return End::Closed(violation(error)),
                        Ok(frame) => match answer(broker, dialled, kept, frame).await {
                            Some(answer) => answer,
                            // The router has ended the connection, and says so.
                            None => return End::Closed(ended(&mut kept.ended).await),
                        },
                    }
                }
            },
        };
        if let Err(error) = send(stream, &frame, &[]).await {
            return End::Lost(error.to_string());
        }
    }
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
        return Some(answer.clone());
    }
    if let Some(refusal) = dialled.and_then(|dialled| dialled.refusal(&frame)) {
        return Some(refusal);
    }
    let offered = match &frame {
        ClientFrame::Serve { service, .. } if dialled.is_some() => Some(service.clone()),
        _ => None,
    };
    let answer = ask(broker, Ask { key: kept.key, id: kept.id, number: kept.questions, frame }).await?;
    kept.questions += 1;
    kept.answers.keep(serial, &answer);
    if let Some(dialled) = dialled {
        dialled.answered(offered.as_ref(), &answer);
    }
    Some(answer)
}

fn violation(reason: impl ToString) -> Doom {
    Doom { code: ClosingCode::ProtocolViolation, reason: reason.to_string() }
}

async fn ask(broker: &Broker, question: Ask) -> Option<BrokerFrame> {
    fault::point("connection.asked", 0);
    let question = match question {
        Ask { id, frame: ClientFrame::SetBreaker { serial, service, order, for_ms }, .. } => {
            return Some(breaker::set(&broker.breaker, id, serial, service, order, for_ms).await);
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

//! `ConnectionActor`: one for each connection. It owns the control socket; the rings are the router's.

use super::breaker::{self, BreakerActor};
use super::fault;
use super::report;
use super::router::{Ask, Attach, Doom, Ended, Gone, RouterHandle, Settings};
use super::stream::{FrameStream, ReadError};
use super::supervisor::{Place, Stop, Tree};
use crate::config::Config;
use crate::shm::doorbell::BrokerBells;
use crate::shm::peer::Credentials;
use crate::shm::segment::{Nonces, Segment, fill_random};
use crate::sync::AtomicU64;
use crate::wire::control::{
    self, BrokerFrame, ClientFrame, ClosingCode, Geometry, Limits, PROTOCOL_VERSION, RefusedCode, Token,
};
use crate::wire::name::Name;
use actix::prelude::*;
use std::cell::Cell;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, watch};

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
    pub(super) started: Instant,
    pub(super) tree: Arc<Tree>,
    /// Where all connections are in the tree.
    pub(super) connections: Place,
    /// Whether all actors of the root run: what `/ready` is about.
    pub(super) ready: watch::Receiver<bool>,
    /// How many threads do not turn: what `/live` is about.
    pub(super) late: Arc<AtomicU64>,
}

/// What the router knows a connection by, once it has taken it in: key and id.
pub(super) type TakenIn = Rc<Cell<Option<(u32, u32)>>>;

/// The actor of one connection.
pub(super) struct ConnectionActor {
    start: Option<(UnixStream, Credentials, TakenIn, mpsc::Receiver<Doom>)>,
    doom: mpsc::Sender<Doom>,
    broker: Arc<Broker>,
}

impl ConnectionActor {
    pub(super) fn new(
        stream: Option<UnixStream>,
        peer: Credentials,
        taken_in: TakenIn,
        broker: Arc<Broker>,
    ) -> ConnectionActor {
        let (doom, doomed) = mpsc::channel(1);
        ConnectionActor { start: stream.map(|stream| (stream, peer, taken_in, doomed)), doom, broker }
    }
}

impl Actor for ConnectionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        fault::point("connection.started", 0);
        let Some((stream, peer, taken_in, doomed)) = self.start.take() else { return ctx.stop() };
        let session = session(stream, peer, taken_in, doomed, self.broker.clone(), ctx.address().recipient());
        ctx.spawn(session.into_actor(self).map(|(), _, ctx| ctx.stop()));
    }
}

impl Handler<Ended> for ConnectionActor {
    type Result = ();

    fn handle(&mut self, Ended(doom): Ended, _: &mut Self::Context) {
        // The router says so once.
        let _ = self.doom.try_send(doom);
    }
}

impl Handler<Stop> for ConnectionActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

/// From the first byte to the last.
async fn session(
    stream: UnixStream,
    peer: Credentials,
    taken_in: TakenIn,
    mut doomed: mpsc::Receiver<Doom>,
    broker: Arc<Broker>,
    owner: Recipient<Ended>,
) {
    let stream = stream.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stream));
    let max = broker.config.ipc.max_control_frame_bytes as usize;
    let mut stream = match stream {
        Ok(stream) => FrameStream::new(stream, max),
        Err(error) => return log::warn!("connection lost pid={} reason={error:?}", peer.pid),
    };
    let timeout = Duration::from_millis(broker.config.ipc.handshake_timeout_ms);
    let hello = match tokio::time::timeout(timeout, read_hello(&mut stream)).await {
        Ok(Some(hello)) => hello,
        Ok(None) => return,
        Err(_) => Err((RefusedCode::Malformed, format!("no hello within {} ms", timeout.as_millis()))),
    };
    let attached = match hello {
        Ok(name) => attach(&broker, &name, peer, owner).await.map(|attached| (name, attached)),
        Err(refused) => Err(refused),
    };
    let (name, attached) = match attached {
        Ok(attached) => attached,
        Err((code, message)) => {
            log::warn!("connection refused pid={} uid={} reason={message:?}", peer.pid, peer.uid);
            let refused = BrokerFrame::Refused { code, message, version: PROTOCOL_VERSION };
            return last_words(&mut stream, &refused).await;
        }
    };
    let (key, id) = (attached.key, attached.id);
    taken_in.set(Some((key, id)));
    log::info!("connection opened connection={id} name={name} pid={} uid={}", peer.pid, peer.uid);
    let end = match welcome(&mut stream, &broker, attached).await {
        Ok(()) => {
            fault::point("connection.welcomed", 0);
            serve(&mut stream, &mut doomed, &broker, key, id).await
        }
        Err(error) => End::Lost(error.to_string()),
    };
    let mut doom = None;
    match end {
        End::Left => log::info!("connection closed connection={id} name={name}"),
        End::Lost(reason) => log::warn!("connection lost connection={id} name={name} reason={reason:?}"),
        End::Closed(closed) => {
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
    let _ = broker.router.send(Gone { key, id, doom }).await;
}

/// `None`: the peer left without a word.
async fn read_hello(stream: &mut FrameStream) -> Option<Result<Name, (RefusedCode, String)>> {
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
        Ok(ClientFrame::Hello { name, .. }) => Some(Ok(name)),
        Ok(_) => malformed(&"the first frame is no hello"),
        Err(error) => malformed(&error),
    }
}

/// A connection that the router has taken in, and what its client gets.
struct Attached {
    key: u32,
    id: u32,
    nonces: Nonces,
    segment: std::os::fd::OwnedFd,
    descriptors: crate::shm::doorbell::ClientDescriptors,
}

async fn attach(
    broker: &Broker,
    name: &Name,
    peer: Credentials,
    owner: Recipient<Ended>,
) -> Result<Attached, (RefusedCode, String)> {
    let refused = |error: &dyn std::fmt::Display| {
        (RefusedCode::TooManyConnections, format!("no memory or descriptors for another connection: {error}"))
    };
    if broker.phase.borrow().is_ending() {
        return Err((RefusedCode::Draining, "the broker ends".to_owned()));
    }
    let nonces = Nonces::random().map_err(|error| refused(&error))?;
    let segment = Segment::create(broker.settings.geometry, nonces, broker.settings.permissions);
    let segment = segment.map_err(|error| refused(&error))?;
    let (bells, descriptors) = BrokerBells::new().map_err(|error| refused(&error))?;
    let file = segment.as_fd().try_clone_to_owned().map_err(|error| refused(&error))?;
    let attach = Attach { name: name.clone(), peer, segment: Arc::new(segment), bells: Arc::new(bells), owner };
    let (key, id) =
        broker.router.send(attach).await.map_err(|error| refused(&error))?.map_err(|error| refused(&error))?;
    Ok(Attached { key, id, nonces, segment: file, descriptors })
}

async fn welcome(stream: &mut FrameStream, broker: &Broker, attached: Attached) -> std::io::Result<()> {
    let (config, settings) = (&broker.config, &broker.settings);
    let mut token = [0; 16];
    fill_random(&mut token)?;
    let ms = |ms: u64| u32::try_from(ms).unwrap_or(u32::MAX);
    let Nonces { bulk, express, egress } = attached.nonces;
    let frame = BrokerFrame::Welcome {
        version: PROTOCOL_VERSION,
        connection: attached.id,
        token: Token::from_bytes(token),
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
    };
    let bytes = frame.encode().map_err(std::io::Error::other)?;
    let crate::shm::doorbell::ClientDescriptors { ring, wait } = &attached.descriptors;
    // In this order; ours are closed when `attached` goes.
    stream.write(&bytes, &[attached.segment.as_fd(), ring.as_fd(), wait.as_fd()]).await
}

/// How a session ended.
enum End {
    /// The client said goodbye, or closed its socket.
    Left,
    /// The socket failed, or what came over it made no sense.
    Lost(String),
    /// The router ended it.
    Closed(Doom),
    /// The broker ends.
    Shutdown,
}

async fn serve(stream: &mut FrameStream, doomed: &mut mpsc::Receiver<Doom>, broker: &Broker, key: u32, id: u32) -> End {
    let mut phase = broker.phase.clone();
    let mut questions = 0;
    loop {
        let frame = tokio::select! {
            biased;
            Some(doom) = doomed.recv() => return End::Closed(doom),
            Ok(()) = phase.changed() => {
                let now = *phase.borrow_and_update();
                match now {
                    Phase::Running => continue,
                    Phase::Closing => return End::Shutdown,
                    Phase::Draining(deadline_ms) => BrokerFrame::Draining { deadline_ms },
                }
            }
            read = stream.read() => match read {
                Ok(None) => return End::Left,
                // It closed its socket with an answer unread.
                Err(ReadError::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => return End::Left,
                Err(ReadError::Io(error)) => return End::Lost(error.to_string()),
                Err(ReadError::Codec(error)) => return End::Closed(violation(error)),
                Ok(Some(body)) => match ClientFrame::decode(&body) {
                    Ok(ClientFrame::Bye) => return End::Left,
                    Ok(ClientFrame::Hello { .. }) => return End::Closed(violation("a second hello")),
                    Err(error) => return End::Closed(violation(error)),
                    Ok(frame) => match ask(broker, Ask { key, id, number: questions, frame }).await {
                        Some(answer) => {
                            questions += 1;
                            answer
                        }
                        None => match doomed.recv().await {
                            Some(doom) => return End::Closed(doom),
                            None => return End::Left,
                        },
                    },
                },
            },
        };
        let sent = match frame.encode() {
            Ok(bytes) => stream.write(&bytes, &[]).await,
            Err(error) => Err(std::io::Error::other(error)),
        };
        match sent {
            Ok(()) => {}
            // It left while we answered.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return End::Left,
            Err(error) => return End::Lost(error.to_string()),
        }
    }
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

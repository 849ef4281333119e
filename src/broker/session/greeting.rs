//! How a peer comes in: a Hello is heard, and answered with a new session, with a socket for one that awaits it, or
//! with the reason why not.

use super::kept::{Accepted, Admitted, Kept, Session, ended};
use super::stream::{FrameStream, ReadError, last_words, send};
use super::table::TakeUp;
use crate::broker::context::{Broker, Phase};
use crate::broker::router::{Attach, CloseReason};
use crate::broker::session::upstream::Dialled;
use crate::broker::supervision::fault;
use crate::broker::telemetry::counters::SessionLoss;
use crate::broker::telemetry::log_limit::{Kind, may_log};
use crate::logic::sessions::ResumeError;
use crate::shm::doorbell::{BrokerBells, ClientDescriptors};
use crate::shm::peer::{Credentials, Process, watch_process};
use crate::shm::segment::{Nonces, Segment, SegmentError};
use crate::wire::control::{self, BrokerFrame, ClientFrame, Geometry, Limits, PROTOCOL_VERSION, RefusedCode, Token};
use crate::wire::name::Name;
use actix::prelude::*;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

/// How long a socket may be on its way to a session that was claimed for it.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// Hears a Hello and answers it: with a session, which goes to `kept`, and the stream to serve it by; or hands the
/// socket to the session that it resumes (`None`). The error, if its client is there still, has been told to it.
pub(super) async fn let_in(
    kept: &Kept,
    dialled: Option<&Dialled>,
    broker: &Arc<Broker>,
) -> Result<Option<FrameStream>, String> {
    let Some(Accepted { stream, peer, admitted }) = kept.take_start() else { return Ok(None) };
    let stream = stream.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stream));
    let max = broker.config().ipc.max_control_frame_bytes as usize;
    let mut stream = match stream {
        Ok(stream) => FrameStream::new(stream, max),
        Err(error) => {
            log::warn!("connection lost pid={} reason={error:?}", peer.pid);
            return Err(error.to_string());
        }
    };
    let timeout = Duration::from_millis(broker.config().ipc.handshake_timeout_ms);
    let hello = match tokio::time::timeout(timeout, read_hello(&mut stream)).await {
        Ok(Some(hello)) => hello,
        Ok(None) => return Err("closed by peer before its hello".to_owned()),
        Err(_) => Err((RefusedCode::Malformed, format!("no hello within {} ms", timeout.as_millis()))),
    };
    let greeted = match hello {
        Ok(Hello { nonce, resume: Some(token), .. }) => {
            // It holds its permit, if it has one, until the session has taken it over or it is refused.
            let _admitted = admitted;
            match resume(stream, broker, peer, nonce, token, timeout).await {
                Ok(()) => return Ok(None),
                Err((unwelcome, refused)) => {
                    stream = unwelcome;
                    Err(Some(refused))
                }
            }
        }
        Ok(hello) => greet(&mut stream, broker, peer, admitted, hello, kept).await,
        Err(refused) => Err(Some(refused)),
    };
    let (code, message) = match greeted {
        Ok(()) => {
            fault::point("connection.welcomed", 0);
            if let (Some(dialled), Some(session)) = (dialled, &mut *kept.session.borrow_mut()) {
                dialled.connected(session.id);
                // Its peer does not come back to us: we dial it again.
                session.process = Process::Ended;
            }
            return Ok(Some(stream));
        }
        Err(None) => return Err("closed by peer during the handshake".to_owned()),
        Err(Some(refused)) => refused,
    };
    broker.counters.refused(code);
    // What became of a token is told where it was looked up.
    let is_of_token = matches!(code, RefusedCode::ResumeFailed | RefusedCode::BadToken | RefusedCode::GivenUp);
    if !is_of_token && may_log(Kind::Refused) {
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
    flags: u32,
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
        Ok(ClientFrame::Hello { name, nonce, resume, flags, .. }) => Some(Ok(Hello { name, nonce, resume, flags })),
        Ok(_) => malformed(&"the first frame is no hello"),
        Err(error) => malformed(&error),
    }
}

/// Hands the socket to the session of the token. The error is for the socket, which comes back.
async fn resume(
    stream: FrameStream,
    broker: &Arc<Broker>,
    peer: Credentials,
    nonce: u64,
    token: Token,
    limit: Duration,
) -> Result<(), (FrameStream, (RefusedCode, String))> {
    if broker.phase.borrow().is_ending() {
        return Err((stream, (RefusedCode::Draining, "the broker ends".to_owned())));
    }
    let process = watch_process(peer.pid);
    let (actor, fresh) = match broker.sessions.resume(token, peer.uid, nonce, limit).await {
        Ok(claimed) => claimed,
        Err(error) => {
            broker.sessions.tell_refusal(peer, error);
            let refused = match error {
                ResumeError::Held(_) => (RefusedCode::BadToken, "another connection holds this session".to_owned()),
                ResumeError::GivenUp => (RefusedCode::GivenUp, error.to_string()),
                // The same for all, so that a guess learns nothing.
                _ => (RefusedCode::ResumeFailed, "no session waits for this token".to_owned()),
            };
            return Err((stream, refused));
        }
    };
    // If anything of this fails, the client loses its socket: it comes again, with the token before good still (S4).
    if let Some(socket) = stream.detach() {
        let _ = actor.send(TakeUp { socket, fresh, process, pid: peer.pid }).await;
    }
    Ok(())
}

/// Goes on with a session whose actor has got another socket: welcomes its peer.
pub(super) async fn welcome_back(
    broker: &Broker,
    session: &mut Session,
    taken_up: TakeUp,
) -> std::io::Result<FrameStream> {
    let TakeUp { socket, fresh, process, pid } = taken_up;
    let mut stream = FrameStream::attach(socket)?;
    broker.sessions.has_socket(session.id, stream.socket());
    session.process = process;
    session.confirmed = false;
    session.answers.next_socket();
    broker.counters.resumed();
    if may_log(Kind::Opened) {
        log::info!("session resumed connection={} name={} pid={pid}", session.id, session.name);
    }
    // Lost again before it was welcome: the token before is good still (S4).
    send(&mut stream, &welcome(broker, session, fresh), &[]).await?;
    Ok(stream)
}

/// Waits until the peer of a session without a socket is back: the stream to serve it by; `None`: the session has ended
/// instead. The error is the reason why another incarnation is to wait further.
#[allow(clippy::await_holding_refcell_ref, reason = "one incarnation runs at a time, and is the only borrower")]
pub(super) async fn back(
    kept: &Kept,
    broker: &Arc<Broker>,
    until: Instant,
    actor: Recipient<TakeUp>,
    mut taken_up: oneshot::Receiver<TakeUp>,
) -> Result<Option<FrameStream>, String> {
    let mut borrowed = kept.session.borrow_mut();
    let Some(session) = borrowed.as_mut() else { return Ok(None) };
    let id = session.id;
    if !broker.sessions.awaits(id, actor, until) {
        return Ok(None);
    }
    if may_log(Kind::Lost) {
        let (name, window) = (&session.name, broker.sessions.window().as_millis());
        log::info!("session awaits its peer connection={id} name={name} window_ms={window}");
    }
    fault::point("connection.awaits", 0);
    // Without a descriptor the end of the window ends it.
    let process = match &session.process {
        Process::Watched(process) => process.try_clone().ok(),
        Process::Unknown | Process::Ended => None,
    };
    let mut phase = broker.phase.clone();
    let came = tokio::select! {
        biased;
        came = &mut taken_up => came.map_err(|_| SessionLoss::Shutdown),
        _ = ended(&mut session.ended) => Err(SessionLoss::RouterEnded),
        () = process_end(process) => Err(SessionLoss::ProcessEnded),
        _ = phase.wait_for(Phase::is_ending) => Err(SessionLoss::Shutdown),
        () = tokio::time::sleep_until(until.into()) => Err(SessionLoss::Expired),
    };
    let came = match came {
        Err(loss) if broker.sessions.end_waiting(id) => Err(loss),
        // It was claimed just now: its socket is on its way.
        Err(loss) => match tokio::time::timeout(ON_ITS_WAY, taken_up).await {
            Ok(Ok(came)) => Ok(came),
            _ => Err(loss),
        },
        came => came,
    };
    match came {
        Ok(came) => {
            kept.life.borrow_mut().attached();
            let stream = welcome_back(broker, session, came).await;
            stream.map(Some).map_err(|error| format!("socket lost before its welcome: {error}"))
        }
        Err(loss) => {
            drop(borrowed);
            if let Some(session) = kept.take_session() {
                session.tell_loss(broker, loss);
                session.end(broker, None).await;
            }
            Ok(None)
        }
    }
}

/// Waits until the process has ended; for ever if the system does not tell.
async fn process_end(process: Option<OwnedFd>) {
    let Some(process) = process else { return std::future::pending().await };
    // The deprecation warns of types that close their descriptor behind tokio's back; an `OwnedFd` cannot.
    #[allow(deprecated)]
    if let Ok(process) = AsyncFd::with_interest(process, Interest::READABLE) {
        let _ = process.readable().await;
    } else {
        std::future::pending().await
    }
}

/// Answers a Hello with a new session. `Err(None)`: the client is gone again.
async fn greet(
    stream: &mut FrameStream,
    broker: &Arc<Broker>,
    peer: Credentials,
    admitted: Admitted,
    Hello { name, nonce, flags, .. }: Hello,
    kept: &Kept,
) -> Result<(), Option<(RefusedCode, String)>> {
    let refused = |error: &dyn std::fmt::Display| {
        (RefusedCode::TooManyConnections, format!("no memory or descriptors for another connection: {error}"))
    };
    if broker.phase.borrow().is_ending() {
        return Err(Some((RefusedCode::Draining, "the broker ends".to_owned())));
    }
    let process = watch_process(peer.pid);
    let Some(permit) = admitted.permit else {
        return Err(Some((RefusedCode::TooManyConnections, all_taken(broker))));
    };
    let attached = attach(broker, &name, nonce, peer).await.map_err(|error| refused(&said(&error)))?;
    let Attached { key, id, nonces, segment, descriptors, ended } = attached;
    let mut session = Session::new((key, id, peer), name, nonces, process, ended, permit);
    match broker.config().logging.short_connection_ms {
        0 => session.announce(),
        _ => session.mention(),
    }
    session.listing = broker.roster.listing(peer, nonce, flags);
    let token = match broker.sessions.open(id, peer.uid, nonce, stream.socket()) {
        Ok(token) => token,
        Err(error) => {
            session.gone(broker, None).await;
            return Err(Some(refused(&error)));
        }
    };
    let frame = welcome(broker, &session, token);
    let ClientDescriptors { ring, wait } = &descriptors;
    // In this order; ours are closed when this returns.
    if let Err(error) = send(stream, &frame, &[segment.as_fd(), ring.as_fd(), wait.as_fd()]).await {
        if may_log(Kind::Lost) {
            log::warn!("connection lost connection={id} reason={:?}", error.to_string());
        }
        // No client has its token.
        session.end(broker, None).await;
        return Err(None);
    }
    kept.attach(session);
    Ok(())
}

/// An error of the system; with the limit that it comes from, if the text alone does not lead there.
fn said(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::FileTooLarge => format!("{error}: the limit of file sizes (RLIMIT_FSIZE, ulimit -f) is too low"),
        _ => error.to_string(),
    }
}

/// Why no further connection is admitted.
pub(in crate::broker) fn all_taken(broker: &Broker) -> String {
    format!("all {} connections are taken (ipc.max_connections)", broker.config().ipc.max_connections)
}

/// A connection that the router has taken in, and what its client gets.
struct Attached {
    key: u32,
    id: u32,
    nonces: Nonces,
    segment: OwnedFd,
    descriptors: ClientDescriptors,
    ended: watch::Receiver<Option<CloseReason>>,
}

async fn attach(broker: &Broker, name: &Name, nonce: u64, peer: Credentials) -> std::io::Result<Attached> {
    let nonces = Nonces::random()?;
    let segment = Segment::create(broker.settings.geometry, nonces, broker.settings.permissions);
    let segment = segment.map_err(|error| match error {
        SegmentError::Io(error) => error,
        other => std::io::Error::other(other),
    })?;
    let (bells, descriptors) = BrokerBells::new()?;
    let file = segment.as_fd().try_clone_to_owned()?;
    let (owner, ended) = watch::channel(None);
    let name = name.clone();
    let attach = Attach { name, nonce, peer, segment: Arc::new(segment), bells: Arc::new(bells), owner };
    let (key, id) = broker.router.send(attach).await.map_err(std::io::Error::other)??;
    Ok(Attached { key, id, nonces, segment: file, descriptors, ended })
}

fn welcome(broker: &Broker, session: &Session, token: Token) -> BrokerFrame {
    let (config, settings) = (&broker.config(), &broker.settings);
    let ms = |ms: u64| u32::try_from(ms).unwrap_or(u32::MAX);
    let Nonces { bulk, express, egress } = session.nonces;
    BrokerFrame::Welcome {
        version: PROTOCOL_VERSION,
        connection: session.id,
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
            stream_first_chunk_ms: ms(config.limits.stream_first_chunk_ms),
            stream_idle_ms: ms(config.limits.stream_idle_ms),
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

//! The handshake: reads a Hello, and replies with a new session, with a resumed one, or with a refusal.

use super::permits::{Permit, PermitKind, at_capacity};
use super::state::{Accepted, ConnectionContext, Session};
use super::stream::{FrameStream, ReadError, send, send_final_frame};
use super::table::ResumeSocket;
use crate::broker::context::{Broker, Phase};
use crate::broker::router::{Attach, CloseReceiver, close_report};
use crate::broker::session::upstream::Dialled;
use crate::broker::supervision::fault;
use crate::broker::telemetry::counters::SessionLoss;
use crate::broker::telemetry::log_limit::{Kind, may_log};
use crate::logic::session::publisher::Publisher;
use crate::logic::session::sessions::ResumeError;
use crate::logic::shares::{Principal, ShareReached};
use crate::shm::doorbell::{BrokerBells, ClientDescriptors};
use crate::shm::peer::{Credentials, Process, start_time, watch_process};
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
use tokio::sync::oneshot;

/// How long a claimed session waits for its socket to arrive.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// Performs a handshake. It opens a session in `context` and returns the stream, or hands the socket to the session
/// that the client resumes (`None`). The error was sent to the client, if that is still connected.
pub(super) async fn handshake(
    context: &ConnectionContext,
    dialled: Option<&Dialled>,
    broker: &Arc<Broker>,
) -> Result<Option<FrameStream>, String> {
    let Some(Accepted { stream, peer, permit }) = context.take_start() else { return Ok(None) };
    let stream = stream.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stream));
    let mut stream = match stream {
        Ok(stream) => FrameStream::new(stream),
        Err(error) => {
            if may_log(Kind::Lost, context.principal()) {
                log::warn!("connection lost pid={} reason={error:?}", peer.pid);
            }
            return Err(error.to_string());
        }
    };
    let timeout = Duration::from_millis(broker.config().ipc.handshake_timeout_ms);
    let hello = match tokio::time::timeout(timeout, read_hello(&mut stream)).await {
        Ok(Some(hello)) => hello,
        Ok(None) => return Err("closed by peer before its hello".to_owned()),
        Err(_) => Err((RefusedCode::Malformed, format!("no hello within {} ms", timeout.as_millis()))),
    };
    let opened = match hello {
        Ok(Hello { nonce, resume: Some(token), .. }) => {
            // Held until the session has the socket or the client is refused.
            let _permit = permit;
            match resume(stream, broker, peer, nonce, token, timeout).await {
                Ok(()) => return Ok(None),
                Err((returned, refused)) => {
                    stream = returned;
                    Err(Some(refused))
                }
            }
        }
        Ok(hello) => open_session(&mut stream, broker, peer, permit, hello, context).await,
        Err(refused) => Err(Some(refused)),
    };
    let (code, message) = match opened {
        Ok(()) => {
            fault::point("connection.welcomed", 0);
            if let (Some(dialled), Some(session)) = (dialled, &mut *context.session.borrow_mut()) {
                dialled.connected(session.id);
                // An upstream does not reconnect: the broker dials it again.
                session.process = Process::Ended;
            }
            return Ok(Some(stream));
        }
        Err(None) => return Err("closed by peer during the handshake".to_owned()),
        Err(Some(refused)) => refused,
    };
    broker.counters.refused(code);
    // Refused tokens are logged where they are looked up.
    let is_of_token = matches!(code, RefusedCode::ResumeFailed | RefusedCode::BadToken | RefusedCode::GivenUp);
    if !is_of_token && may_log(Kind::Refused, Principal::of_uid(peer.uid)) {
        log::warn!("connection refused pid={} uid={} reason={message:?}", peer.pid, peer.uid);
    }
    let refused = BrokerFrame::Refused { code, message: message.clone(), version: PROTOCOL_VERSION };
    send_final_frame(&mut stream, &refused).await;
    Err(message)
}

/// The fields of a Hello.
struct Hello {
    name: Name,
    nonce: u64,
    resume: Option<Token>,
    flags: u32,
}

/// `None`: the peer closed the socket without a frame.
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
            let message = format!("protocol version mismatch: client {version}, broker {PROTOCOL_VERSION}");
            return Some(Err((RefusedCode::Version, message)));
        }
        Err(error) => return malformed(&error),
    }
    match ClientFrame::decode(&body) {
        Ok(ClientFrame::Hello { name, nonce, resume, flags, .. }) => Some(Ok(Hello { name, nonce, resume, flags })),
        Ok(_) => malformed(&"the first frame is not a Hello"),
        Err(error) => malformed(&error),
    }
}

/// Hands the socket to the session of the token. On a refusal the socket is returned with it.
async fn resume(
    stream: FrameStream,
    broker: &Arc<Broker>,
    peer: Credentials,
    nonce: u64,
    token: Token,
    limit: Duration,
) -> Result<(), (FrameStream, (RefusedCode, String))> {
    if broker.phase.borrow().is_ending() {
        return Err((stream, (RefusedCode::Draining, "the broker is shutting down".to_owned())));
    }
    let process = watch_process(peer.pid);
    let (actor, fresh) = match broker.sessions.resume(token, peer.uid, nonce, limit).await {
        Ok(claimed) => claimed,
        Err(error) => {
            broker.sessions.log_refusal(peer, error);
            let refused = match error {
                ResumeError::Held(_) => {
                    (RefusedCode::BadToken, "the session is in use by another connection".to_owned())
                }
                ResumeError::GivenUp => (RefusedCode::GivenUp, error.to_string()),
                // One text for all cases, so that a guess learns nothing.
                _ => (RefusedCode::ResumeFailed, "unknown or expired session token".to_owned()),
            };
            return Err((stream, refused));
        }
    };
    // If this fails, the client loses its socket and tries again: its previous token is still valid (S4).
    if let Some(socket) = stream.detach() {
        let _ = actor.send(ResumeSocket { socket, fresh, process, pid: peer.pid }).await;
    }
    Ok(())
}

/// Continues a session with a resumed socket: sends the Welcome.
pub(super) async fn welcome_resumed(
    broker: &Broker,
    session: &mut Session,
    resumed: ResumeSocket,
) -> std::io::Result<FrameStream> {
    let ResumeSocket { socket, fresh, process, pid } = resumed;
    let mut stream = FrameStream::attach(socket)?;
    broker.sessions.has_socket(session.id, stream.socket());
    session.process = process;
    session.confirmed = false;
    session.replies.next_socket();
    broker.counters.resumed();
    if may_log(Kind::Opened, session.principal) {
        log::info!("session resumed connection={} name={} pid={pid}", session.id, session.name);
    }
    // If the socket is lost before this, the previous token is still valid (S4).
    send(&mut stream, &welcome(broker, session, fresh), &[]).await?;
    Ok(stream)
}

/// Waits for the client of a detached session, and returns the resumed stream; `None`: the session has ended instead.
/// On an error the next incarnation continues to wait.
#[allow(clippy::await_holding_refcell_ref, reason = "one incarnation runs at a time, and is the only borrower")]
pub(super) async fn await_client(
    context: &ConnectionContext,
    broker: &Arc<Broker>,
    until: Instant,
    actor: Recipient<ResumeSocket>,
    mut resumed: oneshot::Receiver<ResumeSocket>,
) -> Result<Option<FrameStream>, String> {
    let mut borrowed = context.session.borrow_mut();
    let Some(session) = borrowed.as_mut() else { return Ok(None) };
    let id = session.id;
    if !broker.sessions.detach(id, actor, until) {
        return Ok(None);
    }
    if may_log(Kind::Lost, session.principal) {
        let (name, window) = (&session.name, broker.sessions.window().as_millis());
        log::info!("waiting for client to reconnect connection={id} name={name} window_ms={window}");
    }
    fault::point("connection.awaits", 0);
    // Without a descriptor only the resume window ends it.
    let process = match &session.process {
        Process::Watched(process) => process.try_clone().ok(),
        Process::Unknown | Process::Ended => None,
    };
    let mut phase = broker.phase.clone();
    let came = tokio::select! {
        biased;
        came = &mut resumed => came.map_err(|_| SessionLoss::Shutdown),
        _ = session.on_close.closed() => Err(SessionLoss::RouterEnded),
        () = process_end(process) => Err(SessionLoss::ProcessEnded),
        _ = phase.wait_for(Phase::is_ending) => Err(SessionLoss::Shutdown),
        () = tokio::time::sleep_until(until.into()) => Err(SessionLoss::Expired),
    };
    let came = match came {
        Err(loss) if broker.sessions.end_waiting(id) => Err(loss),
        // The session was just claimed: its socket is about to arrive.
        Err(loss) => match tokio::time::timeout(ON_ITS_WAY, resumed).await {
            Ok(Ok(came)) => Ok(came),
            _ => Err(loss),
        },
        came => came,
    };
    match came {
        Ok(came) => {
            context.lifecycle.borrow_mut().attached();
            let stream = welcome_resumed(broker, session, came).await;
            stream.map(Some).map_err(|error| format!("socket lost before the Welcome: {error}"))
        }
        Err(loss) => {
            drop(borrowed);
            if let Some(session) = context.take_session() {
                session.log_loss(broker, loss);
                session.end(broker, None).await;
            }
            Ok(None)
        }
    }
}

/// Waits until the process has ended; for ever without a descriptor.
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

/// Opens a session and sends the Welcome. `Err(None)`: the client has disconnected.
async fn open_session(
    stream: &mut FrameStream,
    broker: &Arc<Broker>,
    peer: Credentials,
    permit: Permit,
    Hello { name, nonce, flags, .. }: Hello,
    context: &ConnectionContext,
) -> Result<(), Option<(RefusedCode, String)>> {
    let refused = |error: &dyn std::fmt::Display| {
        (RefusedCode::TooManyConnections, format!("no memory or descriptors for another connection: {error}"))
    };
    if broker.phase.borrow().is_ending() {
        return Err(Some((RefusedCode::Draining, "the broker is shutting down".to_owned())));
    }
    let process = watch_process(peer.pid);
    if permit.kind() != PermitKind::Connection {
        let user = Principal::of_uid(peer.uid);
        let reached = ShareReached { user, most: broker.permits.most_of(user) };
        return Err(Some((RefusedCode::TooManyConnections, at_capacity(reached))));
    }
    let start = start_time(peer.pid).map_err(|error| refused(&error))?;
    let publisher = Publisher { uid: peer.uid, pid: peer.pid, start, nonce };
    let publisher_key = broker.publishers.key(&publisher);
    let principal = broker.quotas().principal(peer.uid, name.as_str());
    let attached =
        attach(broker, &name, publisher_key, (peer, principal)).await.map_err(|error| refused(&error_text(&error)))?;
    let Attached { key, id, nonces, segment, descriptors, on_close } = attached;
    let mut session = Session::new((key, id, peer, principal), name, nonces, process, on_close, permit);
    match broker.config().logging.short_connection_ms {
        0 => session.announce(),
        _ => session.mention(),
    }
    session.listing = broker.roster.listing(&publisher, flags);
    let token = match broker.sessions.open(id, peer.uid, nonce, stream.socket()) {
        Ok(token) => token,
        Err(error) => {
            session.report_end(broker, None).await;
            return Err(Some(refused(&error)));
        }
    };
    let frame = welcome(broker, &session, token);
    let ClientDescriptors { ring, wait } = &descriptors;
    // In this order; the broker's copies are closed on return.
    if let Err(error) = send(stream, &frame, &[segment.as_fd(), ring.as_fd(), wait.as_fd()]).await {
        if may_log(Kind::Lost, principal) {
            log::warn!("connection lost connection={id} reason={:?}", error.to_string());
        }
        // No client has the token.
        session.end(broker, None).await;
        return Err(None);
    }
    context.attach(session);
    Ok(())
}

/// The text of a system error, with the limit that causes it where the text does not name it.
fn error_text(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::FileTooLarge => format!("{error}: the limit of file sizes (RLIMIT_FSIZE, ulimit -f) is too low"),
        _ => error.to_string(),
    }
}

/// A connection that the router has added, and the descriptors for its client.
struct Attached {
    key: u32,
    id: u32,
    nonces: Nonces,
    segment: OwnedFd,
    descriptors: ClientDescriptors,
    on_close: CloseReceiver,
}

async fn attach(
    broker: &Broker,
    name: &Name,
    publisher: u64,
    (peer, principal): (Credentials, Principal),
) -> std::io::Result<Attached> {
    let nonces = Nonces::random()?;
    let segment = Segment::create(broker.settings.geometry, nonces, broker.settings.permissions);
    let segment = segment.map_err(|error| match error {
        SegmentError::Io(error) => error,
        other => std::io::Error::other(other),
    })?;
    let (bells, descriptors) = BrokerBells::new()?;
    let file = segment.as_fd().try_clone_to_owned()?;
    let (sender, on_close) = close_report();
    let name = name.clone();
    let (segment, bells) = (Arc::new(segment), Arc::new(bells));
    let attach = Attach { name, publisher, peer, principal, segment, bells, on_close: sender };
    let (key, id) = broker.router.send(attach).await.map_err(std::io::Error::other)??;
    Ok(Attached { key, id, nonces, segment: file, descriptors, on_close })
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

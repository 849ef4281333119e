//! How a connection begins: a Hello is heard, and answered with a session, new or resumed, or with the reason why not.

use super::{Accepted, Admitted, Broker, last_words, send};
use crate::broker::fault;
use crate::broker::holder::{Holder, Kept};
use crate::broker::log_limit::{Kind, may_log};
use crate::broker::router::{Attach, Doom, Gone};
use crate::broker::sessions::ResumeError;
use crate::broker::stream::{FrameStream, ReadError};
use crate::broker::upstream::Dialled;
use crate::shm::doorbell::{BrokerBells, ClientDescriptors};
use crate::shm::peer::{Credentials, Process, watch_process};
use crate::shm::segment::{Nonces, Segment, SegmentError};
use crate::wire::control::{self, BrokerFrame, ClientFrame, Geometry, Limits, PROTOCOL_VERSION, RefusedCode, Token};
use crate::wire::name::Name;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Hears a Hello and answers it. The error, if its client is there still, has been told to it.
pub(super) async fn let_in(
    start: Accepted,
    dialled: Option<&Dialled>,
    broker: &Arc<Broker>,
) -> Result<(FrameStream, Holder), String> {
    let Accepted { stream, peer, admitted, named } = start;
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
        Ok(hello) => greet(&mut stream, broker, peer, admitted, hello, timeout).await,
        Err(refused) => Err(Some(refused)),
    };
    let (code, message) = match greeted {
        Ok(mut holder) => {
            named.set(Some(holder.kept().id));
            fault::point("connection.welcomed", 0);
            if let Some(dialled) = dialled {
                dialled.connected(holder.kept().id);
                // Its peer does not come back to us: we dial it again.
                holder.kept().process = Process::Ended;
            }
            return Ok((stream, holder));
        }
        Err(None) => return Err("closed by peer during the handshake".to_owned()),
        Err(Some(refused)) => refused,
    };
    broker.counters.refused(code);
    // What became of a token is told where it was looked up.
    if !matches!(code, RefusedCode::ResumeFailed | RefusedCode::BadToken) && may_log(Kind::Refused) {
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
    let Hello { name, nonce, resume, flags } = hello;
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
        broker.counters.resumed();
        if may_log(Kind::Opened) {
            log::info!("session resumed connection={} name={} pid={}", kept.id, kept.name, peer.pid);
        }
        let frame = welcome(broker, kept, token);
        // Lost again before it was welcome: the session waits further, with the token before good still (S4).
        send(stream, &frame, &[]).await.map_err(|_| None)?;
        return Ok(holder);
    }
    let Some(permit) = admitted.permit else {
        return Err(Some((RefusedCode::TooManyConnections, all_taken(broker))));
    };
    let attached = attach(broker, &name, nonce, peer).await.map_err(|error| refused(&said(&error)))?;
    let Attached { key, id, nonces, segment, descriptors, ended } = attached;
    let mut kept = Kept::new((key, id, peer), name, nonces, process, ended, permit);
    match broker.config().logging.short_connection_ms {
        0 => kept.announce(),
        _ => kept.mention(),
    }
    kept.listing = broker.roster.listing(peer, nonce, flags);
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
        if may_log(Kind::Lost) {
            log::warn!("connection lost connection={id} reason={:?}", error.to_string());
        }
        // Nobody has its token.
        holder.end(None).await;
        return Err(None);
    }
    Ok(holder)
}

/// An error of the system; with the limit that it comes from, if the text alone does not lead there.
fn said(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::FileTooLarge => format!("{error}: the limit of file sizes (RLIMIT_FSIZE, ulimit -f) is too low"),
        _ => error.to_string(),
    }
}

/// Why nobody else is let in.
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
    ended: watch::Receiver<Option<Doom>>,
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

fn welcome(broker: &Broker, kept: &Kept, token: Token) -> BrokerFrame {
    let (config, settings) = (&broker.config(), &broker.settings);
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

//! What the incarnations of a connection's actor hand on: the session, and where the connection is in its life.

use crate::broker::context::Broker;
use crate::broker::router::{CloseReason, Gone};
use crate::broker::session::roster::Listing;
use crate::broker::telemetry::counters::SessionLoss;
use crate::broker::telemetry::log_limit::{Kind, may_log};
use crate::logic::life::{Begin, Life};
use crate::logic::sessions::Answers;
use crate::shm::peer::{Credentials, Process};
use crate::shm::segment::Nonces;
use crate::wire::control::ClosingCode;
use crate::wire::name::Name;
use std::cell::{Cell, RefCell};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, watch};

/// What a connection was let in with.
pub(in crate::broker) struct Admitted {
    /// One of `max_connections`. `None`: all are taken, but some session waits for its peer: the connection may resume
    /// that, and nothing else (S8).
    pub(in crate::broker) permit: Option<OwnedSemaphorePermit>,
    /// One of those who may try, then.
    pub(in crate::broker) _resuming: Option<OwnedSemaphorePermit>,
}

/// A socket that was accepted or dialled.
pub(in crate::broker) struct Accepted {
    pub(in crate::broker) stream: UnixStream,
    pub(in crate::broker) peer: Credentials,
    pub(in crate::broker) admitted: Admitted,
}

/// Where the log has connections, whichever module logs them.
const TARGET: &str = "lapce_ipc::broker::session";

/// What a session is besides what the router has of it.
#[derive(Debug)]
pub(in crate::broker) struct Session {
    pub(super) key: u32,
    pub(super) id: u32,
    pub(super) uid: u32,
    pid: u32,
    pub(super) name: Name,
    pub(super) nonces: Nonces,
    /// What says that the peer's process has ended.
    pub(super) process: Process,
    /// Whether the router has ended it.
    pub(super) ended: watch::Receiver<Option<CloseReason>>,
    pub(super) answers: Answers,
    /// Questions that were put to the router.
    pub(super) questions: u64,
    /// Whether the client has shown that it has the newest token.
    pub(super) confirmed: bool,
    /// Whether the log has it at info: it lasts.
    is_announced: bool,
    /// Its place in the roster for the next broker.
    pub(super) listing: Listing,
    /// Counts it against `max_connections` (S8).
    _permit: OwnedSemaphorePermit,
}

impl Session {
    pub(super) fn new(
        (key, id, peer): (u32, u32, Credentials),
        name: Name,
        nonces: Nonces,
        process: Process,
        ended: watch::Receiver<Option<CloseReason>>,
        permit: OwnedSemaphorePermit,
    ) -> Session {
        let Credentials { pid, uid } = peer;
        Session {
            key,
            id,
            uid,
            pid,
            name,
            nonces,
            process,
            ended,
            answers: Answers::default(),
            questions: 0,
            confirmed: true,
            is_announced: false,
            listing: Listing::default(),
            _permit: permit,
        }
    }

    /// Logs the opening of a connection that lasts: once, at info.
    pub(super) fn announce(&mut self) {
        if !std::mem::replace(&mut self.is_announced, true) && may_log(Kind::Opened) {
            self.tell_opened(log::Level::Info);
        }
    }

    /// Logs the opening of a connection that may be a short one, at debug.
    pub(super) fn mention(&self) {
        if log::log_enabled!(target: TARGET, log::Level::Debug) && may_log(Kind::Opened) {
            self.tell_opened(log::Level::Debug);
        }
    }

    fn tell_opened(&self, level: log::Level) {
        let Session { id, name, pid, uid, .. } = self;
        log::log!(target: TARGET, level, "connection opened connection={id} name={name} pid={pid} uid={uid}");
    }

    /// Whether the opening was logged at info, so that the end should be, too.
    pub(super) fn is_announced(&self) -> bool {
        self.is_announced
    }

    /// Ends it: the router lets the connection go once it has routed what the client had published.
    pub(in crate::broker) async fn end(self, broker: &Broker, close: Option<CloseReason>) {
        broker.sessions.end(self.id);
        self.gone(broker, close).await;
    }

    /// The router lets the connection go. The permit goes when the session has ended in every respect.
    pub(super) async fn gone(self, broker: &Broker, close: Option<CloseReason>) {
        let _ = broker.router.send(Gone { key: self.key, id: self.id, close }).await;
    }

    /// It has ended while it awaited its peer, or because it was given up.
    pub(super) fn tell_loss(&self, broker: &Broker, loss: SessionLoss) {
        broker.counters.lost(loss);
        if may_log(Kind::Closed) {
            log::info!("session ended connection={} name={} reason={:?}", self.id, self.name, loss.reason());
        }
    }
}

/// What outlives an incarnation, on the thread of all of them.
pub(in crate::broker) struct Kept {
    start: Cell<Option<Accepted>>,
    /// Borrowed by the incarnation that runs, and free when it has ended, whatever its end.
    pub(super) session: RefCell<Option<Session>>,
    pub(super) life: RefCell<Life>,
    /// The session's id, once there is one.
    id: Cell<Option<u32>>,
}

impl Kept {
    /// A socket that was accepted, and no session yet.
    pub(in crate::broker) fn new(start: Accepted, window: Duration) -> Kept {
        let life = RefCell::new(Life::new(window));
        Kept { start: Cell::new(Some(start)), session: RefCell::new(None), life, id: Cell::new(None) }
    }

    /// Whether an incarnation has something to begin with, and what.
    pub(super) fn begin(&self) -> Begin {
        self.life.borrow_mut().begin(Instant::now())
    }

    /// There is a session, whose peer has been welcomed.
    pub(super) fn attach(&self, session: Session) {
        self.id.set(Some(session.id));
        self.session.replace(Some(session));
        self.life.borrow_mut().attached();
    }

    /// The session, for its end: nothing is left for a later incarnation.
    pub(in crate::broker) fn take_session(&self) -> Option<Session> {
        self.life.borrow_mut().closed();
        self.session.take()
    }

    pub(super) fn take_start(&self) -> Option<Accepted> {
        self.start.take()
    }

    /// What the connection is called in the log: its id, once it has one.
    pub(in crate::broker) fn id(&self) -> String {
        self.id.get().map_or_else(|| "-".to_owned(), |id| id.to_string())
    }

    /// Whether there is a session over which the next incarnation can be built.
    pub(in crate::broker) fn goes_on(&self) -> bool {
        self.life.borrow().goes_on()
    }

    /// The connection failed more often than it may.
    pub(in crate::broker) async fn give_up(&self, broker: &Broker) {
        let Some(session) = self.take_session() else { return };
        session.tell_loss(broker, SessionLoss::GivenUp);
        broker.sessions.give_up(session.id);
        session.gone(broker, None).await;
    }
}

/// Why the router has ended the connection, when it has.
pub(super) async fn ended(ended: &mut watch::Receiver<Option<CloseReason>>) -> CloseReason {
    match ended.wait_for(Option::is_some).await.map(|close| close.clone()) {
        Ok(Some(close)) => close,
        // Neither the connection nor the router exists any more.
        _ => CloseReason { code: ClosingCode::Shutdown, reason: "the connection has ended".to_owned() },
    }
}

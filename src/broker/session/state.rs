//! The session, and the context of a connection that outlives an incarnation of its actor.

use super::permits::Permit;
use crate::broker::context::Broker;
use crate::broker::router::{CloseReason, CloseReceiver, EndConnection};
use crate::broker::session::roster::Listing;
use crate::broker::telemetry::counters::SessionLoss;
use crate::broker::telemetry::log_limit::{Kind, may_log};
use crate::logic::session::lifecycle::{Begin, Lifecycle};
use crate::logic::session::sessions::ReplyCache;
use crate::logic::shares::Principal;
use crate::shm::peer::{Credentials, Process};
use crate::shm::segment::Nonces;
use crate::wire::name::Name;
use std::cell::{Cell, RefCell};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A socket that was accepted or dialled.
pub(in crate::broker) struct Accepted {
    pub(in crate::broker) stream: UnixStream,
    pub(in crate::broker) peer: Credentials,
    /// For a connection, or for a resume only (S8).
    pub(in crate::broker) permit: Permit,
}

/// The log target of lines about connections.
const TARGET: &str = "lapce_ipc::broker::session";

/// A session, without the router's part.
#[derive(Debug)]
pub(in crate::broker) struct Session {
    pub(super) key: u32,
    pub(super) id: u32,
    pub(super) uid: u32,
    /// The user that it is charged to.
    pub(super) principal: Principal,
    pid: u32,
    pub(super) name: Name,
    pub(super) nonces: Nonces,
    /// Reports the end of the client's process.
    pub(super) process: Process,
    /// Reports that the router has closed the connection.
    pub(super) on_close: CloseReceiver,
    pub(super) replies: ReplyCache,
    /// The number of control requests sent to the router.
    pub(super) requests: u64,
    /// Whether the client has confirmed the newest token.
    pub(super) confirmed: bool,
    /// Whether its opening was logged at info, because it was not short.
    is_announced: bool,
    /// Its entry in the roster for the next broker.
    pub(super) listing: Listing,
    /// Of its user, for a connection (S8).
    _permit: Permit,
}

impl Session {
    pub(super) fn new(
        (key, id, peer, principal): (u32, u32, Credentials, Principal),
        name: Name,
        nonces: Nonces,
        process: Process,
        on_close: CloseReceiver,
        permit: Permit,
    ) -> Session {
        let Credentials { pid, uid } = peer;
        Session {
            key,
            id,
            uid,
            principal,
            pid,
            name,
            nonces,
            process,
            on_close,
            replies: ReplyCache::default(),
            requests: 0,
            confirmed: true,
            is_announced: false,
            listing: Listing::default(),
            _permit: permit,
        }
    }

    /// Logs the opening once, at info.
    pub(super) fn announce(&mut self) {
        if !std::mem::replace(&mut self.is_announced, true) && may_log(Kind::Opened, self.principal) {
            self.log_opened(log::Level::Info);
        }
    }

    /// Logs the opening at debug: the connection may be a short one.
    pub(super) fn mention(&self) {
        if log::log_enabled!(target: TARGET, log::Level::Debug) && may_log(Kind::Opened, self.principal) {
            self.log_opened(log::Level::Debug);
        }
    }

    fn log_opened(&self, level: log::Level) {
        let Session { id, name, pid, uid, .. } = self;
        log::log!(target: TARGET, level, "connection opened connection={id} name={name} pid={pid} uid={uid}");
    }

    /// Whether the opening was logged at info: then the end is, too.
    pub(super) fn is_announced(&self) -> bool {
        self.is_announced
    }

    /// Ends the session. The router closes the connection after it has routed what the client had published.
    pub(in crate::broker) async fn end(self, broker: &Broker, close: Option<CloseReason>) {
        broker.sessions.end(self.id);
        self.report_end(broker, close).await;
    }

    /// Reports the end to the router. The permit is released after that.
    pub(super) async fn report_end(self, broker: &Broker, close: Option<CloseReason>) {
        let _ = broker.router.send(EndConnection { key: self.key, id: self.id, close }).await;
    }

    /// Counts and logs a session that ended while detached or was given up.
    pub(super) fn log_loss(&self, broker: &Broker, loss: SessionLoss) {
        broker.counters.lost(loss);
        if may_log(Kind::Closed, self.principal) {
            log::info!("session ended connection={} name={} reason={:?}", self.id, self.name, loss.reason());
        }
    }
}

/// The context of a connection, which all incarnations of its actor share on one thread.
pub(in crate::broker) struct ConnectionContext {
    /// Boxed, as it is gone after the handshake.
    start: Cell<Option<Box<Accepted>>>,
    /// The user that its log lines are charged to: before the handshake, that of its uid without a quota.
    principal: Cell<Principal>,
    /// Borrowed by the running incarnation only.
    pub(super) session: RefCell<Option<Session>>,
    pub(super) lifecycle: RefCell<Lifecycle>,
    /// The id of the session, after the handshake.
    id: Cell<Option<u32>>,
}

impl ConnectionContext {
    /// Before the handshake.
    pub(in crate::broker) fn new(start: Accepted, window: Duration) -> ConnectionContext {
        let lifecycle = RefCell::new(Lifecycle::new(window));
        let principal = Cell::new(Principal::of_uid(start.peer.uid));
        let start = Cell::new(Some(Box::new(start)));
        ConnectionContext { start, principal, session: RefCell::new(None), lifecycle, id: Cell::new(None) }
    }

    /// The first action of a new incarnation.
    pub(super) fn begin(&self) -> Begin {
        self.lifecycle.borrow_mut().begin(Instant::now())
    }

    /// Stores the session after its Welcome was sent.
    pub(super) fn attach(&self, session: Session) {
        self.id.set(Some(session.id));
        self.principal.set(session.principal);
        self.session.replace(Some(session));
        self.lifecycle.borrow_mut().attached();
    }

    /// Takes the session to end it; no later incarnation follows.
    pub(in crate::broker) fn take_session(&self) -> Option<Session> {
        self.lifecycle.borrow_mut().closed();
        self.session.take()
    }

    pub(super) fn take_start(&self) -> Option<Accepted> {
        self.start.take().map(|start| *start)
    }

    /// The user that its log lines are charged to.
    pub(in crate::broker) fn principal(&self) -> Principal {
        self.principal.get()
    }

    /// The id in the log; `-` before the handshake.
    pub(in crate::broker) fn id(&self) -> String {
        self.id.get().map_or_else(|| "-".to_owned(), |id| id.to_string())
    }

    /// Whether the next incarnation would have a session to continue.
    pub(in crate::broker) fn can_continue(&self) -> bool {
        self.lifecycle.borrow().can_continue()
    }

    /// Ends the session of a connection that reached its restart limit.
    pub(in crate::broker) async fn give_up(&self, broker: &Broker) {
        let Some(session) = self.take_session() else { return };
        session.log_loss(broker, SessionLoss::GivenUp);
        broker.sessions.give_up(session.id);
        session.report_end(broker, None).await;
    }
}

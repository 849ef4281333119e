//! The table of all sessions: their tokens, and the addresses of their actors.

use crate::broker::session::stream::Detached;
use crate::broker::telemetry::log_limit::{Kind, may_log};
use crate::logic::session::sessions::{ResumeError, Sessions};
use crate::logic::shares::Principal;
use crate::shm::peer::{self, Process};
use crate::shm::segment::fill_random;
use crate::wire::control::Token;
use actix::prelude::*;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

/// Interval of checks whether the previous socket of a session is detached.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Hands a socket with a valid session token to the session's actor.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct ResumeSocket {
    pub(super) socket: Detached,
    /// Replaces the token.
    pub(super) fresh: Token,
    pub(super) process: Process,
    pub(super) pid: u32,
}

/// All sessions. The lock is never held across an await.
#[derive(Debug)]
pub(in crate::broker) struct SessionTable {
    inner: Mutex<Inner>,
    window: Duration,
}

#[derive(Debug)]
struct Inner {
    sessions: Sessions<Recipient<ResumeSocket>>,
    /// The sockets of attached sessions, to see whether they are still open (S5).
    sockets: HashMap<u32, Weak<UnixStream>>,
}

impl SessionTable {
    /// No sessions yet; `window` is the resume window.
    pub(in crate::broker) fn new(window: Duration) -> SessionTable {
        let inner = Inner { sessions: Sessions::new(), sockets: HashMap::new() };
        SessionTable { inner: Mutex::new(inner), window }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a waiting for client to reconnect.
    pub(in crate::broker) fn window(&self) -> Duration {
        self.window
    }

    /// Whether a session of a user is detached, or about to be: its actor has not yet read the end of its socket, or
    /// has dropped the socket and is being built anew.
    pub(in crate::broker) fn has_waiting(&self, uid: u32) -> bool {
        let inner = self.lock();
        let is_lost = |socket: &Weak<UnixStream>| socket.upgrade().is_none_or(|it| peer::has_hung_up(it.as_fd()));
        let has_lost = |id: u32| inner.sockets.get(&id).is_some_and(is_lost);
        inner.sessions.of_user(uid).any(|(_, is_detached)| is_detached)
            || inner.sessions.of_user(uid).any(|(id, _)| has_lost(id))
    }

    /// The ids of detached sessions.
    pub(in crate::broker) fn waiting(&self) -> HashSet<u32> {
        self.lock().sessions.waiting_ids().collect()
    }

    /// Adds a session. Returns its token.
    pub(super) fn open(&self, id: u32, uid: u32, nonce: u64, socket: &Arc<UnixStream>) -> io::Result<Token> {
        let token = new_token()?;
        let mut inner = self.lock();
        inner.sessions.open(id, token, uid, nonce);
        inner.sockets.insert(id, Arc::downgrade(socket));
        Ok(token)
    }

    /// Sets the resumed socket of the session `id`.
    pub(super) fn has_socket(&self, id: u32, socket: &Arc<UnixStream>) {
        self.lock().sockets.insert(id, Arc::downgrade(socket));
    }

    /// The client of the session `id` has confirmed its newest token.
    pub(super) fn confirm(&self, id: u32) {
        self.lock().sessions.confirm(id);
    }

    /// Detaches the session `id`; `actor` receives the resumed socket. `false`: it has ended.
    pub(super) fn detach(&self, id: u32, actor: Recipient<ResumeSocket>, until: Instant) -> bool {
        let mut inner = self.lock();
        inner.sockets.remove(&id);
        inner.sessions.detach(id, actor, until)
    }

    /// Ends a detached session; `false` if it was just resumed.
    pub(super) fn end_waiting(&self, id: u32) -> bool {
        self.lock().sessions.end_waiting(id)
    }

    /// Ends a session.
    pub(super) fn end(&self, id: u32) {
        let mut inner = self.lock();
        inner.sockets.remove(&id);
        inner.sessions.end(id);
    }

    /// Ends a session whose connection reached its restart limit.
    pub(super) fn give_up(&self, id: u32) {
        let mut inner = self.lock();
        inner.sockets.remove(&id);
        inner.sessions.give_up(id);
    }

    /// Claims the session of a token. Returns the address of its actor and the new token. If the session's socket has
    /// ended, waits until the actor has detached it, for `limit` at most (S5).
    ///
    /// # Errors
    ///
    /// The reason of a refusal.
    pub(super) async fn resume(
        &self,
        token: Token,
        uid: u32,
        nonce: u64,
        limit: Duration,
    ) -> Result<(Recipient<ResumeSocket>, Token), ResumeError> {
        let until = Instant::now() + limit;
        let fresh = new_token().map_err(|_| ResumeError::Unknown)?;
        loop {
            {
                let mut inner = self.lock();
                match inner.sessions.resume(token, fresh, uid, nonce, Instant::now()) {
                    Ok((_, actor)) => return Ok((actor, fresh)),
                    Err(ResumeError::Held(id)) if Instant::now() < until => {
                        let socket = inner.sockets.get(&id).and_then(Weak::upgrade);
                        if socket.is_some_and(|socket| !peer::has_hung_up(socket.as_fd())) {
                            return Err(ResumeError::Held(id));
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Logs why a session was not resumed, within the rate limit and without the token.
    pub(super) fn log_refusal(&self, peer: peer::Credentials, error: ResumeError) {
        if may_log(Kind::NotResumed, Principal::of_uid(peer.uid)) {
            let reason = error.to_string();
            // Expected after a restart of the broker or a long absence of the client.
            let is_ordinary = matches!(error, ResumeError::Unknown | ResumeError::Over);
            let level = if is_ordinary { log::Level::Info } else { log::Level::Warn };
            log::log!(level, "session not resumed pid={} uid={} reason={reason:?}", peer.pid, peer.uid);
        }
    }
}

/// A new token.
///
/// # Errors
///
/// If the system has no entropy.
fn new_token() -> io::Result<Token> {
    let mut token = [0; 16];
    fill_random(&mut token)?;
    Ok(Token::from_bytes(token))
}

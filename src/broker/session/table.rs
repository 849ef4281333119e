//! All sessions, for all connections: which token leads to which session, and how its actor is reached.

use crate::broker::session::stream::Detached;
use crate::broker::telemetry::log_limit::{Kind, may_log};
use crate::logic::sessions::{ResumeError, Sessions};
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

/// How often a claimant looks whether the socket before it is done with.
const LOOK: Duration = Duration::from_millis(1);

/// A socket with the token of a session, for the session's actor.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::broker) struct TakeUp {
    pub(super) socket: Detached,
    /// What replaces the token.
    pub(super) fresh: Token,
    pub(super) process: Process,
    pub(super) pid: u32,
}

/// All sessions. Its lock is held for a look-up, never across an await.
#[derive(Debug)]
pub(in crate::broker) struct SessionTable {
    inner: Mutex<Inner>,
    window: Duration,
}

#[derive(Debug)]
struct Inner {
    sessions: Sessions<Recipient<TakeUp>>,
    /// The sockets of those that have one, to see whether it lives (S5).
    sockets: HashMap<u32, Weak<UnixStream>>,
}

impl SessionTable {
    /// None yet. They await their peers for `window`.
    pub(in crate::broker) fn new(window: Duration) -> SessionTable {
        let inner = Inner { sessions: Sessions::new(), sockets: HashMap::new() };
        SessionTable { inner: Mutex::new(inner), window }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a session awaits its peer.
    pub(in crate::broker) fn window(&self) -> Duration {
        self.window
    }

    /// Whether some session waits for its peer, or is about to: its actor has yet to read the end of its socket.
    pub(in crate::broker) fn has_waiting(&self) -> bool {
        let inner = self.lock();
        let mut sockets = inner.sockets.values().filter_map(Weak::upgrade);
        inner.sessions.waiting() > 0 || sockets.any(|socket| peer::has_hung_up(socket.as_fd()))
    }

    /// The sessions that wait for their peer, by their ids.
    pub(in crate::broker) fn waiting(&self) -> HashSet<u32> {
        self.lock().sessions.waiting_ids().collect()
    }

    /// A session begins. Answers its token.
    pub(super) fn open(&self, id: u32, uid: u32, nonce: u64, socket: &Arc<UnixStream>) -> io::Result<Token> {
        let token = new_token()?;
        let mut inner = self.lock();
        inner.sessions.open(id, token, uid, nonce);
        inner.sockets.insert(id, Arc::downgrade(socket));
        Ok(token)
    }

    /// The session `id` has another socket.
    pub(super) fn has_socket(&self, id: u32, socket: &Arc<UnixStream>) {
        self.lock().sockets.insert(id, Arc::downgrade(socket));
    }

    /// The client of the session `id` has shown that it has its newest token.
    pub(super) fn confirm(&self, id: u32) {
        self.lock().sessions.confirm(id);
    }

    /// The session `id` awaits its peer, by this actor. `false`: it has ended.
    pub(super) fn awaits(&self, id: u32, actor: Recipient<TakeUp>, until: Instant) -> bool {
        let mut inner = self.lock();
        inner.sockets.remove(&id);
        inner.sessions.awaits(id, actor, until)
    }

    /// Ends a session that awaits its peer; `false` if it was just taken up.
    pub(super) fn end_waiting(&self, id: u32) -> bool {
        self.lock().sessions.end_waiting(id)
    }

    /// Ends a session.
    pub(super) fn end(&self, id: u32) {
        let mut inner = self.lock();
        inner.sockets.remove(&id);
        inner.sessions.end(id);
    }

    /// Ends a session whose connection failed too often.
    pub(super) fn give_up(&self, id: u32) {
        let mut inner = self.lock();
        inner.sockets.remove(&id);
        inner.sessions.give_up(id);
    }

    /// Claims the session of a token. Answers how its actor is reached, and the token that replaces this one. If the
    /// session has a socket that has ended, it waits until the actor has noticed, at most for `limit` (S5).
    ///
    /// # Errors
    ///
    /// Why not.
    pub(super) async fn resume(
        &self,
        token: Token,
        uid: u32,
        nonce: u64,
        limit: Duration,
    ) -> Result<(Recipient<TakeUp>, Token), ResumeError> {
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
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Logs why a session was not resumed, unless that was said often just now. The token is no part of it.
    pub(super) fn tell_refusal(&self, peer: peer::Credentials, error: ResumeError) {
        if may_log(Kind::NotResumed) {
            let reason = error.to_string();
            // After a restart of the broker, or a long absence of the client, that is the ordinary way.
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
/// If the system has no randomness to give.
fn new_token() -> io::Result<Token> {
    let mut token = [0; 16];
    fill_random(&mut token)?;
    Ok(Token::from_bytes(token))
}

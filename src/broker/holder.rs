//! What holds a session: the guard that a connection's actor has, and the watch over sessions that nobody holds.

use super::connection::{Broker, Phase};
use super::counters::SessionLoss;
use super::log_limit::{Kind, may_log};
use super::roster::Listing;
use super::router::{Doom, Gone};
use super::sessions::{Answers, ResumeError, Sessions};
use crate::shm::peer::{self, Process};
use crate::shm::segment::{Nonces, fill_random};
use crate::wire::control::Token;
use crate::wire::name::Name;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot, watch};

/// Where the log has connections, whichever module logs them.
const TARGET: &str = "lapce_ipc::broker::connection";

/// What a session is besides what the router has of it.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) key: u32,
    pub(super) id: u32,
    pub(super) uid: u32,
    pid: u32,
    pub(super) name: Name,
    pub(super) nonces: Nonces,
    /// What says that the peer's process has ended.
    pub(super) process: Process,
    /// Whether the router has ended it.
    pub(super) ended: watch::Receiver<Option<Doom>>,
    pub(super) answers: Answers,
    /// Questions that were put to the router.
    pub(super) questions: u64,
    /// Whether the client has shown that it has the newest token.
    pub(super) confirmed: bool,
    /// Whether the log has it at info: it lasts.
    is_announced: bool,
    /// Counts it against `max_connections` (S8).
    _permit: OwnedSemaphorePermit,
    /// While it waits: its end tells the watch that somebody has taken it up.
    watched: Option<oneshot::Sender<()>>,
    /// Its place in the roster for the next broker.
    pub(super) listing: Listing,
}

impl Kept {
    pub(super) fn new(
        (key, id, peer): (u32, u32, peer::Credentials),
        name: Name,
        nonces: Nonces,
        process: Process,
        ended: watch::Receiver<Option<Doom>>,
        permit: OwnedSemaphorePermit,
    ) -> Kept {
        let peer::Credentials { pid, uid } = peer;
        Kept {
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
            _permit: permit,
            watched: None,
            listing: Listing::default(),
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
        let Kept { id, name, pid, uid, .. } = self;
        log::log!(target: TARGET, level, "connection opened connection={id} name={name} pid={pid} uid={uid}");
    }

    /// Whether the opening was logged at info, so that the end should be, too.
    pub(super) fn is_announced(&self) -> bool {
        self.is_announced
    }
}

/// A session that nobody holds, as it is watched.
#[derive(Debug)]
struct Watch {
    id: u32,
    turn: u64,
    until: Instant,
    process: Option<OwnedFd>,
    ended: watch::Receiver<Option<Doom>>,
    taken_up: oneshot::Receiver<()>,
}

/// All sessions, for all connections. Its lock is held for a look-up, never across an await.
#[derive(Debug)]
pub(super) struct SessionTable {
    inner: Mutex<Inner>,
    /// A session has lost its holder.
    let_go: Notify,
}

#[derive(Debug)]
struct Inner {
    sessions: Sessions<Kept>,
    /// The sockets of those that are held, to see whether the holder lives (S5).
    sockets: std::collections::HashMap<u32, Weak<UnixStream>>,
    /// Not watched yet.
    new: Vec<Watch>,
    window: Duration,
}

impl SessionTable {
    pub(super) fn new(window: Duration) -> SessionTable {
        let (sockets, new) = (std::collections::HashMap::new(), Vec::new());
        let inner = Inner { sessions: Sessions::new(window), sockets, new, window };
        SessionTable { inner: Mutex::new(inner), let_go: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether some session waits for its peer, or is about to: its holder has yet to read the end of its socket.
    pub(super) fn somebody_waits(&self) -> bool {
        let inner = self.lock();
        let mut sockets = inner.sockets.values().filter_map(Weak::upgrade);
        inner.sessions.waiting() > 0 || sockets.any(|socket| peer::has_hung_up(socket.as_fd()))
    }

    /// The sessions that wait for their peer, by their ids.
    pub(super) fn waiting(&self) -> HashSet<u32> {
        self.lock().sessions.waiting_ids().collect()
    }

    /// The client of the session `id` has shown that it has its newest token.
    pub(super) fn confirm(&self, id: u32) {
        self.lock().sessions.confirm(id);
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

    fn let_go(&self, mut kept: Kept, is_ending: bool) {
        let mut inner = self.lock();
        inner.sockets.remove(&kept.id);
        let has_ended = matches!(kept.process, Process::Ended);
        // Without a descriptor the end of the window ends it.
        let process = match &kept.process {
            Process::Watched(process) => process.try_clone().ok(),
            Process::Unknown | Process::Ended => None,
        };
        let may_wait = !has_ended && !is_ending && !inner.window.is_zero();
        let (watched, taken_up) = oneshot::channel();
        kept.watched = Some(watched);
        let (id, name, ended) = (kept.id, kept.name.clone(), kept.ended.clone());
        let Ok((turn, until)) = inner.sessions.let_go(id, kept, may_wait, Instant::now()) else { return };
        inner.new.push(Watch { id, turn, until, process, ended, taken_up });
        let window = inner.window;
        drop(inner);
        if may_wait && may_log(Kind::Lost) {
            log::info!("session awaits its peer connection={id} name={name} window_ms={}", window.as_millis());
        }
        self.let_go.notify_one();
    }
}

/// A new token.
///
/// # Errors
///
/// If the system has no randomness to give.
pub(super) fn new_token() -> io::Result<Token> {
    let mut token = [0; 16];
    fill_random(&mut token)?;
    Ok(Token::from_bytes(token))
}

/// Holds a session (S2). Dropped without [`Holder::end`], also by a panic of the actor that has it, it lets the session
/// go to *awaiting peer*.
pub(super) struct Holder {
    broker: Arc<Broker>,
    kept: Option<Kept>,
}

impl Holder {
    /// Holds a new session. Answers its token.
    pub(super) fn open(
        broker: &Arc<Broker>,
        kept: Kept,
        uid: u32,
        nonce: u64,
        socket: &Arc<UnixStream>,
    ) -> io::Result<(Holder, Token)> {
        let token = new_token()?;
        let mut table = broker.sessions.lock();
        table.sessions.open(kept.id, token, uid, nonce);
        table.sockets.insert(kept.id, Arc::downgrade(socket));
        drop(table);
        Ok((Holder { broker: broker.clone(), kept: Some(kept) }, token))
    }

    /// Takes a session up. Answers its new token. If its holder's socket has ended, it waits until the holder has
    /// noticed, at most for `limit` (S5).
    ///
    /// # Errors
    ///
    /// Why not.
    pub(super) async fn resume(
        broker: &Arc<Broker>,
        token: Token,
        uid: u32,
        nonce: u64,
        socket: &Arc<UnixStream>,
        limit: Duration,
    ) -> Result<(Holder, Token), ResumeError> {
        let until = Instant::now() + limit;
        let fresh = new_token().map_err(|_| ResumeError::Unknown)?;
        loop {
            {
                let mut table = broker.sessions.lock();
                match table.sessions.resume(token, fresh, uid, nonce, Instant::now()) {
                    Ok((id, mut kept)) => {
                        table.sockets.insert(id, Arc::downgrade(socket));
                        kept.watched = None;
                        kept.confirmed = false;
                        kept.answers.next_socket();
                        return Ok((Holder { broker: broker.clone(), kept: Some(kept) }, fresh));
                    }
                    Err(ResumeError::Held(id)) if Instant::now() < until => {
                        let holder = table.sockets.get(&id).and_then(Weak::upgrade);
                        if holder.is_some_and(|holder| !peer::has_hung_up(holder.as_fd())) {
                            return Err(ResumeError::Held(id));
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            // Its actor has yet to read the end of its socket.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The session.
    pub(super) fn kept(&mut self) -> &mut Kept {
        self.kept.as_mut().expect("it is taken out only by what consumes the guard")
    }

    /// Ends the session: the router lets the connection go once it has routed what the client had published.
    pub(super) async fn end(mut self, doom: Option<Doom>) {
        if let Some(kept) = self.kept.take() {
            {
                let mut table = self.broker.sessions.lock();
                table.sockets.remove(&kept.id);
                table.sessions.end(kept.id);
            }
            let _ = self.broker.router.send(Gone { key: kept.key, id: kept.id, doom }).await;
            // The permit goes when the session has ended in every respect.
            drop(kept);
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.take() {
            self.broker.sessions.let_go(kept, self.broker.phase.borrow().is_ending());
        }
    }
}

/// Watches sessions that nobody holds, as long as the broker runs.
pub(super) async fn watch_sessions(broker: Arc<Broker>) {
    loop {
        let new = std::mem::take(&mut broker.sessions.lock().new);
        for watch in new {
            actix::spawn(watch_session(broker.clone(), watch));
        }
        broker.sessions.let_go.notified().await;
    }
}

async fn watch_session(broker: Arc<Broker>, watch: Watch) {
    let Watch { id, turn, until, process, mut ended, taken_up } = watch;
    let mut phase = broker.phase.clone();
    let loss = tokio::select! {
        biased;
        _ = taken_up => return,
        _ = ended.wait_for(Option::is_some) => SessionLoss::RouterEnded,
        () = process_end(process) => SessionLoss::ProcessEnded,
        _ = phase.wait_for(Phase::is_ending) => SessionLoss::Shutdown,
        () = tokio::time::sleep_until(until.into()) => SessionLoss::Expired,
    };
    let Some(kept) = broker.sessions.lock().sessions.end_waiting(id, turn) else { return };
    broker.counters.lost(loss);
    if may_log(Kind::Closed) {
        log::info!("session ended connection={id} name={} reason={:?}", kept.name, loss.reason());
    }
    let _ = broker.router.send(Gone { key: kept.key, id, doom: None }).await;
    drop(kept);
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

//! The state of the connection, as its user sees it.

use super::Client;
use super::error::{Error, Kind, Result};
use super::inner::{Inner, deadline, lock};
use crate::sync::{AtomicU64, Ordering};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

/// How it stands with the connection to the broker.
///
/// While it reconnects, calls that wait go on waiting, and those that do not wait succeed as long as there is room:
/// what was handed over meanwhile is there when the session goes on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ConnectionState {
    /// The broker was reached and has yet to answer.
    Connecting,
    /// All is well.
    Connected,
    /// The socket was lost.
    Reconnecting {
        /// The number of the next attempt, from 1.
        attempt: u32,
        /// When it is due, from the time that this was said.
        next_in: Duration,
    },
    /// There will be no connection any more.
    Closed {
        /// Why.
        reason: Error,
    },
}

impl ConnectionState {
    /// Whether all is well.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(self, ConnectionState::Connected)
    }

    /// Whether this is the end.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, ConnectionState::Closed { .. })
    }
}

/// What who places records has to know of the connection: looked at for each of them, and changed under the table's
/// lock only.
#[derive(Debug, Default)]
pub(super) struct Down {
    state: AtomicU64,
    reason: OnceLock<Error>,
}

/// The connection stands, as far as is known.
const UP: u64 = 0;
/// It is lost, and looked for.
const AWAY: u64 = 1;
/// It has ended for good.
const ENDED: u64 = 2;

impl Down {
    /// Whether it is away; an error if it has ended. Takes no lock, for the caller may hold any.
    #[inline]
    pub(super) fn look(&self) -> Result<bool> {
        match self.state.load(Ordering::Relaxed) {
            UP => Ok(false),
            AWAY => Ok(true),
            _ => Err(self.reason()),
        }
    }

    #[cold]
    fn reason(&self) -> Error {
        let reason = self.reason.get().cloned();
        reason.unwrap_or_else(|| Kind::Disconnected("the connection has ended".to_owned()).into())
    }

    pub(super) fn set_away(&self, is_away: bool) {
        self.state.store(if is_away { AWAY } else { UP }, Ordering::Relaxed);
    }

    pub(super) fn end(&self, reason: Error) {
        let _ = self.reason.set(reason);
        self.state.store(ENDED, Ordering::Relaxed);
    }
}

/// States that wait for one who watches them. When as many as this wait, the oldest goes: the latest is never lost.
const MOST_EVENTS: usize = 64;

type Queue = Mutex<VecDeque<ConnectionState>>;

/// The state, and who watches it.
#[derive(Debug)]
pub(super) struct States {
    now: ConnectionState,
    watchers: Vec<Weak<Queue>>,
}

impl Default for States {
    fn default() -> States {
        States { now: ConnectionState::Connected, watchers: Vec::new() }
    }
}

impl States {
    pub(super) fn set(&mut self, state: ConnectionState) {
        if self.now.is_closed() {
            return;
        }
        self.now = state;
        let now = &self.now;
        self.watchers.retain(|watcher| watcher.upgrade().is_some_and(|queue| push(&queue, now.clone())));
    }

    fn watch(&mut self) -> Arc<Queue> {
        let queue = Arc::new(Mutex::new(VecDeque::from([self.now.clone()])));
        self.watchers.push(Arc::downgrade(&queue));
        queue
    }
}

fn push(queue: &Queue, state: ConnectionState) -> bool {
    let mut queue = lock(queue);
    if queue.len() == MOST_EVENTS {
        queue.pop_front();
    }
    queue.push_back(state);
    true
}

/// The states of a connection, the present one first: an iterator that waits for the next one and ends after
/// [`ConnectionState::Closed`]. While somebody waits here, arriving messages are sorted, and a lost connection comes
/// back. At most 64 states wait to be taken; of more, the oldest are left out.
#[derive(Debug)]
pub struct Events {
    inner: Arc<Inner>,
    queue: Arc<Queue>,
    done: bool,
}

impl Client {
    /// How it stands with the connection now, as far as is known: that a socket was lost is noticed while somebody
    /// waits for something.
    #[must_use]
    pub fn state(&self) -> ConnectionState {
        match self.inner.check_fork() {
            Ok(()) => lock(&self.inner.table).states.now.clone(),
            Err(reason) => ConnectionState::Closed { reason },
        }
    }

    /// The connection's states as they change.
    ///
    /// ```no_run
    /// use lapce_ipc::client::{Client, ConnectionState};
    ///
    /// let client = Client::connect()?;
    /// for state in client.events() {
    ///     if let ConnectionState::Reconnecting { attempt, next_in } = state {
    ///         eprintln!("connection lost; attempt {attempt} in {next_in:?}");
    ///     }
    /// }
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    #[must_use]
    pub fn events(&self) -> Events {
        let queue = lock(&self.inner.table).states.watch();
        Events { inner: self.inner.clone(), queue, done: false }
    }
}

impl Events {
    /// Waits for the next state, at most for `timeout`; `Ok(None)`: there was none.
    ///
    /// # Errors
    ///
    /// After [`ConnectionState::Closed`]: why it ended. Nothing follows.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<ConnectionState>> {
        match self.receive(Some(timeout)) {
            Ok(state) => Ok(Some(state)),
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self, timeout: Option<Duration>) -> Result<ConnectionState> {
        let (inner, queue) = (&self.inner, &self.queue);
        let state = inner.wait_until(deadline(timeout), || lock(queue).pop_front())?;
        self.done = state.is_closed();
        Ok(state)
    }

    /// The next state if it is there.
    #[cfg(feature = "tokio")]
    pub(super) fn poll(&mut self) -> Option<ConnectionState> {
        let state = lock(&self.queue).pop_front()?;
        self.done = state.is_closed();
        Some(state)
    }
}

impl Iterator for Events {
    type Item = ConnectionState;

    fn next(&mut self) -> Option<ConnectionState> {
        if self.done {
            return None;
        }
        self.receive(None).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_states_are_kept_and_nothing_follows_the_end() {
        let mut states = States::default();
        let (queue, dropped) = (states.watch(), states.watch());
        drop(dropped);
        for attempt in 1..=100 {
            states.set(ConnectionState::Reconnecting { attempt, next_in: Duration::ZERO });
        }
        assert_eq!(states.watchers.len(), 1);
        let reason = Kind::Timeout.into();
        states.set(ConnectionState::Closed { reason });
        states.set(ConnectionState::Connected);
        let waiting = lock(&queue);
        assert_eq!(waiting.len(), MOST_EVENTS);
        assert!(matches!(waiting[0], ConnectionState::Reconnecting { attempt: 38, .. }), "{:?}", waiting[0]);
        assert!(waiting[MOST_EVENTS - 1].is_closed() && states.now.is_closed());
    }
}

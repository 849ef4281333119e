//! The state of the connection, as its user sees it.

use super::lock::lock;
use crate::client::error::{Error, Kind, Result};
use crate::sync::{AtomicU64, Mutex, Ordering};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// The state of the connection to the broker.
///
/// While the client reconnects, blocked calls keep waiting, and calls that do not block succeed while there is space in
/// the lanes: their messages are sent when the session is restored.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ConnectionState {
    /// The socket is connected; the handshake is not complete.
    Connecting,
    /// Connected.
    Connected,
    /// The socket was lost.
    Reconnecting {
        /// The number of the next attempt, from 1.
        attempt: u32,
        /// The delay until it, at the time of this event.
        next_in: Duration,
    },
    /// The connection is closed for good.
    Closed {
        /// The reason.
        reason: Error,
    },
}

impl ConnectionState {
    /// Whether the state is `Connected`.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(self, ConnectionState::Connected)
    }

    /// Whether the state is `Closed`.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, ConnectionState::Closed { .. })
    }
}

/// Whether records may be placed: checked for each of them, and changed under the table's lock only.
#[derive(Debug, Default)]
pub(crate) struct LinkStatus {
    state: AtomicU64,
    reason: OnceLock<Error>,
}

/// The connection is up.
const UP: u64 = 0;
/// The socket is lost; the client is reconnecting.
const LOST: u64 = 1;
/// The connection is closed for good.
const ENDED: u64 = 2;

impl LinkStatus {
    /// Whether it is lost; an error if it has ended. Takes no lock, for the caller may hold any.
    #[inline]
    pub(crate) fn check(&self) -> Result<bool> {
        match self.state.load(Ordering::Relaxed) {
            UP => Ok(false),
            LOST => Ok(true),
            _ => Err(self.reason()),
        }
    }

    #[cold]
    fn reason(&self) -> Error {
        let reason = self.reason.get().cloned();
        reason.unwrap_or_else(|| Kind::Disconnected("the connection has ended".to_owned()).into())
    }

    pub(crate) fn set_lost(&self, is_lost: bool) {
        self.state.store(if is_lost { LOST } else { UP }, Ordering::Relaxed);
    }

    pub(crate) fn end(&self, reason: Error) {
        let _ = self.reason.set(reason);
        self.state.store(ENDED, Ordering::Relaxed);
    }
}

/// States that wait for a watcher. When as many as this wait, the oldest goes: the latest is never lost.
const MAX_EVENTS: usize = 64;

/// States that a watcher has not read yet.
pub(crate) type StateQueue = Mutex<VecDeque<ConnectionState>>;

/// The state, and its watchers.
#[derive(Debug)]
pub(crate) struct StateWatchers {
    now: ConnectionState,
    watchers: Vec<Weak<StateQueue>>,
}

impl Default for StateWatchers {
    fn default() -> StateWatchers {
        StateWatchers { now: ConnectionState::Connected, watchers: Vec::new() }
    }
}

impl StateWatchers {
    pub(crate) fn set(&mut self, state: ConnectionState) {
        if self.now.is_closed() {
            return;
        }
        self.now = state;
        let now = &self.now;
        self.watchers.retain(|watcher| watcher.upgrade().is_some_and(|queue| push(&queue, now.clone())));
    }

    pub(crate) fn now(&self) -> ConnectionState {
        self.now.clone()
    }

    pub(crate) fn watch(&mut self) -> Arc<StateQueue> {
        let queue = Arc::new(Mutex::new(VecDeque::from([self.now.clone()])));
        self.watchers.push(Arc::downgrade(&queue));
        queue
    }
}

fn push(queue: &StateQueue, state: ConnectionState) -> bool {
    let mut queue = lock(queue);
    if queue.len() == MAX_EVENTS {
        queue.pop_front();
    }
    queue.push_back(state);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_states_are_kept_and_nothing_follows_the_end() {
        let mut states = StateWatchers::default();
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
        assert_eq!(waiting.len(), MAX_EVENTS);
        assert!(matches!(waiting[0], ConnectionState::Reconnecting { attempt: 38, .. }), "{:?}", waiting[0]);
        assert!(waiting[MAX_EVENTS - 1].is_closed() && states.now.is_closed());
    }
}

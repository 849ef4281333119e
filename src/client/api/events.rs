//! Watching the state of the connection.

use super::client::Client;
use crate::client::connection::shared::Connection;
use crate::client::data::connection_state::{ConnectionState, StateQueue};
use crate::client::data::lock::{deadline, lock};
use crate::client::engine::wait;
use crate::client::error::{Result, in_time};
use std::sync::Arc;
use std::time::Duration;

/// The states of a connection, the current one first: an iterator that waits for the next state and ends after
/// [`ConnectionState::Closed`]. While a thread waits here, arriving messages are sorted, and a lost connection is
/// restored. The queue holds 64 states; when it is full, the oldest is dropped.
#[derive(Debug)]
pub struct Events {
    connection: Arc<Connection>,
    queue: Arc<StateQueue>,
    done: bool,
}

impl Client {
    /// The current state of the connection. A lost socket is detected while a thread waits for messages or replies.
    #[must_use]
    pub fn state(&self) -> ConnectionState {
        match self.connection.check_fork() {
            Ok(()) => lock(&self.connection.table).states.now(),
            Err(reason) => ConnectionState::Closed { reason },
        }
    }

    /// The changes of the connection's state.
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
        let queue = lock(&self.connection.table).states.watch();
        Events { connection: self.connection.clone(), queue, done: false }
    }
}

impl Events {
    /// Waits for the next state, at most for `timeout`, which then returns `Ok(None)`.
    ///
    /// # Errors
    ///
    /// After [`ConnectionState::Closed`]: the reason. No state follows.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<ConnectionState>> {
        in_time(self.receive(Some(timeout)))
    }

    fn receive(&mut self, timeout: Option<Duration>) -> Result<ConnectionState> {
        let (connection, queue) = (&self.connection, &self.queue);
        let state = wait::for_record(connection, deadline(timeout), || lock(queue).pop_front())?;
        self.done = state.is_closed();
        Ok(state)
    }

    /// The next state if it is there.
    #[cfg(feature = "tokio")]
    pub(crate) fn poll(&mut self) -> Option<ConnectionState> {
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

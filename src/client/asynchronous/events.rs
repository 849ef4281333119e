//! The states of the connection, for async programs.

use super::super::{Client, ConnectionState, Events};
use super::{AsyncClient, until};

/// As [`Events`].
#[derive(Debug)]
pub struct AsyncEvents {
    client: AsyncClient,
    /// `None` after the last.
    events: Option<Events>,
}

impl AsyncEvents {
    /// The next state; `None` after [`ConnectionState::Closed`].
    pub async fn next(&mut self) -> Option<ConnectionState> {
        let events = self.events.as_mut()?;
        let state = until(&self.client.inner, || events.poll()).await.ok();
        if state.as_ref().is_none_or(ConnectionState::is_closed) {
            self.events = None;
        }
        state
    }
}

impl AsyncClient {
    /// As [`Client::state`].
    #[must_use]
    pub fn state(&self) -> ConnectionState {
        Client { inner: self.inner.clone() }.state()
    }

    /// As [`Client::events`].
    #[must_use]
    pub fn events(&self) -> AsyncEvents {
        let events = Client { inner: self.inner.clone() }.events();
        AsyncEvents { client: self.clone(), events: Some(events) }
    }
}

//! The states of the connection, for async programs.

use super::super::{Client, ConnectionState, Events};
use super::{AsyncClient, stream};

/// As [`Events`], and a [`Stream`](futures_core::Stream).
#[derive(Debug)]
pub struct AsyncEvents {
    pub(super) client: AsyncClient,
    /// `None` after the last.
    pub(super) events: Option<Events>,
}

impl AsyncEvents {
    /// The next state; `None` after [`ConnectionState::Closed`].
    pub async fn next(&mut self) -> Option<ConnectionState> {
        stream::next(self).await
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

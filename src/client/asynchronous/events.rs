//! The states of the connection, for async programs.

use super::client::AsyncClient;
use super::stream;
use super::wait::poll_until;
use crate::client::api::client::Client;
use crate::client::api::events::Events;
use crate::client::data::connection_state::ConnectionState;
use futures_core::Stream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// As [`Events`], and a [`Stream`](futures_core::Stream).
#[derive(Debug)]
pub struct AsyncEvents {
    pub(crate) client: AsyncClient,
    /// `None` after the last.
    pub(crate) events: Option<Events>,
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
        Client { connection: self.connection.clone() }.state()
    }

    /// As [`Client::events`].
    #[must_use]
    pub fn events(&self) -> AsyncEvents {
        let events = Client { connection: self.connection.clone() }.events();
        AsyncEvents { client: self.clone(), events: Some(events) }
    }
}

impl Stream for AsyncEvents {
    type Item = ConnectionState;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(events) = this.events.as_mut() else { return Poll::Ready(None) };
        let state = ready!(poll_until(&this.client.connection, context, || events.poll())).ok();
        if state.as_ref().is_none_or(ConnectionState::is_closed) {
            this.events = None;
        }
        Poll::Ready(state)
    }
}

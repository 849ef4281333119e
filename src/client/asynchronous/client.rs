//! The handle of a connection, for async programs.

use super::wait::within;
use crate::client::api::builder::Builder;
use crate::client::api::client::Client;
use crate::client::connection::control_request;
use crate::client::connection::interning::{self, Interned};
use crate::client::connection::link::NextAction;
use crate::client::connection::shared::Connection;
use crate::client::engine::wait;
use crate::client::error::{Kind, Result};
use crate::wire::control::{BrokerFrame, ClientFrame, InternKind, Limits};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Instant;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Sorts what arrives for as long as the connection has handles.
async fn drive(connection: Weak<Connection>, descriptor: AsyncFd<OwnedFd>) {
    loop {
        let due = {
            let Some(connection) = connection.upgrade() else { return };
            let step = wait::drive(&connection);
            if connection.closed().is_some() {
                return;
            }
            match step {
                NextAction::Rest => None,
                NextAction::At(time) => Some(time),
                NextAction::Changed => {
                    drop(connection);
                    tokio::task::yield_now().await;
                    continue;
                }
            }
        };
        let readable = descriptor.readable();
        let ready = match due {
            None => readable.await,
            Some(due) => match tokio::time::timeout_at(due.into(), readable).await {
                Ok(ready) => ready,
                // Time for the next attempt to reconnect.
                Err(_) => continue,
            },
        };
        match ready {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => return,
        }
    }
}

/// A connection to the broker for async programs. Clones are handles of the same connection.
#[derive(Clone, Debug)]
pub struct AsyncClient {
    pub(crate) connection: Arc<Connection>,
    /// Held while the parts of one message are placed, so that no other message comes in between.
    pub(crate) bulk: Arc<tokio::sync::Mutex<()>>,
    _driver: Arc<Driver>,
}

#[derive(Debug)]
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl AsyncClient {
    /// Connects to the broker at the default socket.
    ///
    /// # Errors
    ///
    /// As [`Builder::connect`].
    pub async fn connect() -> Result<AsyncClient> {
        AsyncClient::connect_with(Client::builder()).await
    }

    /// Connects with the options of `builder`. The handshake runs on a thread for blocking work.
    ///
    /// # Errors
    ///
    /// As [`Builder::connect`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, or in one without a timer (`enable_time`), which deadlines need.
    pub async fn connect_with(builder: Builder) -> Result<AsyncClient> {
        let lost = |error: &dyn std::fmt::Display| Kind::Disconnected(error.to_string());
        let connected = tokio::task::spawn_blocking(move || builder.connect()).await;
        let client = connected.map_err(|error| lost(&error))??;
        let connection = client.connection.clone();
        let descriptor = connection.epoll.as_fd().try_clone_to_owned().map_err(|error| lost(&error))?;
        // The deprecation warns of types that close their descriptor behind tokio's back; an `OwnedFd` cannot.
        #[allow(deprecated)]
        let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE).map_err(|error| lost(&error))?;
        let driver = Driver(tokio::spawn(drive(Arc::downgrade(&connection), descriptor)));
        Ok(AsyncClient { connection, bulk: Arc::default(), _driver: Arc::new(driver) })
    }

    /// As [`Client::id`].
    #[must_use]
    pub fn id(&self) -> u32 {
        self.connection.id()
    }

    /// As [`Client::socket`].
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.connection.endpoint.path
    }

    /// As [`Client::limits`].
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.connection.limits.all()
    }

    pub(crate) async fn ask(
        &self,
        deadline: Option<Instant>,
        request: impl FnOnce(u32) -> ClientFrame,
    ) -> Result<BrokerFrame> {
        let control_request = control_request::start(&self.connection, request)?;
        within(&self.connection, deadline, || control_request.reply()).await
    }

    /// A use of a name. `keep`: its number stays for a while when it has no users.
    pub(crate) async fn interned(&self, kind: InternKind, name: &str, keep: bool) -> Result<Interned> {
        loop {
            if let Some(interned) = interning::existing(&self.connection, kind, name, keep)? {
                return Ok(interned);
            }
            self.request_number(kind, name, None).await?;
        }
    }

    /// Requests the number of a name that has none.
    pub(crate) async fn request_number(&self, kind: InternKind, name: &str, deadline: Option<Instant>) -> Result<()> {
        let connection = &self.connection;
        let mut is_last = false;
        loop {
            let reply = self.ask(deadline, interning::intern_request(connection, kind, name)?).await?;
            if interning::is_interned(connection, kind, &reply, is_last)? {
                return Ok(());
            }
            is_last = true;
            for _ in 0..interning::RELEASE_POLLS {
                if interning::are_releases_consumed(connection, kind) {
                    break;
                }
                tokio::time::sleep(interning::RELEASE_POLL).await;
            }
        }
    }
}

//! The bound address of the endpoints, or the reason for none, and the files that belong to it: for the status, the
//! start-up line and the shutdown. Shared by the threads that bind, report, reload and stop.

use super::error::HealthError;
use super::token::TokenFile;
use crate::broker::listener::socket::Bound;
use crate::config::Loaded;
use crate::wire::control::HealthStatus;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The location of the endpoints.
#[derive(Debug, Default)]
pub(in crate::broker) struct Location(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    endpoint: Option<Result<Endpoint, String>>,
    /// The Unix socket, if the broker created it.
    bound: Option<Bound>,
    /// The token file in use, and the one that the broker created.
    token_file: Option<PathBuf>,
    made: Option<TokenFile>,
}

/// The address of the listening socket.
#[derive(Clone, Debug)]
pub(super) enum Endpoint {
    /// At a TCP address.
    Tcp(SocketAddr),
    /// At a path.
    Unix(PathBuf),
}

impl Location {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The endpoints are listening. `bound` is the Unix socket, if the broker created it.
    pub(super) fn listens(&self, endpoint: Endpoint, bound: Option<Bound>) {
        let mut state = self.state();
        state.endpoint = Some(Ok(endpoint));
        state.bound = bound;
    }

    /// The endpoints are not listening.
    pub(super) fn does_not_listen(&self, reason: String) {
        self.state().endpoint = Some(Err(reason));
    }

    /// The token that a configuration requires: from the file that it names, or from a new one.
    ///
    /// # Errors
    ///
    /// If the named file has no token, or no file can be created.
    pub(in crate::broker) fn token(&self, loaded: &Loaded) -> Result<Option<Vec<u8>>, HealthError> {
        let named = loaded.health_token()?;
        let config = &loaded.config.health_server;
        let mut state = self.state();
        if named.is_some() || !config.require_token {
            state.made = None;
            state.token_file = named.is_some().then(|| PathBuf::from(&config.token_file));
            return Ok(named);
        }
        let made = match state.made.take() {
            Some(made) => made,
            None => TokenFile::make(&loaded.config.ipc.socket_path)?,
        };
        let token = made.token().to_vec();
        state.token_file = Some(made.path().to_owned());
        state.made = Some(made);
        Ok(Some(token))
    }

    /// For the status.
    pub(in crate::broker) fn status(&self) -> HealthStatus {
        let state = self.state();
        let mut status = HealthStatus {
            token_file: state.token_file.as_ref().map(|path| path.display().to_string()),
            ..HealthStatus::default()
        };
        match &state.endpoint {
            Some(Ok(Endpoint::Tcp(address))) => status.address = Some(address.to_string()),
            Some(Ok(Endpoint::Unix(path))) => status.socket = Some(path.display().to_string()),
            Some(Err(reason)) => status.reason = Some(reason.clone()),
            None => status.reason = Some("starting".to_owned()),
        }
        status
    }

    /// Removes the files that the broker created.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.made = None;
        if let Some(bound) = &mut state.bound {
            bound.remove();
        }
    }
}

//! The address of the endpoints. It is bound before the broker starts, so that a broker that requires it can refuse
//! to start. If the port is taken, one warning says so, and binding is retried with the supervisors' backoff. Once
//! bound, the socket is kept: the next incarnation of the actor uses it.

use super::access::Access;
use crate::broker::supervisor::{NodeId, Tree, elapsed, random};
use crate::config::{ConfigError, HealthServer, Loaded};
use crate::routing::restart::{Decision, Limits, Restart, Restarts};
use std::cell::RefCell;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why the endpoints, and so the broker, cannot start.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// The token file cannot be used.
    #[error("{0}")]
    Token(#[from] ConfigError),
    /// The address cannot be bound, and `health_server.required` is set.
    #[error("cannot bind health endpoint {address}: {source} (health_server.required)")]
    Listen {
        /// Host and port.
        address: String,
        /// The error of the system.
        source: io::Error,
    },
}

/// The endpoints before they run.
pub(in crate::broker) struct Endpoints {
    pub(super) config: HealthServer,
    pub(in crate::broker) access: Arc<Access>,
    pub(super) listener: io::Result<TcpListener>,
}

impl Endpoints {
    /// Reads the token and binds the address, unless there is an inherited socket.
    ///
    /// # Errors
    ///
    /// If the token file cannot be used, or the address cannot be bound and the endpoints are required.
    pub(in crate::broker) fn new(loaded: &Loaded, inherited: Option<TcpListener>) -> Result<Endpoints, HealthError> {
        let config = &loaded.config.health_server;
        // Without the token the endpoints would be open to all users.
        let access = Access::new(config, loaded.health_token()?);
        let bound = inherited.map_or_else(|| bind(config), Ok).and_then(|listener| tell(listener, access.has_token()));
        let listener = match bound {
            Err(source) if config.required => {
                return Err(HealthError::Listen { address: address(config), source });
            }
            Err(error) => {
                log::warn!(
                    "cannot bind health endpoint, will retry address={} reason={:?} retries=true",
                    address(config),
                    error.to_string()
                );
                Err(error)
            }
            Ok(listener) => Ok(listener),
        };
        Ok(Endpoints { config: config.clone(), access: Arc::new(access), listener })
    }
}

fn address(config: &HealthServer) -> String {
    let HealthServer { host, port, .. } = config;
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn bind(config: &HealthServer) -> io::Result<TcpListener> {
    TcpListener::bind((config.host.as_str(), config.port))
}

/// Logs the address.
fn tell(listener: TcpListener, has_token: bool) -> io::Result<TcpListener> {
    let address = listener.local_addr()?;
    log::info!("health endpoint listening address={address}");
    if !address.ip().is_loopback() && !has_token {
        log::warn!("health endpoint reachable without a token address={address} hint=health_server.token_file");
    }
    Ok(listener)
}

/// The socket, shared by all incarnations of the actor on their thread.
pub(super) struct Socket {
    config: HealthServer,
    listener: RefCell<io::Result<TcpListener>>,
    back_off: RefCell<Restarts>,
    clock: Instant,
    tree: Arc<Tree>,
    node: NodeId,
}

impl Socket {
    /// The result of the last attempt to bind.
    pub(super) fn new(
        config: HealthServer,
        listener: io::Result<TcpListener>,
        limits: Limits,
        tree: Arc<Tree>,
        node: NodeId,
    ) -> Socket {
        let back_off = RefCell::new(Restarts::new(Restart::Permanent, limits));
        Socket { config, listener: RefCell::new(listener), back_off, clock: Instant::now(), tree, node }
    }

    /// The listening socket, as soon as it is bound.
    ///
    /// # Errors
    ///
    /// If the system has no descriptor for it.
    pub(super) async fn listener(&self) -> io::Result<TcpListener> {
        loop {
            let reason = match &*self.listener.borrow() {
                Ok(listener) => return listener.try_clone(),
                Err(error) => error.to_string(),
            };
            self.tree.failed(self.node, &format!("cannot listen on {}: {reason}", address(&self.config)));
            let decision = self.back_off.borrow_mut().ended(true, elapsed(self.clock), random());
            // There is no restart limit.
            let Decision::Restart { attempt, delay, .. } = decision else { return Err(io::Error::other(reason)) };
            let delay = Duration::from_nanos(delay);
            let ms = delay.as_millis();
            log::debug!("cannot bind health endpoint, will retry reason={reason:?} attempt={attempt} delay_ms={ms}");
            self.tree.restarts_in(self.node, delay);
            tokio::time::sleep(delay).await;
            let has_token = !self.config.token_file.is_empty();
            let bound = bind(&self.config).and_then(|listener| tell(listener, has_token));
            if bound.is_ok() {
                self.tree.running(self.node);
            }
            *self.listener.borrow_mut() = bound;
        }
    }
}

//! The address of the endpoints. It is bound before the broker starts, so that a broker that requires it can refuse
//! to start. If the port is taken, one warning says so, and binding is retried with the supervisors' backoff. Once
//! bound, the socket is kept: the next incarnation of the actor uses it.

use super::access::Access;
use super::error::HealthError;
use super::location::{self, Location};
use crate::broker::clock::elapsed;
use crate::broker::listener::socket;
use crate::broker::supervision::supervisor::{NodeId, Tree, random};
use crate::config::{HealthServer, Loaded};
use crate::logic::supervision::restart::{Decision, Limits, Restart, Restarts};
use std::cell::RefCell;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A socket on which the endpoints listen.
#[derive(Debug)]
pub(in crate::broker) enum Listener {
    /// At a TCP address.
    Tcp(TcpListener),
    /// At a path.
    Unix(UnixListener),
}

impl Listener {
    fn try_clone(&self) -> io::Result<Listener> {
        Ok(match self {
            Listener::Tcp(listener) => Listener::Tcp(listener.try_clone()?),
            Listener::Unix(listener) => Listener::Unix(listener.try_clone()?),
        })
    }
}

/// The endpoints before they run.
pub(in crate::broker) struct Endpoints {
    pub(super) config: HealthServer,
    pub(super) permissions: u32,
    pub(in crate::broker) access: Arc<Access>,
    pub(in crate::broker) location: Arc<Location>,
    pub(super) listener: io::Result<Listener>,
}

impl Endpoints {
    /// Reads or makes the token and binds the address, unless there is an inherited socket.
    ///
    /// # Errors
    ///
    /// If there is no token and should be; if the address is taken, and the endpoints are required.
    pub(in crate::broker) fn new(loaded: &Loaded, inherited: Option<Listener>) -> Result<Endpoints, HealthError> {
        let config = &loaded.config.health_server;
        let permissions = loaded.config.shared_memory.permissions;
        let location = Arc::new(Location::default());
        // To go on without would open what was to be closed.
        let access = Access::new(config, location.token(loaded)?);
        let bound = match inherited {
            Some(listener) => Ok((listener, None)),
            None => bind(config, permissions),
        };
        let listener = match bound.and_then(|bound| tell(bound, &location, access.has_token())) {
            Err(source) if config.required => {
                return Err(HealthError::Listen { address: address(config), source });
            }
            Err(error) => {
                log::warn!(
                    "cannot bind health endpoint, will retry address={} reason={:?} retries=true",
                    address(config),
                    error.to_string()
                );
                location.does_not_listen(failure(config, &error.to_string()));
                Err(error)
            }
            Ok(listener) => Ok(listener),
        };
        Ok(Endpoints { config: config.clone(), permissions, access: Arc::new(access), location, listener })
    }
}

fn address(config: &HealthServer) -> String {
    let HealthServer { host, port, socket_path, .. } = config;
    match () {
        () if !socket_path.is_empty() => socket_path.clone(),
        () if host.contains(':') => format!("[{host}]:{port}"),
        () => format!("{host}:{port}"),
    }
}

fn failure(config: &HealthServer, reason: &str) -> String {
    format!("cannot listen on {}: {reason}", address(config))
}

/// Binds the Unix socket if one is named, by the rules of the control socket, else the address.
fn bind(config: &HealthServer, permissions: u32) -> io::Result<(Listener, Option<socket::Bound>)> {
    if config.socket_path.is_empty() {
        return Ok((Listener::Tcp(TcpListener::bind((config.host.as_str(), config.port))?), None));
    }
    let (bound, listener) = socket::bind(Path::new(&config.socket_path), permissions).map_err(|error| {
        let error = error.to_string();
        let why = error.strip_prefix(&format!("{}: ", config.socket_path)).unwrap_or(&error);
        io::Error::other(why.to_owned())
    })?;
    Ok((Listener::Unix(listener), Some(bound)))
}

/// Says where it listens.
fn tell(
    (listener, bound): (Listener, Option<socket::Bound>),
    location: &Location,
    has_token: bool,
) -> io::Result<Listener> {
    match &listener {
        Listener::Tcp(tcp) => {
            let address = tcp.local_addr()?;
            log::info!("health endpoint listening address={address}");
            if !address.ip().is_loopback() && !has_token {
                log::warn!(
                    "health endpoint reachable without a token address={address} hint=health_server.require_token"
                );
            }
            location.listens(location::Endpoint::Tcp(address), None);
        }
        Listener::Unix(unix) => {
            let path = unix.local_addr()?.as_pathname().unwrap_or(Path::new("")).to_owned();
            log::info!("health endpoint listening socket={:?}", path.display().to_string());
            location.listens(location::Endpoint::Unix(path), bound);
        }
    }
    Ok(listener)
}

/// The socket, shared by all incarnations of the actor on their thread.
pub(super) struct Socket {
    config: HealthServer,
    permissions: u32,
    location: Arc<Location>,
    listener: RefCell<io::Result<Listener>>,
    back_off: RefCell<Restarts>,
    clock: Instant,
    tree: Arc<Tree>,
    node: NodeId,
}

impl Socket {
    /// A socket that is bound, or was tried to be.
    pub(super) fn new(endpoints: Endpoints, limits: Limits, tree: Arc<Tree>, node: NodeId) -> Socket {
        let Endpoints { config, permissions, location, listener, .. } = endpoints;
        let back_off = RefCell::new(Restarts::new(Restart::Permanent, limits));
        let listener = RefCell::new(listener);
        Socket { config, permissions, location, listener, back_off, clock: Instant::now(), tree, node }
    }

    /// The listening socket, as soon as it is bound.
    ///
    /// # Errors
    ///
    /// If the system has no descriptor for it.
    pub(super) async fn listener(&self) -> io::Result<Listener> {
        loop {
            let reason = match &*self.listener.borrow() {
                Ok(listener) => return listener.try_clone(),
                Err(error) => error.to_string(),
            };
            let failure = failure(&self.config, &reason);
            self.tree.failed(self.node, &failure);
            self.location.does_not_listen(failure);
            let decision = self.back_off.borrow_mut().ended(true, elapsed(self.clock), random());
            // There is no restart limit.
            let Decision::Restart { attempt, delay, .. } = decision else { return Err(io::Error::other(reason)) };
            let delay = Duration::from_nanos(delay);
            let ms = delay.as_millis();
            log::debug!("cannot bind health endpoint, will retry reason={reason:?} attempt={attempt} delay_ms={ms}");
            self.tree.restarts_in(self.node, delay);
            tokio::time::sleep(delay).await;
            let has_token = self.location.status().token_file.is_some();
            let bound = bind(&self.config, self.permissions).and_then(|bound| tell(bound, &self.location, has_token));
            if bound.is_ok() {
                self.tree.running(self.node);
            }
            *self.listener.borrow_mut() = bound;
        }
    }
}

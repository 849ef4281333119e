//! The context that the broker's actors share, and the phase of the broker's life.

use super::breaker::BreakerHandle;
use super::health::{Access, Location};
use super::router::{RouterHandle, Settings};
use super::session::control_time::ControlAccounts;
use super::session::permits::ConnectionPermits;
use super::session::publishers::Publishers;
use super::session::roster::Roster;
use super::session::table::SessionTable;
use super::session::upstream::Upstream;
use super::supervision::supervisor::{NodeId, Tree};
use super::telemetry::counters::Counters;
use super::telemetry::snapshots::SharedSnapshots;
use crate::config::{Config, ConfigError, Loaded};
use crate::logic::quotas::Quotas;
use crate::shm::peer;
use crate::sync::AtomicU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// The phase of the broker's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Serving.
    Running,
    /// New connections and sessions are refused; outstanding work is finished within this time, in milliseconds.
    Draining(u32),
    /// Connections are closed.
    Closing,
}

impl Phase {
    /// Whether the broker is draining or closing.
    pub(super) fn is_ending(&self) -> bool {
        *self != Phase::Running
    }
}

/// The context of all connections.
pub(super) struct Broker {
    /// The configuration in force.
    pub(super) config: watch::Sender<Arc<Config>>,
    /// The quotas in force, by which new connections are charged.
    pub(super) quotas: watch::Sender<Arc<Quotas>>,
    pub(super) source: Source,
    /// The access rules of the health endpoints.
    pub(super) access: watch::Sender<Arc<Access>>,
    pub(super) config_file: Option<PathBuf>,
    pub(super) settings: Settings,
    pub(super) router: RouterHandle,
    pub(super) breaker: BreakerHandle,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) permits: Arc<ConnectionPermits>,
    pub(super) sessions: SessionTable,
    pub(super) roster: Arc<Roster>,
    pub(super) publishers: Publishers,
    pub(super) started: Instant,
    pub(super) tree: Arc<Tree>,
    pub(super) counters: Counters,
    /// The snapshots of the status that clients ask for.
    pub(super) snapshots: Arc<SharedSnapshots>,
    /// What the control requests of each user may take of the router's time.
    pub(super) control_accounts: ControlAccounts,
    pub(super) upstreams: Vec<Arc<Upstream>>,
    /// The node of all connections in the supervision tree.
    pub(super) connections: NodeId,
    /// Whether all actors of the root run (for `/ready`).
    pub(super) ready: watch::Receiver<bool>,
    /// Why clients cannot reach the socket, if they cannot.
    pub(super) socket_lost: watch::Receiver<Option<String>>,
    /// Stuck vital threads (for `/live`).
    pub(super) late: Arc<AtomicU64>,
    /// Stuck threads of the health endpoints.
    pub(super) late_non_vital: Arc<AtomicU64>,
    /// The address of the health endpoints.
    pub(super) location: Arc<Location>,
}

impl Broker {
    /// The configuration that is in force now.
    pub(super) fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// The quotas that are in force now.
    pub(super) fn quotas(&self) -> Arc<Quotas> {
        self.quotas.borrow().clone()
    }

    /// Whether a user may connect. Root always may: it can read the segments anyway.
    pub(super) fn may_connect(&self, uid: u32) -> bool {
        [peer::own_uid(), 0].contains(&uid) || self.config().ipc.allowed_uids.contains(&uid)
    }

    /// Whether a user may set breakers, dial upstreams and reload.
    pub(super) fn is_operator(&self, uid: u32) -> bool {
        [peer::own_uid(), 0].contains(&uid) || self.config().ipc.operator_uids.contains(&uid)
    }
}

/// Reads the configuration again.
pub(crate) type Load = Box<dyn Fn() -> Result<Loaded, ConfigError> + Send + Sync>;

/// Applies the part of a configuration that is outside the broker: the log levels.
pub(crate) type Adopted = Box<dyn Fn(&Config) + Send + Sync>;

/// The source of configurations. An inherited socket's path does not come from the file.
pub(super) struct Source {
    pub(super) load: Load,
    pub(super) adopted: Adopted,
    /// Called when a reload begins (`true`) and when it is over (`false`).
    pub(super) tell: Box<dyn Fn(bool) + Send + Sync>,
    pub(super) has_inherited_socket: bool,
    /// Serialises reloads.
    pub(super) turn: tokio::sync::Mutex<()>,
}

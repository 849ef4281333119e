//! The context that the broker's actors share, and the phase of the broker's life.

use super::breaker::BreakerHandle;
use super::health::{Access, Location};
use super::router::{RouterHandle, Settings};
use super::session::roster::Roster;
use super::session::table::SessionTable;
use super::session::upstream::Upstream;
use super::supervision::supervisor::{NodeId, Tree};
use super::telemetry::counters::Counters;
use crate::config::{Config, ConfigError, Loaded};
use crate::shm::peer;
use crate::sync::AtomicU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Semaphore, watch};

/// Where the broker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Everything is served.
    Running,
    /// Nothing new is let in; what is under way is finished within so many milliseconds.
    Draining(u32),
    /// Connections are closed.
    Closing,
}

impl Phase {
    /// Whether nothing new is let in.
    pub(super) fn is_ending(&self) -> bool {
        *self != Phase::Running
    }
}

/// What all connections share.
pub(super) struct Broker {
    /// What is in force.
    pub(super) config: watch::Sender<Arc<Config>>,
    pub(super) source: Source,
    /// Who may read the endpoints.
    pub(super) access: watch::Sender<Arc<Access>>,
    pub(super) config_file: Option<PathBuf>,
    pub(super) settings: Settings,
    pub(super) router: RouterHandle,
    pub(super) breaker: BreakerHandle,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) sessions: SessionTable,
    pub(super) roster: Arc<Roster>,
    pub(super) started: Instant,
    pub(super) tree: Arc<Tree>,
    pub(super) counters: Counters,
    pub(super) upstreams: Vec<Arc<Upstream>>,
    /// Where all connections are in the tree.
    pub(super) connections: NodeId,
    /// Whether all actors of the root run: what `/ready` is about.
    pub(super) ready: watch::Receiver<bool>,
    /// Why clients do not find the socket, if they do not.
    pub(super) socket_lost: watch::Receiver<Option<String>>,
    /// How many threads do not turn: what `/live` is about.
    pub(super) late: Arc<AtomicU64>,
    /// How many threads of the endpoints do not turn.
    pub(super) late_non_vital: Arc<AtomicU64>,
    /// Where the endpoints listen.
    pub(super) location: Arc<Location>,
}

impl Broker {
    /// The configuration that is in force now.
    pub(super) fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// Whether a user may connect. Root can read everything in any case.
    pub(super) fn may_connect(&self, uid: u32) -> bool {
        [peer::own_uid(), 0].contains(&uid) || self.config().ipc.allowed_uids.contains(&uid)
    }

    /// Whether a user may give orders that change others.
    pub(super) fn is_operator(&self, uid: u32) -> bool {
        [peer::own_uid(), 0].contains(&uid) || self.config().ipc.operator_uids.contains(&uid)
    }
}

/// Reads the configuration again.
pub(crate) type Load = Box<dyn Fn() -> Result<Loaded, ConfigError> + Send + Sync>;

/// Takes up what the broker's own parts do not: the levels of the log.
pub(crate) type Adopted = Box<dyn Fn(&Config) + Send + Sync>;

/// The source of configurations, and whether the socket was inherited: then its path is not from the file.
pub(super) struct Source {
    pub(super) load: Load,
    pub(super) adopted: Adopted,
    /// Hears that a reload begins (true), and that it is over.
    pub(super) tell: Box<dyn Fn(bool) + Send + Sync>,
    pub(super) has_inherited_socket: bool,
    /// One at a time.
    pub(super) turn: tokio::sync::Mutex<()>,
}

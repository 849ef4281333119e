//! Operation of the broker over the control socket: upstreams and the configuration.
//!
//! Part of the wire format: the order of the fields is that on the wire. Their names are those of
//! `upstream list --json`.

use serde::{Deserialize, Serialize};

use super::status::ActorState;
use crate::wire::name::Name;

/// An upstream: a process that the broker dials (`[[upstream]]`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Its name in the configuration.
    pub name: Name,
    /// The path of its socket.
    pub socket: String,
    /// The services that it may offer.
    pub services: Vec<Name>,
    /// The number of its connection; none while it is not connected.
    pub connection: Option<u32>,
    /// The state of its actor: running while it is dialled and while it is connected.
    pub state: ActorState,
    /// The number of redials.
    pub restarts: u64,
    /// Why the last attempt or connection ended.
    pub last_reason: Option<String>,
}

/// The result of reloading the configuration. Keys have their full names, `ipc.allowed_uids`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Keys whose new value is in force.
    pub changed: Vec<String>,
    /// Keys whose new value needs a restart.
    pub needs_restart: Vec<String>,
}

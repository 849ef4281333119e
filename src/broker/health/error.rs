//! Errors of the endpoints that end the broker at its start.

use crate::config::ConfigError;
use std::io;
use std::path::PathBuf;

/// Why the endpoints, and so the broker, cannot start.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// The token file cannot be used.
    #[error("{0}")]
    Token(#[from] ConfigError),
    /// The address cannot be bound, and `health_server.required` is set.
    #[error("cannot bind health endpoint {address}: {source} (health_server.required)")]
    Listen {
        /// Host and port, or the path.
        address: String,
        /// The error of the system.
        source: io::Error,
    },
    /// `health_server.require_token` is set, and the file cannot be created.
    #[error("{}: cannot create the token file: {source} (health_server.require_token)", .path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

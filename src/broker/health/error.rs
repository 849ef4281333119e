//! Errors of the endpoints that end the broker at its start.

use crate::config::ConfigError;
use std::io;
use std::path::PathBuf;

/// Why there can be no endpoints, and so no broker.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// There is to be a token, and there is none.
    #[error("{0}")]
    Token(#[from] ConfigError),
    /// The address cannot be bound, and `health_server.required` is set.
    #[error("cannot bind health endpoint {address}: {source} (health_server.required)")]
    Listen {
        /// Host and port, or the path.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// `health_server.require_token` is set, and the file cannot be made.
    #[error("{}: cannot make the token file: {source} (health_server.require_token)", .path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

//! The entries of the arrays of tables: their keys, as `model` has them for sections. `tables` reads them.

use std::path::PathBuf;

use super::key::{Rule, integer, section};

section! {
    /// Upstreams: programs that listen, and that the broker dials. The broker offers their services.
    Upstream {
        /// Its unique name in the log and in the status.
        name: String = String::new(), Rule::Name;
        /// Its Unix socket.
        socket_path: PathBuf = PathBuf::new(), Rule::SocketPath;
        /// The services that it may offer; others are refused, and the log names missing ones.
        services: Vec<String> = Vec::new(), Rule::List { of: &Rule::Name, max: 1024 };
    }
}

section! {
    /// Engines: programs that the broker starts beside itself, restarts when they end, and stops with itself.
    Engine {
        /// Its unique name in the log and in the status.
        name: String = String::new(), Rule::Name;
        /// The program.
        /// Its working directory is `/`, its stdin is empty, its output goes to the log.
        command: String = String::new(), Rule::Program;
        /// Its arguments.
        args: Vec<String> = Vec::new(), Rule::Sequence { of: &Rule::Argument, max: 256 };
        /// Variables beside those of the broker. `LAPCE_IPC_SOCKET` is always the broker's socket.
        /// `--check-config` prints them, so keep secrets in files.
        env: Vec<String> = Vec::new(), Rule::List { of: &Rule::Variable, max: 256 };
        /// How long it may take to end after SIGTERM, before SIGKILL.
        stop_timeout_ms: u64 = 2000, integer(0, 600_000, "ms");
    }
}

section! {
    /// Quotas: groups of a user's clients that count as a user of their own.
    Quota {
        /// Its unique name in refusals, the status and the metrics.
        name: String = String::new(), Rule::Name;
        /// The names of its clients; a `*` at the end stands for any rest.
        clients: Vec<String> = Vec::new(), Rule::List { of: &Rule::ClientPattern, max: 256 };
    }
}

//! The start of every process: it resets inherited signals and limits.
//!
//! A process inherits which signals are ignored, which are blocked, and its limits. A shell with `ulimit -f`, a program
//! that ignores SIGCHLD, a thread that blocks SIGTERM: each would end the broker, or prevent its end.
//! What is set here is inherited by the programs that `reply` starts: no signal is blocked, and one that has a handler
//! here has its default there.

use super::failure::{Code, Failure};
use crate::broker::supervision::resources::{self, Resource};
use nix::sys::signal::SigSet;
use signal_hook::consts::{SIGCHLD, SIGXFSZ};
use std::fmt;
use std::sync::Arc;

/// To be called first, while there is one thread: the others inherit its mask.
///
/// # Errors
///
/// If the system refuses a handler.
pub(super) fn start() -> Result<(), Failure> {
    let failed = |what: &str, error: &dyn fmt::Display| {
        Failure::new(Code::Unavailable, format!("cannot set up signals: {what}: {error}"))
    };
    // SIGXFSZ ends a process that makes a file larger than RLIMIT_FSIZE, shared memory included; with a handler the
    // call returns EFBIG. SIGCHLD, if it is ignored, takes the exit status of each child away.
    for (name, signal) in [("SIGXFSZ", SIGXFSZ), ("SIGCHLD", SIGCHLD)] {
        signal_hook::flag::register(signal, Arc::default()).map_err(|error| failed(name, &error))?;
    }
    SigSet::all().thread_unblock().map_err(|error| failed("the signal mask", &error))?;
    // Shared memory counts as a file. If the hard limit is too low as well, the first connection gets the error.
    let _ = resources::raise(Resource::RLIMIT_FSIZE);
    Ok(())
}

//! Limits of the process. A seccomp profile may refuse to name one; the wrapper that the rest uses takes that to be
//! impossible, and panics.

pub(crate) use nix::sys::resource::Resource;
use nix::sys::resource::{RLIM_INFINITY, getrlimit, setrlimit};
use std::io;

/// A limit in force; `None` if the system does not say.
pub(crate) fn soft(resource: Resource) -> Option<u64> {
    getrlimit(resource).ok().map(|(soft, _)| soft)
}

/// The same, for people.
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "the command line tells it"))]
pub(crate) fn told(resource: Resource) -> String {
    match soft(resource) {
        None => "unknown".to_owned(),
        Some(RLIM_INFINITY) => "unlimited".to_owned(),
        Some(limit) => limit.to_string(),
    }
}

/// Raises a limit as far as we may. Returns what it is then.
///
/// # Errors
///
/// If the system refuses.
pub(crate) fn raise(resource: Resource) -> io::Result<u64> {
    let (soft, hard) = getrlimit(resource)?;
    if soft != hard {
        setrlimit(resource, hard, hard)?;
    }
    Ok(hard)
}

//! The resources of the process: its limits, descriptors and threads, and the error when the system refuses one.
//!
//! A seccomp profile may refuse to read a limit; the usual wrapper assumes that this cannot happen, and panics.
//!
//! Threads, descriptors and limits are requested where an error can be returned, which ends the process with a line
//! that names what was refused. Libraries that panic instead are called only after a trial.

use crate::config::Config;
use crate::logic::shares::ShareLimits;
use actix::Arbiter;
pub(crate) use nix::sys::resource::Resource;
use nix::sys::resource::{RLIM_INFINITY, getrlimit, setrlimit};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::sync_channel;

/// A limit in force; `None` if the system does not say.
pub(crate) fn soft(resource: Resource) -> Option<u64> {
    getrlimit(resource).ok().map(|(soft, _)| soft)
}

/// A limit as text.
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "the command line tells it"))]
pub(crate) fn describe(resource: Resource) -> String {
    match soft(resource) {
        None => "unknown".to_owned(),
        Some(RLIM_INFINITY) => "unlimited".to_owned(),
        Some(limit) => limit.to_string(),
    }
}

/// Raises a limit to the hard limit. Returns the new value.
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

/// The descriptors of a broker: each connection takes six, one of the endpoints one.
pub(crate) fn descriptors_needed(config: &Config) -> u64 {
    let connections =
        ShareLimits::of_one(config.ipc.max_connections as usize, config.limits.user_share_percent).total();
    connections as u64 * 6 + u64::from(config.health_server.max_connections) + 64
}

/// From now on no process of the same user can trace this one, take its descriptors or read its memory, and it leaves
/// no core dump. Its files in `/proc` belong to root; it can still read its own.
pub(crate) fn forbid_dumps() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::warn!("cannot keep other processes of this user from the memory reason={error:?}");
    }
}

/// A process gets 1,024 unless it asks for more.
pub(in crate::broker) fn raise_descriptor_limit(config: &Config) {
    let (max_connections, needed) = (config.ipc.max_connections, descriptors_needed(config));
    match raise(Resource::RLIMIT_NOFILE) {
        Ok(limit) if limit < needed => {
            log::warn!("descriptor limit is low limit={limit} needed={needed} max_connections={max_connections}");
        }
        Ok(_) => {}
        Err(error) => log::warn!("cannot raise the descriptor limit reason={error:?} needed={needed}"),
    }
}

/// Pairs of descriptors that a thread's runtime takes at most.
const PAIRS: usize = 5;

/// A required thread or descriptor cannot be created.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {what}: {error}")]
pub struct Refused {
    /// What was to be started.
    what: &'static str,
    error: io::Error,
}

/// For `map_err`: names what could not be started.
pub(in crate::broker) fn refused(what: &'static str) -> impl Fn(io::Error) -> Refused {
    move |error| Refused { what, error }
}

/// A thread for actors.
///
/// # Errors
///
/// If the system has no thread or no descriptors for it.
pub(in crate::broker) fn arbiter(what: &'static str) -> Result<Arbiter, Refused> {
    Arbiter::try_new().map_err(refused(what))
}

/// Checks that `count` threads with runtimes can be started. For libraries that panic otherwise.
///
/// # Errors
///
/// Why not.
pub(crate) fn can_start(count: usize) -> io::Result<()> {
    let descriptors = (0..count * PAIRS).map(|_| UnixStream::pair());
    let _descriptors: Vec<_> = descriptors.collect::<io::Result<_>>()?;
    let start = |_| {
        let (end, ended) = sync_channel::<()>(0);
        let wait = move || {
            let _ = ended.recv();
        };
        let thread = std::thread::Builder::new().spawn(wait)?;
        Ok((end, thread))
    };
    let started: io::Result<Vec<_>> = (0..count).map(start).collect();
    for (end, thread) in started? {
        drop(end);
        let _ = thread.join();
    }
    Ok(())
}

/// Checks that the descriptors of the first runtime, which watches signals, are available; without them tokio panics.
/// It takes a pair of sockets and a copy of one; to watch them, three more.
///
/// # Errors
///
/// Why not.
pub(crate) fn can_watch_signals() -> io::Result<()> {
    let (one, two) = (UnixStream::pair()?, UnixStream::pair()?);
    let _copies = (one.0.try_clone()?, two.0.try_clone()?);
    Ok(())
}

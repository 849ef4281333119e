//! Threads of actors, and what a system that has no more of them says.
//!
//! The system may refuse threads, descriptors and limits. They are requested where an error can be returned, which ends
//! the process with a line that names what was refused. Libraries that panic instead are called only after a trial.

use actix::Arbiter;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::sync_channel;

/// Pairs of descriptors that a thread's runtime takes at most.
const PAIRS: usize = 5;

/// Why something that the broker needs is not to be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {what}: {error}")]
pub struct Refused {
    /// What was to be started.
    what: &'static str,
    error: io::Error,
}

/// For `map_err`: names what could not be started.
pub(super) fn refused(what: &'static str) -> impl Fn(io::Error) -> Refused {
    move |error| Refused { what, error }
}

/// A thread for actors.
///
/// # Errors
///
/// If the system has no thread or no descriptors for it.
pub(super) fn arbiter(what: &'static str) -> Result<Arbiter, Refused> {
    Arbiter::try_new().map_err(refused(what))
}

/// Whether so many threads with runtimes can be started now. For libraries that panic if one cannot.
///
/// # Errors
///
/// Why not.
pub(super) fn can_start(count: usize) -> io::Result<()> {
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

/// Whether the descriptors can be had that the first runtime needs, which watches signals; without them tokio panics.
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

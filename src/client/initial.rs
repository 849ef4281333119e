//! Connecting to a broker that is not there yet.
//!
//! The attempts follow the same backoff as those of a client that lost its socket, and one is made at once when
//! something appears in the folder of the socket.

use super::error::{Error, Kind, Result, Unreached};
use super::retry::{ReconnectOptions, Retry};
use crate::shm::segment::fill_random;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

/// Calls `attempt` until it finds a broker, fails for another reason, or `until` is past.
pub(super) fn retry<T>(
    options: ReconnectOptions,
    until: Option<Instant>,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let mut retry = Retry::new(ReconnectOptions { max_attempts: None, ..options }, Instant::now());
    let mut watch = None;
    loop {
        let error = match attempt() {
            Err(error) if error.is_no_broker() => error,
            other => return other,
        };
        let now = Instant::now();
        if until.is_some_and(|until| now >= until) {
            return Err(error);
        }
        if watch.is_none() {
            // Without it the delays must do. What appeared before it is found by one more attempt.
            watch = path_of(&error).and_then(|path| watch_folder_of(path).ok());
            if watch.is_some() {
                continue;
            }
        }
        let _ = retry.failed(now, chance());
        let next = until.map_or(retry.at(), |until| until.min(retry.at()));
        if sleep(watch.as_ref(), next) {
            retry.path_appeared(Instant::now());
        }
    }
}

fn path_of(error: &Error) -> Option<&Path> {
    let Kind::Connect { path, why: Unreached::Nobody, .. } = error.detail() else { return None };
    Some(path)
}

/// Watches what appears in the folder of a socket's path.
pub(super) fn watch_folder_of(path: &Path) -> io::Result<OwnedFd> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, folder, inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO)?;
    Ok(watch)
}

/// A random number in 0..1 for the jitter of a delay. Without randomness the delay is what it is.
pub(super) fn chance() -> f64 {
    let mut random = [0; 4];
    fill_random(&mut random).map_or(0.5, |()| f64::from(u32::from_le_bytes(random)) / 2f64.powi(32))
}

/// Sleeps until `next`, or until something appears in the folder: then it returns `true`.
fn sleep(watch: Option<&OwnedFd>, next: Instant) -> bool {
    let left = next.saturating_duration_since(Instant::now());
    let Some(watch) = watch else {
        std::thread::sleep(left);
        return false;
    };
    let appeared = poll(&mut [PollFd::new(watch, PollFlags::IN)], Timespec::try_from(left).ok().as_ref());
    let mut events = [0; 4096];
    while rustix::io::read(watch, &mut events).is_ok_and(|read| read > 0) {}
    appeared.is_ok_and(|ready| ready > 0)
}

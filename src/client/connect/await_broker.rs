//! Connecting to a broker that is not there yet.
//!
//! The attempts follow the same backoff as those of a client that lost its socket, and one is made at once when
//! the socket appears in its folder.

use super::retry::{ReconnectOptions, Retry};
use crate::client::error::{Error, Kind, Result, Unreached};
use crate::shm::segment::fill_random;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Calls `attempt` until it finds a broker, fails for another reason, or `until` is past.
pub(crate) fn retry<T>(
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
            watch = path_of(&error).and_then(|path| Some((watch_folder_of(path).ok()?, path.to_owned())));
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
    let Kind::Connect { path, why: Unreached::NoListener, .. } = error.detail() else { return None };
    Some(path)
}

/// Watches what appears in the folder of a socket's path.
pub(crate) fn watch_folder_of(path: &Path) -> io::Result<OwnedFd> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, folder, inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO)?;
    Ok(watch)
}

/// A random number in 0..1 for the jitter of a delay. Without randomness the delay is what it is.
pub(crate) fn chance() -> f64 {
    let mut random = [0; 4];
    fill_random(&mut random).map_or(0.5, |()| f64::from(u32::from_le_bytes(random)) / 2f64.powi(32))
}

/// Reads what a watch has seen: whether the file of `path` appeared in its folder.
pub(crate) fn has_appeared(watch: &OwnedFd, path: &Path) -> bool {
    let name = path.file_name().map(OsStrExt::as_bytes);
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(watch, &mut buffer);
    let mut appeared = false;
    // Events that were lost because there were too many may have been the file's.
    while let Ok(event) = events.next() {
        let named = event.file_name().map(|name| name.to_bytes());
        appeared |= named.is_none() || named == name;
    }
    appeared
}

/// Sleeps until `next`, or until the file that is watched appears: then it returns `true`.
fn sleep(watch: Option<&(OwnedFd, PathBuf)>, next: Instant) -> bool {
    let left = || next.saturating_duration_since(Instant::now());
    let Some((watch, path)) = watch else {
        std::thread::sleep(left());
        return false;
    };
    loop {
        let _ = poll(&mut [PollFd::new(watch, PollFlags::IN)], Timespec::try_from(left()).ok().as_ref());
        if has_appeared(watch, path) {
            return true;
        }
        if left().is_zero() {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_the_file_that_is_waited_for_ends_the_sleep() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ipc.sock");
        let watch = (watch_folder_of(&path).unwrap(), path.clone());
        std::fs::write(folder.path().join("other"), "").unwrap();
        assert!(!sleep(Some(&watch), Instant::now() + Duration::from_millis(1)));
        std::fs::write(&path, "").unwrap();
        assert!(sleep(Some(&watch), Instant::now() + Duration::from_secs(60)));
        assert!(!has_appeared(&watch.0, &path), "each event is told once");
    }
}

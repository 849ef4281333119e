//! A watch over a path by inotify, as a future; and the files that appear at a path, by a watch over its folder.
//!
//! Where the system gives no watch (the folder does not exist, the user's watches are taken), it is tried again; until
//! then only the delays between dials find the file.

use rustix::fs::inotify::{self, CreateFlags, Event, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::convert::Infallible;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A watch. It ends with this.
///
/// The last close of an inotify descriptor waits for the kernel to destroy its marks, which can take seconds on a busy
/// machine. So a thread of its own closes it, and no actor waits.
pub(in crate::broker) struct PathWatch(Option<AsyncFd<OwnedFd>>);

impl Drop for PathWatch {
    fn drop(&mut self) {
        let Some(watch) = self.0.take().map(AsyncFd::into_inner) else { return };
        // Without a thread the descriptor is closed here, with what the closure holds.
        let _ = std::thread::Builder::new().name("close-watch".to_owned()).spawn(move || drop(watch));
    }
}

impl PathWatch {
    /// Watches `path` for these events.
    ///
    /// # Errors
    ///
    /// If nothing is there, or the system gives no watch.
    pub(in crate::broker) fn new(path: &Path, events: WatchFlags) -> io::Result<PathWatch> {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, path, events)?;
        // The deprecation warns of types that close their descriptor behind tokio's back; an `OwnedFd` cannot.
        #[allow(deprecated)]
        let watch = AsyncFd::with_interest(watch, Interest::READABLE)?;
        Ok(PathWatch(Some(watch)))
    }

    /// Waits for events, and calls `each` with every one that has come.
    ///
    /// # Errors
    ///
    /// If the system fails.
    pub(in crate::broker) async fn events(&self, mut each: impl FnMut(&Event<'_>)) -> io::Result<()> {
        let Some(watch) = &self.0 else { return Ok(()) };
        let mut ready = watch.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(watch.get_ref(), &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => each(&event),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}

// ------------------------------------------------------------------------------------------------ files that appear

/// How long until a watch is tried again that could not be had.
const AGAIN: Duration = Duration::from_secs(1);

/// Calls `appeared` each time that a file appears at `path`, and when a watch begins that could not be had before.
pub(in crate::broker) async fn appearances(path: &Path, appeared: impl Fn()) -> Infallible {
    let mut was_blind = false;
    loop {
        match folder(path) {
            Ok(events) => {
                if was_blind {
                    appeared();
                }
                // It ends when the folder goes, or the system fails.
                let _ = follow(path, &events, &appeared).await;
            }
            Err(error) => log::debug!("cannot watch path={:?} reason={error:?}", path.display().to_string()),
        }
        was_blind = true;
        tokio::time::sleep(AGAIN).await;
    }
}

fn folder(path: &Path) -> io::Result<PathWatch> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
    PathWatch::new(folder, flags | WatchFlags::ONLYDIR)
}

/// Reads events until the folder is gone.
async fn follow(path: &Path, watch: &PathWatch, appeared: &impl Fn()) -> io::Result<()> {
    let name = path.file_name().map(OsStrExt::as_bytes);
    let gone = ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
    let (mut is_there, mut is_over) = (false, false);
    while !is_over {
        watch
            .events(|event| {
                is_over |= event.events().intersects(gone);
                // Events that were lost because there were too many may have been ours.
                is_there |= event.events().contains(ReadFlags::QUEUE_OVERFLOW)
                    || event.file_name().is_some_and(|named| Some(named.to_bytes()) == name);
            })
            .await?;
        if std::mem::take(&mut is_there) {
            appeared();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_one_by_one_and_each_once() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let watch = PathWatch::new(folder.path(), WatchFlags::CREATE).unwrap();
            for names in [vec!["a", "b"], vec!["c"]] {
                for name in &names {
                    std::fs::write(folder.path().join(name), "").unwrap();
                }
                let mut seen = Vec::new();
                watch.events(|event| seen.push(event.file_name().unwrap().to_str().unwrap().to_owned())).await.unwrap();
                assert_eq!(seen, names);
            }
        });
        assert!(PathWatch::new(&folder.path().join("none"), WatchFlags::CREATE).is_err());
    }
}

//! A watch over a path by inotify, as a future.

use rustix::fs::inotify::{self, CreateFlags, Event, WatchFlags};
use rustix::io::Errno;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A watch. It ends with this.
pub(super) struct PathWatch(AsyncFd<OwnedFd>);

impl PathWatch {
    /// Watches `path` for these events.
    ///
    /// # Errors
    ///
    /// If nothing is there, or the system gives no watch.
    pub(super) fn new(path: &Path, events: WatchFlags) -> io::Result<PathWatch> {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, path, events)?;
        // The deprecation warns of types that close their descriptor behind tokio's back; an `OwnedFd` cannot.
        #[allow(deprecated)]
        let watch = AsyncFd::with_interest(watch, Interest::READABLE)?;
        Ok(PathWatch(watch))
    }

    /// Waits for events, and calls `each` with every one that has come.
    ///
    /// # Errors
    ///
    /// If the system fails.
    pub(super) async fn events(&self, mut each: impl FnMut(&Event<'_>)) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.0.get_ref(), &mut buffer);
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

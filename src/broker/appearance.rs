//! Notices that a file appears at a path, by inotify on its folder.
//!
//! Where the system gives no watch (the folder does not exist, the user's watches are taken), it is tried again; until
//! then only the delays between dials find the file.

use rustix::fs::inotify;
use std::convert::Infallible;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long until a watch is tried again that could not be had.
const AGAIN: Duration = Duration::from_secs(1);

/// Calls `appeared` each time that a file appears at `path`, and when a watch begins that could not be had before.
pub(super) async fn watch(path: &Path, appeared: impl Fn()) -> Infallible {
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

fn folder(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    use inotify::WatchFlags;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
    inotify::add_watch(&events, folder, flags | WatchFlags::ONLYDIR)?;
    // The deprecation warns of types that close their descriptor behind tokio's back; an `OwnedFd` cannot.
    #[allow(deprecated)]
    AsyncFd::with_interest(events, Interest::READABLE)
}

/// Reads events until the folder is gone.
async fn follow(path: &Path, events: &AsyncFd<OwnedFd>, appeared: &impl Fn()) -> io::Result<()> {
    let name = path.file_name().map(OsStrExt::as_bytes);
    loop {
        let mut ready = events.readable().await?;
        let (mut is_there, mut is_over) = (false, false);
        {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(events.get_ref(), &mut buffer);
            loop {
                match reader.next() {
                    Ok(event) => {
                        use inotify::ReadFlags;
                        let gone = ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
                        is_over |= event.events().intersects(gone);
                        // Events that were lost because there were too many may have been ours.
                        is_there |= event.events().contains(ReadFlags::QUEUE_OVERFLOW)
                            || event.file_name().is_some_and(|named| Some(named.to_bytes()) == name);
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        ready.clear_ready();
        if is_there {
            appeared();
        }
        if is_over {
            return Ok(());
        }
    }
}

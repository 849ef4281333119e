//! Notices that a file appears at a path, by inotify on its folder.
//!
//! Where the system gives no watch (the folder does not exist, the user's watches are taken), it is tried again; until
//! then only the delays between dials find the file.

use super::path_watch::PathWatch;
use rustix::fs::inotify::{ReadFlags, WatchFlags};
use std::convert::Infallible;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

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

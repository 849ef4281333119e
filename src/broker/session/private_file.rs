//! Files beside the socket that only the broker's user can read and write: what the next broker needs to know.
//!
//! A file is replaced as a whole: a broker that is killed meanwhile leaves the one before. It is not synchronised with
//! the disk, because the clients that it is about end with the system, too.

use crate::shm::peer::own_uid;
use rustix::fs::{FileType, Mode, OFlags};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The path of a file beside the one at `path`, by what is added to the name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut beside = OsString::from(path);
    beside.push(suffix);
    PathBuf::from(beside)
}

/// Reads at most `most` bytes of the file. Returns the file, too. Links are not followed.
///
/// # Errors
///
/// If there is no file, or others than this user may read or write it.
pub(super) fn read(path: &Path, most: usize) -> io::Result<(File, Vec<u8>)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let found = rustix::fs::fstat(&file)?;
    let is_ours =
        FileType::from_raw_mode(found.st_mode).is_file() && found.st_uid == own_uid() && found.st_mode & 0o077 == 0;
    if !is_ours {
        return Err(io::Error::other("not a plain file of this user that is closed to all others"));
    }
    let mut bytes = Vec::new();
    (&file).take(most as u64).read_to_end(&mut bytes)?;
    Ok((file, bytes))
}

/// Writes another file, which then takes the name. Returns it, for more to be appended.
///
/// # Errors
///
/// If the system refuses. Then what was there before is still there.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let new = beside(path, ".new");
    let write = || {
        let _ = std::fs::remove_file(&new);
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut file = File::from(rustix::fs::open(&new, flags, Mode::from_raw_mode(0o600))?);
        file.write_all(bytes)?;
        std::fs::rename(&new, path)?;
        Ok(file)
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&new);
    })
}

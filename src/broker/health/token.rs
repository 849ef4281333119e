//! The token file that the broker creates for itself (`health_server.require_token`): beside the control socket, whose
//! lock keeps other brokers from its name; 0600 and random; removed at the end if it is still the same file.

use super::error::HealthError;
use crate::shm::segment::fill_random;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Random bytes in a token.
const TOKEN_BYTES: usize = 32;

/// A token file, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct TokenFile {
    path: PathBuf,
    /// Held open, so that no other file gets its number.
    file: File,
    identity: (u64, u64),
    token: Vec<u8>,
}

impl TokenFile {
    /// Creates the file beside a broker's socket. A file of this user that an earlier broker left is replaced.
    ///
    /// # Errors
    ///
    /// If something else is at the path, or the system refuses.
    pub(super) fn make(socket: &Path) -> Result<TokenFile, HealthError> {
        let mut path = OsString::from(socket);
        path.push(".token");
        let path = PathBuf::from(path);
        TokenFile::make_at(&path).map_err(|source| HealthError::TokenFile { path, source })
    }

    /// Creates a file at a path. A file of this user is replaced.
    ///
    /// # Errors
    ///
    /// As [`TokenFile::make`].
    pub(crate) fn make_at(path: &Path) -> io::Result<TokenFile> {
        let mut bytes = [0; TOKEN_BYTES];
        fill_random(&mut bytes)?;
        let token = bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        remove_stale(path)?;
        // Not through a link, and never a file that another user has open.
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::open(path, flags, mode)?;
        // The umask may have taken more away.
        rustix::fs::fchmod(&file, mode)?;
        let made = rustix::fs::fstat(&file)?;
        let (file, identity) = (File::from(file), (made.st_dev, made.st_ino));
        let made = TokenFile { path: path.to_owned(), file, identity, token: token.into_bytes() };
        (&made.file).write_all(&made.token)?;
        (&made.file).write_all(b"\n")?;
        Ok(made)
    }

    /// Leaves the file where it is.
    #[cfg(feature = "editor")]
    pub(crate) fn keep(mut self) {
        self.identity = (0, 0);
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn token(&self) -> &[u8] {
        &self.token
    }
}

/// Removes a plain file of this user.
fn remove_stale(path: &Path) -> io::Result<()> {
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(found) => {
            let is_plain = FileType::from_raw_mode(found.st_mode).is_file();
            if !is_plain || found.st_uid != crate::shm::peer::own_uid() {
                return Err(io::Error::other("exists and is not a regular file of this user"));
            }
            std::fs::remove_file(path)
        }
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        if rustix::fs::lstat(&self.path).is_ok_and(|found| (found.st_dev, found.st_ino) == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_file_is_private_new_each_time_and_removed_by_its_maker_only() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("ipc.sock");
        let first = TokenFile::make(&socket).unwrap();
        let path = folder.path().join("ipc.sock.token");
        assert_eq!(first.path(), path);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!((text.trim_end().as_bytes(), text.len()), (first.token(), 2 * TOKEN_BYTES + 1));
        let second = TokenFile::make(&socket).unwrap();
        assert_ne!(first.token(), second.token());
        drop(first);
        assert!(path.exists(), "the file of the second");
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_link_or_a_folder_at_the_path_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, path) = (folder.path().join("ipc.sock"), folder.path().join("ipc.sock.token"));
        let target = folder.path().join("target");
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let error = TokenFile::make(&socket).unwrap_err().to_string();
        assert!(error.contains("exists and is not a regular file of this user"), "{error}");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        TokenFile::make(&socket).unwrap_err();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    }
}

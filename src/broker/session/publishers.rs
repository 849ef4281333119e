//! The secret of the publishers' keys (`logic::session::publisher`), in the file `SOCKET.publishers` for the next
//! broker.
//!
//! 1. **F1, whose.** The file is a plain one of the broker's user, closed to all others; links are not followed. Any
//!    other file, or another text, is replaced by a new secret. Other users can then only remove it, if the folder lets
//!    them. Processes of the broker's user can read it, as they can replace the broker.
//! 2. **F2, before use.** The file is in place before the first session gets its key, and is written again if it was
//!    removed. It stays when the broker ends: a client that is away meanwhile has the same key later.
//! 3. **F3, without a file.** If it cannot be written, the broker works with a secret that ends with it, and says so.

use super::private_file::{self, beside};
use crate::logic::session::publisher::{Publisher, SECRET_BYTES, Secret, TEXT_BYTES};
use crate::shm::segment::fill_random;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The secret, and its file.
#[derive(Debug)]
pub(in crate::broker) struct Publishers {
    secret: Secret,
    path: PathBuf,
    stored: Mutex<Stored>,
}

#[derive(Debug, Default)]
struct Stored {
    /// The file that has the secret: held open, so that no other file gets its number.
    file: Option<File>,
    has_warned: bool,
}

impl Publishers {
    /// Reads the secret of the last broker beside the socket at `socket`, or makes another one.
    ///
    /// # Errors
    ///
    /// If the system has no entropy.
    pub(in crate::broker) fn open(socket: &Path) -> io::Result<Publishers> {
        let path = beside(socket, ".publishers");
        // A byte more than there should be, so that a longer file is another text.
        let reason = match private_file::read(&path, TEXT_BYTES + 1) {
            Ok((file, text)) => match Secret::parse(&text) {
                Some(secret) => {
                    let stored = Stored { file: Some(file), has_warned: false };
                    return Ok(Publishers { secret, path, stored: Mutex::new(stored) });
                }
                None => Some("not a secret of publishers".to_owned()),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = reason {
            let path = path.display().to_string();
            log::warn!("publishers get other keys than at the last broker path={path:?} reason={reason:?}");
        }
        let mut bytes = [0; SECRET_BYTES];
        fill_random(&mut bytes)?;
        Ok(Publishers { secret: Secret::new(bytes), path, stored: Mutex::default() })
    }

    /// The key of a publisher, which the next broker gives it, too.
    pub(in crate::broker) fn key(&self, publisher: &Publisher) -> u64 {
        self.store();
        self.secret.key(publisher)
    }

    /// Writes the file unless it is there.
    fn store(&self) {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = |found: Metadata| (found.dev(), found.ino());
        let there = std::fs::symlink_metadata(&self.path).map(identity).ok();
        let ours = stored.file.as_ref().and_then(|file| file.metadata().map(identity).ok());
        if ours.is_some() && ours == there {
            return;
        }
        let path = self.path.display().to_string();
        match private_file::replace(&self.path, self.secret.text().as_bytes()) {
            Ok(file) => {
                stored.file = Some(file);
                log::info!("secret of publishers written path={path:?}");
            }
            Err(error) => {
                stored.file = None;
                if !std::mem::replace(&mut stored.has_warned, true) {
                    let reason = error.to_string();
                    log::warn!("publishers get other keys at the next broker path={path:?} reason={reason:?}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::peer::own_uid;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    const CLIENT: Publisher = Publisher { uid: 1000, pid: 1, start: 2, nonce: 3 };

    fn folder() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (socket, file) = (folder.path().join("ipc.sock"), folder.path().join("ipc.sock.publishers"));
        (folder, socket, file)
    }

    /// The key of one client at a broker that starts now.
    fn key(socket: &Path) -> u64 {
        Publishers::open(socket).unwrap().key(&CLIENT)
    }

    fn mode(file: &Path) -> u32 {
        fs::symlink_metadata(file).unwrap().mode()
    }

    #[test]
    fn each_broker_at_the_socket_gives_the_same_keys() {
        let (folder, socket, file) = folder();
        let first = Publishers::open(&socket).unwrap();
        assert!(!file.exists(), "without a client it is not needed");
        let at_first = first.key(&CLIENT);
        assert_eq!(mode(&file), 0o100_600);
        drop(first);
        assert_eq!(key(&socket), at_first);
        assert_ne!(key(&folder.path().join("other.sock")), at_first);
    }

    /// Changes the file; the next broker makes another, and the one after it reads that.
    fn is_replaced(change: impl FnOnce(&Path)) {
        let (_folder, socket, file) = folder();
        let before = key(&socket);
        change(&file);
        let after = key(&socket);
        assert_ne!(after, before);
        assert_eq!(mode(&file), 0o100_600);
        assert_eq!(key(&socket), after);
    }

    #[test]
    fn a_file_that_others_could_have_read_or_written_is_replaced() {
        for open in [0o640, 0o604, 0o620, 0o602] {
            is_replaced(|file| fs::set_permissions(file, fs::Permissions::from_mode(open)).unwrap());
        }
        if own_uid() == 0 {
            is_replaced(|file| chown(file, Some(65_534), None).unwrap());
        }
    }

    #[test]
    fn another_text_is_replaced() {
        let changes: [fn(Vec<u8>) -> Vec<u8>; 4] = [
            |_| Vec::new(),
            |text| text[..text.len() - 1].to_vec(),
            |text| [text, b"\n".to_vec()].concat(),
            |_| vec![0; 3 << 20],
        ];
        for change in changes {
            is_replaced(|file| fs::write(file, change(fs::read(file).unwrap())).unwrap());
        }
    }

    #[test]
    fn another_kind_of_file_is_replaced_and_nothing_hangs() {
        is_replaced(|file| {
            let target = file.with_extension("target");
            fs::rename(file, &target).unwrap();
            symlink(&target, file).unwrap();
        });
        is_replaced(|file| {
            fs::remove_file(file).unwrap();
            mknodat(CWD, file, FileType::Fifo, Mode::RWXU, 0).unwrap();
        });
    }

    #[test]
    fn what_a_link_leads_to_is_not_written() {
        let (folder, socket, file) = folder();
        let target = folder.path().join("precious");
        fs::write(&target, "data").unwrap();
        symlink(&target, &file).unwrap();
        symlink(&target, beside(&file, ".new")).unwrap();
        key(&socket);
        assert_eq!(fs::read(&target).unwrap(), b"data");
        assert_eq!(mode(&file), 0o100_600);
    }

    #[test]
    fn a_file_that_was_removed_is_written_again_for_the_next_client() {
        let (_folder, socket, file) = folder();
        let publishers = Publishers::open(&socket).unwrap();
        let at_first = publishers.key(&CLIENT);
        fs::remove_file(&file).unwrap();
        fs::write(&file, "another").unwrap();
        assert_eq!(publishers.key(&CLIENT), at_first);
        assert_eq!(key(&socket), at_first);
    }

    #[test]
    fn without_a_folder_to_write_to_a_broker_gives_keys_all_the_same() {
        let (folder, _, _) = folder();
        let socket = folder.path().join("nowhere/ipc.sock");
        let publishers = Publishers::open(&socket).unwrap();
        assert_eq!(publishers.key(&CLIENT), publishers.key(&CLIENT));
        fs::create_dir(folder.path().join("nowhere")).unwrap();
        let at_last = publishers.key(&CLIENT);
        assert_eq!(key(&socket), at_last, "it is written as soon as it can be");
    }
}

//! Where a client looks for the broker's socket, if the program does not name it. The library and the command line use
//! this one function, so they find the same broker.
//!
//! 1. `LAPCE_IPC_SOCKET`;
//! 2. `$XDG_RUNTIME_DIR/lapce-ipc.sock`, if the current user owns it: the broker of the user's service manager;
//! 3. `/tmp/lapce_ipc.sock`, if the current user, root or a trusted user owns it: where a broker listens by default;
//! 4. `/run/lapce-ipc/ipc.sock`, if it exists: the system's broker.
//!
//! If none exists, the error names the third. The broker's configuration is not read: only the broker knows which file
//! that is.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The default socket of the broker.
pub const DEFAULT_SOCKET: &str = "/tmp/lapce_ipc.sock";

/// Where the socket unit of the system's broker listens.
const SYSTEM_SOCKET: &str = "/run/lapce-ipc/ipc.sock";

/// A socket, and which setting or rule chose it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) path: PathBuf,
    /// `None`: the program named the path itself.
    pub(crate) chosen_by: Option<&'static str>,
}

/// The source of a socket's path, for an error message.
pub(crate) fn chosen(by: Option<&str>) -> String {
    by.map(|by| format!(" (chosen by {by})")).unwrap_or_default()
}

/// The paths that do not depend on the environment; other ones in tests.
#[derive(Clone, Copy, Debug)]
struct Fixed<'a> {
    default: &'a Path,
    system: &'a Path,
}

/// Finds the socket. `owners` are the users whose socket in `/tmp` counts.
pub(crate) fn locate(own_uid: u32, owners: &[u32]) -> Located {
    let fixed = Fixed { default: Path::new(DEFAULT_SOCKET), system: Path::new(SYSTEM_SOCKET) };
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    choose(variable, own_uid, owners, fixed)
}

fn choose(variable: impl Fn(&str) -> Option<OsString>, own_uid: u32, owners: &[u32], fixed: Fixed<'_>) -> Located {
    let located = |path: PathBuf, chosen_by| Located { path, chosen_by: Some(chosen_by) };
    let owner = |path: &Path| std::fs::symlink_metadata(path).ok().map(|found| found.uid());
    if let Some(path) = variable("LAPCE_IPC_SOCKET") {
        return located(path.into(), "LAPCE_IPC_SOCKET");
    }
    if let Some(folder) = variable("XDG_RUNTIME_DIR") {
        let path = Path::new(&folder).join("lapce-ipc.sock");
        if owner(&path) == Some(own_uid) {
            return located(path, "XDG_RUNTIME_DIR");
        }
    }
    let is_trusted = |uid| uid == own_uid || uid == 0 || owners.contains(&uid);
    if !owner(fixed.default).is_some_and(is_trusted) && owner(fixed.system).is_some() {
        return located(fixed.system.to_owned(), "default: the system's socket");
    }
    located(fixed.default.to_owned(), "default: no other socket found")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::peer::own_uid;
    use std::collections::BTreeMap;

    #[test]
    fn the_socket_is_the_first_that_is_named_or_exists() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (default, system) = (path("default"), path("system"));
        let find = |variables: &[(&str, &Path)], uid| {
            let variables: BTreeMap<_, _> = variables.iter().copied().collect();
            let variable = |name: &str| variables.get(name).map(|path| path.as_os_str().to_owned());
            choose(variable, uid, &[], Fixed { default: &default, system: &system }).path
        };
        let (ours, other) = (own_uid(), own_uid() + 1);
        let runtime: (&str, &Path) = ("XDG_RUNTIME_DIR", folder.path());
        let create = |path: &Path| std::fs::write(path, "").unwrap();
        // Nothing exists: the path where a broker would listen.
        assert_eq!(find(&[runtime], ours), default);
        create(&system);
        assert_eq!(find(&[runtime], ours), system);
        create(&default);
        assert_eq!(find(&[runtime], ours), default);
        create(&path("lapce-ipc.sock"));
        assert_eq!(find(&[], ours), default);
        assert_eq!(find(&[runtime], ours), path("lapce-ipc.sock"));
        assert_eq!(find(&[runtime, ("LAPCE_IPC_SOCKET", Path::new("/named"))], ours), Path::new("/named"));
        // Sockets of another user, which may have placed them to be found.
        if ours != 0 {
            assert_eq!(find(&[runtime], other), system);
        }
    }

    #[test]
    fn a_trusted_users_socket_counts() {
        let folder = tempfile::tempdir().unwrap();
        let (default, system) = (folder.path().join("default"), folder.path().join("system"));
        for path in [&default, &system] {
            std::fs::write(path, "").unwrap();
            // If only root can be another user, its socket counts anyway.
            let _ = std::os::unix::fs::chown(path, Some(4242), None);
        }
        if std::fs::metadata(&default).unwrap().uid() != 4242 {
            return;
        }
        let find = |owners: &[u32]| choose(|_| None, 7, owners, Fixed { default: &default, system: &system }).path;
        assert_eq!(find(&[]), system);
        assert_eq!(find(&[4242]), default);
    }
}

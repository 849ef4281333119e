//! Another user of this machine, which only root can become.

use super::copy_program;
use super::probe::note;
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// A user that is not this one, and owns nothing.
pub const OTHER_USER: u32 = 65_534;

/// A folder that all users may use, with a program that all may run.
pub fn open_folder(program: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    set_permissions(folder.path(), Permissions::from_mode(0o777)).expect("our folder");
    let copy = folder.path().join("program");
    copy_program(program, &copy);
    set_permissions(&copy, Permissions::from_mode(0o755)).expect("our file");
    (folder, copy)
}

/// The command runs as [`OTHER_USER`].
pub fn as_other_user(command: &mut Command) {
    as_user(command, OTHER_USER);
}

/// The command runs as the user `uid`.
pub fn as_user(command: &mut Command, uid: u32) {
    command.uid(uid).gid(uid).current_dir("/");
}

/// Whether this process is root's; if not, the test is skipped.
pub fn are_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        note("skipped: only root can become another user");
    }
    root
}

//! Programs by their names.

use rustix::fs::{Access, access};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Whether this process may execute a file.
pub(crate) fn is_program(file: &Path) -> bool {
    file.is_file() && access(file, Access::EXEC_OK).is_ok()
}

/// The programs of this name in the folders of a `PATH`, in their order.
pub(crate) fn programs(name: &OsStr, path: &OsStr) -> impl Iterator<Item = PathBuf> {
    std::env::split_paths(path).map(move |folder| folder.join(name)).filter(|file| is_program(file))
}

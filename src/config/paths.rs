//! The lookup of the configuration file, and its trust checks.
//!
//! In order: the file that was named (`--config`, then `LAPCE_IPC_CONFIG`), `$XDG_CONFIG_HOME/lapce-ipc/config.toml`
//! (with `~/.config` if the variable is not set), `/etc/lapce-ipc/config.toml`. The first that exists is the only one
//! that is read. The working directory is never searched: a cloned repository must not configure the broker. For the
//! same reason a file that another user could have written is refused.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::env::Env;
use super::error::{ConfigError, Fault, Origin, Problem};

/// The inputs of the lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The file that the command line names.
    pub file: Option<PathBuf>,
    /// The machine's directory of configurations: `/etc`, but for tests.
    pub etc: PathBuf,
    /// The user that may own a file besides root: the user of this process, except in tests.
    pub own_uid: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { file: None, etc: PathBuf::from("/etc"), own_uid: rustix::process::geteuid().as_raw() }
    }
}

/// The most bytes of a configuration that are read.
const FILE_MAX: u64 = 1 << 20;

/// Finds and reads the configuration file; `None` if there is none, and none was named.
pub(super) fn find(options: &Options, env: &Env) -> Result<Option<(PathBuf, Vec<u8>)>, ConfigError> {
    const VARIABLE: &str = "LAPCE_IPC_CONFIG";
    let (named, variable) = match &options.file {
        Some(path) => (Some(path.clone()), None),
        None => (env.get(VARIABLE).map(PathBuf::from), Some(VARIABLE)),
    };
    let read = |path: &Path| read(path, options.own_uid).map_err(|fault| ConfigError::from(problem(path, fault)));
    if let Some(path) = named {
        return match read(&path)? {
            Some(text) => Ok(Some((path, text))),
            None => Err(problem(&path, Fault::NoSuchFile { variable }).into()),
        };
    }
    for path in default_paths(options, env) {
        if let Some(text) = read(&path)? {
            return Ok(Some((path, text)));
        }
    }
    Ok(None)
}

/// The default locations of a configuration. A relative directory in a variable is ignored, as the XDG
/// specification wants it: it would be below the working directory.
fn default_paths(options: &Options, env: &Env) -> Vec<PathBuf> {
    let of_variable = |name| env.get(name).map(PathBuf::from);
    let personal = of_variable("XDG_CONFIG_HOME").or_else(|| of_variable("HOME").map(|home| home.join(".config")));
    personal
        .filter(|directory| directory.is_absolute())
        .into_iter()
        .chain([options.etc.clone()])
        .map(|directory| directory.join("lapce-ipc/config.toml"))
        .collect()
}

/// Opens a file if it exists, and no other user could have written it. The check is on the open file, not on the path,
/// which could change in between. Returns its mode, too.
fn open(path: &Path, own_uid: u32) -> Result<Option<(File, u32)>, Fault> {
    // A pipe without a writer would hang the open.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(unreadable(error.into())),
    };
    let stat = rustix::fs::fstat(&fd).map_err(|error| unreadable(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Fault::NotAFile);
    }
    if stat.st_uid != own_uid && stat.st_uid != 0 {
        return Err(Fault::ForeignOwner { owner: stat.st_uid, own: own_uid });
    }
    let mode = stat.st_mode & 0o7777;
    if mode & 0o022 != 0 {
        return Err(Fault::WritableByOthers { mode });
    }
    Ok(Some((File::from(fd), mode)))
}

/// Reads the whole of a file if it is there.
fn read(path: &Path, own_uid: u32) -> Result<Option<Vec<u8>>, Fault> {
    let Some((file, _)) = open(path, own_uid)? else { return Ok(None) };
    let text = up_to(file, FILE_MAX + 1)?;
    if text.len() as u64 > FILE_MAX { Err(Fault::FileTooLarge { max: FILE_MAX }) } else { Ok(Some(text)) }
}

/// Reads the first `max` bytes of a file that not all users can read.
pub(super) fn read_secret(path: &Path, own_uid: u32, max: u64) -> Result<Vec<u8>, Fault> {
    match open(path, own_uid)? {
        None => Err(Fault::NoSuchFile { variable: None }),
        Some((_, mode)) if mode & 0o004 != 0 => Err(Fault::ReadableByOthers { mode }),
        Some((file, _)) => up_to(file, max),
    }
}

fn up_to(file: File, max: u64) -> Result<Vec<u8>, Fault> {
    let mut text = Vec::new();
    file.take(max).read_to_end(&mut text).map_err(unreadable)?;
    Ok(text)
}

fn unreadable(error: std::io::Error) -> Fault {
    // The operating system's own words begin with a capital and end with a number.
    Fault::Unreadable(match error.kind() {
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    })
}

/// A problem with a file as a whole.
fn problem(path: &Path, fault: Fault) -> Problem {
    Problem { origin: Origin::File { path: path.to_owned(), line: 0, column: 0 }, key: None, fault }
}

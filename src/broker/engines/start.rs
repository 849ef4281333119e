//! The start of an engine: its program, its environment, its pipe.

use crate::broker::processes::children::Running;
use crate::broker::processes::path::programs;
use crate::config;
use std::env;
use std::io::{PipeReader, pipe};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Variables of the service manager that are for the broker alone.
const MANAGER: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// A process that was started, and what it prints.
pub(super) struct Started {
    pub(super) running: Running,
    pub(super) pipe: PipeReader,
}

/// Starts the program.
///
/// # Errors
///
/// Why it cannot be started.
pub(super) fn start(engine: &config::Engine, socket: &Path) -> Result<Started, String> {
    let failed = |error| format!("cannot start {}: {error}", engine.command);
    let program = program(&engine.command, env::var_os("PATH").as_deref())?;
    // One pipe for both keeps the order of what is printed.
    let (reader, writer) = pipe().map_err(failed)?;
    let mut command = Command::new(program);
    command.args(&engine.args).current_dir("/").stdin(Stdio::null());
    command.stdout(writer.try_clone().map_err(failed)?).stderr(writer);
    for name in MANAGER {
        command.env_remove(name);
    }
    command.envs(engine.env.iter().filter_map(|pair| pair.split_once('=')));
    command.env("LAPCE_IPC_SOCKET", std::path::absolute(socket).map_err(failed)?);
    let running = Running::start(&mut command).map_err(failed)?;
    Ok(Started { running, pipe: reader })
}

/// The program's file. A name is looked up in the absolute folders of the broker's `PATH`, in no working directory.
fn program(command: &str, path: Option<&std::ffi::OsStr>) -> Result<PathBuf, String> {
    if command.starts_with('/') {
        return Ok(PathBuf::from(command));
    }
    let mut files = path.into_iter().flat_map(|path| programs(command.as_ref(), path));
    files.find(|file| file.is_absolute()).ok_or_else(|| format!("cannot start {command}: no such program on PATH"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_on_the_path_and_not_in_the_working_directory() {
        let found = |path: &str| program("sh", Some(path.as_ref()));
        assert!(found("/nonexistent:/bin").unwrap().ends_with("bin/sh"));
        for path in ["", ".", "bin", "/nonexistent"] {
            assert_eq!(found(path).unwrap_err(), "cannot start sh: no such program on PATH", "{path}");
        }
        assert_eq!(program("/nonexistent/x", None).unwrap(), Path::new("/nonexistent/x"));
    }
}

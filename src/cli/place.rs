//! Which broker is meant, and what its configuration says.

use super::exit::Failure;
use crate::client::{Client, WaitStrategy};
use crate::config::{self, Env, Loaded, Options, Origin};
use clap::Args;
use std::path::PathBuf;

/// The options that every command has.
#[derive(Clone, Debug, Args)]
pub(super) struct Place {
    /// The broker's socket
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// The configuration file, instead of those in the usual places
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

impl Place {
    /// The broker's configuration, with its socket settled.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub(super) fn load(&self) -> Result<Loaded, Failure> {
        let env = Env::of_process();
        let mut loaded = config::load(&self.options(), &env)?;
        loaded.settle_socket(self.socket.as_ref().map(|path| path.as_os_str()), &env)?;
        Ok(loaded)
    }

    fn options(&self) -> Options {
        Options { file: self.config.clone(), ..Options::default() }
    }

    /// Where a client connects; `None`: where the library looks by itself.
    fn socket(&self) -> Result<Option<PathBuf>, Failure> {
        if self.socket.is_some() {
            return Ok(self.socket.clone());
        }
        let env = Env::of_process();
        // It comes before the configuration, which need not be sound, then.
        if env.get("LAPCE_IPC_SOCKET").is_some() {
            return Ok(None);
        }
        let loaded = config::load(&self.options(), &env)?;
        let is_set = *loaded.origin("ipc.socket_path") != Origin::Default;
        Ok(is_set.then_some(loaded.config.ipc.socket_path))
    }

    /// Connects as `lapce-ipc-COMMAND`.
    ///
    /// # Errors
    ///
    /// If there is no broker, or it does not want us.
    pub(super) fn connect(&self, command: &str, wait: impl Into<WaitStrategy>) -> Result<Client, Failure> {
        let builder = Client::builder().name(&format!("lapce-ipc-{command}"))?.wait(wait.into());
        let builder = match self.socket()? {
            Some(path) => builder.socket(path),
            None => builder,
        };
        builder.connect().map_err(|error| match &self.socket {
            Some(path) if error.is_no_broker() => {
                Failure::from(error).hint(format!("start one: lapce-ipc serve --socket {}", path.display()))
            }
            _ => error.into(),
        })
    }
}

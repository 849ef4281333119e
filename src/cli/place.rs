//! Which broker is meant, and what its configuration says.

use super::exit::Failure;
use super::output::note;
use crate::client::{Builder, Client, ConnectionState, Events, ReconnectOptions, WaitStrategy};
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

    /// Connects as `lapce-ipc-COMMAND`, for one thing: a connection that is lost is an error.
    ///
    /// # Errors
    ///
    /// If there is no broker, or it does not want us.
    pub(super) fn connect(&self, command: &str, wait: impl Into<WaitStrategy>) -> Result<Client, Failure> {
        self.connect_by(self.builder(command, wait)?.no_reconnect())
    }

    /// Connects as `lapce-ipc-COMMAND`, to stay: a connection that is lost comes back, and stderr tells of it.
    ///
    /// # Errors
    ///
    /// If there is no broker, or it does not want us.
    pub(super) fn connect_to_stay(&self, command: &str, wait: impl Into<WaitStrategy>) -> Result<Client, Failure> {
        let options = ReconnectOptions { max_attempts: None, ..ReconnectOptions::default() };
        let client = self.connect_by(self.builder(command, wait)?.reconnect(options))?;
        let events = client.events();
        // Whoever waits brings the connection back. Without the thread it does so in silence.
        let _ = std::thread::Builder::new().name("connection".to_owned()).spawn(move || tell(events));
        Ok(client)
    }

    fn builder(&self, command: &str, wait: impl Into<WaitStrategy>) -> Result<Builder, Failure> {
        let builder = Client::builder().name(&format!("lapce-ipc-{command}"))?.wait(wait.into());
        Ok(match self.socket()? {
            Some(path) => builder.socket(path),
            None => builder,
        })
    }

    fn connect_by(&self, builder: Builder) -> Result<Client, Failure> {
        builder.connect().map_err(|error| match &self.socket {
            Some(path) if error.is_no_broker() => {
                Failure::from(error).hint(format!("start one: lapce-ipc serve --socket {}", path.display()))
            }
            _ => error.into(),
        })
    }
}

/// Tells of a connection that is lost, once, and that it is there again.
fn tell(events: Events) {
    let mut is_lost = false;
    for state in events {
        match state {
            ConnectionState::Reconnecting { .. } if !is_lost => {
                is_lost = true;
                note(format_args!("connection lost; reconnecting"));
            }
            ConnectionState::Connected if std::mem::take(&mut is_lost) => note(format_args!("connected again")),
            _ => {}
        }
    }
}

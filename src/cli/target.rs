//! The broker that a command uses, and its configuration.

use super::failure::{Code, Failure};
use super::output::note;
#[cfg(feature = "editor")]
use crate::client::asynchronous::AsyncEvents;
use crate::client::{
    Builder, Client, ConnectionState, DEFAULT_SOCKET, ErrorDetail as ErrorKind, Events, ReconnectOptions, Unreached,
    WaitStrategy,
};
use crate::config::{self, ConfigError, Env, Loaded, Options, Origin};
use clap::Args;
use rustix::process::geteuid;
use std::num::ParseIntError;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest time for a handshake, within the time for the whole.
const GREETING: Duration = Duration::from_secs(5);

/// The options that every command has.
#[derive(Clone, Debug, Args)]
pub(super) struct BrokerTarget {
    /// The broker's socket
    #[arg(long, global = true, value_name = "PATH", help_heading = GLOBAL)]
    pub(super) socket: Option<PathBuf>,
    /// The broker's configuration file; a client reads ipc.socket_path from it
    #[arg(long, global = true, value_name = "FILE", help_heading = GLOBAL)]
    pub(super) config: Option<PathBuf>,
    /// Users whose broker a client trusts besides its own and root.
    #[arg(skip)]
    pub(super) trusted: Vec<u32>,
}

const GLOBAL: &str = "Global options";

/// Options of clients only.
#[derive(Clone, Debug, Args)]
pub(super) struct Trust {
    /// For clients: also trust a broker of this user, besides the own user's and root's; may be repeated
    /// [LAPCE_IPC_TRUSTED_UIDS=UID,UID]
    #[arg(long, global = true, value_name = "UID", help_heading = GLOBAL)]
    trust_uid: Vec<u32>,
}

/// Users, as [`Trust`] has them.
const TRUSTED_UIDS: &str = "LAPCE_IPC_TRUSTED_UIDS";

impl BrokerTarget {
    /// Passes the same on to another command of this program.
    pub(super) fn pass_on(&self, command: &mut Command) {
        for (option, path) in [("--socket", &self.socket), ("--config", &self.config)] {
            if let Some(path) = path {
                command.arg(option).arg(path);
            }
        }
        for uid in &self.trusted {
            command.args(["--trust-uid", &uid.to_string()]);
        }
    }

    /// The same for a client, with the users whose broker it trusts: those that are named, and those of the variable.
    ///
    /// # Errors
    ///
    /// If the variable is not a list of user ids.
    pub(super) fn trusting(&self, trust: &Trust) -> Result<BrokerTarget, Failure> {
        let env = Env::of_process();
        let listed = env.get(TRUSTED_UIDS).map(|list| list.to_string_lossy()).unwrap_or_default();
        let listed = listed.split(',').map(str::trim).filter(|uid| !uid.is_empty()).map(|uid| {
            let wrong = || Failure::new(Code::Config, format!("{TRUSTED_UIDS}: invalid user id {uid:?}"));
            uid.parse().map_err(|_: ParseIntError| wrong())
        });
        let trusted = trust.trust_uid.iter().map(|uid| Ok(*uid)).chain(listed).collect::<Result<_, Failure>>()?;
        Ok(BrokerTarget { trusted, ..self.clone() })
    }

    /// The same for a broker, whose trusted users are in its configuration.
    ///
    /// # Errors
    ///
    /// If a client's option is given.
    pub(super) fn serving(&self, trust: &Trust) -> Result<&BrokerTarget, Failure> {
        match trust.trust_uid[..] {
            [] => Ok(self),
            _ => Err(Failure::new(Code::Usage, "--trust-uid is for clients; use ipc.allowed_uids for a broker")),
        }
    }

    /// The broker's configuration, with its socket settled.
    ///
    /// # Errors
    ///
    /// All its errors.
    pub(super) fn load(&self) -> Result<Loaded, ConfigError> {
        let env = Env::of_process();
        let mut loaded = config::load(&self.options(), &env)?;
        loaded.settle_socket(self.socket.as_ref().map(|path| path.as_os_str()), &env)?;
        Ok(loaded)
    }

    fn options(&self) -> Options {
        Options { file: self.config.clone(), ..Options::default() }
    }

    /// The socket and the option that chose it; `None`: the lookup order of the library. Only the configuration that
    /// `--config` names is read: the one that the broker uses is not known here.
    fn socket(&self) -> Result<Option<(PathBuf, &'static str)>, Failure> {
        let env = Env::of_process();
        let loaded = self.config.as_ref().map(|_| config::load(&self.options(), &env)).transpose()?;
        if let Some(path) = &self.socket {
            return Ok(Some((path.clone(), "--socket")));
        }
        let is_set = |loaded: &Loaded| matches!(loaded.origin("ipc.socket_path"), Origin::File { .. });
        match loaded.filter(is_set) {
            Some(loaded) if env.get("LAPCE_IPC_SOCKET").is_none() => {
                Ok(Some((loaded.config.ipc.socket_path, "--config")))
            }
            _ => Ok(None),
        }
    }

    /// The socket that the command line names; `None`: the lookup order of the library.
    ///
    /// # Errors
    ///
    /// If the configuration is invalid.
    #[cfg(feature = "editor")]
    pub(super) fn named_socket(&self) -> Result<Option<PathBuf>, Failure> {
        Ok(self.socket()?.map(|(path, _)| path))
    }

    /// Connects as `lapce-ipc-COMMAND`, without reconnecting: a lost connection is an error.
    ///
    /// # Errors
    ///
    /// If there is no broker, or it refuses the connection.
    pub(super) fn connect(&self, command: &str, wait: impl Into<WaitStrategy>) -> Result<Client, Failure> {
        self.connect_by(self.builder(command, wait)?.no_reconnect())
    }

    /// The same, if it takes no longer than `timeout`. Returns the time left.
    ///
    /// # Errors
    ///
    /// As [`BrokerTarget::connect`], or if it takes longer.
    pub(super) fn connect_within(
        &self,
        command: &str,
        wait: impl Into<WaitStrategy>,
        timeout: Duration,
    ) -> Result<(Client, Duration), Failure> {
        let begun = Instant::now();
        let builder = self.builder(command, wait)?.no_reconnect();
        let client = self.connect_by(builder.timeout(timeout.min(GREETING)));
        let left = timeout.saturating_sub(begun.elapsed());
        if left.is_zero() {
            let message = format!("deadline exceeded: not connected within {timeout:?}");
            let why = client.err().map(Failure::into_message).unwrap_or_default();
            return Err(Failure::new(Code::TryAgain, message + if why.is_empty() { "" } else { ": " } + &why));
        }
        Ok((client?, left))
    }

    /// Connects as `lapce-ipc-COMMAND`, with reconnecting; stderr reports a lost connection.
    ///
    /// # Errors
    ///
    /// If there is no broker, or it refuses the connection.
    pub(super) fn connect_persistent(&self, command: &str, wait: impl Into<WaitStrategy>) -> Result<Client, Failure> {
        let options = ReconnectOptions { max_attempts: None, ..ReconnectOptions::default() };
        let client = self.connect_by(self.builder(command, wait)?.reconnect(options))?;
        *persistent() = Some(client.clone());
        let events = client.events();
        // Any waiting thread restores the connection; this thread only reports it.
        let _ = std::thread::Builder::new().name("connection".to_owned()).spawn(move || report_states(events));
        Ok(client)
    }

    /// For commands on the asynchronous client: the options of a connection as `lapce-ipc-COMMAND`, with reconnecting.
    ///
    /// # Errors
    ///
    /// If an option is invalid.
    #[cfg(feature = "editor")]
    pub(super) fn persistent_builder(&self, command: &str, wait: impl Into<WaitStrategy>) -> Result<Builder, Failure> {
        let options = ReconnectOptions { max_attempts: None, ..ReconnectOptions::default() };
        Ok(self.builder(command, wait)?.reconnect(options))
    }

    /// The options of a client that connects as `lapce-ipc-COMMAND`.
    ///
    /// # Errors
    ///
    /// If the name or the configuration is invalid.
    pub(super) fn builder(&self, command: &str, wait: impl Into<WaitStrategy>) -> Result<Builder, Failure> {
        let builder = self.builder_without_socket(command, wait)?;
        Ok(match self.socket()? {
            // Root may ask any user's broker for its status: the request holds no data, and the reply is only printed.
            Some((path, option)) if command == "status" && geteuid().is_root() => {
                let owner = std::fs::metadata(&path).map(|socket| socket.uid()).ok();
                builder.trusted_uids(owner).socket_chosen_by(path, option)
            }
            Some((path, option)) => builder.socket_chosen_by(path, option),
            None => builder,
        })
    }

    /// All options but the socket.
    ///
    /// # Errors
    ///
    /// If the name is invalid.
    pub(super) fn builder_without_socket(
        &self,
        command: &str,
        wait: impl Into<WaitStrategy>,
    ) -> Result<Builder, Failure> {
        let builder = Client::builder().name(&format!("lapce-ipc-{command}"))?;
        Ok(builder.wait(wait.into()).trusted_uids(self.trusted.iter().copied()))
    }

    fn connect_by(&self, builder: Builder) -> Result<Client, Failure> {
        builder.connect().map_err(|error| match error.detail() {
            ErrorKind::Connect { why: Unreached::NoListener, path, .. } if *path != Path::new(DEFAULT_SOCKET) => {
                let hint = format!("start a broker: lapce-ipc serve --socket {}", path.display());
                Failure::from(error).hint(hint)
            }
            _ => error.into(),
        })
    }
}

/// The connection of a command that reconnects.
static PERSISTENT: Mutex<Option<Client>> = Mutex::new(None);

fn persistent() -> MutexGuard<'static, Option<Client>> {
    PERSISTENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes the connection before the process ends, so that the broker does not count a lost connection.
pub(super) fn close_connection() {
    if let Some(client) = persistent().take() {
        client.close();
    }
}

/// Reports a lost connection once, and its return.
fn report_states(events: Events) {
    let mut is_lost = false;
    for state in events {
        match state {
            ConnectionState::Reconnecting { .. } if !is_lost => {
                is_lost = true;
                note(format_args!("connection lost; reconnecting"));
            }
            ConnectionState::Connected if std::mem::take(&mut is_lost) => note(format_args!("reconnected")),
            _ => {}
        }
    }
}

/// The same for an asynchronous connection, in the log.
#[cfg(feature = "editor")]
pub(super) async fn log_states(mut events: AsyncEvents) {
    let mut is_lost = false;
    while let Some(state) = events.next().await {
        match state {
            ConnectionState::Reconnecting { .. } if !is_lost => {
                is_lost = true;
                log::warn!("connection lost; reconnecting");
            }
            ConnectionState::Connected if std::mem::take(&mut is_lost) => log::info!("reconnected"),
            _ => {}
        }
    }
}

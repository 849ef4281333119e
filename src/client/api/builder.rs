//! Connecting: options, and the handshake with the broker.

use super::client::Client;
use crate::client::connect::await_broker;
use crate::client::connect::endpoint::{Endpoint, receive_welcome};
use crate::client::connect::locate::{self, Located};
use crate::client::connect::retry::ReconnectOptions;
use crate::client::connection::shared::{Connection, WaitStrategy};
use crate::client::data::lock::deadline;
use crate::client::error::Result;
use crate::shm::peer;
use crate::wire::name::Name;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The options of a client.
///
/// ```no_run
/// use lapce_ipc::client::{Client, WaitStrategy};
///
/// let client = Client::builder().name("editor")?.wait(WaitStrategy::Block).connect()?;
/// # Ok::<(), lapce_ipc::client::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    name: Name,
    socket: Option<Located>,
    wait: WaitStrategy,
    trusted_uids: Vec<u32>,
    timeout: Duration,
    reconnect: Option<ReconnectOptions>,
    awaits_broker: bool,
}

impl Client {
    /// Connects to the broker at the default socket; see [`Builder::socket`].
    ///
    /// # Errors
    ///
    /// As [`Builder::connect`].
    ///
    /// ```no_run
    /// let client = lapce_ipc::client::Client::connect()?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn connect() -> Result<Client> {
        Client::builder().connect()
    }

    /// Options for a connection.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::new()
    }
}

impl Builder {
    pub(crate) fn new() -> Builder {
        let of_program = std::env::args_os().next().and_then(|program| {
            let name =
                Path::new(&program).file_stem()?.to_string_lossy().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
            Name::parse(&name.chars().take(64).collect::<String>()).ok()
        });
        Builder {
            name: of_program.unwrap_or_else(|| Name::parse("client").expect("a valid name")),
            socket: None,
            wait: WaitStrategy::Adaptive,
            trusted_uids: Vec::new(),
            timeout: Duration::from_secs(5),
            reconnect: Some(ReconnectOptions::default()),
            awaits_broker: false,
        }
    }

    /// The client's name in logs and status; by default the program's name.
    ///
    /// # Errors
    ///
    /// If the name is invalid.
    pub fn name(mut self, name: &str) -> Result<Builder> {
        self.name = Name::parse(name)?;
        Ok(self)
    }

    /// The broker's socket. By default the first of:
    ///
    /// 1. `LAPCE_IPC_SOCKET`;
    /// 2. `$XDG_RUNTIME_DIR/lapce-ipc.sock`, if the current user owns it;
    /// 3. [`DEFAULT_SOCKET`](crate::client::DEFAULT_SOCKET), if the current user, root or one of
    ///    [`Builder::trusted_uids`] owns it;
    /// 4. `/run/lapce-ipc/ipc.sock`, the socket of the system's broker, if it exists.
    ///
    /// The command line uses the same lookup order. The broker's configuration is not read.
    #[must_use]
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Builder {
        self.socket = Some(Located { path: path.into(), chosen_by: None });
        self
    }

    /// The broker's socket, and the option that chose it, for error messages.
    #[cfg(feature = "cli")]
    pub(crate) fn socket_chosen_by(mut self, path: PathBuf, chosen_by: &'static str) -> Builder {
        self.socket = Some(Located { path, chosen_by: Some(chosen_by) });
        self
    }

    /// The wait strategy of the client's threads. On a single CPU [`WaitStrategy::Busy`] would prevent the broker from
    /// running: the threads sleep instead, and the log says so once.
    #[must_use]
    pub fn wait(mut self, wait: WaitStrategy) -> Builder {
        self.wait = wait;
        self
    }

    /// User ids whose broker is trusted, besides this process's user and root.
    #[must_use]
    pub fn trusted_uids(mut self, uids: impl IntoIterator<Item = u32>) -> Builder {
        self.trusted_uids.extend(uids);
        self
    }

    /// The time limit of connecting, handshake included; 5 seconds by default, `Duration::MAX` for none.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Builder {
        self.timeout = timeout;
        self
    }

    /// How the client reconnects after a lost connection; see [`ReconnectOptions`] for the default.
    #[must_use]
    pub fn reconnect(mut self, options: ReconnectOptions) -> Builder {
        self.reconnect = Some(options);
        self
    }

    /// Disables reconnecting: when the connection is lost, blocked calls return
    /// [`Error::is_disconnected`](crate::client::Error::is_disconnected).
    #[must_use]
    pub fn no_reconnect(mut self) -> Builder {
        self.reconnect = None;
        self
    }

    /// Waits for a broker that does not run yet, within [`Builder::timeout`]: connecting is retried when the socket
    /// appears, and with the backoff of [`Builder::reconnect`]. By default a missing broker is an error at once.
    ///
    /// ```no_run
    /// use lapce_ipc::client::Client;
    /// use std::time::Duration;
    ///
    /// // A language server that the editor starts before the broker.
    /// let client = Client::builder().retry_on_initial_connect().timeout(Duration::from_secs(60)).connect()?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    #[must_use]
    pub fn retry_on_initial_connect(mut self) -> Builder {
        self.awaits_broker = true;
        self
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// If no process listens, the broker's user is not trusted, the protocol versions differ, or the broker refuses the
    /// connection; if the handshake exceeds the time limit; if an option is invalid
    /// ([`Error::is_invalid_option`](crate::client::Error::is_invalid_option)).
    pub fn connect(self) -> Result<Client> {
        let until = deadline(Some(self.timeout));
        let attempt = || {
            let endpoint = self.endpoint(self.located())?;
            let socket = endpoint.dial(until)?;
            Ok((endpoint, socket))
        };
        let (endpoint, socket) = match self.awaits_broker {
            true => await_broker::retry(self.reconnect.clone().unwrap_or_default(), until, attempt)?,
            false => attempt()?,
        };
        self.greet(endpoint, socket, until)
    }

    /// The handshake with a broker that has dialled, if its user is trusted.
    pub(crate) fn accept(&self, socket: UnixStream, path: &Path) -> Result<Client> {
        let mut endpoint = self.endpoint(Located { path: path.to_owned(), chosen_by: None })?;
        endpoint.reconnect = None;
        let socket = endpoint.check(socket)?;
        self.greet(endpoint, socket, deadline(Some(self.timeout)))
    }

    fn located(&self) -> Located {
        self.socket.clone().unwrap_or_else(|| locate::locate(peer::own_uid(), &self.trusted_uids))
    }

    fn endpoint(&self, located: Located) -> Result<Endpoint> {
        Endpoint::new(located, self.name.clone(), self.trusted_uids.clone(), self.timeout, self.reconnect.clone())
    }

    fn greet(&self, endpoint: Endpoint, socket: UnixStream, until: Option<Instant>) -> Result<Client> {
        endpoint.hello(&socket, None)?;
        let welcome = receive_welcome(&socket, until)?;
        let connection = Connection::new(socket.into(), welcome, in_force(self.wait), endpoint)?;
        Ok(Client { connection: connection.into() })
    }
}

/// The wait strategy for the available CPUs.
fn in_force(wait: WaitStrategy) -> WaitStrategy {
    static SAID: std::sync::Once = std::sync::Once::new();
    if wait != WaitStrategy::Busy || !peer::has_one_cpu() {
        return wait;
    }
    SAID.call_once(|| log::warn!("client does not wait busy reason=one_cpu"));
    WaitStrategy::Block
}

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
    /// Connects to the broker where it usually listens; see [`Builder::socket`].
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

    /// Connects with more say in it.
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

    /// What the client calls itself in logs and status; the program's name unless set.
    ///
    /// # Errors
    ///
    /// If it is no valid name.
    pub fn name(mut self, name: &str) -> Result<Builder> {
        self.name = Name::parse(name)?;
        Ok(self)
    }

    /// The broker's socket. Unless set it is the first of:
    ///
    /// 1. `LAPCE_IPC_SOCKET`;
    /// 2. `$XDG_RUNTIME_DIR/lapce-ipc.sock`, if the current user owns it;
    /// 3. [`DEFAULT_SOCKET`](crate::client::DEFAULT_SOCKET), if the current user, root or one of
    ///    [`Builder::trusted_uids`] owns it;
    /// 4. `/run/lapce-ipc/ipc.sock`, the socket of a system's broker, if it exists.
    ///
    /// The command line looks at the same places. The broker's configuration is not read.
    #[must_use]
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Builder {
        self.socket = Some(Located { path: path.into(), chosen_by: None });
        self
    }

    /// The broker's socket, which an option or a file of that name chose: errors tell.
    #[cfg(feature = "cli")]
    pub(crate) fn socket_chosen_by(mut self, path: PathBuf, chosen_by: &'static str) -> Builder {
        self.socket = Some(Located { path, chosen_by: Some(chosen_by) });
        self
    }

    /// How the client's threads wait. On one CPU, [`WaitStrategy::Busy`] would keep the broker from running: then they
    /// sleep, and the log says so once.
    #[must_use]
    pub fn wait(mut self, wait: WaitStrategy) -> Builder {
        self.wait = wait;
        self
    }

    /// Users, besides our own and root, whose broker is trusted.
    #[must_use]
    pub fn trusted_uids(mut self, uids: impl IntoIterator<Item = u32>) -> Builder {
        self.trusted_uids.extend(uids);
        self
    }

    /// How long connecting and the greeting may take together; 5 seconds unless set, `Duration::MAX` for ever.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Builder {
        self.timeout = timeout;
        self
    }

    /// How to come back when the connection was lost; see there for what it does unless set.
    #[must_use]
    pub fn reconnect(mut self, options: ReconnectOptions) -> Builder {
        self.reconnect = Some(options);
        self
    }

    /// A connection that is lost stays lost: calls that wait return
    /// [`Error::is_disconnected`](crate::client::Error::is_disconnected).
    #[must_use]
    pub fn no_reconnect(mut self) -> Builder {
        self.reconnect = None;
        self
    }

    /// Connecting waits for a broker that is not there yet, within [`Builder::timeout`]: it tries again when its socket
    /// appears, and with the backoff of [`Builder::reconnect`]. Without this, no broker is an error at once.
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
    /// If no process listens, the broker's user is not trusted, the versions differ, or the broker refuses; if it does
    /// not accept the connection, or not reply, in time; if an option is invalid
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

    /// Greets a broker that has dialled, if it may hear it.
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

/// How to wait on the CPUs that we have.
fn in_force(wait: WaitStrategy) -> WaitStrategy {
    static SAID: std::sync::Once = std::sync::Once::new();
    if wait != WaitStrategy::Busy || !peer::has_one_cpu() {
        return wait;
    }
    SAID.call_once(|| log::warn!("client does not wait busy reason=one_cpu"));
    WaitStrategy::Block
}

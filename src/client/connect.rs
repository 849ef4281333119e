//! Finding the broker and greeting it.

use super::error::{Error, Kind, Result, Unreached};
use super::initial;
use super::inner::{Inner, deadline};
use super::locate::{self, Located};
use super::retry::ReconnectOptions;
use super::{Client, Listener, WaitStrategy};
use crate::shm::doorbell::{ClientBells, ClientDescriptors};
use crate::shm::layout::Geometry;
use crate::shm::segment::{Nonces, Segment, SegmentError, fill_random};
use crate::shm::{descriptors, peer};
use crate::wire::codec::FrameDecoder;
use crate::wire::control::{self, BrokerFrame, Limits, PROTOCOL_VERSION, RefusedCode, Token};
use crate::wire::name::Name;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the broker listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/tmp/lapce_ipc.sock";

/// Bytes in the address of a Unix socket, without the final 0.
const SOCKET_PATH_MAX: usize = 107;

/// How a client connects.
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

/// The broker that a client talks to, and as whom.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) path: PathBuf,
    /// Which setting or rule chose the path; `None`: the program named it.
    chosen_by: Option<&'static str>,
    pub(super) name: Name,
    /// Tells this instance from another run of the program (S3).
    pub(super) nonce: u64,
    trusted_uids: Vec<u32>,
    pub(super) timeout: Duration,
    /// `None`: a connection that is lost stays lost.
    pub(super) reconnect: Option<ReconnectOptions>,
}

impl Builder {
    pub(super) fn new() -> Builder {
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
    /// 3. [`DEFAULT_SOCKET`], if the current user, root or one of [`Builder::trusted_uids`] owns it;
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

    /// A connection that is lost stays lost: everybody who waits gets [`Error::is_disconnected`].
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
    /// If nobody listens, the broker's user is not trusted, the versions differ, or the broker refuses; if it does not
    /// take us in, or not answer, in time; if an option makes no sense ([`Error::is_invalid_option`]).
    pub fn connect(self) -> Result<Client> {
        let until = deadline(Some(self.timeout));
        let attempt = || {
            let endpoint = self.endpoint(self.located())?;
            let socket = endpoint.dial(until)?;
            Ok((endpoint, socket))
        };
        let (endpoint, socket) = match self.awaits_broker {
            true => initial::retry(self.reconnect.clone().unwrap_or_default(), until, attempt)?,
            false => attempt()?,
        };
        self.greet(endpoint, socket, until)
    }

    /// Listens at `path` for brokers that dial: the other way round, for a program that is there before its broker, or
    /// that several brokers use. Its clients do not reconnect: it is the broker that dials again.
    ///
    /// # Errors
    ///
    /// If somebody listens there already, or the system refuses.
    pub fn listen(self, path: impl Into<PathBuf>) -> Result<Listener> {
        Listener::new(self, path.into())
    }

    /// Greets a broker that has dialled, if it may hear it.
    pub(super) fn accept(&self, socket: UnixStream, path: &Path) -> Result<Client> {
        let mut endpoint = self.endpoint(Located { path: path.to_owned(), chosen_by: None })?;
        endpoint.reconnect = None;
        let socket = endpoint.check(socket)?;
        self.greet(endpoint, socket, deadline(Some(self.timeout)))
    }

    fn located(&self) -> Located {
        self.socket.clone().unwrap_or_else(|| locate::locate(peer::own_uid(), &self.trusted_uids))
    }

    fn endpoint(&self, Located { path, chosen_by }: Located) -> Result<Endpoint> {
        let (name, trusted_uids) = (self.name.clone(), self.trusted_uids.clone());
        let (timeout, reconnect) = (self.timeout, self.reconnect.clone());
        if timeout.is_zero() {
            return Err(Kind::InvalidOption("timeout is 0, in which no broker can answer".to_owned()).into());
        }
        if let Some(options) = &reconnect {
            options.check().map_err(Kind::InvalidOption)?;
        }
        let bytes = path.as_os_str().len();
        if bytes > SOCKET_PATH_MAX {
            let by = locate::chosen(chosen_by);
            let what = format!("socket path of {bytes} bytes, at most {SOCKET_PATH_MAX} fit{by}: {}", path.display());
            return Err(Kind::InvalidOption(what).into());
        }
        let mut endpoint = Endpoint { path, chosen_by, name, nonce: 0, trusted_uids, timeout, reconnect };
        let mut nonce = [0; 8];
        fill_random(&mut nonce).map_err(|error| endpoint.failed(&error))?;
        endpoint.nonce = u64::from_le_bytes(nonce);
        Ok(endpoint)
    }

    fn greet(&self, endpoint: Endpoint, socket: UnixStream, until: Option<Instant>) -> Result<Client> {
        endpoint.hello(&socket, None)?;
        let welcome = receive_welcome(&socket, until)?;
        let inner = Inner::new(socket.into(), welcome, in_force(self.wait), endpoint)?;
        Ok(Client { inner: inner.into() })
    }
}

impl Endpoint {
    pub(super) fn failed(&self, error: &io::Error) -> Error {
        // Of whatever else the system may say, nothing tells that nobody is there.
        let why = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Unreached::Nobody,
            io::ErrorKind::PermissionDenied => Unreached::Denied,
            _ => Unreached::Other,
        };
        Kind::Connect {
            path: self.path.clone(),
            why,
            reason: explain(&self.path, error) + &locate::chosen(self.chosen_by),
        }
        .into()
    }

    /// Reaches whoever listens, waiting at its door at most until `until`.
    fn dial(&self, until: Option<Instant>) -> Result<UnixStream> {
        let connect = || {
            let address = SocketAddrUnix::new(&self.path)?;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            let socket = UnixStream::from(socket);
            loop {
                // The time for a write is also the time for which Linux lets a connect wait for its turn.
                let left = until.map(|until| until.saturating_duration_since(Instant::now()));
                socket.set_write_timeout(left.map(|left| left.max(Duration::from_millis(1))))?;
                match rustix::net::connect(&socket, &address) {
                    Err(rustix::io::Errno::INTR) => {}
                    connected => break connected?,
                }
            }
            socket.set_write_timeout(None)?;
            io::Result::Ok(socket)
        };
        self.check(connect().map_err(|error| self.failed(&error))?)
    }

    /// The same for who must not wait: a broker with many others at its door is an error.
    pub(super) fn try_dial(&self) -> Result<UnixStream> {
        let connect = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(&self.path)?)?;
            let socket = UnixStream::from(socket);
            socket.set_nonblocking(false)?;
            io::Result::Ok(socket)
        };
        self.check(connect().map_err(|error| self.failed(&error))?)
    }

    /// Before anything is sent: whoever listens must be one whom we would send it to.
    fn check(&self, socket: UnixStream) -> Result<UnixStream> {
        let broker = peer::credentials(socket.as_fd()).map_err(|error| self.failed(&error))?;
        if [peer::own_uid(), 0].contains(&broker.uid) || self.trusted_uids.contains(&broker.uid) {
            return Ok(socket);
        }
        Err(Kind::UntrustedBroker { path: self.path.clone(), uid: broker.uid }.into())
    }
}

fn explain(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "nothing is there; is the broker running?".to_owned(),
        io::ErrorKind::ConnectionRefused => match std::fs::metadata(path) {
            Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => "it is no socket".to_owned(),
            _ => "nobody listens; is the broker running?".to_owned(),
        },
        io::ErrorKind::WouldBlock => "it takes nobody in: too many wait at its door".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// What the greeting brings.
#[derive(Debug)]
pub(super) struct Welcome {
    pub(super) segment: Segment,
    pub(super) bells: ClientBells,
    pub(super) limits: Limits,
    pub(super) greeted: Greeted,
    /// It may hold frames that came behind the Welcome.
    pub(super) decoder: FrameDecoder,
}

/// Which session a Welcome is of.
#[derive(Debug)]
pub(super) struct Greeted {
    pub(super) connection: u32,
    pub(super) token: Token,
}

/// What the broker answers to a Hello.
pub(super) fn greeting(frame: BrokerFrame) -> Result<(Greeted, Limits, control::Geometry)> {
    match frame {
        BrokerFrame::Welcome { version: PROTOCOL_VERSION, connection, token, limits, geometry, .. } => {
            Ok((Greeted { connection, token }, limits, geometry))
        }
        BrokerFrame::Welcome { version, .. } | BrokerFrame::Refused { code: RefusedCode::Version, version, .. } => {
            Err(Kind::Version { ours: PROTOCOL_VERSION, theirs: version }.into())
        }
        BrokerFrame::Refused { code, message, .. } => Err(Kind::Refused { code, message }.into()),
        other => Err(Kind::Protocol(format!("no welcome but {other:?}")).into()),
    }
}

fn receive_welcome(socket: &UnixStream, until: Option<Instant>) -> Result<Welcome> {
    let lost = |error: &dyn std::fmt::Display| Error::from(Kind::Disconnected(format!("no welcome: {error}")));
    let protocol = |error: &dyn std::fmt::Display| Error::from(Kind::Protocol(error.to_string()));
    let mut decoder = FrameDecoder::new(control::BROKER_FRAME_BYTES_MAX);
    let (mut fds, mut buffer) = (Vec::new(), [0; 1024]);
    let frame = loop {
        if let Some(body) = decoder.next_frame().map_err(|error| protocol(&error))? {
            break BrokerFrame::decode(body).map_err(|error| protocol(&error))?;
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // What is too long to be said is no limit.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let ready = poll(&mut [PollFd::new(socket, PollFlags::IN)], left.as_ref());
        match ready {
            Ok(0) => return Err(lost(&"the broker does not answer")),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(lost(&error)),
        }
        match descriptors::receive(socket.as_fd(), &mut buffer, &mut fds) {
            Ok(0) => return Err(lost(&"the broker closed the socket")),
            Ok(n) => decoder.push(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(lost(&error)),
        }
    };
    let (greeted, limits, geometry) = greeting(frame)?;
    open(socket.as_fd(), fds, decoder, greeted, limits, geometry)
}

/// Opens what came with a Welcome.
pub(super) fn open(
    socket: BorrowedFd<'_>,
    descriptors: Vec<OwnedFd>,
    decoder: FrameDecoder,
    greeted: Greeted,
    limits: Limits,
    geometry: control::Geometry,
) -> Result<Welcome> {
    let protocol = |error: &dyn std::fmt::Display| Error::from(Kind::Protocol(error.to_string()));
    let Ok([segment, ring, wait]) = <[OwnedFd; 3]>::try_from(descriptors) else {
        return Err(protocol(&"the welcome came without its descriptors"));
    };
    let control::Geometry { slot_size, extension_cells, nonce_bulk, nonce_express, nonce_egress, .. } = geometry;
    let geometry = Geometry::new(slot_size, extension_cells).map_err(|error| protocol(&error))?;
    let nonces = Nonces { bulk: nonce_bulk, express: nonce_express, egress: nonce_egress };
    let bytes = geometry.segment_bytes();
    let segment = Segment::open(segment, geometry, nonces).map_err(|error| match &error {
        SegmentError::Io(why) if is_lack(why) => lacks(format_args!("segment of {bytes} bytes not mapped"), why),
        _ => protocol(&error),
    })?;
    let bells = ClientBells::new(ClientDescriptors { ring, wait }, socket).map_err(|error| match is_lack(&error) {
        true => lacks(format_args!("bells not watched"), &error),
        false => protocol(&error),
    })?;
    Ok(Welcome { segment, bells, limits, greeted, decoder })
}

/// Whether this process, or the system, lacks something: that says nothing of the broker.
fn is_lack(error: &io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error)
        .is_some_and(|errno| [Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::NOSPC, Errno::AGAIN].contains(&errno))
}

fn lacks(what: std::fmt::Arguments<'_>, error: &io::Error) -> Error {
    let of_what = if error.kind() == io::ErrorKind::OutOfMemory { "out of memory: " } else { "" };
    Kind::Disconnected(format!("{of_what}{what}: {error}")).into()
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

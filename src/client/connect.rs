//! Finding the broker and greeting it.

use super::error::{Error, Kind, Result};
use super::inner::Inner;
use super::{Client, Listener, WaitStrategy};
use crate::shm::doorbell::{ClientBells, ClientDescriptors};
use crate::shm::layout::Geometry;
use crate::shm::segment::{Nonces, Segment, fill_random};
use crate::shm::{descriptors, peer};
use crate::wire::codec::FrameDecoder;
use crate::wire::control::{self, BrokerFrame, ClientFrame, Limits, PROTOCOL_VERSION, RefusedCode};
use crate::wire::name::Name;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the broker listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/tmp/lapce_ipc.sock";

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
    socket: Option<PathBuf>,
    wait: WaitStrategy,
    trusted_uids: Vec<u32>,
    timeout: Duration,
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

    /// The broker's socket. Unless set it is `LAPCE_IPC_SOCKET`, else `$XDG_RUNTIME_DIR/lapce-ipc.sock` if that is
    /// ours, else [`DEFAULT_SOCKET`].
    #[must_use]
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Builder {
        self.socket = Some(path.into());
        self
    }

    /// How the client's threads wait.
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

    /// How long the greeting may take; 5 seconds unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Builder {
        self.timeout = timeout;
        self
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// If nobody listens, the broker's user is not trusted, the versions differ, or the broker refuses.
    pub fn connect(self) -> Result<Client> {
        let path = self.socket.clone().unwrap_or_else(default_socket);
        let failed = |error: io::Error| Kind::Connect { path: path.clone(), reason: explain(&path, &error) };
        let socket = UnixStream::connect(&path).map_err(failed)?;
        self.greet(socket, &path)
    }

    /// Listens at `path` for brokers that dial: the other way round, for a program that is there before its broker, or
    /// that several brokers use.
    ///
    /// # Errors
    ///
    /// If somebody listens there already, or the system refuses.
    pub fn listen(self, path: impl Into<PathBuf>) -> Result<Listener> {
        Listener::new(self, path.into())
    }

    /// Says hello over a socket, if whoever is at its other end may hear it.
    pub(super) fn greet(&self, socket: UnixStream, path: &Path) -> Result<Client> {
        let path = path.to_owned();
        let failed = |error: io::Error| Kind::Connect { path: path.clone(), reason: explain(&path, &error) };
        // Before anything is sent: whoever listens there must be one whom we would send it to.
        let broker = peer::credentials(socket.as_fd()).map_err(failed)?;
        let trusted = [peer::own_uid(), 0].contains(&broker.uid) || self.trusted_uids.contains(&broker.uid);
        if !trusted {
            return Err(Kind::UntrustedBroker { path, uid: broker.uid }.into());
        }
        let mut nonce = [0; 8];
        fill_random(&mut nonce).map_err(failed)?;
        let hello = ClientFrame::hello(self.name.clone(), u64::from_le_bytes(nonce), None);
        let hello = hello.encode().map_err(|error| Kind::Protocol(error.to_string()))?;
        match (&socket).write_all(&hello) {
            // A broker that refuses closes at once, perhaps before we speak; what it has said is still there to be
            // read.
            Err(error) if !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                return Err(failed(error).into());
            }
            _ => {}
        }
        let welcome = receive_welcome(&socket, Instant::now() + self.timeout)?;
        let inner = Inner::new(socket, welcome, self.wait);
        Ok(Client { inner: inner.into() })
    }
}

fn explain(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "nothing is there; is the broker running?".to_owned(),
        io::ErrorKind::ConnectionRefused => match std::fs::metadata(path) {
            Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => "it is no socket".to_owned(),
            _ => "nobody listens; is the broker running?".to_owned(),
        },
        _ => error.to_string(),
    }
}

/// Where the broker's socket is, if nobody says.
fn default_socket() -> PathBuf {
    if let Some(path) = std::env::var_os("LAPCE_IPC_SOCKET").filter(|path| !path.is_empty()) {
        return path.into();
    }
    if let Some(folder) = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
        let path = Path::new(&folder).join("lapce-ipc.sock");
        let is_ours = std::fs::symlink_metadata(&path)
            .is_ok_and(|found| std::os::unix::fs::MetadataExt::uid(&found) == peer::own_uid());
        if is_ours {
            return path;
        }
    }
    DEFAULT_SOCKET.into()
}

/// What the greeting brings.
pub(super) struct Welcome {
    pub(super) segment: Segment,
    pub(super) bells: ClientBells,
    pub(super) limits: Limits,
    pub(super) connection: u32,
    /// It may hold frames that came behind the Welcome.
    pub(super) decoder: FrameDecoder,
}

fn receive_welcome(socket: &UnixStream, deadline: Instant) -> Result<Welcome> {
    let lost = |error: &dyn std::fmt::Display| Error::from(Kind::Disconnected(format!("no welcome: {error}")));
    let protocol = |error: &dyn std::fmt::Display| Error::from(Kind::Protocol(error.to_string()));
    let mut decoder = FrameDecoder::new(control::BROKER_FRAME_BYTES_MAX);
    let (mut fds, mut buffer) = (Vec::new(), [0; 1024]);
    let frame = loop {
        if let Some(body) = decoder.next_frame().map_err(|error| protocol(&error))? {
            break BrokerFrame::decode(body).map_err(|error| protocol(&error))?;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let ready = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left));
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
    let (connection, limits, geometry) = match frame {
        BrokerFrame::Welcome { version: PROTOCOL_VERSION, connection, limits, geometry, .. } => {
            (connection, limits, geometry)
        }
        BrokerFrame::Welcome { version, .. } | BrokerFrame::Refused { code: RefusedCode::Version, version, .. } => {
            return Err(Kind::Version { ours: PROTOCOL_VERSION, theirs: version }.into());
        }
        BrokerFrame::Refused { code, message, .. } => return Err(Kind::Refused { code, message }.into()),
        other => return Err(protocol(&format_args!("no welcome but {other:?}"))),
    };
    let Ok([segment, ring, wait]) = <[OwnedFd; 3]>::try_from(fds) else {
        return Err(protocol(&"the welcome came without its descriptors"));
    };
    let control::Geometry { slot_size, extension_cells, nonce_bulk, nonce_express, nonce_egress, .. } = geometry;
    let geometry = Geometry::new(slot_size, extension_cells).map_err(|error| protocol(&error))?;
    let nonces = Nonces { bulk: nonce_bulk, express: nonce_express, egress: nonce_egress };
    let segment = Segment::open(segment, geometry, nonces).map_err(|error| protocol(&error))?;
    let bells = ClientBells::new(ClientDescriptors { ring, wait }, socket.as_fd()).map_err(|error| protocol(&error))?;
    Ok(Welcome { segment, bells, limits, connection, decoder })
}

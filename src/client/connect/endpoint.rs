//! The broker that a client talks to: dialling its socket, and the handshake.

use super::locate::{self, Located};
use super::retry::ReconnectOptions;
use crate::client::error::{Error, Kind, Result, Unreached};
use crate::shm::doorbell::{ClientBells, ClientDescriptors};
use crate::shm::layout::Geometry;
use crate::shm::segment::{Nonces, Segment, SegmentError, fill_random};
use crate::shm::{descriptors, peer};
use crate::wire::codec::FrameDecoder;
use crate::wire::control::{self, BrokerFrame, ClientFrame, Limits, PROTOCOL_VERSION, RECONNECTS, RefusedCode, Token};
use crate::wire::name::Name;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes in the address of a Unix socket, without the final 0.
const SOCKET_PATH_MAX: usize = 107;
/// The broker of a client, and how the client introduces itself.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) path: PathBuf,
    /// Which setting or rule chose the path; `None`: the program named it.
    chosen_by: Option<&'static str>,
    pub(crate) name: Name,
    /// Tells this instance from another run of the program (S3).
    pub(crate) nonce: u64,
    trusted_uids: Vec<u32>,
    pub(crate) timeout: Duration,
    /// `None`: a connection that is lost stays lost.
    pub(crate) reconnect: Option<ReconnectOptions>,
}

impl Endpoint {
    /// The broker at the socket that was located, if the options make sense.
    pub(crate) fn new(
        Located { path, chosen_by }: Located,
        name: Name,
        trusted_uids: Vec<u32>,
        timeout: Duration,
        reconnect: Option<ReconnectOptions>,
    ) -> Result<Endpoint> {
        if timeout.is_zero() {
            return Err(Kind::InvalidOption("timeout must be greater than zero".to_owned()).into());
        }
        if let Some(options) = &reconnect {
            options.check().map_err(Kind::InvalidOption)?;
        }
        let bytes = path.as_os_str().len();
        if bytes > SOCKET_PATH_MAX {
            let by = locate::chosen(chosen_by);
            let what = format!("socket path of {bytes} bytes is longer than {SOCKET_PATH_MAX}{by}: {}", path.display());
            return Err(Kind::InvalidOption(what).into());
        }
        let mut endpoint = Endpoint { path, chosen_by, name, nonce: 0, trusted_uids, timeout, reconnect };
        let mut nonce = [0; 8];
        fill_random(&mut nonce).map_err(|error| endpoint.failed(&error))?;
        endpoint.nonce = u64::from_le_bytes(nonce);
        Ok(endpoint)
    }

    pub(crate) fn failed(&self, error: &io::Error) -> Error {
        // No other error says that no process listens.
        let why = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Unreached::NoListener,
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

    /// Connects to the socket, waiting for a full listen backlog at most until `until`.
    pub(crate) fn dial(&self, until: Option<Instant>) -> Result<UnixStream> {
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

    /// The same without waiting: a full listen backlog is an error.
    pub(crate) fn try_dial(&self) -> Result<UnixStream> {
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

    /// Before anything is sent: the user that listens must be trusted.
    pub(crate) fn check(&self, socket: UnixStream) -> Result<UnixStream> {
        let broker = peer::credentials(socket.as_fd()).map_err(|error| self.failed(&error))?;
        if [peer::own_uid(), 0].contains(&broker.uid) || self.trusted_uids.contains(&broker.uid) {
            return Ok(socket);
        }
        Err(Kind::UntrustedBroker { path: self.path.clone(), uid: broker.uid }.into())
    }

    /// Sends the Hello over a new socket.
    pub(crate) fn hello(&self, socket: &UnixStream, resume: Option<Token>) -> Result<(), Error> {
        let mut hello = ClientFrame::hello(self.name.clone(), self.nonce, resume);
        if let ClientFrame::Hello { flags, .. } = &mut hello
            && self.reconnect.is_some()
        {
            *flags |= RECONNECTS;
        }
        let hello = hello.encode().map_err(|error| Kind::Protocol(error.to_string()))?;
        match io::Write::write_all(&mut &*socket, &hello) {
            // A broker that refuses closes at once, perhaps before we speak; what it has said is still there to be
            // read.
            Err(error) if !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Err(self.failed(&error))
            }
            _ => Ok(()),
        }
    }
}

fn explain(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "the socket does not exist; is the broker running?".to_owned(),
        io::ErrorKind::ConnectionRefused => match std::fs::metadata(path) {
            Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => "not a socket".to_owned(),
            _ => "no process listens; is the broker running?".to_owned(),
        },
        io::ErrorKind::WouldBlock => "the broker's listen backlog is full".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// The result of a handshake.
#[derive(Debug)]
pub(crate) struct Welcome {
    pub(crate) segment: Segment,
    pub(crate) bells: ClientBells,
    pub(crate) limits: Limits,
    pub(crate) greeted: Greeted,
    /// It may hold frames that came behind the Welcome.
    pub(crate) decoder: FrameDecoder,
}

/// Which session a Welcome is of.
#[derive(Debug)]
pub(crate) struct Greeted {
    pub(crate) connection: u32,
    pub(crate) token: Token,
}

/// The broker's reply to a Hello.
pub(crate) fn greeting(frame: BrokerFrame) -> Result<(Greeted, Limits, control::Geometry)> {
    match frame {
        BrokerFrame::Welcome { version: PROTOCOL_VERSION, connection, token, limits, geometry, .. } => {
            Ok((Greeted { connection, token }, limits, geometry))
        }
        BrokerFrame::Welcome { version, .. } | BrokerFrame::Refused { code: RefusedCode::Version, version, .. } => {
            Err(Kind::Version { ours: PROTOCOL_VERSION, theirs: version }.into())
        }
        BrokerFrame::Refused { code, message, .. } => Err(Kind::Refused { code, message }.into()),
        other => Err(Kind::Protocol(format!("expected a welcome, got {other:?}")).into()),
    }
}

pub(crate) fn receive_welcome(socket: &UnixStream, until: Option<Instant>) -> Result<Welcome> {
    let lost = |error: &dyn std::fmt::Display| Error::from(Kind::Disconnected(format!("handshake: {error}")));
    let protocol = |error: &dyn std::fmt::Display| Error::from(Kind::Protocol(error.to_string()));
    let mut decoder = FrameDecoder::new(control::BROKER_FRAME_BYTES_MAX);
    let (mut fds, mut buffer) = (Vec::new(), [0; 1024]);
    let frame = loop {
        if let Some(body) = decoder.next_frame().map_err(|error| protocol(&error))? {
            break BrokerFrame::decode(body).map_err(|error| protocol(&error))?;
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // A time that the type cannot represent is no limit.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let ready = poll(&mut [PollFd::new(socket, PollFlags::IN)], left.as_ref());
        match ready {
            Ok(0) => return Err(lost(&"the broker does not respond")),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(lost(&error)),
        }
        match descriptors::receive(socket.as_fd(), &mut buffer, &mut fds) {
            Ok(0) => return Err(lost(&"the broker closed the connection")),
            Ok(n) => decoder.push(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(lost(&error)),
        }
    };
    let (greeted, limits, geometry) = greeting(frame)?;
    open(socket.as_fd(), fds, decoder, greeted, limits, geometry)
}

/// Opens the segment and the doorbells of a Welcome.
pub(crate) fn open(
    socket: BorrowedFd<'_>,
    descriptors: Vec<OwnedFd>,
    decoder: FrameDecoder,
    greeted: Greeted,
    limits: Limits,
    geometry: control::Geometry,
) -> Result<Welcome> {
    let protocol = |error: &dyn std::fmt::Display| Error::from(Kind::Protocol(error.to_string()));
    let Ok([segment, ring, wait]) = <[OwnedFd; 3]>::try_from(descriptors) else {
        return Err(protocol(&"welcome without descriptors"));
    };
    let control::Geometry { slot_size, extension_cells, nonce_bulk, nonce_express, nonce_egress, .. } = geometry;
    let geometry = Geometry::new(slot_size, extension_cells).map_err(|error| protocol(&error))?;
    let nonces = Nonces { bulk: nonce_bulk, express: nonce_express, egress: nonce_egress };
    let bytes = geometry.segment_bytes();
    let segment = Segment::open(segment, geometry, nonces).map_err(|error| match &error {
        SegmentError::Io(why) if is_lack(why) => lacks(format_args!("cannot map the segment of {bytes} bytes"), why),
        _ => protocol(&error),
    })?;
    let bells = ClientBells::new(ClientDescriptors { ring, wait }, socket).map_err(|error| match is_lack(&error) {
        true => lacks(format_args!("cannot watch the doorbells"), &error),
        false => protocol(&error),
    })?;
    Ok(Welcome { segment, bells, limits, greeted, decoder })
}

/// Whether this process, or the system, lacks a resource: that says nothing of the broker.
fn is_lack(error: &io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error)
        .is_some_and(|errno| [Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::NOSPC, Errno::AGAIN].contains(&errno))
}

fn lacks(what: std::fmt::Arguments<'_>, error: &io::Error) -> Error {
    let of_what = if error.kind() == io::ErrorKind::OutOfMemory { "out of memory: " } else { "" };
    Kind::Disconnected(format!("{of_what}{what}: {error}")).into()
}

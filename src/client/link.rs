//! The control socket as the reader sees it: read, lost, and found again.
//!
//! ```text
//!            its end, no Closing before it        an attempt is due            Welcome
//!   Up ─────────────────────────────────► Waiting ─────────────────► Greeting ─────────► Up
//!                                            ▲            refused for now, no │
//!                                            └──────── answer, its end again ─┘
//! ```
//!
//! Nothing here waits: whoever has the reader role carries out what is due, and sleeps until the next thing is due, a
//! bell rings, a socket has something, or something appears at the socket's path.

use super::connect::{Endpoint, greeting};
use super::error::{Error, Kind};
use super::inner::{Inner, lock};
use super::retry::Retry;
use super::state::ConnectionState;
use crate::shm::descriptors;
use crate::shm::segment::fill_random;
use crate::wire::codec::FrameDecoder;
use crate::wire::control::{self, BrokerFrame, ClientFrame, RefusedCode, Token};
use rustix::fs::inotify;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug)]
enum Line {
    Up(Arc<UnixStream>),
    /// Until the next attempt.
    Waiting(Retry),
    /// Hello was said.
    Greeting(Arc<UnixStream>, Retry, Instant),
    /// Nothing comes any more.
    Down,
}

/// The receiving half of the control socket.
#[derive(Debug)]
pub(super) struct Link {
    line: Line,
    decoder: FrameDecoder,
    token: Token,
    /// Watches the folder of the socket's path while there is no connection.
    path: Option<OwnedFd>,
}

/// What the reader is to do about the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, until a socket has something.
    Rest,
    /// Come back at this time.
    At(Instant),
    /// Look again: something has changed.
    Changed,
}

/// What came over the socket.
pub(super) enum Got {
    Frame(BrokerFrame),
    /// Nothing more for now.
    Nothing,
    /// The socket has ended, or failed.
    End(String),
    /// What came makes no sense.
    Nonsense(String),
}

impl Link {
    pub(super) fn new(socket: Arc<UnixStream>, decoder: FrameDecoder, token: Token) -> Link {
        Link { line: Line::Up(socket), decoder, token, path: None }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.line, Line::Up(_))
    }

    /// The next frame of a session that stands.
    pub(super) fn next(&mut self) -> Got {
        let Line::Up(socket) = &self.line else { return Got::Nothing };
        receive(socket, &mut self.decoder, &mut Vec::new())
    }

    /// Nothing comes any more.
    pub(super) fn put_down(&mut self, inner: &Inner) {
        if let Line::Up(socket) | Line::Greeting(socket, ..) = std::mem::replace(&mut self.line, Line::Down) {
            inner.bells.unwatch(socket.as_fd());
        }
        self.unwatch_path(inner);
    }

    /// The socket was lost: the first attempt to come back is due. `false`: this client does not come back.
    pub(super) fn lose(&mut self, inner: &Inner, now: Instant) -> bool {
        let Some(options) = &inner.endpoint.reconnect else { return false };
        self.put_down(inner);
        lock(&inner.outgoing).lose();
        self.watch_path(inner);
        self.line = Line::Waiting(Retry::new(options.clone(), now));
        self.tell_waiting(inner, Duration::ZERO);
        true
    }

    fn tell_waiting(&self, inner: &Inner, next_in: Duration) {
        if let Line::Waiting(retry) = &self.line {
            let state = ConnectionState::Reconnecting { attempt: retry.attempt(), next_in };
            lock(&inner.table).set_state(state);
        }
    }

    /// Carries out what is due.
    pub(super) fn step(&mut self, inner: &Inner) -> Step {
        let (due, is_greeting) = match &self.line {
            Line::Up(_) | Line::Down => return Step::Rest,
            Line::Waiting(retry) => (retry.at(), false),
            Line::Greeting(_, _, until) => (*until, true),
        };
        let now = Instant::now();
        if now < due {
            return Step::At(due);
        }
        if is_greeting {
            self.failed(inner, "the broker does not answer")
        } else {
            self.attempt(inner, now)
        }
        Step::Changed
    }

    fn attempt(&mut self, inner: &Inner, now: Instant) {
        let Line::Waiting(retry) = std::mem::replace(&mut self.line, Line::Down) else { return };
        let endpoint = &inner.endpoint;
        let dialled = endpoint.try_dial().and_then(|socket| {
            inner.bells.watch(socket.as_fd()).map_err(|error| Kind::Disconnected(error.to_string()))?;
            endpoint.hello(&socket, Some(self.token))?;
            Ok(socket)
        });
        match dialled {
            Ok(socket) => {
                self.decoder = FrameDecoder::new(control::BROKER_FRAME_BYTES_MAX);
                self.line = Line::Greeting(socket.into(), retry, now + endpoint.timeout);
                lock(&inner.table).set_state(ConnectionState::Connecting);
            }
            Err(error) if error.is_not_allowed() => self.close(inner, error),
            Err(error) => {
                self.line = Line::Waiting(retry);
                self.failed(inner, &error.to_string());
            }
        }
    }

    /// The attempt failed: waits for the next one, or gives up.
    fn failed(&mut self, inner: &Inner, reason: &str) {
        let (Line::Waiting(mut retry) | Line::Greeting(_, mut retry, _)) = self.take_line(inner) else { return };
        let mut chance = [0; 4];
        // Without randomness the delay is what it is.
        let chance = fill_random(&mut chance).map_or(0.5, |()| f64::from(u32::from_le_bytes(chance)) / 2f64.powi(32));
        match retry.failed(Instant::now(), chance) {
            Some(delay) => {
                self.line = Line::Waiting(retry);
                self.tell_waiting(inner, delay);
            }
            None => self.close(inner, Kind::Disconnected(format!("gave up reconnecting: {reason}")).into()),
        }
    }

    fn take_line(&mut self, inner: &Inner) -> Line {
        let line = std::mem::replace(&mut self.line, Line::Down);
        if let Line::Greeting(socket, ..) = &line {
            inner.bells.unwatch(socket.as_fd());
        }
        line
    }

    fn close(&mut self, inner: &Inner, error: Error) {
        self.put_down(inner);
        inner.close(error);
    }

    /// The socket over which Hello was said has something.
    pub(super) fn read_greeting(&mut self, inner: &Inner) {
        let Line::Greeting(socket, ..) = &self.line else { return };
        let mut descriptors = Vec::new();
        let frame = match receive(socket, &mut self.decoder, &mut descriptors) {
            Got::Nothing => return,
            Got::End(reason) => return self.failed(inner, &reason),
            Got::Nonsense(reason) => return self.close(inner, Kind::Protocol(reason).into()),
            Got::Frame(frame) => frame,
        };
        match greeting(frame) {
            Ok((welcome, _, _)) if welcome.connection == inner.connection && descriptors.is_empty() => {
                self.resumed(inner, welcome.token);
            }
            Ok(_) => self.close(inner, Kind::Protocol("it resumed another session".to_owned()).into()),
            Err(error) => match error.refused_code() {
                // Another time it may work: some session must end first, or the broker.
                Some(RefusedCode::TooManyConnections | RefusedCode::Draining | RefusedCode::BadToken) => {
                    self.failed(inner, &error.to_string());
                }
                Some(RefusedCode::ResumeFailed) => {
                    self.close(inner, Kind::Disconnected("the session has ended meanwhile".to_owned()).into());
                }
                _ => self.close(inner, error),
            },
        }
    }

    fn resumed(&mut self, inner: &Inner, token: Token) {
        let Line::Greeting(socket, ..) = std::mem::replace(&mut self.line, Line::Down) else { return };
        self.token = token;
        self.unwatch_path(inner);
        self.line = Line::Up(socket.clone());
        let confirmed = ClientFrame::Resumed.encode().unwrap_or_default();
        lock(&inner.outgoing).resume(socket, &confirmed);
        lock(&inner.table).set_state(ConnectionState::Connected);
    }

    /// Something happened in the folder of the socket's path.
    pub(super) fn path_changed(&mut self, inner: &Inner) {
        let Some(watch) = &self.path else { return };
        let name = inner.endpoint.path.file_name();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(watch, &mut buffer);
        let mut appeared = false;
        // Events that were lost because there were too many may have been ours.
        while let Ok(event) = events.next() {
            let named = event.file_name().map(|name| name.to_bytes());
            appeared |= named.is_none() || named == name.map(std::os::unix::ffi::OsStrExt::as_bytes);
        }
        if appeared && let Line::Waiting(retry) = &mut self.line {
            retry.path_appeared(Instant::now());
        }
    }

    fn watch_path(&mut self, inner: &Inner) {
        let folder = inner.endpoint.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let watch = || {
            let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
            let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            inotify::add_watch(&watch, folder.unwrap_or(std::path::Path::new(".")), flags)?;
            inner.bells.watch_path(watch.as_fd())?;
            std::io::Result::Ok(watch)
        };
        // Without it the delays must do.
        self.path = watch().ok();
    }

    fn unwatch_path(&mut self, inner: &Inner) {
        if let Some(watch) = self.path.take() {
            inner.bells.unwatch(watch.as_fd());
        }
    }
}

fn receive(socket: &UnixStream, decoder: &mut FrameDecoder, descriptors: &mut Vec<OwnedFd>) -> Got {
    let mut buffer = [0; 4096];
    loop {
        match decoder.next_frame().and_then(|body| body.map(BrokerFrame::decode).transpose()) {
            Ok(Some(frame)) => return Got::Frame(frame),
            Ok(None) => {}
            Err(error) => return Got::Nonsense(error.to_string()),
        }
        match descriptors::receive(socket.as_fd(), &mut buffer, descriptors) {
            Ok(0) => return Got::End("the broker is gone".to_owned()),
            Ok(n) => decoder.push(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Got::Nothing,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Got::End(error.to_string()),
        }
    }
}

impl Endpoint {
    /// Says hello over a new socket.
    pub(super) fn hello(&self, socket: &UnixStream, resume: Option<Token>) -> Result<(), Error> {
        let hello = ClientFrame::hello(self.name.clone(), self.nonce, resume);
        let hello = hello.encode().map_err(|error| Kind::Protocol(error.to_string()))?;
        match std::io::Write::write_all(&mut &*socket, &hello) {
            // A broker that refuses closes at once, perhaps before we speak; what it has said is still there to be
            // read.
            Err(error)
                if !matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset) =>
            {
                Err(self.failed(&error))
            }
            _ => Ok(()),
        }
    }
}

//! The control socket as the reader sees it: read, lost, and found again.
//!
//! ```text
//!            its end, no Closing before it        an attempt is due            Welcome
//!   Up ─────────────────────────────────► Waiting ─────────────────► Greeting ─────────► Up
//!                                            ▲            refused for now, no │
//!                                            ├──────── answer, its end again ─┤
//!                                            │ lost                           │ Welcome of another broker
//!                                            └────────────── Restoring ◄──────┘
//!                                                                └──► Up, when all is there again
//! ```
//!
//! Nothing here waits: whoever has the reader role carries out what is due, and sleeps until the next thing is due, a
//! bell rings, a socket has something, or something appears at the socket's path.

use super::connect::{Endpoint, Greeted, Welcome, greeting, open};
use super::error::{Error, Kind};
use super::initial::{chance, has_appeared, watch_folder_of};
use super::inner::{Inner, lock};
use super::retry::Retry;
use super::session;
use super::state::ConnectionState;
use crate::shm::descriptors;
use crate::shm::doorbell::ClientBells;
use crate::shm::segment::Segment;
use crate::wire::codec::FrameDecoder;
use crate::wire::control::{self, BrokerFrame, ClientFrame, Limits, RECONNECTS, RefusedCode, Token};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A session that ends within this time has ended at once.
const AT_ONCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Line {
    Up(Arc<UnixStream>),
    /// Until the next attempt.
    Waiting(Retry),
    /// Hello was said.
    /// It is to be answered until then; `None`: whenever.
    Greeting(Arc<UnixStream>, Retry, Option<Instant>),
    /// Another broker has greeted us: it is asked for what the session had at the last one.
    Restoring(Arc<UnixStream>, Box<Welcome>),
    /// Nothing comes any more.
    Down,
}

/// The receiving half of the control socket.
#[derive(Debug)]
pub(super) struct Link {
    line: Line,
    decoder: FrameDecoder,
    /// Descriptors that came before their Welcome was whole.
    descriptors: Vec<OwnedFd>,
    /// `None`: there is no session to resume.
    token: Option<Token>,
    bells: Arc<ClientBells>,
    /// When a session was begun anew: one that ends at once is not begun anew at once.
    anew: Option<Instant>,
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
    Frame(Box<BrokerFrame>),
    /// Nothing more for now.
    Nothing,
    /// The socket has ended, or failed.
    End(String),
    /// What came makes no sense.
    Nonsense(String),
}

impl Link {
    pub(super) fn new(socket: Arc<UnixStream>, bells: Arc<ClientBells>, decoder: FrameDecoder, token: Token) -> Link {
        let (line, descriptors) = (Line::Up(socket), Vec::new());
        Link { line, decoder, descriptors, token: Some(token), bells, anew: None, path: None }
    }

    /// The bells of the present session.
    pub(super) fn bells(&self) -> Arc<ClientBells> {
        self.bells.clone()
    }

    /// Whether it is lost, and looked for.
    pub(super) fn is_away(&self) -> bool {
        !matches!(self.line, Line::Up(_) | Line::Down)
    }

    /// Whether a broker has greeted us.
    pub(super) fn is_greeted(&self) -> bool {
        matches!(self.line, Line::Up(_) | Line::Restoring(..))
    }

    /// The next frame of a broker that has greeted us.
    pub(super) fn next(&mut self) -> Got {
        let (Line::Up(socket) | Line::Restoring(socket, _)) = &self.line else { return Got::Nothing };
        receive(socket, &mut self.decoder, &mut Vec::new())
    }

    /// Nothing comes any more.
    pub(super) fn put_down(&mut self) {
        match std::mem::replace(&mut self.line, Line::Down) {
            Line::Up(socket) | Line::Greeting(socket, ..) | Line::Restoring(socket, _) => {
                self.bells.unwatch(socket.as_fd());
            }
            Line::Waiting(_) | Line::Down => {}
        }
        self.unwatch_path();
    }

    /// The socket was lost: the first attempt to come back is due. `is_over`: there is nothing to be resumed. `false`:
    /// this client does not come back.
    pub(super) fn lose(&mut self, inner: &Inner, is_over: bool, now: Instant) -> bool {
        let Some(options) = &inner.endpoint.reconnect else { return false };
        if inner.closed().is_some() {
            return false;
        }
        if is_over || matches!(self.line, Line::Restoring(..)) {
            self.token = None;
        }
        self.put_down();
        lock(&inner.outgoing).lose();
        self.watch_path(inner);
        let ended_at_once = self.anew.take().is_some_and(|anew| now.duration_since(anew) < AT_ONCE);
        self.line = Line::Waiting(Retry::new(options.clone(), now));
        if ended_at_once {
            self.failed(inner, "sessions end as soon as they begin");
        } else {
            self.tell_waiting(inner, Duration::ZERO);
        }
        true
    }

    /// Whether all is there again that the session had at the last broker.
    pub(super) fn is_restored(&self, inner: &Inner) -> bool {
        matches!(self.line, Line::Restoring(..)) && lock(&inner.table).restoring.is_empty()
    }

    /// The session goes on at the broker that has greeted us: what it has brought.
    pub(super) fn go_on(
        &mut self,
        bells: &dyn Fn(ClientBells) -> Arc<ClientBells>,
    ) -> Option<(Segment, Limits, Greeted)> {
        let Line::Restoring(socket, welcome) = std::mem::replace(&mut self.line, Line::Down) else { return None };
        self.unwatch_path();
        self.bells.unwatch(socket.as_fd());
        let Welcome { segment, bells: new, limits, greeted, .. } = *welcome;
        self.bells = bells(new);
        (self.token, self.anew) = (Some(greeted.token), Some(Instant::now()));
        self.line = Line::Up(socket);
        Some((segment, limits, greeted))
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
            Line::Up(_) | Line::Restoring(..) | Line::Down => return Step::Rest,
            Line::Waiting(retry) => (retry.at(), false),
            Line::Greeting(_, _, None) => return Step::Rest,
            Line::Greeting(_, _, Some(until)) => (*until, true),
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
        if inner.closed().is_some() {
            return self.put_down();
        }
        let endpoint = &inner.endpoint;
        let dialled = endpoint.try_dial().and_then(|socket| {
            self.bells.watch(socket.as_fd()).map_err(|error| Kind::Disconnected(error.to_string()))?;
            // Under the lock, so that no attempt begins once the connection was closed here.
            let table = lock(&inner.table);
            match &table.closed {
                Some(closed) => Err(closed.clone()),
                None => endpoint.hello(&socket, self.token).map(|()| socket),
            }
        });
        match dialled {
            Ok(socket) => {
                self.decoder = FrameDecoder::new(control::BROKER_FRAME_BYTES_MAX);
                self.descriptors.clear();
                self.line = Line::Greeting(socket.into(), retry, now.checked_add(endpoint.timeout));
                lock(&inner.table).set_state(ConnectionState::Connecting);
            }
            Err(error) if error.is_not_allowed() || inner.closed().is_some() => self.close(inner, error),
            Err(error) => {
                if error.is_no_broker() {
                    inner.end_requests();
                }
                self.line = Line::Waiting(retry);
                self.failed(inner, &error.to_string());
            }
        }
    }

    /// The attempt failed: waits for the next one, or gives up.
    fn failed(&mut self, inner: &Inner, reason: &str) {
        let (Line::Waiting(mut retry) | Line::Greeting(_, mut retry, _)) = self.take_line() else { return };
        match retry.failed(Instant::now(), chance()) {
            Some(delay) => {
                self.line = Line::Waiting(retry);
                self.tell_waiting(inner, delay);
            }
            None => self.close(inner, Kind::Disconnected(format!("gave up reconnecting: {reason}")).into()),
        }
    }

    fn take_line(&mut self) -> Line {
        let line = std::mem::replace(&mut self.line, Line::Down);
        if let Line::Greeting(socket, ..) = &line {
            self.bells.unwatch(socket.as_fd());
        }
        line
    }

    fn close(&mut self, inner: &Inner, error: Error) {
        self.put_down();
        inner.close(error);
    }

    /// The socket over which Hello was said has something.
    pub(super) fn read_greeting(&mut self, inner: &Inner) {
        let Line::Greeting(socket, ..) = &self.line else { return };
        let frame = match receive(socket, &mut self.decoder, &mut self.descriptors) {
            Got::Nothing => return,
            Got::End(reason) => return self.failed(inner, &reason),
            Got::Nonsense(reason) => return self.close(inner, Kind::Protocol(reason).into()),
            Got::Frame(frame) => *frame,
        };
        let descriptors = std::mem::take(&mut self.descriptors);
        match greeting(frame) {
            Ok((greeted, limits, geometry)) if self.token.is_none() => {
                let decoder = std::mem::replace(&mut self.decoder, FrameDecoder::new(control::BROKER_FRAME_BYTES_MAX));
                // It is watched already, and will be behind the new bells by the time that they are in use.
                match open(socket.as_fd(), descriptors, FrameDecoder::new(0), greeted, limits, geometry) {
                    Ok(welcome) => {
                        let line = Line::Restoring(socket.clone(), welcome.into());
                        let Line::Greeting(socket, ..) = std::mem::replace(&mut self.line, line) else { return };
                        self.decoder = decoder;
                        session::restore(inner, socket, &limits);
                    }
                    // This process lacks memory or descriptors: another time it may work.
                    Err(error) if error.is_disconnected() => self.failed(inner, &error.to_string()),
                    Err(error) => self.close(inner, error),
                }
            }
            Ok((greeted, limits, _)) if greeted.connection == inner.connection() && descriptors.is_empty() => {
                // They may have changed by a reload; the geometry cannot.
                inner.limits.adopt(&limits);
                self.resumed(inner, greeted.token);
            }
            Ok(_) => self.close(inner, Kind::Protocol("it resumed another session".to_owned()).into()),
            Err(error) => match error.refused_code() {
                // Another time it may work: some session must end first, or the broker.
                Some(RefusedCode::TooManyConnections | RefusedCode::Draining | RefusedCode::BadToken) => {
                    self.failed(inner, &error.to_string());
                }
                // The broker is another, or the session waited too long: begin anew.
                Some(RefusedCode::ResumeFailed) if self.token.take().is_some() => {
                    if let Line::Greeting(_, mut retry, _) = self.take_line() {
                        retry.once_more(Instant::now());
                        self.line = Line::Waiting(retry);
                    }
                }
                _ => self.close(inner, error),
            },
        }
    }

    fn resumed(&mut self, inner: &Inner, token: Token) {
        let Line::Greeting(socket, ..) = std::mem::replace(&mut self.line, Line::Down) else { return };
        self.token = Some(token);
        self.unwatch_path();
        self.line = Line::Up(socket.clone());
        let confirmed = ClientFrame::Resumed.encode().unwrap_or_default();
        lock(&inner.outgoing).resume(socket, &confirmed);
        lock(&inner.table).set_state(ConnectionState::Connected);
    }

    /// Something happened in the folder of the socket's path.
    pub(super) fn path_changed(&mut self, inner: &Inner) {
        let Some(watch) = &self.path else { return };
        if has_appeared(watch, &inner.endpoint.path)
            && let Line::Waiting(retry) = &mut self.line
        {
            retry.path_appeared(Instant::now());
        }
    }

    fn watch_path(&mut self, inner: &Inner) {
        let watch = || {
            let watch = watch_folder_of(&inner.endpoint.path)?;
            self.bells.watch_path(watch.as_fd())?;
            std::io::Result::Ok(watch)
        };
        // Without it the delays must do.
        self.path = watch().ok();
    }

    fn unwatch_path(&mut self) {
        if let Some(watch) = self.path.take() {
            self.bells.unwatch(watch.as_fd());
        }
    }
}

fn receive(socket: &UnixStream, decoder: &mut FrameDecoder, descriptors: &mut Vec<OwnedFd>) -> Got {
    let mut buffer = [0; 4096];
    loop {
        match decoder.next_frame().and_then(|body| body.map(BrokerFrame::decode).transpose()) {
            Ok(Some(frame)) => return Got::Frame(frame.into()),
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
        let mut hello = ClientFrame::hello(self.name.clone(), self.nonce, resume);
        if let ClientFrame::Hello { flags, .. } = &mut hello
            && self.reconnect.is_some()
        {
            *flags |= RECONNECTS;
        }
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

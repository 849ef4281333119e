//! The receiving half of the control socket, and how it stands with it. `reconnect::attempts` moves it from state to
//! state.

use crate::client::connect::await_broker::watch_folder_of;
use crate::client::connect::endpoint::{Greeted, Welcome};
use crate::client::connect::retry::Retry;
use crate::shm::descriptors;
use crate::shm::doorbell::ClientBells;
use crate::shm::segment::Segment;
use crate::wire::codec::FrameDecoder;
use crate::wire::control::{BrokerFrame, Limits, Token};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

#[derive(Debug)]
pub(crate) enum Line {
    Up(Arc<UnixStream>),
    /// Until the next attempt.
    Waiting(Retry),
    /// Hello was sent; its reply is due by then (`None`: no limit).
    Greeting(Arc<UnixStream>, Retry, Option<Instant>),
    /// Another broker has greeted us: it is asked for what the session had at the last one.
    Restoring(Arc<UnixStream>, Box<Welcome>),
    /// Nothing comes any more.
    Down,
}

/// The receiving half of the control socket.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) line: Line,
    pub(crate) decoder: FrameDecoder,
    /// Descriptors that came before their Welcome was whole.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// `None`: there is no session to resume.
    pub(crate) token: Option<Token>,
    pub(crate) bells: Arc<ClientBells>,
    /// When a session was begun anew: one that ends at once is not begun anew at once.
    pub(crate) anew: Option<Instant>,
    /// Watches the folder of the socket's path while there is no connection.
    pub(crate) path: Option<OwnedFd>,
}

/// What the reader is to do about the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing, until a socket has something.
    Rest,
    /// Come back at this time.
    At(Instant),
    /// Look again: something has changed.
    Changed,
}

/// What came over the socket.
pub(crate) enum Got {
    Frame(Box<BrokerFrame>),
    /// Nothing more for now.
    Nothing,
    /// The socket has ended, or failed.
    End(String),
    /// What came makes no sense.
    Nonsense(String),
}

impl Link {
    pub(crate) fn new(socket: Arc<UnixStream>, bells: Arc<ClientBells>, decoder: FrameDecoder, token: Token) -> Link {
        let (line, descriptors) = (Line::Up(socket), Vec::new());
        Link { line, decoder, descriptors, token: Some(token), bells, anew: None, path: None }
    }

    /// The bells of the present session.
    pub(crate) fn bells(&self) -> Arc<ClientBells> {
        self.bells.clone()
    }

    /// Whether it is lost, and looked for.
    pub(crate) fn is_away(&self) -> bool {
        !matches!(self.line, Line::Up(_) | Line::Down)
    }

    /// Whether a broker has greeted us.
    pub(crate) fn is_greeted(&self) -> bool {
        matches!(self.line, Line::Up(_) | Line::Restoring(..))
    }

    /// The next frame of a broker that has greeted us.
    pub(crate) fn next(&mut self) -> Got {
        let (Line::Up(socket) | Line::Restoring(socket, _)) = &self.line else { return Got::Nothing };
        receive(socket, &mut self.decoder, &mut Vec::new())
    }

    /// Nothing comes any more.
    pub(crate) fn put_down(&mut self) {
        match std::mem::replace(&mut self.line, Line::Down) {
            Line::Up(socket) | Line::Greeting(socket, ..) | Line::Restoring(socket, _) => {
                self.bells.unwatch(socket.as_fd());
            }
            Line::Waiting(_) | Line::Down => {}
        }
        self.unwatch_path();
    }

    /// Whether another broker has greeted this client, and is asked for what the session had.
    pub(crate) fn is_restoring(&self) -> bool {
        matches!(self.line, Line::Restoring(..))
    }

    /// The session goes on at the broker that has greeted us: what it has brought.
    pub(crate) fn go_on(
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

    pub(crate) fn take_line(&mut self) -> Line {
        let line = std::mem::replace(&mut self.line, Line::Down);
        if let Line::Greeting(socket, ..) = &line {
            self.bells.unwatch(socket.as_fd());
        }
        line
    }

    pub(crate) fn watch_path(&mut self, socket: &Path) {
        let watch = || {
            let watch = watch_folder_of(socket)?;
            self.bells.watch_path(watch.as_fd())?;
            std::io::Result::Ok(watch)
        };
        // Without it the delays must do.
        self.path = watch().ok();
    }

    pub(crate) fn unwatch_path(&mut self) {
        if let Some(watch) = self.path.take() {
            self.bells.unwatch(watch.as_fd());
        }
    }
}

pub(crate) fn receive(socket: &UnixStream, decoder: &mut FrameDecoder, descriptors: &mut Vec<OwnedFd>) -> Got {
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

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
pub(crate) enum LinkState {
    Up(Arc<UnixStream>),
    /// Until the next attempt.
    Waiting(Retry),
    /// Hello was sent; its reply is due by then (`None`: no limit).
    Greeting(Arc<UnixStream>, Retry, Option<Instant>),
    /// Another broker has greeted the client: what the session had at the last one is requested from it.
    Restoring(Arc<UnixStream>, Box<Welcome>),
    /// Nothing comes any more.
    Down,
}

/// The receiving half of the control socket.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) line: LinkState,
    pub(crate) decoder: FrameDecoder,
    /// Descriptors that came before their Welcome was whole.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// `None`: there is no session to resume.
    pub(crate) token: Option<Token>,
    pub(crate) bells: Arc<ClientBells>,
    /// When the session was renewed: one that ends at once is not renewed at once.
    pub(crate) renewed_at: Option<Instant>,
    /// Watches the folder of the socket's path while there is no connection.
    pub(crate) path: Option<OwnedFd>,
}

/// The reader's next action for the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextAction {
    /// Nothing, until a socket has something.
    Rest,
    /// Call again at this time.
    At(Instant),
    /// Look again: something has changed.
    Changed,
}

/// An event of the socket.
pub(crate) enum SocketEvent {
    Frame(Box<BrokerFrame>),
    /// Nothing more for now.
    Nothing,
    /// The socket has ended, or failed.
    End(String),
    /// An invalid frame.
    Nonsense(String),
}

impl Link {
    pub(crate) fn new(socket: Arc<UnixStream>, bells: Arc<ClientBells>, decoder: FrameDecoder, token: Token) -> Link {
        let (line, descriptors) = (LinkState::Up(socket), Vec::new());
        Link { line, decoder, descriptors, token: Some(token), bells, renewed_at: None, path: None }
    }

    /// The bells of the current session.
    pub(crate) fn bells(&self) -> Arc<ClientBells> {
        self.bells.clone()
    }

    /// Whether it is lost, and looked for.
    pub(crate) fn is_lost(&self) -> bool {
        !matches!(self.line, LinkState::Up(_) | LinkState::Down)
    }

    /// Whether a broker has greeted us.
    pub(crate) fn is_greeted(&self) -> bool {
        matches!(self.line, LinkState::Up(_) | LinkState::Restoring(..))
    }

    /// The next frame of a broker that has greeted us.
    pub(crate) fn next(&mut self) -> SocketEvent {
        let (LinkState::Up(socket) | LinkState::Restoring(socket, _)) = &self.line else { return SocketEvent::Nothing };
        receive(socket, &mut self.decoder, &mut Vec::new())
    }

    /// Nothing comes any more.
    pub(crate) fn shut_down(&mut self) {
        match std::mem::replace(&mut self.line, LinkState::Down) {
            LinkState::Up(socket) | LinkState::Greeting(socket, ..) | LinkState::Restoring(socket, _) => {
                self.bells.unwatch(socket.as_fd());
            }
            LinkState::Waiting(_) | LinkState::Down => {}
        }
        self.unwatch_path();
    }

    /// Whether another broker has greeted this client, and the session is being restored there.
    pub(crate) fn is_restoring(&self) -> bool {
        matches!(self.line, LinkState::Restoring(..))
    }

    /// The session is restored at the new broker: returns the data of its Welcome.
    pub(crate) fn resume(
        &mut self,
        bells: &dyn Fn(ClientBells) -> Arc<ClientBells>,
    ) -> Option<(Segment, Limits, Greeted)> {
        let LinkState::Restoring(socket, welcome) = std::mem::replace(&mut self.line, LinkState::Down) else {
            return None;
        };
        self.unwatch_path();
        self.bells.unwatch(socket.as_fd());
        let Welcome { segment, bells: new, limits, greeted, .. } = *welcome;
        self.bells = bells(new);
        (self.token, self.renewed_at) = (Some(greeted.token), Some(Instant::now()));
        self.line = LinkState::Up(socket);
        Some((segment, limits, greeted))
    }

    pub(crate) fn take_line(&mut self) -> LinkState {
        let line = std::mem::replace(&mut self.line, LinkState::Down);
        if let LinkState::Greeting(socket, ..) = &line {
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

pub(crate) fn receive(socket: &UnixStream, decoder: &mut FrameDecoder, descriptors: &mut Vec<OwnedFd>) -> SocketEvent {
    let mut buffer = [0; 4096];
    loop {
        match decoder.next_frame().and_then(|body| body.map(BrokerFrame::decode).transpose()) {
            Ok(Some(frame)) => return SocketEvent::Frame(frame.into()),
            Ok(None) => {}
            Err(error) => return SocketEvent::Nonsense(error.to_string()),
        }
        match descriptors::receive(socket.as_fd(), &mut buffer, descriptors) {
            Ok(0) => return SocketEvent::End("the broker closed the connection".to_owned()),
            Ok(n) => decoder.push(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return SocketEvent::Nothing,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return SocketEvent::End(error.to_string()),
        }
    }
}

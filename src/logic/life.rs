//! The life of a connection, as a state machine that is told the time.
//!
//! ```text
//!                welcomed                 socket lost, panic: a failure, after which
//!   handshaking ──────────► attached ───────────────────────────────► awaiting peer
//!        │                   ▲   │                                    the supervisor builds the next one
//!        │                   │   │ Bye, violation, router, shutdown      │   │ window over, process gone,
//!        │                   │   ▼                                       │   ▼ router, shutdown
//!        └──────────────► closed ◄───────────────────────────────────────┼─ closed
//!          refused           └───────────────────────────────────────────┘
//!                              a socket with the session's token: the restart holds
//! ```
//!
//! It is kept with the session, so that an incarnation of the actor goes on where the last one stopped.

use std::time::{Duration, Instant};

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its first incarnation has yet to begin.
    New,
    /// A Hello is waited for, or answered.
    Handshaking,
    /// A socket is served.
    Attached,
    /// The session waits for a socket with its token.
    AwaitingPeer {
        until: Instant,
    },
    Closed,
}

/// What an incarnation is to do first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    Handshake,
    /// Wait for the peer until then.
    Await(Instant),
    /// There is nothing to go on with.
    Nothing,
}

/// What follows from a lost socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The incarnation fails; the next one awaits the peer.
    Fails,
    /// The peer cannot return: the session ends.
    Ends,
}

/// The life of one connection.
#[derive(Debug)]
pub(crate) struct Life {
    state: State,
    window: Duration,
}

impl Life {
    /// A connection whose session would wait for its peer for `window`.
    pub(crate) fn new(window: Duration) -> Life {
        Life { state: State::New, window }
    }

    /// An incarnation begins: the first one, or one after a failure.
    pub(crate) fn begin(&mut self, now: Instant) -> Begin {
        let (state, begin) = match self.state {
            State::New => (State::Handshaking, Begin::Handshake),
            State::Attached => {
                let until = now + self.window;
                (State::AwaitingPeer { until }, Begin::Await(until))
            }
            // The last one failed while it waited: the window is not longer for that.
            State::AwaitingPeer { until } => (self.state, Begin::Await(until)),
            State::Handshaking | State::Closed => (State::Closed, Begin::Nothing),
        };
        self.state = state;
        begin
    }

    /// There is a session, and its peer has a socket: a new one, or one that was resumed.
    pub(crate) fn attached(&mut self) {
        if matches!(self.state, State::Handshaking | State::AwaitingPeer { .. }) {
            self.state = State::Attached;
        }
    }

    /// The socket is lost. `may_return`: the peer's process lives, and the broker does not end.
    pub(crate) fn socket_lost(&mut self, may_return: bool) -> Lost {
        if self.state == State::Attached && may_return && !self.window.is_zero() {
            return Lost::Fails;
        }
        self.state = State::Closed;
        Lost::Ends
    }

    /// It is over.
    pub(crate) fn closed(&mut self) {
        self.state = State::Closed;
    }

    /// Whether a later incarnation has something to go on with.
    pub(crate) fn goes_on(&self) -> bool {
        matches!(self.state, State::Attached | State::AwaitingPeer { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(5);

    fn attached(window: Duration) -> (Life, Instant) {
        let (mut life, now) = (Life::new(window), Instant::now());
        assert_eq!(life.begin(now), Begin::Handshake);
        assert!(!life.goes_on(), "there is no session yet");
        life.attached();
        (life, now)
    }

    #[test]
    fn a_lost_socket_is_a_failure_after_which_the_peer_is_awaited_for_the_window() {
        let (mut life, now) = attached(WINDOW);
        assert_eq!(life.socket_lost(true), Lost::Fails);
        assert!(life.goes_on());
        assert_eq!(life.begin(now), Begin::Await(now + WINDOW));
        assert_eq!(life.begin(now + WINDOW / 2), Begin::Await(now + WINDOW), "a panic makes the window no longer");
        life.attached();
        assert_eq!(life.socket_lost(true), Lost::Fails);
        assert_eq!(life.begin(now + WINDOW), Begin::Await(now + 2 * WINDOW), "a resume begins a new one");
    }

    #[test]
    fn a_socket_whose_peer_cannot_return_ends_the_session() {
        let (mut life, now) = attached(WINDOW);
        assert_eq!(life.socket_lost(false), Lost::Ends);
        assert_eq!((life.goes_on(), life.begin(now)), (false, Begin::Nothing));
        assert_eq!(attached(Duration::ZERO).0.socket_lost(true), Lost::Ends, "without a window nothing waits");
    }

    #[test]
    fn a_failure_in_the_handshake_leaves_nothing_to_go_on_with() {
        let (mut life, now) = (Life::new(WINDOW), Instant::now());
        life.begin(now);
        assert!(!life.goes_on());
        assert_eq!(life.begin(now), Begin::Nothing);
        life.attached();
        assert!(!life.goes_on(), "it is over");
    }

    #[test]
    fn a_panic_of_an_attached_connection_is_as_a_lost_socket() {
        let (mut life, now) = attached(WINDOW);
        assert!(life.goes_on());
        assert_eq!(life.begin(now), Begin::Await(now + WINDOW));
        life.closed();
        assert_eq!(life.begin(now), Begin::Nothing);
    }
}

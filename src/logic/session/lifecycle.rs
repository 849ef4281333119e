//! The lifecycle of a connection. A pure state machine: time is an argument.
//!
//! ```text
//!                welcomed                 socket lost, panic: a failure, after which
//!   handshaking ──────────► attached ───────────────────────────────► awaiting peer
//!        │                   ▲   │                                    the supervisor builds the next one
//!        │                   │   │ Bye, violation, router, shutdown      │   │ window over, process gone,
//!        │                   │   ▼                                       │   ▼ router, shutdown
//!        └──────────────► closed ◄───────────────────────────────────────┼─ closed
//!          refused           └───────────────────────────────────────────┘
//!                              a socket with the session's token: stable
//! ```
//!
//! It is stored with the session, so that the next incarnation of the actor continues where the last one stopped.

use std::time::{Duration, Instant};

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Before the first incarnation.
    New,
    /// Waiting for a Hello, or replying to it.
    Handshaking,
    /// Serving a socket.
    Attached,
    /// Waiting for a socket with the session's token.
    AwaitingPeer {
        until: Instant,
    },
    Closed,
}

/// The first action of an incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    Handshake,
    /// Wait for the client until this time.
    Await(Instant),
    /// End: there is no session to continue.
    Nothing,
}

/// The consequence of a lost socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The incarnation fails; the next one waits for the client.
    Fails,
    /// The client cannot return: the session ends.
    Ends,
}

/// The lifecycle of one connection.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    state: State,
    window: Duration,
}

impl Lifecycle {
    /// A new connection with this resume window.
    pub(crate) fn new(window: Duration) -> Lifecycle {
        Lifecycle { state: State::New, window }
    }

    /// An incarnation begins: the first one, or one after a failure.
    pub(crate) fn begin(&mut self, now: Instant) -> Begin {
        let (state, begin) = match self.state {
            State::New => (State::Handshaking, Begin::Handshake),
            State::Attached => {
                let until = now + self.window;
                (State::AwaitingPeer { until }, Begin::Await(until))
            }
            // The last incarnation failed while it waited: the window is not extended.
            State::AwaitingPeer { until } => (self.state, Begin::Await(until)),
            State::Handshaking | State::Closed => (State::Closed, Begin::Nothing),
        };
        self.state = state;
        begin
    }

    /// The session is attached: opened or resumed.
    pub(crate) fn attached(&mut self) {
        if matches!(self.state, State::Handshaking | State::AwaitingPeer { .. }) {
            self.state = State::Attached;
        }
    }

    /// The socket is lost. `may_return`: the client's process is alive, and the broker is not shutting down.
    pub(crate) fn socket_lost(&mut self, may_return: bool) -> Lost {
        if self.state == State::Attached && may_return && !self.window.is_zero() {
            return Lost::Fails;
        }
        self.state = State::Closed;
        Lost::Ends
    }

    /// The session has ended.
    pub(crate) fn closed(&mut self) {
        self.state = State::Closed;
    }

    /// Whether a later incarnation would have a session to continue.
    pub(crate) fn can_continue(&self) -> bool {
        matches!(self.state, State::Attached | State::AwaitingPeer { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(5);

    fn attached(window: Duration) -> (Lifecycle, Instant) {
        let (mut lifecycle, now) = (Lifecycle::new(window), Instant::now());
        assert_eq!(lifecycle.begin(now), Begin::Handshake);
        assert!(!lifecycle.can_continue(), "there is no session yet");
        lifecycle.attached();
        (lifecycle, now)
    }

    #[test]
    fn a_lost_socket_is_a_failure_after_which_the_peer_is_awaited_for_the_window() {
        let (mut lifecycle, now) = attached(WINDOW);
        assert_eq!(lifecycle.socket_lost(true), Lost::Fails);
        assert!(lifecycle.can_continue());
        assert_eq!(lifecycle.begin(now), Begin::Await(now + WINDOW));
        assert_eq!(lifecycle.begin(now + WINDOW / 2), Begin::Await(now + WINDOW), "a panic makes the window no longer");
        lifecycle.attached();
        assert_eq!(lifecycle.socket_lost(true), Lost::Fails);
        assert_eq!(lifecycle.begin(now + WINDOW), Begin::Await(now + 2 * WINDOW), "a resume begins a new one");
    }

    #[test]
    fn a_socket_whose_peer_cannot_return_ends_the_session() {
        let (mut lifecycle, now) = attached(WINDOW);
        assert_eq!(lifecycle.socket_lost(false), Lost::Ends);
        assert_eq!((lifecycle.can_continue(), lifecycle.begin(now)), (false, Begin::Nothing));
        assert_eq!(attached(Duration::ZERO).0.socket_lost(true), Lost::Ends, "without a window nothing waits");
    }

    #[test]
    fn a_failure_in_the_handshake_leaves_nothing_to_go_on_with() {
        let (mut lifecycle, now) = (Lifecycle::new(WINDOW), Instant::now());
        lifecycle.begin(now);
        assert!(!lifecycle.can_continue());
        assert_eq!(lifecycle.begin(now), Begin::Nothing);
        lifecycle.attached();
        assert!(!lifecycle.can_continue(), "it is over");
    }

    #[test]
    fn a_panic_of_an_attached_connection_is_as_a_lost_socket() {
        let (mut lifecycle, now) = attached(WINDOW);
        assert!(lifecycle.can_continue());
        assert_eq!(lifecycle.begin(now), Begin::Await(now + WINDOW));
        lifecycle.closed();
        assert_eq!(lifecycle.begin(now), Begin::Nothing);
    }
}

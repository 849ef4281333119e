//! The registry of session tokens. Pure: time is an argument. The rules S1–S8 are in `actors.md`.
//!
//! The address of a detached session's actor is a value `S`: it goes in with [`Sessions::detach`], and is returned
//! once, to the claimant with the token.

use crate::wire::codec;
use crate::wire::control::{BrokerFrame, Token};
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// Replies that a session keeps: the limit of outstanding control requests of a client.
pub(crate) const MAX_REPLIES: usize = 64;

/// Remembered tokens of sessions that were given up.
const MAX_GIVEN_UP: usize = 64;

/// The sessions of a broker, attached or detached.
#[derive(Debug)]
pub(crate) struct Sessions<S> {
    sessions: HashMap<u32, Session<S>>,
    /// Hashed with a secret key, then compared in constant time (S3).
    tokens: HashMap<Token, u32>,
    given_up: VecDeque<Token>,
}

#[derive(Debug)]
struct Session<S> {
    token: Token,
    /// Valid until the client has confirmed `token` (S4).
    before: Option<Token>,
    uid: u32,
    nonce: u64,
    /// `None` while the session is attached.
    detached: Option<Box<Detached<S>>>,
}

#[derive(Debug)]
struct Detached<S> {
    until: Instant,
    reached: S,
}

/// Why a token does not resume a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResumeError {
    /// The token was never issued or is used up, or its session has ended.
    #[error("unknown session token; the client begins a new session")]
    Unknown,
    /// The session belongs to another user.
    #[error("session token belongs to another user")]
    OtherUser,
    /// The session belongs to another instance of the client.
    #[error("session token belongs to another client instance")]
    OtherInstance,
    /// The resume window has expired.
    #[error("resume window of the session expired")]
    Over,
    /// The session is attached to the connection with this id.
    #[error("session is in use by connection {0}")]
    Held(u32),
    /// Its connection reached the restart limit.
    #[error(
        "the session was given up: its connection failed more often than restart.connection_max_restarts \
         within restart.connection_period_secs"
    )]
    GivenUp,
}

impl<S> Sessions<S> {
    /// No sessions yet.
    pub(crate) fn new() -> Sessions<S> {
        let (sessions, tokens, given_up) = (HashMap::new(), HashMap::new(), VecDeque::new());
        Sessions { sessions, tokens, given_up }
    }

    /// Adds an attached session.
    pub(crate) fn open(&mut self, id: u32, token: Token, uid: u32, nonce: u64) {
        let session = Session { token, before: None, uid, nonce, detached: None };
        self.sessions.insert(id, session);
        self.tokens.insert(token, id);
    }

    /// Detaches a session until its client resumes it; `reached` is the address of its actor. `false`: it has ended.
    pub(crate) fn detach(&mut self, id: u32, reached: S, until: Instant) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        session.detached = Some(Box::new(Detached { until, reached }));
        true
    }

    /// Claims the session of `token`, which `fresh` replaces (S4).
    ///
    /// # Errors
    ///
    /// If no detached session of this user and instance has this token.
    pub(crate) fn resume(
        &mut self,
        token: Token,
        fresh: Token,
        uid: u32,
        nonce: u64,
        now: Instant,
    ) -> Result<(u32, S), ResumeError> {
        if self.given_up.contains(&token) {
            return Err(ResumeError::GivenUp);
        }
        let id = *self.tokens.get(&token).ok_or(ResumeError::Unknown)?;
        let session = self.sessions.get_mut(&id).ok_or(ResumeError::Unknown)?;
        if session.uid != uid {
            return Err(ResumeError::OtherUser);
        }
        if session.nonce != nonce {
            return Err(ResumeError::OtherInstance);
        }
        let detached = session.detached.take().ok_or(ResumeError::Held(id))?;
        if now >= detached.until {
            session.detached = Some(detached);
            return Err(ResumeError::Over);
        }
        for void in [Some(session.token), session.before].into_iter().flatten().filter(|known| *known != token) {
            self.tokens.remove(&void);
        }
        (session.token, session.before) = (fresh, Some(token));
        self.tokens.insert(fresh, id);
        Ok((id, detached.reached))
    }

    /// The client has confirmed its newest token: the previous one is void.
    pub(crate) fn confirm(&mut self, id: u32) {
        if let Some(before) = self.sessions.get_mut(&id).and_then(|session| session.before.take()) {
            self.tokens.remove(&before);
        }
    }

    /// Ends a detached session; `false` if it was just resumed.
    pub(crate) fn end_waiting(&mut self, id: u32) -> bool {
        let is_detached = self.sessions.get(&id).is_some_and(|session| session.detached.is_some());
        if is_detached {
            self.end(id);
        }
        is_detached
    }

    /// Ends a session.
    pub(crate) fn end(&mut self, id: u32) {
        let Some(session) = self.sessions.remove(&id) else { return };
        for token in [Some(session.token), session.before].into_iter().flatten() {
            self.tokens.remove(&token);
        }
    }

    /// Ends a session whose connection reached its restart limit. Its client learns that when it reconnects.
    pub(crate) fn give_up(&mut self, id: u32) {
        if let Some(session) = self.sessions.get(&id) {
            self.given_up.extend([Some(session.token), session.before].into_iter().flatten());
            while self.given_up.len() > MAX_GIVEN_UP {
                self.given_up.pop_front();
            }
        }
        self.end(id);
    }

    /// The ids of detached sessions.
    pub(crate) fn waiting_ids(&self) -> impl Iterator<Item = u32> + '_ {
        let waiting = self.sessions.iter().filter(|(_, session)| session.detached.is_some());
        waiting.map(|(id, _)| *id)
    }

    /// The ids of a user's sessions, and whether they are detached.
    pub(crate) fn of_user(&self, uid: u32) -> impl Iterator<Item = (u32, bool)> + '_ {
        let own = self.sessions.iter().filter(move |(_, session)| session.uid == uid);
        own.map(|(id, session)| (*id, session.detached.is_some()))
    }
}

/// The last replies of a session, for requests that are repeated over a later socket (S6).
///
/// Encoded: a frame takes ten times the memory, in every connection.
#[derive(Debug, Default)]
pub(crate) struct ReplyCache {
    kept: VecDeque<(u32, Box<[u8]>)>,
    /// The number of the oldest of them that were sent over an earlier socket.
    earlier: usize,
}

impl ReplyCache {
    /// The reply that was sent to this request over an earlier socket.
    pub(crate) fn find(&self, serial: u32) -> Option<BrokerFrame> {
        let (_, answer) = self.kept.iter().take(self.earlier).find(|(known, _)| *known == serial)?;
        codec::decode(answer).ok()
    }

    /// Records a reply, unless its request may be executed twice.
    pub(crate) fn keep(&mut self, serial: u32, answer: &BrokerFrame) {
        let made = matches!(
            answer,
            BrokerFrame::Interned { .. }
                | BrokerFrame::Subscribed { .. }
                | BrokerFrame::Serving { .. }
                | BrokerFrame::Failed { .. }
        );
        if !made {
            return;
        }
        // If it is too long, sending it fails in the same way.
        let Ok(encoded) = codec::encode(answer) else { return };
        if self.kept.len() == MAX_REPLIES {
            self.kept.pop_front();
            self.earlier = self.earlier.saturating_sub(1);
        }
        self.kept.push_back((serial, encoded.into()));
    }

    /// The session has another socket from now on.
    pub(crate) fn next_socket(&mut self) {
        self.earlier = self.kept.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const WINDOW: Duration = Duration::from_secs(5);

    fn token(n: u8) -> Token {
        Token::from_bytes([n; 16])
    }

    fn one() -> (Sessions<&'static str>, Instant) {
        let mut sessions = Sessions::new();
        sessions.open(7, token(1), 1000, 42);
        (sessions, Instant::now())
    }

    #[test]
    fn a_session_is_taken_up_once_with_each_token() {
        let (mut sessions, now) = one();
        let until = now + WINDOW;
        assert_eq!(sessions.resume(token(1), token(2), 1000, 42, now), Err(ResumeError::Held(7)));
        assert!(sessions.detach(7, "first", until));
        assert_eq!(sessions.of_user(1000).collect::<Vec<_>>(), [(7, true)]);
        assert_eq!((sessions.of_user(1001).count(), sessions.waiting_ids().count()), (0, 1));
        assert_eq!(sessions.resume(token(9), token(2), 1000, 42, now), Err(ResumeError::Unknown));
        assert_eq!(sessions.resume(token(1), token(2), 1001, 42, now), Err(ResumeError::OtherUser));
        assert_eq!(sessions.resume(token(1), token(2), 1000, 43, now), Err(ResumeError::OtherInstance));
        assert_eq!(sessions.resume(token(1), token(2), 1000, 42, now), Ok((7, "first")));
        assert_eq!(sessions.resume(token(1), token(3), 1000, 42, now), Err(ResumeError::Held(7)), "two claimants");
        sessions.confirm(7);
        assert!(sessions.detach(7, "again", until));
        assert_eq!(sessions.resume(token(1), token(3), 1000, 42, now), Err(ResumeError::Unknown), "replayed");
        assert_eq!(sessions.resume(token(2), token(3), 1000, 42, now), Ok((7, "again")));
        assert_eq!((sessions.waiting_ids().count(), sessions.tokens.len()), (0, 2));
    }

    #[test]
    fn a_token_that_never_arrived_leaves_the_one_before_good() {
        let (mut sessions, now) = one();
        for fresh in 2..10 {
            assert!(sessions.detach(7, "it", now + WINDOW));
            assert_eq!(sessions.resume(token(1), token(fresh), 1000, 42, now), Ok((7, "it")));
            assert_eq!(sessions.tokens.len(), 2, "the others are void");
        }
        sessions.confirm(7);
        assert_eq!(sessions.tokens.keys().collect::<Vec<_>>(), [&token(9)]);
    }

    #[test]
    fn the_window_ends_it() {
        let (mut sessions, now) = one();
        let until = now + WINDOW;
        assert!(sessions.detach(7, "it", until));
        assert_eq!(sessions.resume(token(1), token(2), 1000, 42, until), Err(ResumeError::Over));
        assert!(sessions.end_waiting(7) && !sessions.end_waiting(7));
        assert_eq!(sessions.resume(token(1), token(2), 1000, 42, until), Err(ResumeError::Unknown));
        assert_eq!((sessions.waiting_ids().count(), sessions.tokens.len(), sessions.sessions.len()), (0, 0, 0));
        assert!(!sessions.detach(7, "it", until), "there is no such session");
    }

    #[test]
    fn a_session_that_was_just_taken_up_is_not_ended_by_its_window() {
        let (mut sessions, now) = one();
        assert!(sessions.detach(7, "it", now + WINDOW));
        sessions.resume(token(1), token(2), 1000, 42, now).unwrap();
        assert!(!sessions.end_waiting(7));
        assert_eq!(sessions.resume(token(2), token(3), 1000, 42, now), Err(ResumeError::Held(7)));
    }

    #[test]
    fn the_client_of_a_session_that_was_given_up_is_told_so() {
        let (mut sessions, now) = one();
        sessions.give_up(7);
        assert_eq!(sessions.resume(token(1), token(2), 1000, 42, now), Err(ResumeError::GivenUp));
        assert_eq!((sessions.tokens.len(), sessions.sessions.len()), (0, 0));
        for id in 0..MAX_GIVEN_UP as u32 {
            sessions.open(100 + id, Token::from_bytes([100 + id as u8; 16]), 1000, 42);
            sessions.give_up(100 + id);
        }
        assert_eq!(sessions.given_up.len(), MAX_GIVEN_UP);
    }

    #[test]
    fn answers_are_found_over_a_later_socket_only_and_are_bounded() {
        let mut answers = ReplyCache::default();
        let answer = |serial| BrokerFrame::Interned { serial, id: serial };
        answers.keep(1, &answer(1));
        answers.keep(2, &BrokerFrame::Done { serial: 2 });
        assert_eq!(answers.find(1), None, "the same socket: another question with the number of an old one");
        answers.next_socket();
        assert_eq!((answers.find(1), answers.find(2)), (Some(answer(1)), None));
        for serial in 10..10 + MAX_REPLIES as u32 {
            answers.keep(serial, &answer(serial));
        }
        assert_eq!((answers.find(1), answers.find(10), answers.kept.len()), (None, None, MAX_REPLIES));
        answers.next_socket();
        assert_eq!(answers.find(10), Some(answer(10)));
    }
}

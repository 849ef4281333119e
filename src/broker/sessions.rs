//! Who may take a session up: a pure registry, told the time. The rules S1–S8 are in `actors.md`.
//!
//! What is kept of a session while nobody holds it is not this module's business: it is a value `S` that goes in with
//! [`Sessions::let_go`] and comes out again once, to who resumes the session or to who ends it.

use crate::wire::codec;
use crate::wire::control::{BrokerFrame, Token};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Answers that a session keeps: as many as a client may have questions under way.
pub(super) const MOST_ANSWERS: usize = 64;

/// The sessions of a broker, each of which some connection holds or nobody.
#[derive(Debug)]
pub(super) struct Sessions<S> {
    window: Duration,
    sessions: HashMap<u32, Session<S>>,
    /// Hashed with a key that nobody knows, then compared in constant time (S3).
    tokens: HashMap<Token, u32>,
    waiting: usize,
}

#[derive(Debug)]
struct Session<S> {
    token: Token,
    /// Good until the client has shown that it has `token` (S4).
    before: Option<Token>,
    uid: u32,
    nonce: u64,
    /// How often nobody held it.
    turn: u64,
    /// `None` while somebody holds it, which is most of the time.
    waits: Option<Box<Waits<S>>>,
}

#[derive(Debug)]
struct Waits<S> {
    until: Instant,
    kept: S,
}

/// Why a token resumes nothing now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ResumeError {
    /// It was never given, is used up, or its session has ended.
    #[error("unknown session token; the client begins a new session")]
    Unknown,
    /// The session is another user's.
    #[error("the session of this token is another user's")]
    OtherUser,
    /// The session is that of another run of the client.
    #[error("the session of this token is that of another instance")]
    OtherInstance,
    /// Its peer did not come back in time.
    #[error("the session of this token has waited too long")]
    Over,
    /// Another connection holds it; this is its number.
    #[error("connection {0} holds the session of this token")]
    Held(u32),
}

impl<S> Sessions<S> {
    /// None yet. They wait for their peer for `window`.
    pub(super) fn new(window: Duration) -> Sessions<S> {
        Sessions { window, sessions: HashMap::new(), tokens: HashMap::new(), waiting: 0 }
    }

    /// A session begins, held by who calls.
    pub(super) fn open(&mut self, id: u32, token: Token, uid: u32, nonce: u64) {
        let session = Session { token, before: None, uid, nonce, turn: 0, waits: None };
        self.sessions.insert(id, session);
        self.tokens.insert(token, id);
    }

    /// Nobody holds the session any more. If it `may_wait`, it awaits its peer for the window, else it is over at once.
    /// Answers which turn of waiting this is, and until when; the value back if there is no such session.
    pub(super) fn let_go(&mut self, id: u32, kept: S, may_wait: bool, now: Instant) -> Result<(u64, Instant), S> {
        let Some(session) = self.sessions.get_mut(&id) else { return Err(kept) };
        let until = if may_wait { now + self.window } else { now };
        session.turn += 1;
        self.waiting += usize::from(session.waits.is_none());
        session.waits = Some(Box::new(Waits { until, kept }));
        Ok((session.turn, until))
    }

    /// Takes up the session of `token`, which `fresh` replaces (S4).
    ///
    /// # Errors
    ///
    /// If there is none for this user and instance that waits.
    pub(super) fn resume(
        &mut self,
        token: Token,
        fresh: Token,
        uid: u32,
        nonce: u64,
        now: Instant,
    ) -> Result<(u32, S), ResumeError> {
        let id = *self.tokens.get(&token).ok_or(ResumeError::Unknown)?;
        let session = self.sessions.get_mut(&id).ok_or(ResumeError::Unknown)?;
        if session.uid != uid {
            return Err(ResumeError::OtherUser);
        }
        if session.nonce != nonce {
            return Err(ResumeError::OtherInstance);
        }
        let waits = session.waits.take().ok_or(ResumeError::Held(id))?;
        if now >= waits.until {
            session.waits = Some(waits);
            return Err(ResumeError::Over);
        }
        self.waiting -= 1;
        for void in [Some(session.token), session.before].into_iter().flatten().filter(|known| *known != token) {
            self.tokens.remove(&void);
        }
        (session.token, session.before) = (fresh, Some(token));
        self.tokens.insert(fresh, id);
        Ok((id, waits.kept))
    }

    /// The client has its newest token: the one before is void.
    pub(super) fn confirm(&mut self, id: u32) {
        if let Some(before) = self.sessions.get_mut(&id).and_then(|session| session.before.take()) {
            self.tokens.remove(&before);
        }
    }

    /// Ends a session that waits since its `turn`-th loss; `None` if it does not.
    pub(super) fn end_waiting(&mut self, id: u32, turn: u64) -> Option<S> {
        self.sessions.get(&id).filter(|session| session.turn == turn && session.waits.is_some())?;
        self.end(id)
    }

    /// Ends a session. Answers what was kept, if it was waiting.
    pub(super) fn end(&mut self, id: u32) -> Option<S> {
        let session = self.sessions.remove(&id)?;
        for token in [Some(session.token), session.before].into_iter().flatten() {
            self.tokens.remove(&token);
        }
        self.waiting -= usize::from(session.waits.is_some());
        session.waits.map(|waits| waits.kept)
    }

    /// Who waits for its peer.
    pub(super) fn waiting_ids(&self) -> impl Iterator<Item = u32> + '_ {
        let waiting = self.sessions.iter().filter(|(_, session)| session.waits.is_some());
        waiting.map(|(id, _)| *id)
    }

    /// How many wait for their peer.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }
}

/// The last answers of a session, for questions that come again over a later socket (S6).
///
/// Encoded: a frame takes ten times the memory, in every connection.
#[derive(Debug, Default)]
pub(super) struct Answers {
    kept: VecDeque<(u32, Box<[u8]>)>,
    /// So many of them, the oldest, went over an earlier socket.
    earlier: usize,
}

impl Answers {
    /// What the question was answered over an earlier socket.
    pub(super) fn find(&self, serial: u32) -> Option<BrokerFrame> {
        let (_, answer) = self.kept.iter().take(self.earlier).find(|(known, _)| *known == serial)?;
        codec::decode(answer).ok()
    }

    /// Keeps an answer, if it matters that its question is not carried out twice.
    pub(super) fn keep(&mut self, serial: u32, answer: &BrokerFrame) {
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
        // It is about to be sent, which fails in the same way if it is too long.
        let Ok(encoded) = codec::encode(answer) else { return };
        if self.kept.len() == MOST_ANSWERS {
            self.kept.pop_front();
            self.earlier = self.earlier.saturating_sub(1);
        }
        self.kept.push_back((serial, encoded.into()));
    }

    /// What comes now comes over another socket.
    pub(super) fn next_socket(&mut self) {
        self.earlier = self.kept.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(5);

    fn token(n: u8) -> Token {
        Token::from_bytes([n; 16])
    }

    fn one() -> (Sessions<&'static str>, Instant) {
        let mut sessions = Sessions::new(WINDOW);
        sessions.open(7, token(1), 1000, 42);
        (sessions, Instant::now())
    }

    #[test]
    fn a_session_is_taken_up_once_with_each_token() {
        let (mut sessions, now) = one();
        assert_eq!(sessions.resume(token(1), token(2), 1000, 42, now), Err(ResumeError::Held(7)));
        sessions.let_go(7, "kept", true, now).unwrap();
        assert_eq!(sessions.waiting(), 1);
        assert_eq!(sessions.resume(token(9), token(2), 1000, 42, now), Err(ResumeError::Unknown));
        assert_eq!(sessions.resume(token(1), token(2), 1001, 42, now), Err(ResumeError::OtherUser));
        assert_eq!(sessions.resume(token(1), token(2), 1000, 43, now), Err(ResumeError::OtherInstance));
        assert_eq!(sessions.resume(token(1), token(2), 1000, 42, now), Ok((7, "kept")));
        assert_eq!(sessions.resume(token(1), token(3), 1000, 42, now), Err(ResumeError::Held(7)), "two claimants");
        sessions.confirm(7);
        sessions.let_go(7, "again", true, now).unwrap();
        assert_eq!(sessions.resume(token(1), token(3), 1000, 42, now), Err(ResumeError::Unknown), "replayed");
        assert_eq!(sessions.resume(token(2), token(3), 1000, 42, now), Ok((7, "again")));
        assert_eq!((sessions.waiting(), sessions.tokens.len()), (0, 2));
    }

    #[test]
    fn a_token_that_never_arrived_leaves_the_one_before_good() {
        let (mut sessions, now) = one();
        for fresh in 2..10 {
            sessions.let_go(7, "kept", true, now).unwrap();
            assert_eq!(sessions.resume(token(1), token(fresh), 1000, 42, now), Ok((7, "kept")));
            assert_eq!(sessions.tokens.len(), 2, "the others are void");
        }
        sessions.confirm(7);
        assert_eq!(sessions.tokens.keys().collect::<Vec<_>>(), [&token(9)]);
    }

    #[test]
    fn the_window_ends_it() {
        let (mut sessions, now) = one();
        let (turn, until) = sessions.let_go(7, "kept", true, now).unwrap();
        assert_eq!((turn, until), (1, now + WINDOW));
        assert_eq!(sessions.resume(token(1), token(2), 1000, 42, until), Err(ResumeError::Over));
        assert_eq!(sessions.end_waiting(7, turn), Some("kept"));
        assert_eq!(sessions.end_waiting(7, turn), None);
        assert_eq!(sessions.resume(token(1), token(2), 1000, 42, until), Err(ResumeError::Unknown));
        assert_eq!((sessions.waiting(), sessions.tokens.len(), sessions.sessions.len()), (0, 0, 0));
    }

    #[test]
    fn who_watched_an_earlier_wait_ends_nothing() {
        let (mut sessions, now) = one();
        let (turn, _) = sessions.let_go(7, "kept", true, now).unwrap();
        sessions.resume(token(1), token(2), 1000, 42, now).unwrap();
        assert_eq!(sessions.end_waiting(7, turn), None, "held");
        sessions.let_go(7, "again", true, now).unwrap();
        assert_eq!(sessions.end_waiting(7, turn), None, "another wait");
    }

    #[test]
    fn without_a_window_nothing_waits() {
        let (mut sessions, now) = one();
        assert_eq!(sessions.let_go(7, "kept", false, now), Ok((1, now)));
        assert_eq!(sessions.resume(token(1), token(2), 1000, 42, now), Err(ResumeError::Over));
        assert_eq!(sessions.let_go(8, "nobody's", true, now), Err("nobody's"));
    }

    #[test]
    fn answers_are_found_over_a_later_socket_only_and_are_bounded() {
        let mut answers = Answers::default();
        let answer = |serial| BrokerFrame::Interned { serial, id: serial };
        answers.keep(1, &answer(1));
        answers.keep(2, &BrokerFrame::Done { serial: 2 });
        assert_eq!(answers.find(1), None, "the same socket: another question with the number of an old one");
        answers.next_socket();
        assert_eq!((answers.find(1), answers.find(2)), (Some(answer(1)), None));
        for serial in 10..10 + MOST_ANSWERS as u32 {
            answers.keep(serial, &answer(serial));
        }
        assert_eq!((answers.find(1), answers.find(10), answers.kept.len()), (None, None, MOST_ANSWERS));
        answers.next_socket();
        assert_eq!(answers.find(10), Some(answer(10)));
    }
}

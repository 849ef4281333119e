//! Calls that this client serves: a call as the reader and its responder share it, and the inbox of a service.

use super::lock::{deadline, lock};
use crate::client::error::{Error, Kind, Result};
use crate::sync::{AtomicU64, Ordering};
use crate::wire::name::Name;
use crate::wire::record::{Flags, Header, Outcome};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A call that is to be answered, as the reader sees it.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) call: u64,
    /// In which of the client's sessions it came.
    pub(crate) session: u64,
    pub(crate) requester: u32,
    pub(crate) deadline: Option<Instant>,
    pub(crate) stream: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    body: Vec<u8>,
    owed: u32,
    /// Cells of answer that may be sent.
    credit: u32,
    ended: Option<Outcome>,
}

impl Incoming {
    pub(crate) fn new(header: &Header, session: u64, credit: u32) -> Incoming {
        Incoming {
            call: header.seq,
            session,
            requester: header.origin,
            deadline: (header.nanos > 0).then(|| deadline(Some(Duration::from_nanos(header.nanos)))).flatten(),
            stream: header.flags.has(Flags::STREAM),
            state: Mutex::new(State { body: Vec::new(), owed: 0, credit, ended: None }),
        }
    }

    /// A record of the body. Answers how much credit is to be given back.
    pub(crate) fn append(&self, cells: u32, last: bool, step: u32, append: impl FnOnce(&mut Vec<u8>)) -> u32 {
        let mut state = lock(&self.state);
        append(&mut state.body);
        state.owed += cells;
        if !last && state.owed >= step { std::mem::take(&mut state.owed) } else { 0 }
    }

    pub(crate) fn add_credit(&self, cells: u32) {
        let mut state = lock(&self.state);
        state.credit = state.credit.saturating_add(cells);
    }

    pub(crate) fn end(&self, outcome: Outcome) {
        lock(&self.state).ended = Some(outcome);
    }

    pub(crate) fn is_ended(&self) -> bool {
        lock(&self.state).ended.is_some()
    }

    /// The body, for the responder; `None`: the call has ended.
    pub(crate) fn take_body(&self) -> Option<Vec<u8>> {
        let mut state = lock(&self.state);
        if state.ended.is_some() { None } else { Some(std::mem::take(&mut state.body)) }
    }

    /// Places a part of the reply by `place` if there is credit for its `cells`. `None`: there is none, or no space.
    ///
    /// # Errors
    ///
    /// If the call has ended, or by `place`.
    pub(crate) fn send(&self, cells: u32, place: impl FnOnce() -> Result<bool>) -> Option<Result<()>> {
        let mut state = lock(&self.state);
        if let Some(outcome) = state.ended {
            return Some(Err(Kind::Outcome { outcome, retry_after: None }.into()));
        }
        // Credit is spent with the record, not before: a caller that gives up in between has not lost it.
        let left = state.credit.checked_sub(cells)?;
        match place() {
            Ok(true) => state.credit = left,
            Ok(false) => return None,
            Err(error) => return Some(Err(error)),
        }
        Some(Ok(()))
    }
}

/// What arrives for a service.
#[derive(Debug)]
pub(crate) enum Arrived {
    Request(Arc<Incoming>),
    /// So much credit is to be given back for the body of this call.
    Grant(Arc<Incoming>, u32),
}

impl Arrived {
    /// The call that it is about.
    pub(crate) fn call(&self) -> &Arc<Incoming> {
        match self {
            Arrived::Request(call) | Arrived::Grant(call, _) => call,
        }
    }
}

/// What waits for whoever serves.
#[derive(Debug)]
pub(crate) struct Inbox {
    arrived: Mutex<VecDeque<Arrived>>,
    pub(crate) offer: Offer,
    /// The broker's number for it, in the present session.
    pub(crate) number: AtomicU64,
    /// Nobody serves any more.
    pub(crate) is_dropped: AtomicU64,
    /// Why the present broker does not take the offer.
    refused: OnceLock<Error>,
}

/// What a service is offered as: again, if the broker is another.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) service: Name,
    pub(crate) max_in_flight: u32,
}

impl Inbox {
    pub(crate) fn new(offer: Offer) -> Inbox {
        Inbox {
            arrived: Mutex::default(),
            offer,
            number: AtomicU64::new(0),
            is_dropped: AtomicU64::new(0),
            refused: OnceLock::new(),
        }
    }

    pub(crate) fn push(&self, arrived: Arrived) {
        lock(&self.arrived).push_back(arrived);
    }

    /// The present broker does not take the offer.
    pub(crate) fn refuse(&self, error: Error) {
        let _ = self.refused.set(error);
    }

    /// Why nothing more comes, though the connection stands.
    pub(crate) fn end(&self) -> Option<Error> {
        self.refused.get().cloned()
    }

    pub(crate) fn number(&self) -> u32 {
        self.number.load(Ordering::Relaxed) as u32
    }

    pub(crate) fn pop(&self) -> Option<Arrived> {
        lock(&self.arrived).pop_front()
    }

    /// Puts back what could not be handled yet.
    pub(crate) fn unpop(&self, arrived: Arrived) {
        lock(&self.arrived).push_front(arrived);
    }

    /// All that waits: nobody will look at it.
    pub(crate) fn take_all(&self) -> VecDeque<Arrived> {
        std::mem::take(&mut lock(&self.arrived))
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.arrived).len()
    }
}

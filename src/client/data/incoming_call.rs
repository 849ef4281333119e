//! Calls that this client serves: a call as the reader and its responder share it, and the inbox of a service.

use super::lock::{deadline, lock};
use crate::client::error::{Error, Kind, Result};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::wire::name::Name;
use crate::wire::record::{Flags, Header, Outcome};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A call that is to be replied to, as the reader and its responder share it.
#[derive(Debug)]
pub(crate) struct IncomingCall {
    pub(crate) call: u64,
    /// The session of the client in which it arrived.
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
    /// Cells of reply that may be sent.
    credit: u32,
    ended: Option<Outcome>,
}

impl IncomingCall {
    pub(crate) fn new(header: &Header, session: u64, credit: u32) -> IncomingCall {
        IncomingCall {
            call: header.seq,
            session,
            requester: header.origin,
            deadline: (header.nanos > 0).then(|| deadline(Some(Duration::from_nanos(header.nanos)))).flatten(),
            stream: header.flags.has(Flags::STREAM),
            state: Mutex::new(State { body: Vec::new(), owed: 0, credit, ended: None }),
        }
    }

    /// A record of the body. Returns how much credit is to be given back.
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

/// An item of a service's inbox.
#[derive(Debug)]
pub(crate) enum InboxItem {
    Request(Arc<IncomingCall>),
    /// So many cells of credit are to be returned for the body of this call.
    Grant(Arc<IncomingCall>, u32),
}

impl InboxItem {
    /// The call that it is about.
    pub(crate) fn call(&self) -> &Arc<IncomingCall> {
        match self {
            InboxItem::Request(call) | InboxItem::Grant(call, _) => call,
        }
    }
}

/// The requests to a service that wait for its responder.
#[derive(Debug)]
pub(crate) struct Inbox {
    items: Mutex<VecDeque<InboxItem>>,
    pub(crate) offer: Offer,
    /// The broker's number for it, in the current session.
    pub(crate) number: AtomicU64,
    /// The service was dropped.
    pub(crate) is_dropped: AtomicU64,
    /// The reason why the current broker rejected the offer.
    refused: OnceLock<Error>,
}

/// How a service is offered, also at another broker.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) service: Name,
    pub(crate) max_in_flight: u32,
}

impl Inbox {
    pub(crate) fn new(offer: Offer) -> Inbox {
        Inbox {
            items: Mutex::default(),
            offer,
            number: AtomicU64::new(0),
            is_dropped: AtomicU64::new(0),
            refused: OnceLock::new(),
        }
    }

    pub(crate) fn push(&self, item: InboxItem) {
        lock(&self.items).push_back(item);
    }

    /// The current broker rejected the offer.
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

    pub(crate) fn pop(&self) -> Option<InboxItem> {
        lock(&self.items).pop_front()
    }

    /// Puts back what could not be handled yet.
    pub(crate) fn unpop(&self, item: InboxItem) {
        lock(&self.items).push_front(item);
    }

    /// All that waits, when the service is dropped.
    pub(crate) fn take_all(&self) -> VecDeque<InboxItem> {
        std::mem::take(&mut lock(&self.items))
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.items).len()
    }
}

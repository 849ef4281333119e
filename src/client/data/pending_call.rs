//! An outstanding call, as its requester and the reader share it: what has arrived, what may be sent, how it ended.

use super::lock::lock;
use crate::client::error::{Error, Kind, Result};
use crate::sync::Mutex;
use crate::wire::record::{Flags, Header, Outcome};
use std::collections::VecDeque;
use std::time::Duration;

/// How a call failed.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    Outcome(Outcome, Option<Duration>),
    ErrorReply(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Outcome(outcome, retry_after) => Kind::Outcome { outcome, retry_after }.into(),
            Failure::ErrorReply(text) => Kind::ErrorReply(text).into(),
        }
    }
}

/// An outstanding request.
#[derive(Debug)]
pub(crate) struct PendingCall(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Whole messages of the reply that wait, with their cells. The first has a place of its own: mostly it is the
    /// only one, and then needs no allocation.
    first: Option<(Vec<u8>, u32)>,
    more: VecDeque<(Vec<u8>, u32)>,
    partial: Vec<u8>,
    partial_cells: u32,
    /// Cells that were taken and not given back to the responder.
    owed: u32,
    /// Cells of the request's body that may be sent.
    body_credit: u32,
    /// The whole body is placed.
    is_placed: bool,
    end: Option<Result<(), Failure>>,
}

impl PendingCall {
    pub(crate) fn new(credit: u32) -> PendingCall {
        PendingCall(Mutex::new(State {
            first: None,
            more: VecDeque::new(),
            partial: Vec::new(),
            partial_cells: 0,
            owed: 0,
            body_credit: credit,
            is_placed: false,
            end: None,
        }))
    }

    /// One whose body is placed.
    pub(crate) fn placed() -> PendingCall {
        let call = PendingCall::new(0);
        lock(&call.0).is_placed = true;
        call
    }

    /// A record of the reply. Returns whether the call is over.
    pub(crate) fn receive(&self, header: &Header, cells: u32, append: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut state = lock(&self.0);
        let state = &mut *state;
        if header.flags.has(Flags::FIRST) {
            // An incomplete message is discarded.
            state.partial.clear();
        }
        append(&mut state.partial);
        state.partial_cells += cells;
        if !header.flags.has(Flags::LAST) {
            // What is being put together is next to be taken, so its space is given back at once; if others wait
            // before it, only when they are taken. So one message more than the credit is kept at most.
            if state.first.is_none() {
                state.owed += std::mem::take(&mut state.partial_cells);
            }
            return false;
        }
        let (message, cells) = (std::mem::take(&mut state.partial), std::mem::take(&mut state.partial_cells));
        let ends = header.flags.has(Flags::END);
        if header.flags.has(Flags::ERROR) {
            state.end = Some(Err(Failure::ErrorReply(String::from_utf8_lossy(&message).into_owned())));
            return true;
        }
        // The end of a stream carries no chunk of its own.
        if !ends || !message.is_empty() || !header.flags.has(Flags::STREAM) {
            match state.first {
                None => state.first = Some((message, cells)),
                Some(_) => state.more.push_back((message, cells)),
            }
        }
        if ends {
            state.end = Some(Ok(()));
        }
        ends
    }

    pub(crate) fn end(&self, end: Result<(), Failure>) {
        lock(&self.0).end = Some(end);
    }

    pub(crate) fn add_body_credit(&self, cells: u32) {
        let mut state = lock(&self.0);
        state.body_credit = state.body_credit.saturating_add(cells);
    }

    /// The next result, and the credit to return in cells.
    pub(crate) fn take(&self, step: u32) -> (Option<Result<CallProgress>>, u32) {
        let mut state = lock(&self.0);
        let found = match state.first.take() {
            Some((message, cells)) => {
                state.first = state.more.pop_front();
                state.owed += cells;
                let is_last = state.first.is_none() && matches!(state.end, Some(Ok(())));
                Some(Ok(CallProgress::Message(message, is_last)))
            }
            None => state.end.clone().map(|end| end.map(|()| CallProgress::End).map_err(Error::from)),
        };
        if state.first.is_none() {
            state.owed += std::mem::take(&mut state.partial_cells);
        }
        let credit = if state.end.is_none() && state.owed >= step { std::mem::take(&mut state.owed) } else { 0 };
        (found, credit)
    }

    /// How much credit is to be given back though nothing is taken.
    pub(crate) fn take_owed(&self, step: u32) -> u32 {
        let mut state = lock(&self.0);
        if state.owed >= step { std::mem::take(&mut state.owed) } else { 0 }
    }

    pub(crate) fn add_owed(&self, cells: u32) {
        lock(&self.0).owed += cells;
    }

    /// Drops what has arrived: its owner takes no more. Returns whether the call is over.
    pub(crate) fn discard(&self) -> bool {
        let mut state = lock(&self.0);
        state.first = None;
        state.more = VecDeque::new();
        state.partial = Vec::new();
        state.end.is_some()
    }

    #[cfg(test)]
    pub(crate) fn is_over(&self) -> bool {
        lock(&self.0).end.is_some()
    }

    /// Whether a part of the body may still be placed.
    pub(crate) fn is_sending(&self) -> bool {
        let state = lock(&self.0);
        !state.is_placed && state.end.is_none()
    }

    /// Places a part of the body by `place` if there is credit for it, and takes that. `None`: the call is over.
    pub(crate) fn send(&self, cells: u32, is_last: bool, place: impl FnOnce() -> Result<bool>) -> Option<Result<bool>> {
        // Locked until it is placed, so that the cancel of a call that ends meanwhile comes behind it.
        let mut state = lock(&self.0);
        if state.end.is_some() {
            return None;
        }
        if state.body_credit < cells {
            return Some(Ok(false));
        }
        let placed = place();
        if let Ok(true) = placed {
            state.body_credit -= cells;
            state.is_placed = is_last;
        }
        Some(placed)
    }
}

/// The next result of a call.
#[derive(Debug)]
pub(crate) enum CallProgress {
    /// A message of the reply, and whether it is the last.
    Message(Vec<u8>, bool),
    /// The end, behind the last message.
    End,
}

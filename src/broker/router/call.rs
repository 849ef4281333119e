//! A request under way: its two sides, credit and times.

use crate::routing::breaker::Permit;
use crate::routing::services::ServiceId;
use crate::routing::wheel::TimerId;

/// A request under way.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) requester: u32,
    pub(super) slot: u32,
    pub(super) generation: u32,
    /// `None`: the broker itself, which echoes.
    pub(super) responder: Option<u32>,
    pub(super) service: ServiceId,
    /// The breaker's leave; `None`: the echo has no breaker, or the verdict is given already.
    pub(super) permit: Option<Permit>,
    /// The responder's own number of the service.
    pub(super) number: u32,
    /// `None` once it has fired.
    pub(super) timer: Option<TimerId>,
    /// The longest time without progress, of a stream: to its first chunk now, then between chunks.
    pub(super) idle_limit: Option<u64>,
    /// The same, between chunks.
    pub(super) chunk_limit: u64,
    /// When all of it must be over.
    pub(super) ends_at: Option<u64>,
    /// When it made progress last: a part of its answer came, or its requester took one.
    pub(super) progress_at: u64,
    /// Since when its responder could reply: the request was whole, and there was room for the reply.
    pub(super) ready_at: u64,
    pub(super) stream: bool,
    /// A chunk of its stream has gone to the requester.
    pub(super) has_chunk: bool,
    /// When the router took the request in.
    pub(super) began: u64,
    pub(super) total: u32,
    /// Bytes of the body still to come.
    pub(super) body_left: u32,
    /// Cells of the body that the requester may send.
    pub(super) body_credit: u32,
    /// Bytes still to come of the answer's message under way.
    pub(super) answer_left: u32,
    /// Cells of answer that the responder may send.
    pub(super) answer_credit: u32,
}

impl Call {
    /// When it ends if nothing comes.
    pub(super) fn due(&self) -> u64 {
        let idle = self.idle_limit.map(|limit| self.progress_at.saturating_add(limit));
        idle.into_iter().chain(self.ends_at).min().unwrap_or(u64::MAX)
    }

    /// How long its responder had, at its deadline, for what did not come: of a stream, for its next part.
    pub(super) fn time_given(&self) -> u64 {
        let since = if self.stream { self.ready_at.max(self.progress_at) } else { self.ready_at };
        self.due().saturating_sub(since)
    }

    /// Whether the requester has done its part: the request is whole, and a record of so many cells may answer it.
    pub(super) fn may_be_answered(&self, cells: u32) -> bool {
        self.body_left == 0 && self.answer_credit >= cells
    }
}

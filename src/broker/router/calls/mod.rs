//! Calls: requests, replies, streams, cancels and credit, all in the express lane.
//!
//! | file | idea |
//! |---|---|
//! | `express` | routes the records of the express lane |
//! | `outcomes` | calls that end otherwise than by their reply |
//! | `breakers` | the gates of the services |
//! | `offers` | control requests about services |

mod breakers;
mod express;
mod offers;
mod outcomes;

pub(in crate::broker) use breakers::{state, status};

use super::settings::Settings;
use crate::logic::breaker::Permit;
use crate::logic::routing::arena::Arena;
use crate::logic::routing::wheel::TimerId;
use crate::logic::services::{ServiceId, Services};
use crate::logic::shares::Shares;
use crate::shm::layout::cells_for;
use crate::wire::name::Name;

/// The service that the broker itself offers: it returns each request.
pub(crate) const ECHO: &str = "echo";

/// The most calls at a time.
const MAX_CALLS: usize = 1 << 24;

/// Services, and the calls to them that are outstanding.
pub(super) struct Calls {
    services: Services,
    echo: ServiceId,
    table: Arena<Call>,
}

impl Calls {
    pub(super) fn new(settings: &Settings) -> Calls {
        let shares = Shares::new(settings.shares_of(settings.max_services));
        let mut services = Services::new(shares, settings.breakers.clone());
        services.set_probe_delays(settings.probe_delays);
        let echo = Name::parse(ECHO).ok().and_then(|name| services.intern(&name, None).ok());
        let echo = echo.expect("it is a name, and the broker's own service has no limit");
        Calls { services, echo, table: Arena::new(MAX_CALLS) }
    }

    /// Applies other limits from now on; existing services stay.
    pub(super) fn adopt(&mut self, settings: &Settings) {
        self.services.adopt(settings.shares_of(settings.max_services));
        self.services.set_probe_delays(settings.probe_delays);
    }

    pub(super) fn services(&self) -> &Services {
        &self.services
    }

    #[cfg(test)]
    pub(super) fn outstanding_calls(&self) -> impl Iterator<Item = (crate::logic::routing::arena::Key, &Call)> {
        self.table.iter()
    }

    /// The number of outstanding calls.
    pub(super) fn outstanding(&self) -> usize {
        self.table.len()
    }
}

/// An outstanding request.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) requester: u32,
    pub(super) slot: u32,
    pub(super) generation: u32,
    /// `None`: the broker itself, which echoes.
    pub(super) responder: Option<u32>,
    pub(super) service: ServiceId,
    /// The breaker's permit; `None`: the echo has no breaker, or the outcome is recorded already.
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
    /// When it made progress last: a part of its reply came, or its requester took one.
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
    /// When a part of the body came last, or the requester could not send one.
    pub(super) body_at: u64,
    /// Cells of the body that the requester may send.
    pub(super) body_credit: u32,
    /// Bytes left of the reply's current message.
    pub(super) answer_left: u32,
    /// Cells of reply that the responder may send.
    pub(super) answer_credit: u32,
}

impl Call {
    /// When it ends if nothing comes.
    pub(super) fn due(&self) -> u64 {
        let idle = self.idle_limit.map(|limit| self.progress_at.saturating_add(limit));
        idle.into_iter().chain(self.ends_at).min().unwrap_or(u64::MAX)
    }

    /// When it is to be looked at: at its end, or when a part of its body is missing for `body_idle`.
    pub(super) fn look_at(&self, body_idle: u64) -> u64 {
        let body = (self.body_left > 0).then(|| self.body_at.saturating_add(body_idle));
        self.due().min(body.unwrap_or(u64::MAX))
    }

    /// Whether the requester owes a part of the body that it may send: of at most `cells`.
    pub(super) fn owes_body(&self, cells: u32) -> bool {
        self.body_left > 0 && self.body_credit >= cells_for(self.body_left).min(cells)
    }

    /// How long its responder had, at its deadline, for what did not come: of a stream, for its next part.
    pub(super) fn time_given(&self) -> u64 {
        let since = if self.stream { self.ready_at.max(self.progress_at) } else { self.ready_at };
        self.due().saturating_sub(since)
    }

    /// Whether the requester has done its part: the request is whole, and the responder may send a record of `cells`.
    pub(super) fn may_be_answered(&self, cells: u32) -> bool {
        self.body_left == 0 && self.answer_credit >= cells
    }
}

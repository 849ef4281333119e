//! Calls: requests, replies, streams, cancels and credit, all in the express lane.
//!
//! | file | idea |
//! |---|---|
//! | `run` | requests to the echo that are replied to with one decision |
//! | `express` | routes the records of the express lane |
//! | `outcomes` | calls that end otherwise than by their reply |
//! | `breakers` | the gates of the services |
//! | `places` | the place that a call takes of its responder |
//! | `timers` | the timers of calls |
//! | `offers` | control requests about services |

mod breakers;
mod express;
mod offers;
mod outcomes;
mod places;
mod run;
mod timers;

pub(in crate::broker) use breakers::{state, status};

use super::ports::Ports;
use super::settings::Settings;
use crate::logic::breaker::Permit;
use crate::logic::routing::arena::{Arena, Key};
use crate::logic::services::{Body, OfferId, PART, ServiceId, Services, UserIndex, Users};
use crate::logic::shares::{Principal, Shares};
use crate::shm::layout::cells_for;
use crate::wire::name::Name;
use crate::wire::record::Header;
use timers::CallTimers;

/// The service that the broker itself offers: it returns each request.
pub(crate) const ECHO: &str = "echo";

/// The most calls of one user at a time.
const MAX_CALLS: usize = 1 << 24;

/// Services, and the calls to them that are outstanding.
pub(super) struct Calls {
    services: Services,
    echo: ServiceId,
    table: Arena<Call>,
    timers: CallTimers,
}

impl Calls {
    pub(super) fn new(settings: &Settings) -> Calls {
        let shares = Shares::new(settings.shares_of(settings.max_services));
        let users = Users::new(settings.shares_of(MAX_CALLS));
        let mut services = Services::new(shares, users, settings.breakers.clone());
        services.set_probe_delays(settings.probe_delays);
        let echo = Name::parse(ECHO).ok().and_then(|name| services.intern(&name, None).ok());
        let echo = echo.expect("it is a name, and the broker's own service has no limit");
        // The shares of users limit it.
        Calls { services, echo, table: Arena::new(u32::MAX as usize), timers: CallTimers::default() }
    }

    /// Applies other limits from now on; existing services stay.
    pub(super) fn adopt(&mut self, settings: &Settings) {
        self.services.adopt(settings.shares_of(settings.max_services), settings.shares_of(MAX_CALLS));
        self.services.set_probe_delays(settings.probe_delays);
    }

    pub(super) fn services(&self) -> &Services {
        &self.services
    }

    /// A client of this user connects.
    pub(super) fn connect(&mut self, principal: Principal, now: u64) -> UserIndex {
        self.services.users.connect(principal, now)
    }

    /// A connection of a user has ended, and all its calls.
    pub(super) fn disconnect(&mut self, user: UserIndex) {
        self.services.users.disconnect(user);
    }

    #[cfg(test)]
    pub(super) fn outstanding_calls(&self) -> impl Iterator<Item = (Key, &Call)> {
        self.table.iter()
    }

    /// The number of outstanding calls.
    pub(super) fn outstanding(&self) -> usize {
        self.table.len()
    }

    /// The call that `header` names, if `key` is its responder.
    fn call_of(&self, key: u32, header: &Header) -> Option<Key> {
        let call = Key::from_u64(header.seq);
        self.table.get(call).filter(|found| found.responder == Some(key)).map(|_| call)
    }

    /// The call of the request that `header` names, if it is outstanding.
    fn call_in(&self, ports: &Ports, key: u32, header: &Header) -> Option<Key> {
        ports.ingress(key)?.requests.get(header.id as usize).filter(|slot| slot.generation == header.id2)?.call
    }
}

/// An outstanding request.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) requester: u32,
    /// The requester's user.
    pub(super) user: UserIndex,
    pub(super) principal: Principal,
    pub(super) slot: u32,
    pub(super) generation: u32,
    /// `None`: the broker itself, which echoes.
    pub(super) responder: Option<u32>,
    /// The place that it has of the responder.
    pub(super) offer: Option<OfferId>,
    pub(super) service: ServiceId,
    /// The breaker's permit; `None`: the echo has no breaker, or the outcome is recorded already.
    pub(super) permit: Option<Permit>,
    /// The responder's own number of the service.
    pub(super) number: u32,
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
    /// When the current [`PART`] of the body began, or the requester could not send it, and what was missing then.
    pub(super) part_at: u64,
    pub(super) part_left: u32,
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

    /// Bytes of the body have come.
    pub(super) fn add_to_body(&mut self, len: u32, now: u64) {
        self.body_left -= len;
        (self.body_at, self.ready_at) = (now, now);
        if self.part_left - self.body_left >= PART {
            (self.part_at, self.part_left) = (now, self.body_left);
        }
    }

    /// Its body, of which the next part may take `time` while the requester may send `cells`.
    pub(super) fn body(&self, now: u64, time: u64, cells: u32) -> Body {
        match self.body_left {
            0 => Body::Whole,
            _ if self.owes_body(cells) && now.saturating_sub(self.part_at) >= time => Body::Late,
            _ => Body::Coming,
        }
    }

    /// Whether its requester has held it up for `time`: by the body, or by the credit for the reply.
    pub(super) fn is_held_up(&self, now: u64, time: u64, cells: u32) -> bool {
        match self.body(now, time, cells) {
            Body::Late => true,
            Body::Coming => false,
            Body::Whole => !self.may_be_answered(cells) && now.saturating_sub(self.began) >= time,
        }
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

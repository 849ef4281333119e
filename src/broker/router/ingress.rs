//! The ingress half of a connection: two lanes, and the client's registrations.

use super::connection::Info;
use super::message::Message;
use crate::logic::patience::Account;
use crate::logic::routing::arena::Key;
use crate::logic::routing::numbers::Numbers;
use crate::logic::routing::topics::TopicId;
use crate::logic::routing::wheel::TimerId;
use crate::logic::services::{ServiceId, UserIndex};
use crate::shm::layout::RingName;
use crate::shm::ring::{Consumer, Signal};
use crate::wire::record::Flags;

/// A topic that the client has a number for.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) topic: TopicId,
    /// The client's number of its last message in this topic.
    pub(super) sent: u64,
}

/// A begun message of several records in the bulk lane.
#[derive(Debug)]
pub(super) struct Partial {
    /// The client's number of the topic.
    pub(super) id: u32,
    pub(super) topic: TopicId,
    pub(super) seq: u64,
    pub(super) total: u32,
    /// Bytes still to come.
    pub(super) left: u32,
}

impl Partial {
    /// The message, as a further fragment of it is routed: of `len` bytes, with these flags.
    #[inline]
    pub(super) fn message(&self, from: &Info, len: u32, flags: Flags) -> Message {
        let Partial { topic, seq, total, .. } = *self;
        let (origin, publisher, user) = (from.id, from.publisher, from.principal);
        Message { topic, origin, publisher, user, seq, total, len, flags }
    }
}

/// A request slot of this client.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RequestSlot {
    pub(super) generation: u32,
    pub(super) call: Option<Key>,
}

/// Instead of a connection: the bulk lanes of all are closed (`parking`).
pub(super) const NO_CONNECTION: u32 = u32::MAX;

/// The bulk lane waits for credit or space of the connection `on`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parked {
    pub(super) timer: TimerId,
    pub(super) on: u32,
    /// The message that is to begin, as it was validated (R1); `None` within one.
    pub(super) message: Option<Message>,
    /// When the wait ends.
    pub(super) until: u64,
    /// It waits for a subscription that drops, or for time: when that is over, it tries again.
    pub(super) is_grace: bool,
    /// What the wait is counted for.
    pub(super) accounts: [Option<Account>; 2],
}

#[derive(Debug)]
pub(super) struct Ingress {
    pub(super) info: Info,
    /// Its user, as the calls know it.
    pub(super) user: UserIndex,
    pub(super) opened: u64,
    pub(super) bulk: Consumer,
    pub(super) express: Consumer,
    /// Armed while this connection is not polled.
    pub(super) data: Signal,
    /// The topics of its publishes, by its own numbers.
    pub(super) topics: Numbers<Published>,
    /// The services of its requests, by its own numbers.
    pub(super) services: Numbers<ServiceId>,
    /// The services that it offers, each with the number of the offer.
    pub(super) serving: Vec<(u32, ServiceId)>,
    /// The number of the next offer: it is not reused, for a call may be outstanding that has it.
    pub(super) next_offer: u32,
    pub(super) requests: Vec<RequestSlot>,
    pub(super) outstanding: u32,
    pub(super) partial: Option<Partial>,
    /// The subscriptions that `partial` goes to.
    pub(super) partial_targets: Vec<Key>,
    pub(super) parked: Option<Parked>,
    /// The connection that the next message of the bulk lane waits for, and since when. A failed attempt does not
    /// reset it; what the other side takes of a begun message extends the time.
    pub(super) waiting_on: Option<(u32, u64)>,
    /// The client is gone: what it has published is still routed.
    pub(super) ended: bool,
    /// Cells consumed since a waiting producer was last woken.
    pub(super) since_space: u64,
    /// Rings without a record, since when.
    pub(super) rings: u32,
    pub(super) rings_since: u64,
    /// When a record came last.
    pub(super) active_at: u64,
    /// A timer waits to see whether the connection is idle.
    pub(super) is_watched: bool,
    /// Control time that its evictions cost, and that its next request pays, in nanoseconds.
    pub(super) owes: u64,
    /// The reply to the last control request, by its number. Encoded: a frame takes ten times the memory.
    pub(super) replied: Option<(u64, Box<[u8]>)>,
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl Ingress {
    /// The ring of a lane.
    pub(super) fn lane(&mut self, lane: RingName) -> &mut Consumer {
        if lane == RingName::Bulk { &mut self.bulk } else { &mut self.express }
    }

    /// Whether it has something that can be routed, or that breaks the protocol.
    pub(super) fn has_something(&mut self) -> bool {
        self.express.has_record() || (self.parked.is_none() && self.bulk.has_record())
    }

    /// Cells of extensions in use.
    pub(super) fn windows(&self) -> u32 {
        self.bulk.window() + self.express.window()
    }
}

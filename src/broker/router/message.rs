//! A message that is routed, and what it waits for.

use crate::logic::routing::arena::Key;
use crate::logic::routing::topics::TopicId;
use crate::logic::shares::Principal;
use crate::wire::record::{Flags, Header, Kind};

/// One message, as it is routed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    pub(super) topic: TopicId,
    /// The publisher's connection; 0: the broker.
    pub(super) origin: u32,
    /// The publisher's key; 0: the broker.
    pub(super) publisher: u64,
    /// The publisher's user, or `BROKER`.
    pub(super) user: Principal,
    pub(super) seq: u64,
    pub(super) total: u32,
    pub(super) len: u32,
    pub(super) flags: Flags,
}

impl Message {
    /// The header with which a subscription gets it.
    #[inline]
    pub(super) fn deliver(&self, subscription: Key, dropped: u32) -> Header {
        Header {
            flags: self.flags,
            id: subscription.to_u32(),
            id2: self.topic,
            total: self.total,
            seq: self.seq,
            origin: self.origin,
            publisher: self.publisher,
            dropped,
            ..Header::new(Kind::Deliver)
        }
    }
}

/// A message must wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    /// For this connection.
    pub(super) on: u32,
    /// For a subscription that drops: until then, unless there is room before.
    pub(super) until: Option<u64>,
    /// The `block` subscription that cannot get the message; `None` within a message.
    pub(super) subscription: Option<Key>,
}

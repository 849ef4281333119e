//! Adding records to the overflow queues of an egress, and placing them into its ring.

use super::overflow::OverflowWork;
use super::{DropNotice, Egress, Egresses};
use crate::broker::router::counters::Counters;
use crate::logic::routing::arena::Key;
use crate::logic::routing::drop_oldest::{Added, Bounds};
use crate::logic::routing::topics::{TopicId, Topics};
use crate::shm::ring::Payload;
use crate::shm::words::read_bytes;
use crate::wire::record::{Flags, Header};

impl Egresses {
    /// Queues a record for a subscription, or drops its message if that is too large. Older messages may be dropped.
    pub(in crate::broker::router) fn queue(
        &mut self,
        subscription: Key,
        cost: u32,
        header: &Header,
        payload: Payload<'_>,
        (topics, counters): (&mut Topics, &mut Counters),
        work: &mut OverflowWork,
    ) {
        let most = self.max_backlog;
        let Some(found) = topics.subscriptions.get_mut(subscription) else { return };
        let Some(egress) = self.get(found.owner) else { return };
        let left = self.held.overflow.left_of(egress.leases.user);
        let Some(egress) = self.get_mut(found.owner) else { return };
        let (owner, policy, overflow) = (found.owner, found.policy, found.overflow.get_or_insert_default());
        let (had_whole, bytes) = (overflow.has_whole(), overflow.bytes());
        // Each queue has its share, and the unused shares of others; at its user's bound none grows.
        let share = most / egress.subscriptions.len().max(1);
        let of_connection = share.max(most.saturating_sub(egress.overflow.bytes - bytes));
        let bounds = Bounds { cells: found.capacity, bytes: of_connection.min(bytes + left) };
        let mut dropped = 0;
        let fill = |to: &mut [u8]| match payload {
            Payload::Bytes(from) => to.copy_from_slice(from),
            Payload::Words(_, words) => read_bytes(words, to),
        };
        let added = overflow.add(header, (cost, payload.len() as usize), fill, bounds, |gone| {
            work.unused.push(gone.id2);
            dropped += 1;
        });
        let (has_whole, is_empty, now) = (overflow.has_whole(), overflow.is_empty(), overflow.bytes());
        egress.overflow.ever += 1;
        found.dropped = found.dropped.saturating_add(dropped);
        if is_empty {
            found.overflow = None;
        }
        self.overflow_changed(owner, bytes, now);
        if has_whole != had_whole {
            if let Some(egress) = self.get_mut(owner) {
                egress.overflow.settle(has_whole);
            }
            if has_whole {
                work.begun.push(owner);
            } else {
                self.placed(owner);
            }
        }
        if header.flags.has(Flags::FIRST) && added != Added::Unknown {
            topics.retain(header.id2);
        }
        counters.dropped[policy as usize] += u64::from(dropped);
        (0..dropped).for_each(|_| self.missed(owner));
    }

    /// The egress position of a subscription's owner.
    pub(in crate::broker::router) fn position_of(&self, subscription: Key, topics: &Topics) -> u64 {
        let owner = topics.subscriptions.get(subscription).map(|found| found.owner);
        owner.and_then(|owner| self.get(owner)).map_or(0, Egress::position)
    }

    /// A message for the client of `key` was dropped.
    pub(in crate::broker::router) fn missed(&mut self, key: u32) {
        self.missed_many(key, 1);
    }

    /// So many messages for the client of `key` were dropped.
    pub(in crate::broker::router) fn missed_many(&mut self, key: u32, count: u64) {
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return };
        egress.dropped += count;
        if egress.drops == DropNotice::None {
            egress.drops = DropNotice::Scheduled;
            self.missed.push(key);
        }
    }

    /// The client of `key` receives the name of a topic.
    #[inline]
    pub(in crate::broker::router) fn knows(&mut self, key: u32, topic: TopicId) {
        if let Some(egress) = self.get_mut(key) {
            egress.known.insert(topic);
        }
    }

    /// A record was placed for the client of `key`.
    pub(in crate::broker::router) fn placed(&mut self, key: u32) {
        if let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) {
            egress.placed(key, &mut self.dirty);
        }
    }

    /// Pushes a record from a queue. `false`: the ring has no space and cannot grow.
    pub(in crate::broker::router) fn place(&mut self, key: u32, header: &Header, payload: Payload<'_>) -> bool {
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return false };
        let words = header.to_words();
        let mut placed = egress.ring.push(&words, payload);
        if placed == Ok(false) && self.memory.grow_egress(key, &mut egress.leases, &mut egress.ring) {
            placed = egress.ring.push(&words, payload);
        }
        match placed {
            Ok(true) => {
                egress.bytes += u64::from(payload.len());
                self.placed(key);
                true
            }
            Ok(false) => false,
            Err(violation) => {
                self.pending_close.push((key, violation.into()));
                false
            }
        }
    }
}

impl Egress {
    /// No record waits for space any more.
    pub(in crate::broker::router) fn end_wait(&mut self) {
        self.waits_for_space = false;
        self.space.disarm();
    }

    /// Whether three quarters of its ring are in use.
    pub(in crate::broker::router) fn is_crowded(&mut self) -> bool {
        let cells = u64::from(self.leases.segment.geometry().base_cells() + self.ring.window());
        let consumed = self.ring.look().unwrap_or(0);
        4 * (self.ring.claimed() - consumed) >= 3 * cells
    }
}

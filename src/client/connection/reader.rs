//! The reader role: the consuming end of the egress ring, with what belongs to it.
//!
//! The reader takes everything out of the ring at once; that is why one unread subscription delays no other. What the
//! queues may hold is bounded by the credit that their owners gave.

use super::link::Link;
use crate::client::data::dedup::ReceivedTopics;
use crate::client::data::lag::BrokerBacklog;
use crate::client::data::partials::Partials;
use crate::logic::spin::SpinTime;
use crate::shm::doorbell::ClientBells;
use crate::shm::layout::RingName;
use crate::shm::ring::{Consumer, Extent, Record, Signal, publication_fence};
use crate::shm::segment::{CpuWords, Newer, Segment};
use crate::wire::name::Topic;
use crate::wire::record::{Flags, Header, Kind as RecordKind};
use std::sync::Arc;

/// The longest time to spin, in nanoseconds.
const SPIN_MAX: u64 = 50_000;
/// Looks at the ring between two looks at the clock while spinning.
const POLLS: u32 = 32;

#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) bells: Arc<ClientBells>,
    pub(crate) egress: Consumer,
    /// Armed by the client while it sleeps.
    pub(crate) data: Signal,
    /// Armed by the router while it waits for space.
    pub(crate) space: Signal,
    /// Armed by the router while it does not poll us.
    pub(crate) router_sleeps: Signal,
    pub(crate) cpu: CpuWords,
    /// The router holds newer messages.
    pub(crate) newer: Newer,
    pub(crate) base: u32,
    pub(crate) link: Link,
    /// The topics of what arrives.
    pub(crate) topics: ReceivedTopics,
    /// Messages of several records that are being received.
    pub(crate) partials: Partials,
    pub(crate) spin: SpinTime,
    /// How often a thread has polled without a look at anything else.
    pub(crate) brief_polls: u32,
    /// Messages of the last session may have to be sent again.
    pub(crate) has_resends: bool,
    /// How often records were sorted: a part of a reply may be among them.
    pub(crate) sorts: u64,
    /// Memory for one reply of a batch at a time.
    pub(crate) scratch: Vec<u8>,
}

/// A record that is read in place, and consumed afterwards, also if its reader panics. Its cells go back at each
/// quarter of the ring.
struct ConsumedAtEnd<'a> {
    egress: &'a mut Consumer,
    extent: Extent,
    base: u32,
    space: &'a Signal,
    bells: &'a ClientBells,
}

impl Drop for ConsumedAtEnd<'_> {
    #[inline]
    fn drop(&mut self) {
        self.egress.advance_behind(self.extent);
        if self.egress.unpublished() >= u64::from(self.base + self.egress.window()) / 4 {
            give_back(self.egress, self.space, self.bells);
        }
    }
}

/// Gives consumed cells back, and wakes the router if it waits for them (R9).
fn give_back(egress: &mut Consumer, space: &Signal, bells: &ClientBells) {
    egress.publish_consumed();
    publication_fence();
    if space.take() {
        bells.ring();
    }
}

impl Reader {
    pub(crate) fn new(segment: Segment, egress: Consumer, bells: Arc<ClientBells>, link: Link) -> Reader {
        Reader {
            bells,
            egress,
            data: segment.data_signal(RingName::Egress),
            space: segment.space_signal(RingName::Egress),
            router_sleeps: segment.data_signal(RingName::Bulk),
            cpu: segment.cpu_words(),
            newer: segment.newer(),
            base: segment.geometry().base_cells(),
            link,
            topics: ReceivedTopics::default(),
            partials: Partials::default(),
            spin: SpinTime::new(SPIN_MAX),
            brief_polls: 0,
            has_resends: false,
            sorts: 0,
            scratch: Vec::new(),
        }
    }

    /// Reads from another session's ring from now on. Messages that had begun in the last one are begun again by their
    /// senders.
    pub(crate) fn renew(&mut self, segment: Segment, egress: Consumer) {
        self.has_resends = true;
        self.egress = egress;
        self.data = segment.data_signal(RingName::Egress);
        self.space = segment.space_signal(RingName::Egress);
        self.router_sleeps = segment.data_signal(RingName::Bulk);
        self.cpu = segment.cpu_words();
        self.newer = segment.newer();
        self.base = segment.geometry().base_cells();
        self.partials.clear();
        self.topics.renew();
    }

    /// Gives consumed cells back, and wakes the router if it waits for them (R9).
    pub(crate) fn publish_consumed(&mut self) {
        give_back(&mut self.egress, &self.space, &self.bells);
    }

    /// The next record, if it is a whole message for `subscription`: `read` sees it in the ring, then it is consumed,
    /// also if `read` panics.
    pub(crate) fn take_in_place<T>(
        &mut self,
        subscription: u32,
        own: u32,
        read: impl FnOnce(&Topic, &Header, &Consumer, Extent) -> T,
    ) -> Option<T> {
        let record = self.egress.peek().ok()??;
        let header = Header::from_words(&record.header).ok()?;
        let whole = header.kind == RecordKind::Deliver && header.flags.has(Flags::WHOLE);
        // One that is sent again may have been seen: that is looked into where it is sorted.
        if !whole || header.id != subscription || header.flags.has(Flags::RESENT) {
            return None;
        }
        let named = self.topics.get_mut(header.id2)?;
        named.seen.note(own, header.publisher, header.seq, false);
        let extent = record.extent();
        let consumed =
            ConsumedAtEnd { egress: &mut self.egress, extent, base: self.base, space: &self.space, bells: &self.bells };
        Some(read(&named.topic, &header, consumed.egress, extent))
    }

    /// The next record, if it is the whole reply to this request, and no error: appended to `reply`, and consumed. No
    /// part of the reply may have been sorted before.
    pub(crate) fn take_reply(&mut self, slot: u32, generation: u32, reply: &mut Vec<u8>) -> bool {
        let is_it = |its: u32, its_generation: u32| ((its, its_generation) == (slot, generation)).then_some(());
        let Some(((), record)) = self.peek_reply(is_it) else { return false };
        self.egress.append_payload(&record, reply);
        self.egress.advance(&record);
        // At once: perhaps no thread waits after this one, and the router may wait for the cells.
        self.publish_consumed();
        true
    }

    /// The next record, if it is the whole reply to a request, and no error, and `find` knows slot and generation of
    /// that; with what `find` returned.
    #[inline]
    fn peek_reply<T>(&mut self, find: impl FnOnce(u32, u32) -> Option<T>) -> Option<(T, Record)> {
        let record = self.egress.peek().ok()??;
        let header = Header::from_words(&record.header).ok()?;
        let is_whole = header.kind == RecordKind::RoutedResponse && header.flags.has(Flags::WHOLE.with(Flags::END));
        if !is_whole || header.flags.has(Flags::ERROR) {
            return None;
        }
        Some((find(header.id, header.id2)?, record))
    }

    /// The same for one of several requests: replaces the contents of `reply`. The cells go back at each quarter of the
    /// ring; the caller gives back the rest before it waits, and in the end.
    #[inline]
    pub(crate) fn take_reply_of<T>(
        &mut self,
        reply: &mut Vec<u8>,
        find: impl FnOnce(u32, u32) -> Option<T>,
    ) -> Option<T> {
        let (found, record) = self.peek_reply(find)?;
        reply.clear();
        self.egress.append_payload(&record, reply);
        self.consume(&record);
        Some(found)
    }

    /// Appends a fragment to the message that was received last, if it belongs to that and is not the last one of it.
    #[inline]
    pub(crate) fn append_fragment(&mut self, record: &Record) -> bool {
        let Ok(header) = Header::from_words(&record.header) else { return false };
        let is_inner = header.kind == RecordKind::Deliver && header.flags.is_inner();
        let partial = self.partials.latest((header.id, header.origin)).filter(|_| is_inner);
        let Some(partial) = partial else { return false };
        self.egress.append_payload(record, partial);
        true
    }

    /// Consumes a record; its cells go back at each quarter of the ring.
    #[inline]
    pub(crate) fn consume(&mut self, record: &Record) {
        let Reader { egress, base, space, bells, .. } = self;
        drop(ConsumedAtEnd { egress, extent: record.extent(), base: *base, space, bells });
    }

    /// Gives back what is left of the consumed cells.
    #[inline]
    pub(crate) fn publish_rest(&mut self) {
        if self.egress.unpublished() > 0 {
            self.publish_consumed();
        }
    }

    pub(crate) fn bytes(&self, record: &Record) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(record.len as usize);
        self.egress.append_payload(record, &mut bytes);
        bytes
    }

    /// Polls for a while. Returns whether a record is there.
    pub(crate) fn poll(&mut self) -> bool {
        for _ in 0..POLLS {
            if self.egress.has_record() {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Arms the wake-up, and looks once more (R8). `false`: a record is there.
    pub(crate) fn arm(&mut self, backlog: &BrokerBacklog) -> bool {
        self.publish_rest();
        self.data.arm();
        let newer = self.newer.get();
        let is_new = newer.is_multiple_of(2) && !backlog.has_read(newer);
        if !is_new && !self.egress.has_record() {
            return true;
        }
        self.data.disarm();
        false
    }
}

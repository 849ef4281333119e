//! The egress half of a connection: the ring to its client, the backlog behind it, and its doorbell.
//!
//! No operation here makes the router wait. A record of a call that finds the ring full is held in a bounded *backlog*;
//! a publish that finds it full is the publisher's to delay, or is dropped, by the subscription's policy.
//!
//! | file | idea |
//! |---|---|
//! | `overflow` | counts of the messages in the overflow queues, and pending work for the end of a batch |
//! | `queue` | adding records to the overflow queues, and placing them into the ring |
//! | `run` | pushing the messages of a run, which were decided at once |

mod overflow;
mod queue;
mod run;

pub(super) use overflow::OverflowWork;

use super::connection::CloseReason;
use super::memory::{Leases, Memory};
use crate::broker::supervision::fault;
use crate::logic::routing::arena::Key;
use crate::logic::routing::bits::BitSet;
use crate::shm::doorbell::BrokerBells;
use crate::shm::layout::RingName;
use crate::shm::ring::{Consumer, Payload, Plan, Producer, Signal, Violation, publication_fence};
use crate::shm::segment::{CpuWords, Segment};
use crate::shm::words::read_bytes;
use crate::wire::control::ClosingCode;
use crate::wire::record::{HEADER_WORDS, Header};
use overflow::OverflowState;
use std::collections::VecDeque;
use std::sync::Arc;

/// The most woken clients that are remembered: with as many, spinning does not pay.
pub(super) const MAX_WOKEN: usize = 16;

/// Whether a client must be notified of dropped messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DropNotice {
    /// There are none that it does not know of.
    None,
    /// A timer is set.
    Scheduled,
    /// The time has come, and its ring has no space.
    Due,
}

#[derive(Debug)]
struct BacklogRecord {
    header: [u64; HEADER_WORDS],
    payload: Box<[u8]>,
}

#[derive(Debug)]
pub(super) struct Egress {
    pub(super) leases: Leases,
    pub(super) ring: Producer,
    plan: Plan,
    plan_epoch: u64,
    /// The message for which it had no space.
    full_epoch: u64,
    backlog: VecDeque<BacklogRecord>,
    pub(super) backlog_bytes: usize,
    /// Records ever held in the backlog.
    backlogged: u64,
    /// Ours: we wait for space in the egress ring.
    pub(super) space: Signal,
    pub(super) waits_for_space: bool,
    /// Cells that the client had consumed when it last rang.
    consumed_at_ring: u64,
    /// The client's: its reader sleeps; a thread of it waits for space in a lane.
    data: Signal,
    lane_space: [Signal; 2],
    bells: Arc<BrokerBells>,
    pub(super) cpu: CpuWords,
    is_dirty: bool,
    /// Something was placed in the egress ring since the last batch ended.
    has_new: bool,
    /// Publishers whose bulk lane is parked on this connection.
    pub(super) waiters: Vec<u32>,
    pub(super) subscriptions: Vec<Key>,
    /// The topics whose names it has received.
    pub(super) known: BitSet,
    /// When a batch for this client ended last.
    pub(super) active_at: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) dropped: u64,
    /// Whether its client must be notified of dropped messages.
    pub(super) drops: DropNotice,
    pub(super) overflow: OverflowState,
}

impl Egress {
    pub(super) fn new(segment: Arc<Segment>, ring: Producer, bells: Arc<BrokerBells>) -> Egress {
        Egress {
            plan: ring.start_plan(),
            plan_epoch: 0,
            full_epoch: 0,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            backlogged: 0,
            space: segment.space_signal(RingName::Egress),
            waits_for_space: false,
            consumed_at_ring: 0,
            data: segment.data_signal(RingName::Egress),
            lane_space: [segment.space_signal(RingName::Bulk), segment.space_signal(RingName::Express)],
            cpu: segment.cpu_words(),
            bells,
            is_dirty: false,
            has_new: false,
            waiters: Vec::new(),
            subscriptions: Vec::new(),
            known: BitSet::default(),
            active_at: 0,
            messages: 0,
            bytes: 0,
            dropped: 0,
            drops: DropNotice::None,
            overflow: OverflowState::new(segment.newer()),
            leases: Leases::new(segment),
            ring,
        }
    }

    pub(super) fn bells(&self) -> &BrokerBells {
        &self.bells
    }

    /// Whether the client's reader runs, as far as we know.
    pub(super) fn client_is_awake(&self) -> bool {
        !self.data.is_armed()
    }

    /// The position: changes with each record that is pushed, sent or queued.
    #[inline]
    pub(super) fn position(&self) -> u64 {
        self.ring.claimed() + self.backlogged + self.overflow.ever
    }

    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Something was placed in the egress ring of this connection, `key`.
    #[inline]
    pub(super) fn placed(&mut self, key: u32, dirty: &mut Vec<u32>) {
        self.has_new = true;
        self.mark(key, dirty);
    }

    /// There is something to be done for this connection, `key`, at the end of the batch.
    #[inline]
    fn mark(&mut self, key: u32, dirty: &mut Vec<u32>) {
        if !self.is_dirty {
            self.is_dirty = true;
            dirty.push(key);
        }
    }

    fn push_backlog(&mut self, header: &[u64; HEADER_WORDS], payload: Payload<'_>) {
        let payload = match payload {
            Payload::Bytes(bytes) => bytes.into(),
            Payload::Words(len, words) => {
                let mut bytes = vec![0; len as usize].into_boxed_slice();
                read_bytes(words, &mut bytes);
                bytes
            }
        };
        self.backlog_bytes += crate::shm::layout::HEADER_BYTES + payload.len();
        self.backlogged += 1;
        self.backlog.push_back(BacklogRecord { header: *header, payload });
    }

    /// Moves the backlog into the ring, as far as it fits.
    fn pump(&mut self) -> Result<(), Violation> {
        while let Some(held) = self.backlog.front() {
            if !self.ring.push(&held.header, Payload::Bytes(&held.payload))? {
                return Ok(());
            }
            self.backlog_bytes -= crate::shm::layout::HEADER_BYTES + held.payload.len();
            self.backlog.pop_front();
        }
        if self.backlog.capacity() > 64 {
            self.backlog = VecDeque::new();
        }
        Ok(())
    }
}

/// The egresses of all connections, by key, and what is to be done for them at the end of a batch.
#[derive(Debug)]
pub(super) struct Egresses {
    pub(super) table: Vec<Option<Box<Egress>>>,
    pub(super) dirty: Vec<u32>,
    pub(super) pending_close: Vec<(u32, CloseReason)>,
    /// Connections that have just missed their first message, and must be notified.
    pub(super) missed: Vec<u32>,
    pub(super) memory: Memory,
    epoch: u64,
    pub(super) max_backlog: usize,
    pub(super) rung: u64,
    /// Clients that were woken since the router slept last.
    pub(super) woken: Vec<u32>,
    pub(super) now: u64,
    /// How long a publish waits for a subscription that drops.
    pub(super) drop_grace: u64,
}

impl Egresses {
    /// These limits hold from now on.
    pub(super) fn adopt(&mut self, max_backlog: usize, drop_grace: u64) {
        (self.max_backlog, self.drop_grace) = (max_backlog, drop_grace);
    }

    pub(super) fn new(memory: Memory, max_backlog: usize, drop_grace: u64) -> Egresses {
        Egresses {
            table: Vec::new(),
            dirty: Vec::new(),
            pending_close: Vec::new(),
            missed: Vec::new(),
            memory,
            epoch: 0,
            max_backlog,
            rung: 0,
            woken: Vec::new(),
            now: 0,
            drop_grace,
        }
    }

    pub(super) fn insert(&mut self, key: u32, egress: Egress) {
        if self.table.len() <= key as usize {
            self.table.resize_with(key as usize + 1, || None);
        }
        self.table[key as usize] = Some(Box::new(egress));
    }

    pub(super) fn remove(&mut self, key: u32) -> Option<Box<Egress>> {
        self.dirty.retain(|k| *k != key);
        self.table.get_mut(key as usize)?.take()
    }

    /// The connection of this segment.
    pub(super) fn find(&self, segment: &Arc<Segment>) -> Option<u32> {
        let is_it =
            |egress: &Option<Box<Egress>>| egress.as_ref().is_some_and(|o| Arc::ptr_eq(&o.leases.segment, segment));
        self.table.iter().position(is_it).map(|key| key as u32)
    }

    #[inline]
    pub(super) fn get(&self, key: u32) -> Option<&Egress> {
        self.table.get(key as usize)?.as_deref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: u32) -> Option<&mut Egress> {
        self.table.get_mut(key as usize)?.as_deref_mut()
    }

    /// Whether the ring of `key` cannot grow for want of free slots.
    pub(super) fn lacks_slots(&self, key: u32) -> bool {
        self.get(key).is_some_and(|egress| self.memory.lacks_slots(egress.ring.window()))
    }

    /// Starts to plan for one message to several subscriptions, some perhaps of one connection.
    #[inline]
    pub(super) fn start_plan(&mut self) {
        self.epoch += 1;
    }

    /// Whether, behind what is planned already, records of these lengths fit into the ring of `key`; plans them if so.
    #[inline]
    pub(super) fn plan(&mut self, key: u32, lengths: &[u32]) -> bool {
        let epoch = self.epoch;
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return false };
        // One that found no space once need not look again for each subscription.
        if !egress.backlog.is_empty() || egress.full_epoch == epoch {
            return false;
        }
        if egress.plan_epoch != epoch {
            egress.plan_epoch = epoch;
            egress.plan = egress.ring.start_plan();
        }
        loop {
            let mut plan = egress.plan;
            let mut fits = true;
            for len in lengths {
                match egress.ring.plan(&mut plan, *len) {
                    Ok(true) => {}
                    Ok(false) => {
                        fits = false;
                        break;
                    }
                    Err(violation) => {
                        self.pending_close.push((key, violation.into()));
                        return false;
                    }
                }
            }
            if fits {
                egress.plan = plan;
                return true;
            }
            // A lease changes what fits, not where planned records lie: they are planned anew.
            if self.memory.grow_egress(key, &mut egress.leases, &mut egress.ring) {
                continue;
            }
            // Several records that a drained ring cannot hold at a time would never fit: the last goes by the backlog.
            let is_first = egress.plan.claimed() == egress.ring.claimed();
            let goes_by_backlog = lengths.len() > 1 && is_first && egress.ring.is_drained() == Ok(true);
            if !goes_by_backlog {
                egress.full_epoch = epoch;
            }
            return goes_by_backlog;
        }
    }

    /// Pushes a record that was planned.
    #[inline]
    pub(super) fn push_planned(&mut self, key: u32, header: &Header, payload: Payload<'_>) {
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return };
        let words = header.to_words();
        egress.bytes += u64::from(payload.len());
        // It fits, unless the client has consumed something since the first of several was planned: then they may lie
        // otherwise, and the last may have to wait.
        if egress.backlog.is_empty() && egress.ring.push(&words, payload) == Ok(true) {
            egress.placed(key, &mut self.dirty);
        } else {
            egress.push_backlog(&words, payload);
            self.wait_for_space(key);
            self.pump(key);
        }
    }

    /// Sends a record that must not be lost: into the ring, or into the backlog.
    #[inline]
    pub(super) fn send(&mut self, key: u32, header: &Header, payload: Payload<'_>) {
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return };
        let words = header.to_words();
        let mut placed = Ok(false);
        if egress.backlog.is_empty() {
            placed = egress.ring.push(&words, payload);
            if placed == Ok(false) && self.memory.grow_egress(key, &mut egress.leases, &mut egress.ring) {
                placed = egress.ring.push(&words, payload);
            }
        }
        egress.bytes += u64::from(payload.len());
        match placed {
            Ok(true) => egress.placed(key, &mut self.dirty),
            Ok(false) => {
                egress.push_backlog(&words, payload);
                if egress.backlog_bytes > self.max_backlog {
                    let reason =
                        format!("{} bytes in the backlog of a client that does not read", egress.backlog_bytes);
                    self.pending_close.push((key, CloseReason { code: ClosingCode::SlowConsumer, reason }));
                } else if !egress.waits_for_space {
                    self.wait_for_space(key);
                    self.pump(key);
                }
            }
            Err(violation) => self.pending_close.push((key, violation.into())),
        }
    }

    /// Cells that the client of `key` has ever consumed of its ring.
    pub(super) fn consumed(&mut self, key: u32) -> u64 {
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return 0 };
        egress.ring.look().unwrap_or_else(|violation| {
            self.pending_close.push((key, violation.into()));
            0
        })
    }

    /// Whether a connection may be given more work: it reads what it has got.
    pub(super) fn takes_calls(&self, key: u32) -> bool {
        self.get(key).is_some_and(|egress| egress.backlog_bytes <= self.max_backlog / 2)
    }

    /// Asks the client of `key` to ring when there is space. Look once more after this, before waiting (R8).
    pub(super) fn wait_for_space(&mut self, key: u32) {
        let Some(egress) = self.get_mut(key) else { return };
        egress.waits_for_space = true;
        egress.space.arm();
    }

    /// The client of `key` has rung: whether we wait for space, and it has made some since it last rang.
    pub(super) fn has_made_space(&mut self, key: u32) -> bool {
        let Some(egress) = self.get_mut(key).filter(|egress| egress.waits_for_space) else { return false };
        match egress.ring.look() {
            Ok(consumed) => std::mem::replace(&mut egress.consumed_at_ring, consumed) != consumed,
            Err(violation) => {
                self.pending_close.push((key, violation.into()));
                false
            }
        }
    }

    /// The client of `key` has rung: there may be space. The backlog goes first; returns whether
    /// publishers that wait should try again.
    #[inline]
    pub(super) fn pump(&mut self, key: u32) -> bool {
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return false };
        if !egress.waits_for_space {
            return false;
        }
        let before = egress.backlog.len();
        let mut pumped = egress.pump();
        if pumped.is_ok() && !egress.backlog.is_empty() {
            egress.space.arm();
            pumped = egress.pump();
        }
        if let Err(violation) = pumped {
            self.pending_close.push((key, violation.into()));
            return false;
        }
        if egress.backlog.len() < before {
            egress.placed(key, &mut self.dirty);
        }
        if !egress.backlog.is_empty() {
            return false;
        }
        if !egress.overflow.has_messages() {
            egress.end_wait();
        }
        !egress.waiters.is_empty()
    }

    /// A lane whose producer waits for space gets more memory, if there is any.
    #[inline]
    pub(super) fn grow_lanes(&mut self, key: u32, bulk: &mut Consumer, express: &mut Consumer) {
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return };
        let lanes = [(RingName::Bulk, bulk), (RingName::Express, express)];
        for (at, (lane, consumer)) in lanes.into_iter().enumerate() {
            if egress.lane_space[at].is_armed() {
                self.memory.grow_lane(key, &mut egress.leases, lane, consumer);
            }
        }
    }

    /// Cells of the egress ring's extension in use.
    pub(super) fn egress_window(&self, key: u32) -> u32 {
        self.get(key).map_or(0, |egress| egress.ring.window())
    }

    /// Takes back the memory that an idle connection does not use.
    pub(super) fn trim(&mut self, key: u32, bulk: &mut Consumer, express: &mut Consumer) -> Result<(), CloseReason> {
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return Ok(()) };
        Ok(self.memory.trim(&mut egress.leases, bulk, express, &mut egress.ring)?)
    }

    /// Space was freed in a lane of `key`: a producer that waits is woken at the end of the batch.
    #[inline]
    pub(super) fn freed(&mut self, key: u32) {
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return };
        egress.mark(key, &mut self.dirty);
    }

    /// A new router cannot know whether the last one has woken `key`.
    pub(super) fn touch(&mut self, key: u32) {
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return };
        // Marked or not: what is in the list is marked, but the last router may have taken it off.
        egress.is_dirty = false;
        self.dirty.retain(|dirty| *dirty != key);
        egress.placed(key, &mut self.dirty);
    }

    /// Ends a batch: wakes the clients that sleep and have new records or space. One fence for all, at most one ring
    /// each.
    #[inline]
    pub(super) fn flush(&mut self) {
        if self.dirty.is_empty() {
            return;
        }
        fault::point("router.flush", self.dirty.len() as u64);
        publication_fence();
        while let Some(key) = self.dirty.pop() {
            fault::point("router.ring", u64::from(key));
            let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { continue };
            egress.is_dirty = false;
            egress.active_at = self.now;
            // A reader that sleeps is woken for records alone: that its lanes were emptied is nothing to it.
            let data = std::mem::take(&mut egress.has_new) && egress.data.take();
            let (bulk, express) = (egress.lane_space[0].take(), egress.lane_space[1].take());
            if data || bulk || express {
                egress.bells.ring();
                self.rung += 1;
                if !self.woken.contains(&key) && self.woken.len() < MAX_WOKEN {
                    self.woken.push(key);
                }
            }
        }
    }
}

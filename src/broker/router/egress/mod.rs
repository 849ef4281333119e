//! The egress half of a connection: the ring to its client, the backlog behind it, and its doorbell.
//!
//! No operation here makes the router wait. A record of a call that finds the ring full is held in a bounded *backlog*;
//! a publish that finds it full is the publisher's to delay, or is dropped, by the subscription's policy.
//!
//! | file | idea |
//! |---|---|
//! | `held` | where records wait, and how many bytes users hold of such memory |
//! | `backlog` | the records that wait for space in the ring, and the bounds of what waits |
//! | `overflow` | counts of the messages in the overflow queues, and pending work for the end of a batch |
//! | `queue` | adding records to the overflow queues, and placing them into the ring |
//! | `run` | pushing the messages of a run, which were decided at once |

mod backlog;
mod held;
mod overflow;
mod queue;
mod run;

pub(super) use overflow::OverflowWork;

use super::connection::CloseReason;
use super::memory::{Leases, Memory};
use super::settings::Settings;
use crate::broker::supervision::fault;
use crate::logic::quotas::Quotas;
use crate::logic::routing::arena::Key;
use crate::logic::routing::bits::BitSet;
use crate::logic::shares::Principal;
use crate::shm::doorbell::BrokerBells;
use crate::shm::layout::RingName;
use crate::shm::ring::{Consumer, Payload, Plan, Producer, Signal, publication_fence};
use crate::shm::segment::{CpuWords, Segment};
use crate::wire::record::Header;
use held::{Backlog, HeldBytes};
use overflow::OverflowState;
use std::sync::Arc;

/// The most woken clients that are remembered: with as many, spinning does not pay.
pub(super) const MAX_WOKEN: usize = 16;

/// The longest time that a client sleeps on while more comes for it, in nanoseconds: about what a wake costs.
const HOLD_NS: u64 = 20_000;

/// Which sleeping clients are woken (R10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flush {
    /// Those that have enough to read, or for which no more is expected.
    Enough,
    /// All that have new records.
    All,
}

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
pub(super) struct Egress {
    pub(super) leases: Leases,
    pub(super) ring: Producer,
    plan: Plan,
    plan_epoch: u64,
    /// The message for which it had no space.
    full_epoch: u64,
    backlog: Backlog,
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
    /// The record that was placed last belongs to a run, and further records of the run are expected soon.
    more_comes: bool,
    /// Something was placed in the egress ring since the client was last woken or found awake.
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
    pub(super) fn new(segment: Arc<Segment>, ring: Producer, bells: Arc<BrokerBells>, user: Principal) -> Egress {
        Egress {
            plan: ring.start_plan(),
            plan_epoch: 0,
            full_epoch: 0,
            backlog: Backlog::default(),
            backlogged: 0,
            space: segment.space_signal(RingName::Egress),
            waits_for_space: false,
            consumed_at_ring: 0,
            data: segment.data_signal(RingName::Egress),
            lane_space: [segment.space_signal(RingName::Bulk), segment.space_signal(RingName::Express)],
            cpu: segment.cpu_words(),
            bells,
            is_dirty: false,
            more_comes: false,
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
            leases: Leases::new(segment, user),
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

    /// Whether the client may sleep on for a while: it has few records, more are expected, and neither it nor another
    /// waits for space. An impossible count of it is found where space is looked for.
    fn may_sleep_on(&mut self) -> bool {
        let expects_more = self.more_comes && self.has_new && self.data.is_armed();
        let is_waited_for = self.waits_for_space || !self.waiters.is_empty();
        let few = u64::from(self.ring.cells()) / 4;
        expects_more
            && !is_waited_for
            && !self.lane_space.iter().any(Signal::is_armed)
            && self.ring.look().is_ok_and(|consumed| self.ring.claimed() - consumed < few)
    }

    /// Something was placed in the egress ring of this connection, `key`.
    #[inline]
    pub(super) fn placed(&mut self, key: u32, dirty: &mut Vec<u32>) {
        self.has_new = true;
        self.more_comes = false;
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
}

/// The egresses of all connections, by key, and what is to be done for them at the end of a batch.
#[derive(Debug)]
pub(super) struct Egresses {
    pub(super) table: Vec<Option<Box<Egress>>>,
    pub(super) dirty: Vec<u32>,
    /// Since when clients are left asleep although they have new records, if any are.
    held_since: Option<u64>,
    pub(super) pending_close: Vec<(u32, CloseReason)>,
    /// Connections that have just missed their first message, and must be notified.
    pub(super) missed: Vec<u32>,
    pub(super) memory: Memory,
    epoch: u64,
    pub(super) max_backlog: usize,
    /// What users hold of the memory for what waits.
    held: HeldBytes,
    quotas: Arc<Quotas>,
    pub(super) rung: u64,
    /// Clients that were woken since the router slept last.
    pub(super) woken: Vec<u32>,
    pub(super) now: u64,
    /// How long a publish waits for a subscription that drops.
    pub(super) drop_grace: u64,
}

impl Egresses {
    /// These limits hold from now on.
    pub(super) fn adopt(&mut self, settings: &Settings) {
        (self.max_backlog, self.drop_grace) = (settings.max_backlog_bytes, settings.drop_grace);
        self.held.adopt(settings.shares_of(settings.max_user_backlog_bytes));
        self.quotas = settings.quotas.clone();
    }

    pub(super) fn new(settings: &Settings) -> Egresses {
        Egresses {
            table: Vec::new(),
            dirty: Vec::new(),
            held_since: None,
            pending_close: Vec::new(),
            missed: Vec::new(),
            memory: Memory::new(settings.lease_shares(), settings.max_window),
            epoch: 0,
            max_backlog: settings.max_backlog_bytes,
            held: HeldBytes::new(settings.shares_of(settings.max_user_backlog_bytes)),
            quotas: settings.quotas.clone(),
            rung: 0,
            woken: Vec::new(),
            now: 0,
            drop_grace: settings.drop_grace,
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
        let egress = self.table.get_mut(key as usize)?.take()?;
        self.held.records.give_back_many(egress.leases.user, egress.backlog.bytes());
        Some(egress)
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
        self.get(key).is_some_and(|egress| self.memory.lacks_slots(egress.leases.user, egress.ring.window()))
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
            egress.hold(&words, payload, &mut self.held);
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
                egress.hold(&words, payload, &mut self.held);
                self.wait_or_close(key);
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

    /// Wakes the clients that sleep and have new records or space, except those that may sleep on (R10). One fence for
    /// all, at most one ring each.
    #[inline]
    pub(super) fn flush(&mut self, at: Flush) {
        if self.dirty.is_empty() {
            self.held_since = None;
            return;
        }
        fault::point("router.flush", self.dirty.len() as u64);
        publication_fence();
        let is_over = self.held_for() > HOLD_NS;
        let mut held = 0;
        for place in 0..self.dirty.len() {
            let key = self.dirty[place];
            fault::point("router.ring", u64::from(key));
            let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { continue };
            egress.active_at = self.now;
            if at == Flush::Enough && !is_over && egress.may_sleep_on() {
                self.dirty[held] = key;
                held += 1;
                continue;
            }
            egress.is_dirty = false;
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
        self.dirty.truncate(held);
        self.held_since = (held > 0).then(|| self.held_since.unwrap_or(self.now));
    }

    /// Wakes the clients that have slept on for long enough.
    #[inline]
    pub(super) fn flush_held(&mut self) {
        if self.held_for() > HOLD_NS {
            self.flush(Flush::All);
        }
    }

    /// For how long clients have been left asleep, in nanoseconds.
    fn held_for(&self) -> u64 {
        self.held_since.map_or(0, |since| self.now.saturating_sub(since))
    }
}

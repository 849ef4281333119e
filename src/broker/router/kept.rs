//! What the router keeps for a subscription that drops the oldest, while its client's ring has no room.
//!
//! Messages wait in [`Newest`], by which the oldest go; they go into the ring when there is room. While whole messages
//! wait, the subscription's new ones go behind them. A message that is kept uses its topic, so that the topic's number
//! stays its own. The rules are in `actors.md`.

use super::counters::Counters;
use super::egress::{Egress, Egresses};
use super::journal::Journal;
use super::keeping::KeptWork;
use super::message::{Chosen, Message};
use super::state::RouterState;
use crate::broker::fault;
use crate::routing::arena::Key;
use crate::routing::newest::{Added, Most};
use crate::routing::topics::Topics;
use crate::shm::ring::Payload;
use crate::shm::words::read_bytes;
use crate::wire::record::{Flags, Header, Kind};

impl Chosen {
    /// The router keeps a message's first record for this subscription; carries on where the journal stands.
    pub(super) fn keep_first(
        &self,
        message: &Message,
        payload: Payload<'_>,
        router: (&mut Topics, &mut Egresses, &mut Counters),
        (journal, work): (&mut Journal, &mut KeptWork),
        partial_targets: &mut Vec<Key>,
    ) {
        let (topics, egresses, counters) = router;
        let position = egresses.position_of(self.subscription, topics);
        if journal.is_to_push(position) {
            journal.before = Some(position);
            self.keep(message, payload, (topics, egresses, counters), work);
            fault::point("router.kept", journal.step as u64);
        }
        let found = topics.subscriptions.get(self.subscription);
        if found.is_some_and(|found| found.puts_together(message.origin)) {
            partial_targets.push(self.subscription);
        }
    }
}

impl RouterState {
    /// There may be space in the ring of `key`: what waits for it goes in. Returns whether publishers that wait should
    /// try again.
    pub(super) fn pump(&mut self, key: u32) -> bool {
        let retry = self.egresses.pump(key);
        let waits = |egress: &&Egress| egress.keeping.waits() && !egress.has_backlog();
        if self.egresses.get(key).filter(waits).is_none() {
            return retry;
        }
        let mut is_dry = self.pump_kept(key);
        if !is_dry {
            self.egresses.wait_for_space(key);
            is_dry = self.pump_kept(key);
        }
        let Some(egress) = self.egresses.get_mut(key) else { return false };
        if is_dry {
            egress.end_wait();
        }
        !egress.waiters.is_empty()
    }

    /// Moves what is kept into the ring, as far as there is room. Returns whether nothing waits any more.
    fn pump_kept(&mut self, key: u32) -> bool {
        loop {
            let Some(egress) = self.egresses.get_mut(key) else { return true };
            if !egress.keeping.waits() {
                return true;
            }
            // Publishers that wait for this client have a part of the ring.
            if !egress.waiters.is_empty() && egress.is_crowded() {
                return false;
            }
            let (turn, all) = (egress.keeping.turn, &egress.subscriptions);
            let subscriptions = &self.topics.subscriptions;
            let has_whole = |at: &usize| {
                let kept = subscriptions.get(all[*at]).and_then(|found| found.kept.as_ref());
                kept.is_some_and(|kept| kept.has_whole())
            };
            let Some(at) = (0..all.len()).map(|n| (turn + n) % all.len()).find(has_whole) else { return true };
            let subscription = all[at];
            egress.keeping.turn = at;
            if !self.pump_record(key, subscription) {
                if let Some(egress) = self.egresses.get_mut(key) {
                    egress.keeping.turn = at + 1;
                }
                return false;
            }
        }
    }

    /// Moves one record, behind the name of its topic if that is not known yet. `false`: there is no room.
    fn pump_record(&mut self, key: u32, subscription: Key) -> bool {
        let slot_size = self.settings.geometry.slot_size() as usize;
        let RouterState { egresses, topics, journal, .. } = self;
        let kept = topics.subscriptions.get(subscription).and_then(|found| found.kept.as_ref());
        let Some((header, _, hint)) = kept.and_then(|kept| kept.next(slot_size)) else { return true };
        let entry = topics.entry_mut(header.id2);
        let is_it = |at: &usize| entry.targets.get(*at).is_some_and(|target| target.subscription == subscription);
        let at = Some(hint).filter(is_it).or_else(|| (0..entry.targets.len()).find(is_it));
        if let Some(target) = at.and_then(|at| entry.targets.get_mut(at)).filter(|target| !target.announced) {
            let announce = Header { id: header.id2, ..Header::new(Kind::TopicName) };
            if !egresses.place(key, &announce, Payload::Bytes(entry.topic.as_str().as_bytes())) {
                return false;
            }
            target.announced = true;
        }
        let Some(found) = topics.subscriptions.get(subscription) else { return true };
        let Some((header, payload, _)) = found.kept.as_ref().and_then(|kept| kept.next(slot_size)) else { return true };
        let header = Header { dropped: found.dropped, ..header };
        journal.pump = egresses.get(key).map(|egress| (key, subscription, egress.ring.claimed()));
        if !egresses.place(key, &header, Payload::Bytes(payload)) {
            journal.pump = None;
            return false;
        }
        fault::point("router.pumped", u64::from(key));
        self.pumped(key, subscription);
        true
    }

    /// The ring has the next record that is kept for a subscription.
    fn pumped(&mut self, key: u32, subscription: Key) {
        self.journal.pump = None;
        let slot_size = self.settings.geometry.slot_size() as usize;
        let Some(found) = self.topics.subscriptions.get_mut(subscription) else { return };
        let (Some(egress), Some(kept)) = (self.egresses.get_mut(key), found.kept.as_mut()) else { return };
        found.dropped_told = found.dropped;
        let bytes = kept.bytes();
        let Some(complete) = kept.sent(slot_size) else { return };
        self.counters.delivered += 1;
        egress.messages += 1;
        egress.keeping.bytes = egress.keeping.bytes - bytes + kept.bytes();
        self.kept.unused.push(complete.id2);
        if kept.has_whole() {
            return;
        }
        if kept.is_empty() {
            found.kept = None;
        }
        egress.keeping.settle(false);
    }

    /// A router has died within a step of `pump`: completes that step if it was begun.
    pub(super) fn settle_pump(&mut self) {
        let Some((key, subscription, before)) = self.journal.pump else { return };
        if self.egresses.get(key).is_some_and(|egress| egress.ring.claimed() != before) {
            self.pumped(key, subscription);
        }
        self.journal.pump = None;
    }

    /// What is left of a batch: the first messages that are kept look for room once more, after the client was asked to
    /// ring (R8); topics of those that are kept no longer are released.
    #[inline]
    pub(super) fn watch_kept(&mut self) {
        while let Some(key) = self.kept.begun.last().copied() {
            if self.pump(key) {
                self.retry_waiters(key);
            }
            self.kept.begun.pop();
        }
        while let Some(topic) = self.kept.unused.pop() {
            self.release_topic(topic);
        }
    }

    /// The rest of the message that `origin` publishes will not come: what is kept of it for a subscription goes.
    /// `false`: nothing is.
    pub(super) fn abort_kept(&mut self, subscription: Key, origin: u32) -> bool {
        let Some(found) = self.topics.subscriptions.get_mut(subscription) else { return false };
        let (Some(egress), Some(kept)) = (self.egresses.get_mut(found.owner), found.kept.as_mut()) else {
            return false;
        };
        let bytes = kept.bytes();
        if !kept.is_begun(origin) {
            return false;
        }
        let aborted = kept.abort(origin);
        egress.keeping.bytes = egress.keeping.bytes - bytes + kept.bytes();
        if kept.is_empty() {
            found.kept = None;
        }
        let Some(header) = aborted else { return true };
        found.dropped = found.dropped.saturating_add(1);
        let owner = found.owner;
        self.kept.unused.push(header.id2);
        self.egresses.missed(owner);
        true
    }

    /// A subscription of `key` ends: what is kept for it goes.
    pub(super) fn forget_kept(&mut self, key: u32, subscription: Key) {
        let Some(found) = self.topics.subscriptions.get_mut(subscription) else { return };
        let (Some(egress), Some(kept)) = (self.egresses.get_mut(key), found.kept.take()) else { return };
        self.kept.unused.extend(kept.headers().map(|header| header.id2));
        egress.keeping.bytes -= kept.bytes();
        if kept.has_whole() {
            egress.keeping.settle(false);
            // Its client looks whether something waits.
            self.egresses.placed(key);
        }
    }
}

impl Egresses {
    /// Keeps a record for a subscription, or drops its message if that is too large. Others may be dropped for it.
    pub(super) fn keep(
        &mut self,
        subscription: Key,
        (target, cost): (usize, u32),
        header: &Header,
        payload: Payload<'_>,
        (topics, counters): (&mut Topics, &mut Counters),
        work: &mut KeptWork,
    ) {
        let most = self.max_backlog;
        let Some(found) = topics.subscriptions.get_mut(subscription) else { return };
        let Some(egress) = self.get_mut(found.owner) else { return };
        let (owner, policy, kept) = (found.owner, found.policy, found.kept.get_or_insert_default());
        let (had_whole, bytes) = (kept.has_whole(), kept.bytes());
        // Each has its share, and what the others do not need.
        let share = most / egress.subscriptions.len().max(1);
        let most = Most { cells: found.capacity, bytes: share.max(most.saturating_sub(egress.keeping.bytes - bytes)) };
        let mut dropped = 0;
        let fill = |to: &mut [u8]| match payload {
            Payload::Bytes(from) => to.copy_from_slice(from),
            Payload::Words(_, words) => read_bytes(words, to),
        };
        let added = kept.add(header, (target, cost, payload.len() as usize), fill, most, |gone| {
            work.unused.push(gone.id2);
            dropped += 1;
        });
        let (has_whole, is_empty, now) = (kept.has_whole(), kept.is_empty(), kept.bytes());
        egress.keeping.ever += 1;
        egress.keeping.bytes = egress.keeping.bytes - bytes + now;
        found.dropped = found.dropped.saturating_add(dropped);
        if is_empty {
            found.kept = None;
        }
        if has_whole != had_whole {
            egress.keeping.settle(has_whole);
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

    /// How much the owner of a subscription was ever given.
    pub(super) fn position_of(&self, subscription: Key, topics: &Topics) -> u64 {
        let owner = topics.subscriptions.get(subscription).map(|found| found.owner);
        owner.and_then(|owner| self.get(owner)).map_or(0, Egress::position)
    }

    /// There is something new for the client of `key`.
    pub(super) fn placed(&mut self, key: u32) {
        if let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) {
            egress.placed(key, &mut self.dirty);
        }
    }

    /// Pushes a record that may wait elsewhere. `false`: there is no space, and no more memory for it.
    fn place(&mut self, key: u32, header: &Header, payload: Payload<'_>) -> bool {
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
    /// Nothing waits for space any more.
    pub(super) fn end_wait(&mut self) {
        self.waits_for_space = false;
        self.space.disarm();
    }

    /// Whether three quarters of its ring are in use.
    fn is_crowded(&mut self) -> bool {
        let cells = u64::from(self.leases.segment.geometry().base_cells() + self.ring.window());
        let consumed = self.ring.look().unwrap_or(0);
        4 * (self.ring.claimed() - consumed) >= 3 * cells
    }
}

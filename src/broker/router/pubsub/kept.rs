//! What the router keeps for a subscription that drops the oldest, while its client's ring has no room.
//!
//! Messages wait in [`Newest`], by which the oldest go; they go into the ring when there is room. While whole messages
//! wait, the subscription's new ones go behind them. A message that is kept uses its topic, so that the topic's number
//! stays its own. The rules are in `actors.md`.

use super::PubSub;
use crate::broker::router::counters::Counters;
use crate::broker::router::egress::{Egress, Egresses};
use crate::broker::router::journal::Journal;
use crate::broker::router::keeping::KeptWork;
use crate::broker::router::message::{Chosen, Message};
use crate::broker::router::ports::Ports;
use crate::broker::supervision::fault;
use crate::logic::arena::Key;
use crate::logic::topics::Topics;
use crate::shm::ring::Payload;
use crate::wire::record::{Header, Kind};

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

impl PubSub {
    /// There may be space in the ring of `key`: what waits for it goes in. Returns whether publishers that wait should
    /// try again.
    pub(in crate::broker::router) fn pump(&mut self, ports: &mut Ports, key: u32) -> bool {
        let retry = ports.egresses.pump(key);
        let waits = |egress: &&Egress| egress.keeping.waits() && !egress.has_backlog();
        if ports.egresses.get(key).filter(waits).is_none() {
            return retry;
        }
        let mut is_dry = self.pump_kept(ports, key);
        if !is_dry {
            ports.egresses.wait_for_space(key);
            is_dry = self.pump_kept(ports, key);
        }
        let Some(egress) = ports.egresses.get_mut(key) else { return false };
        if is_dry {
            egress.end_wait();
        }
        !egress.waiters.is_empty()
    }

    /// Moves what is kept into the ring, as far as there is room. Returns whether nothing waits any more.
    fn pump_kept(&mut self, ports: &mut Ports, key: u32) -> bool {
        loop {
            let Some(egress) = ports.egresses.get_mut(key) else { return true };
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
            if !self.pump_record(ports, key, subscription) {
                if let Some(egress) = ports.egresses.get_mut(key) {
                    egress.keeping.turn = at + 1;
                }
                return false;
            }
        }
    }

    /// Moves one record, behind the name of its topic if that is not known yet. `false`: there is no room.
    fn pump_record(&mut self, ports: &mut Ports, key: u32, subscription: Key) -> bool {
        let slot_size = ports.settings.geometry.slot_size() as usize;
        let Ports { egresses, journal, .. } = ports;
        let PubSub { topics, .. } = self;
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
        self.pumped(ports, key, subscription);
        true
    }

    /// The ring has the next record that is kept for a subscription.
    fn pumped(&mut self, ports: &mut Ports, key: u32, subscription: Key) {
        ports.journal.pump = None;
        let slot_size = ports.settings.geometry.slot_size() as usize;
        let Some(found) = self.topics.subscriptions.get_mut(subscription) else { return };
        let (Some(egress), Some(kept)) = (ports.egresses.get_mut(key), found.kept.as_mut()) else { return };
        found.dropped_told = found.dropped;
        let bytes = kept.bytes();
        let Some(complete) = kept.sent(slot_size) else { return };
        ports.counters.delivered += 1;
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
    pub(in crate::broker::router) fn settle_pump(&mut self, ports: &mut Ports) {
        let Some((key, subscription, before)) = ports.journal.pump else { return };
        if ports.egresses.get(key).is_some_and(|egress| egress.ring.claimed() != before) {
            self.pumped(ports, key, subscription);
        }
        ports.journal.pump = None;
    }

    /// What is left of a batch: the first messages that are kept look for room once more, after the client was asked to
    /// ring (R8); topics of those that are kept no longer are released.
    #[inline]
    pub(in crate::broker::router) fn watch_kept(&mut self, ports: &mut Ports) {
        while let Some(key) = self.kept.begun.last().copied() {
            if self.pump(ports, key) {
                ports.retry_waiters(key);
            }
            self.kept.begun.pop();
        }
        while let Some(topic) = self.kept.unused.pop() {
            self.release_topic(ports, topic);
        }
    }

    /// The rest of the message that `origin` publishes will not come: what is kept of it for a subscription goes.
    /// `false`: nothing is.
    pub(super) fn abort_kept(&mut self, ports: &mut Ports, subscription: Key, origin: u32) -> bool {
        let Some(found) = self.topics.subscriptions.get_mut(subscription) else { return false };
        let (Some(egress), Some(kept)) = (ports.egresses.get_mut(found.owner), found.kept.as_mut()) else {
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
        ports.egresses.missed(owner);
        true
    }

    /// A subscription of `key` ends: what is kept for it goes.
    pub(super) fn forget_kept(&mut self, ports: &mut Ports, key: u32, subscription: Key) {
        let Some(found) = self.topics.subscriptions.get_mut(subscription) else { return };
        let (Some(egress), Some(kept)) = (ports.egresses.get_mut(key), found.kept.take()) else { return };
        self.kept.unused.extend(kept.headers().map(|header| header.id2));
        egress.keeping.bytes -= kept.bytes();
        if kept.has_whole() {
            egress.keeping.settle(false);
            // Its client looks whether something waits.
            ports.egresses.placed(key);
        }
    }
}

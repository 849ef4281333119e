//! Overflow of `drop_oldest` subscriptions whose client's ring is full.
//!
//! Messages wait in a [`DropOldestQueue`], and move into the ring when it has space. While a queue has whole messages,
//! new ones are queued behind them. A queued message counts as a user of its topic, so that the topic's number is not
//! reused. The rules are in `actors.md`.

use super::PubSub;
use super::chosen::Chosen;
use crate::broker::router::counters::Counters;
use crate::broker::router::egress::{Egress, Egresses, OverflowWork};
use crate::broker::router::journal::Journal;
use crate::broker::router::message::Message;
use crate::broker::router::ports::Ports;
use crate::broker::supervision::fault;
use crate::logic::routing::arena::Key;
use crate::logic::routing::topics::Topics;
use crate::shm::ring::Payload;
use crate::wire::record::{Header, Kind};

impl Chosen {
    /// Queues a message's first record for this subscription; continues from the journal.
    pub(super) fn queue_first(
        &self,
        message: &Message,
        payload: Payload<'_>,
        router: (&mut Topics, &mut Egresses, &mut Counters),
        (journal, work): (&mut Journal, &mut OverflowWork),
        partial_targets: &mut Vec<Key>,
    ) {
        let (topics, egresses, counters) = router;
        let position = egresses.position_of(self.subscription, topics);
        if journal.is_to_push(position) {
            journal.before = Some(position);
            self.queue(message, payload, (topics, egresses, counters), work);
            fault::point("router.queued", journal.step as u64);
        }
        let found = topics.subscriptions.get(self.subscription);
        if found.is_some_and(|found| found.puts_together(message.origin)) {
            partial_targets.push(self.subscription);
        }
    }
}

impl PubSub {
    /// The ring of `key` may have space: moves backlog and queued messages into it. Returns whether parked publishers
    /// should try again.
    pub(in crate::broker::router) fn pump(&mut self, ports: &mut Ports, key: u32) -> bool {
        let retry = ports.egresses.pump(key);
        let may_enter = |egress: &&Egress| egress.overflow.has_messages() && !egress.has_backlog();
        if ports.egresses.get(key).filter(may_enter).is_none() {
            return retry;
        }
        let mut is_dry = self.pump_overflow(ports, key);
        if !is_dry {
            ports.egresses.wait_for_space(key);
            is_dry = self.pump_overflow(ports, key);
        }
        let Some(egress) = ports.egresses.get_mut(key) else { return false };
        if is_dry {
            egress.end_wait();
        }
        !egress.waiters.is_empty()
    }

    /// Moves queued messages into the ring while it has space. Returns whether the queues are empty.
    fn pump_overflow(&mut self, ports: &mut Ports, key: u32) -> bool {
        loop {
            let Some(egress) = ports.egresses.get_mut(key) else { return true };
            if !egress.overflow.has_messages() {
                return true;
            }
            // A part of the ring is reserved for publishers that wait for this client.
            if !egress.waiters.is_empty() && egress.is_crowded() {
                return false;
            }
            let (turn, all) = (egress.overflow.turn, &egress.subscriptions);
            let subscriptions = &self.topics.subscriptions;
            let has_whole = |at: &usize| {
                let overflow = subscriptions.get(all[*at]).and_then(|found| found.overflow.as_ref());
                overflow.is_some_and(|overflow| overflow.has_whole())
            };
            let Some(at) = (0..all.len()).map(|n| (turn + n) % all.len()).find(has_whole) else { return true };
            let subscription = all[at];
            egress.overflow.turn = at;
            if !self.pump_record(ports, key, subscription) {
                if let Some(egress) = ports.egresses.get_mut(key) {
                    egress.overflow.turn = at + 1;
                }
                return false;
            }
        }
    }

    /// Moves one record, preceded by the name of its topic if the client does not know it. `false`: no space.
    fn pump_record(&mut self, ports: &mut Ports, key: u32, subscription: Key) -> bool {
        let slot_size = ports.settings.geometry.slot_size() as usize;
        let Ports { egresses, journal, .. } = ports;
        let PubSub { topics, .. } = self;
        let overflow = topics.subscriptions.get(subscription).and_then(|found| found.overflow.as_ref());
        let Some((header, _)) = overflow.and_then(|overflow| overflow.next(slot_size)) else { return true };
        let entry = topics.entry_mut(header.id2);
        if !entry.known.contains(key) {
            let announce = Header { id: header.id2, ..Header::new(Kind::TopicName) };
            if !egresses.place(key, &announce, Payload::Bytes(entry.topic.as_str().as_bytes())) {
                return false;
            }
            egresses.knows(key, header.id2);
            entry.known.insert(key);
        }
        let Some(found) = topics.subscriptions.get(subscription) else { return true };
        let Some((header, payload)) = found.overflow.as_ref().and_then(|overflow| overflow.next(slot_size)) else {
            return true;
        };
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

    /// The next queued record of a subscription was pushed into the ring.
    fn pumped(&mut self, ports: &mut Ports, key: u32, subscription: Key) {
        ports.journal.pump = None;
        let slot_size = ports.settings.geometry.slot_size() as usize;
        let Some(found) = self.topics.subscriptions.get_mut(subscription) else { return };
        let (Some(egress), Some(overflow)) = (ports.egresses.get_mut(key), found.overflow.as_mut()) else { return };
        found.dropped_told = found.dropped;
        let bytes = overflow.bytes();
        let Some(complete) = overflow.sent(slot_size) else { return };
        ports.counters.delivered += 1;
        egress.messages += 1;
        self.overflow.unused.push(complete.id2);
        let (has_whole, now) = (overflow.has_whole(), overflow.bytes());
        if !has_whole {
            egress.overflow.settle(false);
        }
        if overflow.is_empty() {
            found.overflow = None;
        }
        ports.egresses.overflow_changed(key, bytes, now);
    }

    /// Recovery: completes a step of `pump` that the last incarnation had begun.
    pub(in crate::broker::router) fn settle_pump(&mut self, ports: &mut Ports) {
        let Some((key, subscription, before)) = ports.journal.pump else { return };
        if ports.egresses.get(key).is_some_and(|egress| egress.ring.claimed() != before) {
            self.pumped(ports, key, subscription);
        }
        ports.journal.pump = None;
    }

    /// End of a batch: checks for space once more after the client was asked to ring (R8), and releases the topics of
    /// messages that left the queues.
    #[inline]
    pub(in crate::broker::router) fn watch_overflow(&mut self, ports: &mut Ports) {
        while let Some(key) = self.overflow.begun.last().copied() {
            if self.pump(ports, key) {
                ports.retry_waiters(key);
            }
            self.overflow.begun.pop();
        }
        while let Some(topic) = self.overflow.unused.pop() {
            self.release_topic(ports, topic);
        }
    }

    /// Discards the queued part of an aborted message of `origin`. `false`: no part was queued.
    pub(super) fn abort_overflow(&mut self, ports: &mut Ports, subscription: Key, origin: u32) -> bool {
        let Some(found) = self.topics.subscriptions.get_mut(subscription) else { return false };
        let Some(overflow) = found.overflow.as_mut().filter(|overflow| overflow.is_begun(origin)) else { return false };
        let bytes = overflow.bytes();
        let aborted = overflow.abort(origin);
        ports.egresses.overflow_changed(found.owner, bytes, overflow.bytes());
        if overflow.is_empty() {
            found.overflow = None;
        }
        let Some(header) = aborted else { return true };
        found.dropped = found.dropped.saturating_add(1);
        let owner = found.owner;
        self.overflow.unused.push(header.id2);
        ports.egresses.missed(owner);
        true
    }

    /// A subscription of `key` ends: discards its queue.
    pub(super) fn forget_overflow(&mut self, ports: &mut Ports, key: u32, subscription: Key) {
        let Some(found) = self.topics.subscriptions.get_mut(subscription) else { return };
        let (Some(egress), Some(overflow)) = (ports.egresses.get_mut(key), found.overflow.take()) else { return };
        self.overflow.unused.extend(overflow.headers().map(|header| header.id2));
        if overflow.has_whole() {
            egress.overflow.settle(false);
            // Its client checks for queued messages.
            ports.egresses.placed(key);
        }
        ports.egresses.overflow_changed(key, overflow.bytes(), 0);
    }
}

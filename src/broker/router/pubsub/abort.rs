//! Aborted messages: the rest of a message of several records will not come, because its publisher has ended, a
//! receiver that drops does not read, or the message is quarantined.

use super::PubSub;
use super::publish::miss;
use crate::broker::router::ingress::Partial;
use crate::broker::router::journal::Work;
use crate::broker::router::message::Message;
use crate::broker::router::ports::Ports;
use crate::logic::routing::arena::Key;
use crate::logic::shares::BROKER;
use crate::shm::layout::message_cost;
use crate::shm::ring::{Payload, Record};
use crate::wire::record::{Flags, Header, Kind};

impl PubSub {
    /// The publisher of a begun message has ended: notifies the receivers that the rest will not come.
    pub(in crate::broker::router) fn abort_partial(&mut self, ports: &mut Ports, key: u32) {
        let Some(ingress) = ports.ingresses[key as usize].as_deref_mut() else { return };
        if ingress.partial.is_none() {
            return;
        }
        ports.counters.aborted += u64::from(!ingress.partial_targets.is_empty());
        self.abort_targets(ports, key);
        if let Some(ingress) = ports.ingress_mut(key) {
            ingress.partial = None;
        }
    }

    /// Notifies the receivers of the begun message that the rest of it will not come.
    fn abort_targets(&mut self, ports: &mut Ports, key: u32) {
        while let Some(subscription) = ports.ingress(key).and_then(|ingress| ingress.partial_targets.last().copied()) {
            self.abort_target(ports, key, subscription);
        }
    }

    /// Notifies one receiver of the begun message that the rest of it will not come.
    pub(super) fn abort_target(&mut self, ports: &mut Ports, key: u32, subscription: Key) {
        let slot_size = ports.settings.geometry.slot_size();
        let Some(ingress) = ports.ingresses[key as usize].as_deref_mut() else { return };
        if let Some(at) = ingress.partial_targets.iter().rposition(|target| *target == subscription) {
            ingress.partial_targets.remove(at);
        }
        let (Some(partial), origin) = (&ingress.partial, ingress.info.id) else { return };
        let total = partial.total;
        // The client has no part of the message.
        if self.abort_overflow(ports, subscription, origin) {
            return;
        }
        let Some(found) = self.topics.subscriptions.get_mut(subscription) else { return };
        found.dropped = found.dropped.saturating_add(1);
        found.dropped_told = found.dropped;
        // The owner never takes an incomplete message, so it would never return the credit.
        let cost = message_cost(total, slot_size, found.capacity);
        found.credit = found.credit.saturating_add(cost).min(found.capacity);
        let (owner, dropped) = (found.owner, found.dropped);
        let notice = Header { id: subscription.to_u32(), origin, dropped, ..Header::new(Kind::Aborted) };
        ports.egresses.send(owner, &notice, Payload::EMPTY);
        ports.retry_waiters(owner);
    }

    /// A record of the bulk lane is quarantined: receivers without it see a gap, and the publisher is notified. The
    /// rest of the message has no receivers.
    pub(in crate::broker::router) fn quarantine_publish(&mut self, ports: &mut Ports, key: u32, record: &Record) {
        let Ok(header) = Header::from_words(&record.header) else { return };
        if header.kind == Kind::Release {
            return;
        }
        if header.kind == Kind::Flush {
            // Its predecessors are routed and cannot be lost.
            let answer = Header { seq: header.seq, ..Header::new(Kind::Flushed) };
            return ports.egresses.send(key, &answer, Payload::EMPTY);
        }
        match ports.journal.work {
            Work::First(_, id, message) => {
                self.settle_step(ports, key, &message);
                for at in ports.journal.step..self.chosen.len() {
                    let Ports { egresses, counters, .. } = ports;
                    let PubSub { topics, chosen, .. } = self;
                    chosen[at].pass_over(topics, egresses, counters);
                }
                miss(&mut self.topics, &mut self.passed_over, message.topic);
                self.skip_rest(ports, key, id, &message);
            }
            Work::Undecided if header.kind == Kind::Publish && header.flags.has(Flags::FIRST) => {
                let Some(ingress) = ports.ingress_mut(key).filter(|ingress| ingress.partial.is_none()) else { return };
                ingress.partial_targets.clear();
                let Some(published) = ingress.topics.get(header.id) else { return };
                let (topic, seq) = (published.topic, header.seq.max(published.sent));
                let (origin, publisher, user) = (ingress.info.id, ingress.info.publisher, BROKER);
                let (total, len, flags) = (header.total, record.len, header.flags);
                let message = Message { topic, origin, publisher, user, seq, total, len, flags };
                self.skip_rest(ports, key, header.id, &message);
            }
            Work::Undecided | Work::Further(..) => self.quarantine_further(ports, key, record, &header),
            Work::Run(..) | Work::Express(..) | Work::Done(_) => return,
        }
        let notice = Header { id: header.id, ..Header::new(Kind::Quarantined) };
        ports.egresses.send(key, &notice, Payload::EMPTY);
    }

    /// The current receiver may have the record: its position shows it.
    fn settle_step(&mut self, ports: &mut Ports, key: u32, message: &Message) {
        let Some(chosen) = self.chosen.get(ports.journal.step).copied() else { return };
        let Some(found) = self.topics.subscriptions.get(chosen.subscription) else { return };
        let Some(egress) = ports.egresses.get(found.owner) else { return };
        if ports.journal.is_to_push(egress.position()) {
            return;
        }
        if chosen.gets_it {
            chosen.charge(&mut self.topics, &mut ports.egresses);
            ports.counters.delivered += 1;
        } else if !found.puts_together(message.origin) {
            return ports.journal.stepped();
        }
        if !message.flags.has(Flags::LAST)
            && let Some(ingress) = ports.ingress_mut(key)
        {
            ingress.partial_targets.push(chosen.subscription);
        }
        ports.journal.stepped();
    }

    /// The first record of a message is quarantined, so its further records have no receivers.
    fn skip_rest(&mut self, ports: &mut Ports, key: u32, id: u32, message: &Message) {
        let Some(ingress) = ports.ingress_mut(key) else { return };
        if let Some(published) = ingress.topics.get_mut(id) {
            published.sent = message.seq;
        }
        if message.total > message.len {
            let (topic, seq, total) = (message.topic, message.seq, message.total);
            ingress.partial = Some(Partial { id, topic, seq, total, left: total - message.len });
            self.abort_targets(ports, key);
        }
    }

    /// A further record is quarantined: receivers of the message's last record have all of it, for the others it is
    /// aborted.
    fn quarantine_further(&mut self, ports: &mut Ports, key: u32, record: &Record, header: &Header) {
        let is_committing = matches!(ports.journal.work, Work::Further(..));
        let Ports { ingresses, egresses, journal, .. } = ports;
        let PubSub { topics, .. } = self;
        let Some(ingress) = ingresses[key as usize].as_deref_mut() else { return };
        let Some(partial) = &mut ingress.partial else { return };
        partial.left = partial.left.saturating_sub(record.len);
        if is_committing && header.flags.has(Flags::LAST) {
            let next = ingress.partial_targets.get(journal.step).and_then(|s| topics.subscriptions.get(*s));
            let has_it = next
                .and_then(|subscription| egresses.get(subscription.owner))
                .is_some_and(|egress| !journal.is_to_push(egress.position()));
            let whole = journal.step + usize::from(has_it);
            ingress.partial_targets.drain(..whole.min(ingress.partial_targets.len()));
        }
        self.abort_targets(ports, key);
        if let Some(ingress) = ports.ingress_mut(key)
            && ingress.partial.as_ref().is_some_and(|partial| partial.left == 0)
        {
            ingress.partial = None;
        }
    }
}

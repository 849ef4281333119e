//! Messages whose rest will not come: the publisher has gone, a receiver that drops has stopped, or routers have died
//! of them.

use super::inlet::Partial;
use super::journal::Work;
use super::publish::Message;
use super::state::RouterState;
use crate::routing::arena::Key;
use crate::shm::layout::message_cost;
use crate::shm::ring::{Payload, Record};
use crate::wire::record::{Flags, Header, Kind};

impl RouterState {
    /// The publisher of a message under way is gone: its receivers are told that the rest will not come.
    pub(super) fn abort_partial(&mut self, key: u32) {
        let Some(inlet) = self.inlets[key as usize].as_deref_mut() else { return };
        if inlet.partial.is_none() {
            return;
        }
        self.counters.aborted += u64::from(!inlet.partial_targets.is_empty());
        self.abort_targets(key);
        if let Some(inlet) = self.inlet_mut(key) {
            inlet.partial = None;
        }
    }

    /// Tells the receivers of the message under way that the rest of it will not come.
    fn abort_targets(&mut self, key: u32) {
        while let Some(subscription) = self.inlet(key).and_then(|inlet| inlet.partial_targets.last().copied()) {
            self.abort_target(key, subscription);
        }
    }

    /// Tells one receiver of the message under way that the rest of it will not come.
    pub(super) fn abort_target(&mut self, key: u32, subscription: Key) {
        let slot_size = self.settings.geometry.slot_size();
        let Some(inlet) = self.inlets[key as usize].as_deref_mut() else { return };
        if let Some(at) = inlet.partial_targets.iter().rposition(|target| *target == subscription) {
            inlet.partial_targets.remove(at);
        }
        let (Some(partial), origin) = (&inlet.partial, inlet.info.id) else { return };
        let total = partial.total;
        // The client knows nothing of it.
        if self.abort_kept(subscription, origin) {
            return;
        }
        let Some(found) = self.topics.subscriptions.get_mut(subscription) else { return };
        found.dropped = found.dropped.saturating_add(1);
        found.dropped_told = found.dropped;
        // Its owner cannot take what never becomes whole, and so would never give its room back.
        let cost = message_cost(total, slot_size, found.capacity);
        found.credit = found.credit.saturating_add(cost).min(found.capacity);
        let (owner, dropped) = (found.owner, found.dropped);
        let notice = Header { id: subscription.to_u32(), origin, dropped, ..Header::new(Kind::Aborted) };
        self.outlets.send(owner, &notice, Payload::EMPTY);
        self.retry_waiters(owner);
    }

    /// A record of the bulk lane is taken out: who has not got it by now sees a gap, and the publisher is told. What is
    /// still to come of the message goes to nobody.
    pub(super) fn set_publish_aside(&mut self, key: u32, record: &Record) {
        let Ok(header) = Header::from_words(&record.header) else { return };
        if header.kind == Kind::Release {
            return;
        }
        if header.kind == Kind::Flush {
            // What was before it is routed, and nothing of it can be lost.
            let answer = Header { seq: header.seq, ..Header::new(Kind::Flushed) };
            return self.outlets.send(key, &answer, Payload::EMPTY);
        }
        match self.journal.work {
            Work::First(_, id, message) => {
                self.settle_step(key, &message);
                for at in self.journal.step..self.chosen.len() {
                    let RouterState { outlets, topics, chosen, counters, .. } = self;
                    chosen[at].pass_over(topics, outlets, counters);
                }
                self.skip_rest(key, id, &message);
            }
            Work::Undecided if header.kind == Kind::Publish && header.flags.has(Flags::FIRST) => {
                let Some(inlet) = self.inlet_mut(key).filter(|inlet| inlet.partial.is_none()) else { return };
                inlet.partial_targets.clear();
                let Some(published) = inlet.topics.get(header.id) else { return };
                let (topic, seq, origin) = (published.topic, header.seq.max(published.sent), inlet.info.id);
                let (total, len, flags) = (header.total, record.len, header.flags);
                self.skip_rest(key, header.id, &Message { topic, origin, seq, total, len, flags });
            }
            Work::Undecided | Work::Further(..) => self.set_further_aside(key, record, &header),
            Work::Express(..) | Work::Done(_) => return,
        }
        let notice = Header { id: header.id, ..Header::new(Kind::SetAside) };
        self.outlets.send(key, &notice, Payload::EMPTY);
    }

    /// The receiver whose turn it was may have the record: its ring tells.
    fn settle_step(&mut self, key: u32, message: &Message) {
        let Some(chosen) = self.chosen.get(self.journal.step).copied() else { return };
        let Some(found) = self.topics.subscriptions.get(chosen.subscription) else { return };
        let Some(outlet) = self.outlets.get(found.owner) else { return };
        if self.journal.is_to_push(outlet.position()) {
            return;
        }
        if chosen.gets_it {
            chosen.charge(&mut self.topics, &mut self.outlets);
            self.counters.delivered += 1;
        } else if !found.puts_together(message.origin) {
            return self.journal.stepped();
        }
        if !message.flags.has(Flags::LAST)
            && let Some(inlet) = self.inlet_mut(key)
        {
            inlet.partial_targets.push(chosen.subscription);
        }
        self.journal.stepped();
    }

    /// The first record of a message is taken out; so its further ones have no receivers.
    fn skip_rest(&mut self, key: u32, id: u32, message: &Message) {
        let Some(inlet) = self.inlet_mut(key) else { return };
        if let Some(published) = inlet.topics.get_mut(id) {
            published.sent = message.seq;
        }
        if message.total > message.len {
            let (topic, seq, total) = (message.topic, message.seq, message.total);
            inlet.partial = Some(Partial { id, topic, seq, total, left: total - message.len });
            self.abort_targets(key);
        }
    }

    /// A further record is taken out: whoever has got the message's last has all of it, the others' is aborted.
    fn set_further_aside(&mut self, key: u32, record: &Record, header: &Header) {
        let is_committing = matches!(self.journal.work, Work::Further(..));
        let RouterState { inlets, outlets, topics, journal, .. } = self;
        let Some(inlet) = inlets[key as usize].as_deref_mut() else { return };
        let Some(partial) = &mut inlet.partial else { return };
        partial.left = partial.left.saturating_sub(record.len);
        if is_committing && header.flags.has(Flags::LAST) {
            let next = inlet.partial_targets.get(journal.step).and_then(|s| topics.subscriptions.get(*s));
            let has_it = next
                .and_then(|subscription| outlets.get(subscription.owner))
                .is_some_and(|outlet| !journal.is_to_push(outlet.position()));
            let whole = journal.step + usize::from(has_it);
            inlet.partial_targets.drain(..whole.min(inlet.partial_targets.len()));
        }
        self.abort_targets(key);
        if let Some(inlet) = self.inlet_mut(key)
            && inlet.partial.as_ref().is_some_and(|partial| partial.left == 0)
        {
            inlet.partial = None;
        }
    }
}

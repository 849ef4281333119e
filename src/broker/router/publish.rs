//! Publishes: the bulk lane.
//!
//! A message goes to all its subscriptions or to none yet: first it is decided for each whether it gets the message,
//! does without, or makes it wait; then everything is committed. A message of several records decides with its first
//! and keeps its subscriptions to the last.

use super::inlet::{Info, NO_CONNECTION, Parked, Partial};
use super::journal::Work;
use super::outlet::{Doom, Outlets};
use super::state::{Counters, Lane, RouterState};
use crate::broker::events::Event;
use crate::broker::fault;
use crate::routing::arena::Key;
use crate::routing::grace::Lack;
use crate::routing::topics::{Subscription, TopicId, Topics};
use crate::shm::layout::{RingName, message_cost};
use crate::shm::ring::{Payload, Record};
use crate::wire::control::DeliveryPolicy;
use crate::wire::name::Topic;
use crate::wire::record::{Flags, Header, Kind};

/// What was decided for one subscription.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen {
    pub(super) subscription: Key,
    /// Its place among the topic's targets.
    pub(super) target: usize,
    pub(super) gets_it: bool,
    announce: bool,
    /// It drops the oldest: what it does not get is kept.
    keeps: bool,
    pub(super) cost: u32,
    /// Why it does not get it.
    pub(super) lack: Lack,
}

/// A message must wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    /// For this connection.
    pub(super) on: u32,
    /// For a subscription that drops: until then, unless there is room before.
    pub(super) until: Option<u64>,
}

/// One message, as it is routed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    pub(super) topic: TopicId,
    pub(super) origin: u32,
    pub(super) seq: u64,
    pub(super) total: u32,
    pub(super) len: u32,
    pub(super) flags: Flags,
}

impl Chosen {
    /// The subscription has got the message: it pays with its credit.
    #[inline]
    pub(super) fn charge(&self, topics: &mut Topics, outlets: &mut Outlets) {
        let Some(subscription) = topics.subscriptions.get_mut(self.subscription) else { return };
        // A queue that is emptied at once pays nothing: its client gives nothing back.
        if subscription.policy != DeliveryPolicy::DropOldest {
            subscription.credit = subscription.credit.saturating_sub(self.cost);
        }
        subscription.dropped_told = subscription.dropped;
        subscription.grace.got(outlets.now, outlets.drop_grace);
        if let Some(outlet) = outlets.get_mut(subscription.owner) {
            outlet.messages += 1;
        }
    }

    /// The subscription's owner is told the name of the topic, if it has yet to be.
    #[inline]
    fn name(&self, topic: TopicId, owner: u32, topics: &mut Topics, outlets: &mut Outlets) {
        if self.announce {
            let entry = topics.entry_mut(topic);
            let announce = Header { id: topic, ..Header::new(Kind::TopicName) };
            outlets.push_planned(owner, &announce, Payload::Bytes(entry.topic.as_str().as_bytes()));
            entry.targets[self.target].announced = true;
        }
    }

    /// The subscription does without the message.
    pub(super) fn pass_over(&self, topics: &mut Topics, outlets: &mut Outlets, counters: &mut Counters) {
        let Some(subscription) = topics.subscriptions.get_mut(self.subscription) else { return };
        subscription.dropped = subscription.dropped.saturating_add(1);
        counters.dropped[subscription.policy as usize] += 1;
        outlets.missed(subscription.owner);
    }
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
            dropped,
            ..Header::new(Kind::Deliver)
        }
    }
}

impl RouterState {
    /// Routes one record of the bulk lane; it is consumed unless it must wait.
    #[inline]
    pub(super) fn route_bulk(&mut self, key: u32, record: &Record) -> Result<Lane, Doom> {
        let header = Header::from_words(&record.header).map_err(Doom::violation)?;
        match header.kind {
            Kind::Publish if header.flags.has(Flags::FIRST) => self.first(key, record, &header),
            Kind::Publish => self.further(key, record, &header),
            Kind::Flush => {
                let answer = Header { seq: header.seq, ..Header::new(Kind::Flushed) };
                fault::point("router.decided", u64::from(record.len));
                self.outlets.send(key, &answer, Payload::EMPTY);
                self.done(key, RingName::Bulk, record, header.kind);
                Ok(Lane::More)
            }
            Kind::Release => {
                self.release_number(key, &header)?;
                self.done(key, RingName::Bulk, record, header.kind);
                Ok(Lane::More)
            }
            kind => Err(Doom::violation(format_args!("record of kind {kind:?} in the bulk lane"))),
        }
    }

    #[inline]
    fn first(&mut self, key: u32, record: &Record, header: &Header) -> Result<Lane, Doom> {
        let (max, total, len) = (self.settings.max_message_size, header.total, record.len);
        let Some(inlet) = self.inlet_mut(key) else { return Ok(Lane::Dry) };
        let is_whole = header.flags.has(Flags::LAST);
        if inlet.partial.is_some() {
            return Err(Doom::violation("a publish began within another"));
        }
        if total > max || len > total || is_whole != (len == total) {
            return Err(Doom::violation(format_args!("publish of {total} bytes begins with a record of {len}")));
        }
        let Some(published) = inlet.topics.get(header.id) else {
            return Err(Doom::violation(format_args!("publish to topic number {}, which was never given", header.id)));
        };
        if header.seq <= published.sent {
            let (number, last) = (header.seq, published.sent);
            return Err(Doom::violation(format_args!("publish has the number {number}, where {last} came last")));
        }
        let message =
            Message { topic: published.topic, origin: inlet.info.id, seq: header.seq, total, len, flags: header.flags };
        let mut asked = None;
        while let Err(wait) = self.decide(&message, false) {
            if asked == Some(wait.on) {
                fault::point("router.park", u64::from(wait.on));
                self.park(key, wait, Some(message));
                return Ok(Lane::Parked);
            }
            // Asks to be rung, and looks again: the space may have come just now.
            self.outlets.wait_for_space(wait.on);
            asked = Some(wait.on);
        }
        fault::point("router.decided", u64::from(record.len));
        (self.journal.step, self.journal.before) = (0, None);
        self.journal.work = Work::First(*record, header.id, message);
        self.commit_first(key, record, header.id, &message);
        Ok(Lane::More)
    }

    /// Decides who gets a message, into `chosen`; changes nothing that is delivered. `Err`: it must wait.
    /// When it has waited too long, `at_last`, those for whom it waits are passed over.
    #[inline]
    fn decide(&mut self, message: &Message, at_last: bool) -> Result<(), Wait> {
        self.chosen.clear();
        self.outlets.start_plan();
        let entry = self.topics.entry(message.topic);
        let mut any_lacks = false;
        let (name, slot_size) = (entry.topic.as_str().len() as u32, self.settings.geometry.slot_size());
        for (at, target) in entry.targets.iter().enumerate() {
            let Some(subscription) = self.topics.subscriptions.get(target.subscription) else { continue };
            let cost = message_cost(message.total, slot_size, subscription.capacity);
            let has_credit = subscription.credit >= cost;
            let announce = !target.announced;
            // In the order in which they are pushed: the name comes first, and the order decides what fits.
            let lengths = [name, message.len];
            let is_behind = subscription.kept.as_ref().is_some_and(|kept| kept.has_whole());
            let gets_it =
                has_credit && !is_behind && self.outlets.plan(subscription.owner, &lengths[usize::from(!announce)..]);
            if !gets_it && subscription.policy == DeliveryPolicy::Block && !at_last {
                return Err(Wait { on: subscription.owner, until: None });
            }
            any_lacks |= !gets_it;
            let lack = if has_credit { Lack::Space } else { Lack::Credit };
            let (keeps, subscription) = (subscription.policy == DeliveryPolicy::DropOldest, target.subscription);
            let chosen = Chosen { subscription, target: at, gets_it, announce, keeps, cost, lack };
            self.chosen.push(chosen);
        }
        if any_lacks && !at_last { self.wait_for_readers() } else { Ok(()) }
    }

    /// Gives the first record of a message to those who were chosen; carries on where the journal stands.
    #[inline]
    pub(super) fn commit_first(&mut self, key: u32, record: &Record, id: u32, message: &Message) {
        let RouterState { inlets, outlets, topics, chosen, counters, journal, kept, .. } = self;
        let Some(inlet) = inlets[key as usize].as_deref_mut() else { return };
        let payload = Payload::Words(record.len, inlet.bulk.payload(record));
        if journal.step == 0 && journal.before.is_none() {
            inlet.partial_targets.clear();
        }
        while let Some(chosen) = chosen.get(journal.step) {
            fault::point("router.target", journal.step as u64);
            if !chosen.gets_it && !chosen.keeps {
                chosen.pass_over(topics, outlets, counters);
            } else if !chosen.gets_it {
                let router = (&mut *topics, &mut *outlets, &mut *counters);
                chosen.keep_first(message, payload, router, (journal, kept), &mut inlet.partial_targets);
            } else if let Some(subscription) = topics.subscriptions.get(chosen.subscription)
                && let Some(outlet) = outlets.get(subscription.owner)
            {
                let (owner, dropped) = (subscription.owner, subscription.dropped);
                if journal.is_to_push(outlet.position()) {
                    chosen.name(message.topic, owner, topics, outlets);
                    journal.before = outlets.get(owner).map(|outlet| outlet.position());
                    let deliver = message.deliver(chosen.subscription, dropped);
                    outlets.push_planned(owner, &deliver, payload);
                    fault::point("router.delivered", journal.step as u64);
                }
                chosen.charge(topics, outlets);
                counters.delivered += 1;
                if !message.flags.has(Flags::LAST) {
                    inlet.partial_targets.push(chosen.subscription);
                }
            }
            journal.stepped();
        }
        counters.published += 1;
        counters.unmatched += u64::from(chosen.is_empty());
        inlet.messages += 1;
        if let Some(published) = inlet.topics.get_mut(id) {
            published.sent = message.seq;
        }
        if !message.flags.has(Flags::LAST) {
            let (topic, seq, total) = (message.topic, message.seq, message.total);
            counters.fragments += 1;
            inlet.partial = Some(Partial { id, topic, seq, total, left: total - message.len });
        }
        self.done(key, RingName::Bulk, record, Kind::Publish);
    }

    fn further(&mut self, key: u32, record: &Record, header: &Header) -> Result<Lane, Doom> {
        let Some(inlet) = self.inlet_mut(key) else { return Ok(Lane::Dry) };
        let Some(partial) = &inlet.partial else {
            return Err(Doom::violation("a publish goes on that never began"));
        };
        let (len, is_last) = (record.len, header.flags.has(Flags::LAST));
        if header.id != partial.id || len == 0 || len > partial.left || is_last != (len == partial.left) {
            return Err(Doom::violation(format_args!(
                "publish with {} bytes to come goes on with a record of {len}",
                partial.left
            )));
        }
        if let Some(on) = self.blocks_further(key, len) {
            self.outlets.wait_for_space(on);
            if let Some(on) = self.blocks_further(key, len) {
                self.park(key, Wait { on, until: None }, None);
                return Ok(Lane::Parked);
            }
        }
        fault::point("router.decided", u64::from(len));
        (self.journal.step, self.journal.before) = (0, None);
        self.journal.work = Work::Further(*record, *header);
        self.commit_further(key, record, header);
        Ok(Lane::More)
    }

    /// Gives a further record of a message to those who have its first; carries on where the journal stands.
    pub(super) fn commit_further(&mut self, key: u32, record: &Record, header: &Header) {
        let RouterState { inlets, outlets, topics, journal, counters, kept, settings, .. } = self;
        let Some(inlet) = inlets[key as usize].as_deref_mut() else { return };
        let payload = Payload::Words(record.len, inlet.bulk.payload(record));
        let Some(partial) = &mut inlet.partial else { return };
        while let Some(subscription) = inlet.partial_targets.get(journal.step) {
            fault::point("router.target", journal.step as u64);
            if let Some(found) = topics.subscriptions.get(*subscription)
                && let Some(outlet) = outlets.get(found.owner)
                && journal.is_to_push(outlet.position())
            {
                journal.before = Some(outlet.position());
                let message = Message {
                    topic: partial.topic,
                    origin: inlet.info.id,
                    seq: partial.seq,
                    total: partial.total,
                    len: record.len,
                    flags: header.flags,
                };
                let deliver = message.deliver(*subscription, found.dropped);
                if found.puts_together(inlet.info.id) {
                    let cost = message_cost(partial.total, settings.geometry.slot_size(), found.capacity);
                    outlets.keep(*subscription, (0, cost), &deliver, payload, (topics, counters), kept);
                    fault::point("router.kept", journal.step as u64);
                } else {
                    outlets.push_planned(found.owner, &deliver, payload);
                    fault::point("router.delivered", journal.step as u64);
                }
            }
            journal.stepped();
        }
        counters.fragments += 1;
        partial.left -= record.len;
        if partial.left == 0 {
            inlet.partial = None;
            inlet.partial_targets.clear();
        }
        self.done(key, RingName::Bulk, record, Kind::Publish);
    }

    /// The first connection whose ring has no space for a further record of the message under way.
    fn blocks_further(&mut self, key: u32, len: u32) -> Option<u32> {
        let RouterState { inlets, outlets, topics, .. } = self;
        outlets.start_plan();
        let inlet = inlets[key as usize].as_deref()?;
        let found = inlet.partial_targets.iter().filter_map(|s| topics.subscriptions.get(*s));
        // What is kept needs no room.
        let mut owners = found.filter(|found| !found.puts_together(inlet.info.id)).map(|found| found.owner);
        owners.find(|owner| outlets.get(*owner).is_some() && !outlets.plan(*owner, &[len]))
    }

    /// The bulk lane of `key` has waited as long as it may: the subscriptions for which it waits are evicted; those
    /// that drop rather than wait do without the message, which had begun when they stopped.
    pub(super) fn waited_too_long(&mut self, key: u32) {
        let Some(inlet) = self.inlets[key as usize].as_deref_mut() else { return };
        if let Some(parked) = inlet.parked.filter(|parked| parked.is_grace) {
            inlet.parked = None;
            if let Some(outlet) = self.outlets.get_mut(parked.on) {
                outlet.waiters.retain(|waiter| *waiter != key);
            }
            self.schedule.wake(key);
            return;
        }
        let timeout = self.settings.slow_consumer_timeout;
        if inlet.waits.is_some_and(|(_, since)| self.now < since + timeout) {
            // It was parked anew since this timer was due.
            return;
        }
        let Some(parked) = inlet.parked.take() else { return };
        inlet.waits = None;
        if let Some(outlet) = self.outlets.get_mut(parked.on) {
            outlet.waiters.retain(|waiter| *waiter != key);
        }
        self.schedule.wake(key);
        if parked.on == NO_CONNECTION {
            return;
        }
        for subscription in self.who_blocks(key, &parked) {
            match self.topics.subscriptions.get(subscription).map(|found| found.policy) {
                Some(DeliveryPolicy::Block) => self.evict(subscription),
                Some(policy) => {
                    self.counters.dropped[policy as usize] += 1;
                    if let Some(outlet) = self.outlets.get_mut(parked.on) {
                        outlet.dropped += 1;
                    }
                    self.abort_target(key, subscription);
                }
                None => {}
            }
        }
    }

    /// The subscriptions of the connection `parked.on` for which the bulk lane of `key` waits. Others may have no room
    /// either just now; if they still have none then, they get a time of their own.
    fn who_blocks(&mut self, key: u32, parked: &Parked) -> Vec<Key> {
        if let Some(message) = &parked.message {
            if self.decide(message, true).is_err() {
                return Vec::new();
            }
            let blocks = |s: &Key| {
                let found = self.topics.subscriptions.get(*s);
                found.is_some_and(|s| s.owner == parked.on && s.policy == DeliveryPolicy::Block)
            };
            return self.chosen.iter().filter(|c| !c.gets_it).map(|c| c.subscription).filter(blocks).collect();
        }
        let RouterState { inlets, outlets, topics, .. } = self;
        let Some(inlet) = inlets[key as usize].as_deref_mut() else { return Vec::new() };
        let Ok(Some(record)) = inlet.bulk.peek() else { return Vec::new() };
        outlets.start_plan();
        let origin = inlet.info.id;
        let waits = |found: &Subscription| found.owner == parked.on && !found.puts_together(origin);
        let is_theirs = |s: &&Key| topics.subscriptions.get(**s).is_some_and(waits);
        let theirs = inlet.partial_targets.iter().filter(is_theirs);
        theirs.filter(|_| !outlets.plan(parked.on, &[record.len])).copied().collect()
    }

    /// Ends a subscription that does not take its messages, and tells its owner.
    fn evict(&mut self, key: Key) {
        let Some(subscription) = self.topics.unsubscribe(key) else { return };
        self.counters.evicted += 1;
        let id = self.inlet(subscription.owner).map_or(0, |inlet| inlet.info.id);
        if let Some(outlet) = self.outlets.get_mut(subscription.owner) {
            outlet.subscriptions.retain(|s| *s != key);
        }
        let notice = Header { id: key.to_u32(), dropped: subscription.dropped, ..Header::new(Kind::Evicted) };
        self.outlets.send(subscription.owner, &notice, Payload::EMPTY);
        let text =
            format!(r#"{{"connection":{id},"pattern":"{}","dropped":{}}}"#, subscription.pattern, subscription.dropped);
        self.publish_system("$sys.subscription.evicted", &text);
        self.events.tell(Event::Evicted {
            connection: id,
            pattern: subscription.pattern,
            dropped: subscription.dropped,
        });
        self.retry_waiters(subscription.owner);
    }

    /// One user less of a topic; who knows its number is told when it goes.
    pub(super) fn release_topic(&mut self, topic: TopicId) {
        for subscription in self.topics.release(topic) {
            // Who has much to read already need not hear it: another topic with the number will be named before it is
            // used.
            if let Some(found) = self.topics.subscriptions.get(subscription)
                && self.outlets.takes_calls(found.owner)
            {
                let gone = Header { id: topic, ..Header::new(Kind::TopicGone) };
                self.outlets.send(found.owner, &gone, Payload::EMPTY);
            }
        }
    }

    /// Tells `$sys.connection.*` of a connection.
    pub(super) fn tell_connection(&mut self, what: &str, info: &Info, reason: Option<&str>) {
        let reason = reason.map(|r| format!(r#","reason":"{}""#, r.replace(['"', '\\'], "'"))).unwrap_or_default();
        let Info { id, name, peer } = info;
        let pid = if peer.pid == 0 { "null".to_owned() } else { peer.pid.to_string() };
        let text = format!(r#"{{"connection":{id},"name":"{name}","pid":{pid},"uid":{}{reason}}}"#, peer.uid);
        self.publish_system(&format!("$sys.connection.{what}"), &text);
    }

    /// Publishes on one of the broker's own topics. It never waits: who cannot take it now, drops it.
    pub(super) fn publish_system(&mut self, topic: &str, text: &str) {
        self.events.published(topic, text);
        let Ok(topic) = Topic::parse_system(topic) else { return };
        let Ok(id) = self.topics.intern(&topic) else { return };
        self.system_sent += 1;
        let bytes = &text.as_bytes()[..text.len().min(self.settings.geometry.slot_size() as usize)];
        let len = bytes.len() as u32;
        let message = Message { topic: id, origin: 0, seq: self.system_sent, total: len, len, flags: Flags::WHOLE };
        if self.decide(&message, true).is_ok() {
            let RouterState { outlets, topics, chosen, counters, kept, .. } = self;
            for chosen in chosen.iter() {
                let Some(subscription) = topics.subscriptions.get(chosen.subscription) else { continue };
                if !chosen.gets_it && chosen.keeps {
                    chosen.keep(&message, Payload::Bytes(bytes), (topics, outlets, counters), kept);
                    continue;
                }
                if !chosen.gets_it {
                    chosen.pass_over(topics, outlets, counters);
                    continue;
                }
                let (owner, deliver) = (subscription.owner, message.deliver(chosen.subscription, subscription.dropped));
                chosen.name(id, owner, topics, outlets);
                outlets.push_planned(owner, &deliver, Payload::Bytes(bytes));
                chosen.charge(topics, outlets);
            }
        }
        self.release_topic(id);
    }
}

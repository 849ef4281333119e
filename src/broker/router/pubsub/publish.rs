//! Publishes: the bulk lane.
//!
//! Routing a message has two parts. First the router decides for each subscription whether it gets the message, drops
//! it, or makes it wait; as long as one makes it wait, none gets it. Then the router commits: no step of that can fail.
//! The decision for the first record of a message holds for the further ones.

use super::PubSub;
use super::chosen::Chosen;
use crate::broker::router::connection::{CloseReason, Info};
use crate::broker::router::ingress::Partial;
use crate::broker::router::journal::Work;
use crate::broker::router::message::{Message, Wait};
use crate::broker::router::ports::{LaneState, Ports};
use crate::broker::supervision::fault;
use crate::logic::routing::arena::Key;
use crate::logic::routing::grace::Lack;
use crate::logic::routing::topics::turns::Turn;
use crate::logic::routing::topics::{TopicId, Topics};
use crate::logic::shares::BROKER;
use crate::shm::layout::{RingName, message_cost};
use crate::shm::ring::{Payload, Record};
use crate::wire::control::DeliveryPolicy;
use crate::wire::name::Topic;
use crate::wire::record::{Flags, Header, Kind};
use serde::Serialize;
use std::time::Instant;

/// With so many subscriptions of another user the time to decide is not measured, for that takes time too.
const FEW: usize = 4;

/// The data of an event on `$sys.connection.*`.
#[derive(Serialize)]
struct ConnectionEvent<'a> {
    connection: u32,
    name: &'a str,
    /// `None`: unknown.
    pid: Option<u32>,
    uid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl PubSub {
    /// Routes one record of the bulk lane, and consumes it unless it must wait.
    #[inline]
    pub(in crate::broker::router) fn route_bulk(
        &mut self,
        ports: &mut Ports,
        key: u32,
        record: &Record,
    ) -> Result<LaneState, CloseReason> {
        let header = Header::from_words(&record.header).map_err(CloseReason::violation)?;
        match header.kind {
            Kind::Publish if header.flags.has(Flags::FIRST) => self.first(ports, key, record, &header),
            Kind::Publish => self.further(ports, key, record, &header),
            Kind::Flush => {
                let answer = Header { seq: header.seq, ..Header::new(Kind::Flushed) };
                fault::point("router.decided", u64::from(record.len));
                ports.egresses.send(key, &answer, Payload::EMPTY);
                ports.done(key, RingName::Bulk, record, header.kind);
                Ok(LaneState::More)
            }
            Kind::Release => {
                self.release_number(ports, key, &header)?;
                ports.done(key, RingName::Bulk, record, header.kind);
                Ok(LaneState::More)
            }
            kind => Err(CloseReason::violation(format_args!("record of kind {kind:?} in the bulk lane"))),
        }
    }

    #[inline]
    pub(super) fn first(
        &mut self,
        ports: &mut Ports,
        key: u32,
        record: &Record,
        header: &Header,
    ) -> Result<LaneState, CloseReason> {
        let (max, total, len) = (ports.settings.max_message_size, header.total, record.len);
        let Some(ingress) = ports.ingress_mut(key) else { return Ok(LaneState::Dry) };
        let is_whole = header.flags.has(Flags::LAST);
        if ingress.partial.is_some() {
            return Err(CloseReason::violation("publish started before the previous one was complete"));
        }
        if total > max || len > total || is_whole != (len == total) {
            return Err(CloseReason::violation(format_args!(
                "first record of a publish of {total} bytes has {len} bytes"
            )));
        }
        let Some(published) = ingress.topics.get(header.id) else {
            return Err(CloseReason::violation(format_args!("publish to unknown topic number {}", header.id)));
        };
        if header.seq <= published.sent {
            let (number, last) = (header.seq, published.sent);
            return Err(CloseReason::violation(format_args!(
                "publish has sequence number {number}, the last one was {last}"
            )));
        }
        let message = Message {
            topic: published.topic,
            origin: ingress.info.id,
            publisher: ingress.info.publisher,
            user: ingress.info.principal,
            seq: header.seq,
            total,
            len,
            flags: header.flags,
        };
        let mut asked = None;
        while let Err(wait) = self.decide(ports, &message, false) {
            if asked == Some(wait.on) {
                if wait.until.is_none() && self.evict_at_once(ports, message.user, &wait) {
                    asked = None;
                    continue;
                }
                fault::point("router.park", u64::from(wait.on));
                ports.park(key, wait, Some(message));
                return Ok(LaneState::Parked);
            }
            // Arms the flag, then looks again, because the space may have come just now (R8).
            ports.egresses.wait_for_space(wait.on);
            asked = Some(wait.on);
        }
        fault::point("router.decided", u64::from(record.len));
        (ports.journal.step, ports.journal.before) = (0, None);
        ports.journal.work = Work::First(*record, header.id, message);
        self.commit_first(ports, key, record, header.id, &message);
        Ok(LaneState::More)
    }

    /// Decides which subscriptions get a message, into `chosen`; delivers nothing. `Err`: the message must wait. After
    /// the slow consumer timeout, `at_last`, the subscriptions that block are passed over.
    #[inline]
    pub(super) fn decide(&mut self, ports: &mut Ports, message: &Message, at_last: bool) -> Result<(), Wait> {
        self.chosen.clear();
        self.passed_over.clear();
        ports.egresses.start_plan();
        let any_lacks = match self.topics.find_targets(message.topic, message.user) {
            Some(user) => self.decide_for(ports, message, user, at_last)?,
            None => self.decide_for_all(ports, message, at_last)?,
        };
        if any_lacks && !at_last { self.wait_for_readers(ports, message.user) } else { Ok(()) }
    }

    /// The same for the subscriptions of all users.
    fn decide_for_all(&mut self, ports: &mut Ports, message: &Message, at_last: bool) -> Result<bool, Wait> {
        let mut any_lacks = false;
        for user in 0..self.topics.entry(message.topic).targets.len() {
            match self.topics.turn(message.topic, user, message.user, ports.now) {
                Turn::Decide => {
                    let began =
                        (self.topics.entry(message.topic).targets[user].subscriptions.len() > FEW).then(Instant::now);
                    any_lacks |= self.decide_for(ports, message, user, at_last)?;
                    self.topics.pay(message.topic, user, message.user, began.map(|began| began.elapsed()));
                }
                Turn::PassOver => self.passed_over.push(user),
                Turn::Wait(subscription, next) => {
                    self.wait_for_time(ports, message, (user, subscription, next), at_last)?
                }
            }
        }
        Ok(any_lacks)
    }

    /// The same for the subscriptions of one user. Returns whether any cannot get the message.
    #[inline(always)]
    fn decide_for(&mut self, ports: &mut Ports, message: &Message, user: usize, at_last: bool) -> Result<bool, Wait> {
        let mut any_lacks = false;
        let entry = self.topics.entry(message.topic);
        let (name, slot_size) = (entry.topic.as_str().len() as u32, ports.settings.geometry.slot_size());
        for key in &entry.targets[user].subscriptions {
            let Some(subscription) = self.topics.subscriptions.get(*key) else { continue };
            let cost = message_cost(message.total, slot_size, subscription.capacity);
            let has_credit = subscription.credit >= cost;
            let announce = !entry.known.contains(subscription.owner);
            // In the order of the pushes, name first, because the order decides whether both fit.
            let lengths = [name, message.len];
            let is_behind = subscription.overflow.as_ref().is_some_and(|overflow| overflow.has_whole());
            let gets_it =
                has_credit && !is_behind && ports.egresses.plan(subscription.owner, &lengths[usize::from(!announce)..]);
            if !gets_it && subscription.policy == DeliveryPolicy::Block && !at_last {
                return Err(Wait { on: subscription.owner, until: None, subscription: Some(*key) });
            }
            any_lacks |= !gets_it;
            let lack = if has_credit { Lack::Space } else { Lack::Credit };
            let keeps = subscription.policy == DeliveryPolicy::DropOldest;
            self.chosen.push(Chosen { subscription: *key, gets_it, announce, keeps, cost, lack });
        }
        Ok(any_lacks)
    }

    /// The account of a user with a subscription that makes publishers wait is overdrawn. They wait until it is not, or
    /// as long as others may wait for this user (`logic::patience`); then its subscriptions are evicted.
    #[cold]
    fn wait_for_time(
        &mut self,
        ports: &mut Ports,
        message: &Message,
        (user, subscription, next): (usize, Key, u64),
        at_last: bool,
    ) -> Result<(), Wait> {
        let Some(found) = self.topics.subscriptions.get(subscription) else { return Ok(()) };
        if at_last {
            let lacks = |key: &Key| Chosen {
                subscription: *key,
                gets_it: false,
                announce: false,
                keeps: false,
                cost: 0,
                lack: Lack::Credit,
            };
            self.chosen.extend(self.topics.entry(message.topic).targets[user].subscriptions.iter().map(lacks));
            return Ok(());
        }
        let on = found.owner;
        let until = ports.may_wait(message.user, on).then_some(next);
        Err(Wait { on, until, subscription: Some(subscription) })
    }

    /// Delivers the first record of a message to the chosen subscriptions; continues where the journal stands.
    #[inline]
    pub(in crate::broker::router) fn commit_first(
        &mut self,
        ports: &mut Ports,
        key: u32,
        record: &Record,
        id: u32,
        message: &Message,
    ) {
        let Ports { ingresses, egresses, counters, journal, .. } = ports;
        let PubSub { topics, chosen, passed_over, overflow, .. } = self;
        let Some(ingress) = ingresses[key as usize].as_deref_mut() else { return };
        let payload = Payload::Words(record.len, ingress.bulk.payload(record));
        if journal.step == 0 && journal.before.is_none() {
            ingress.partial_targets.clear();
        }
        while let Some(chosen) = chosen.get(journal.step) {
            fault::point("router.target", journal.step as u64);
            if !chosen.gets_it && !chosen.keeps {
                chosen.pass_over(topics, egresses, counters);
            } else if !chosen.gets_it {
                let router = (&mut *topics, &mut *egresses, &mut *counters);
                chosen.queue_first(message, payload, router, (journal, overflow), &mut ingress.partial_targets);
            } else if let Some(subscription) = topics.subscriptions.get(chosen.subscription)
                && let Some(egress) = egresses.get(subscription.owner)
            {
                let (owner, dropped) = (subscription.owner, subscription.dropped);
                if journal.is_to_push(egress.position()) {
                    chosen.name(message.topic, owner, topics, egresses);
                    journal.before = egresses.get(owner).map(|egress| egress.position());
                    let deliver = message.deliver(chosen.subscription, dropped);
                    egresses.push_planned(owner, &deliver, payload);
                    fault::point("router.delivered", journal.step as u64);
                }
                chosen.charge(topics, egresses);
                counters.delivered += 1;
                if !message.flags.has(Flags::LAST) {
                    ingress.partial_targets.push(chosen.subscription);
                }
            }
            journal.stepped();
        }
        miss(topics, passed_over, message.topic);
        counters.published += 1;
        counters.unmatched += u64::from(chosen.is_empty());
        ingress.messages += 1;
        if let Some(published) = ingress.topics.get_mut(id) {
            published.sent = message.seq;
        }
        if !message.flags.has(Flags::LAST) {
            let (topic, seq, total) = (message.topic, message.seq, message.total);
            counters.fragments += 1;
            ingress.partial = Some(Partial { id, topic, seq, total, left: total - message.len });
        }
        ports.done(key, RingName::Bulk, record, Kind::Publish);
    }

    fn further(
        &mut self,
        ports: &mut Ports,
        key: u32,
        record: &Record,
        header: &Header,
    ) -> Result<LaneState, CloseReason> {
        let Some(ingress) = ports.ingress_mut(key) else { return Ok(LaneState::Dry) };
        let Some(partial) = &ingress.partial else {
            return Err(CloseReason::violation("continuation record without a started publish"));
        };
        let (len, is_last) = (record.len, header.flags.has(Flags::LAST));
        if header.id != partial.id || len == 0 || len > partial.left || is_last != (len == partial.left) {
            return Err(CloseReason::violation(format_args!(
                "publish with {} bytes left has a record of {len} bytes",
                partial.left
            )));
        }
        if let Some(on) = self.blocks_further(ports, key, len) {
            ports.egresses.wait_for_space(on);
            if let Some(on) = self.blocks_further(ports, key, len) {
                ports.park(key, Wait { on, until: None, subscription: None }, None);
                return Ok(LaneState::Parked);
            }
        }
        fault::point("router.decided", u64::from(len));
        (ports.journal.step, ports.journal.before) = (0, None);
        ports.journal.work = Work::Further(*record, *header);
        self.commit_further(ports, key, record, header);
        Ok(LaneState::More)
    }

    /// Delivers a further record of a message to the receivers of its first; continues where the journal stands.
    pub(in crate::broker::router) fn commit_further(
        &mut self,
        ports: &mut Ports,
        key: u32,
        record: &Record,
        header: &Header,
    ) {
        let Ports { ingresses, egresses, journal, counters, settings, .. } = ports;
        let PubSub { topics, overflow, .. } = self;
        let Some(ingress) = ingresses[key as usize].as_deref_mut() else { return };
        let payload = Payload::Words(record.len, ingress.bulk.payload(record));
        let Some(partial) = &mut ingress.partial else { return };
        let message = partial.message(&ingress.info, record.len, header.flags);
        while let Some(subscription) = ingress.partial_targets.get(journal.step) {
            fault::point("router.target", journal.step as u64);
            if let Some(found) = topics.subscriptions.get(*subscription)
                && let Some(egress) = egresses.get(found.owner)
                && journal.is_to_push(egress.position())
            {
                journal.before = Some(egress.position());
                let deliver = message.deliver(*subscription, found.dropped);
                if found.puts_together(message.origin) {
                    let cost = message_cost(message.total, settings.geometry.slot_size(), found.capacity);
                    egresses.queue(*subscription, cost, &deliver, payload, (topics, counters), overflow);
                    fault::point("router.queued", journal.step as u64);
                } else {
                    egresses.push_planned(found.owner, &deliver, payload);
                    fault::point("router.delivered", journal.step as u64);
                }
            }
            journal.stepped();
        }
        counters.fragments += 1;
        partial.left -= record.len;
        if partial.left == 0 {
            ingress.partial = None;
            ingress.partial_targets.clear();
        }
        ports.done(key, RingName::Bulk, record, Kind::Publish);
    }

    /// The first connection whose ring has no space for a further record of the begun message.
    fn blocks_further(&mut self, ports: &mut Ports, key: u32, len: u32) -> Option<u32> {
        let Ports { ingresses, egresses, .. } = ports;
        let PubSub { topics, .. } = self;
        egresses.start_plan();
        let ingress = ingresses[key as usize].as_deref()?;
        let found = ingress.partial_targets.iter().filter_map(|s| topics.subscriptions.get(*s));
        // A queued message needs no space in the ring.
        let mut owners = found.filter(|found| !found.puts_together(ingress.info.id)).map(|found| found.owner);
        owners.find(|owner| egresses.get(*owner).is_some() && !egresses.plan(*owner, &[len]))
    }

    /// Releases a topic. When it has no user left, subscribers that know its number are notified.
    pub(in crate::broker::router) fn release_topic(&mut self, ports: &mut Ports, topic: TopicId) {
        let Some(gone) = self.topics.release(topic) else { return };
        for key in gone.known.iter() {
            if let Some(egress) = ports.egresses.get_mut(key) {
                egress.known.remove(topic);
            }
            // A connection with a long backlog gets no notice: a new topic with that number is announced before its
            // use.
            if ports.egresses.takes_calls(key) {
                let gone = Header { id: topic, ..Header::new(Kind::TopicGone) };
                ports.egresses.send(key, &gone, Payload::EMPTY);
            }
        }
    }

    /// The connection `key` ends: its successor under this key knows no topic.
    pub(in crate::broker::router) fn forget_known(&mut self, ports: &mut Ports, key: u32) {
        let Some(egress) = ports.egresses.get_mut(key) else { return };
        for topic in std::mem::take(&mut egress.known).iter() {
            self.topics.forget_known(topic, key);
        }
    }

    /// Publishes on `$sys.connection.*`.
    pub(in crate::broker::router) fn tell_connection(
        &mut self,
        ports: &mut Ports,
        what: &str,
        info: &Info,
        reason: Option<&str>,
    ) {
        let Info { id, name, peer, .. } = info;
        let pid = (peer.pid != 0).then_some(peer.pid);
        let event = ConnectionEvent { connection: *id, name: name.as_str(), pid, uid: peer.uid, reason };
        // Serialising strings and numbers cannot fail.
        let text = serde_json::to_string(&event).unwrap_or_default();
        self.publish_system(ports, &format!("$sys.connection.{what}"), &text);
    }

    /// Publishes on a topic of the broker. It never waits: a subscription without credit or space misses the message.
    pub(in crate::broker::router) fn publish_system(&mut self, ports: &mut Ports, topic: &str, text: &str) {
        ports.events.published(topic, text);
        let Ok(topic) = Topic::parse_system(topic) else { return };
        let Ok(id) = self.topics.intern(&topic, None) else { return };
        self.system_sent += 1;
        let bytes = &text.as_bytes()[..text.len().min(ports.settings.geometry.slot_size() as usize)];
        let len = bytes.len() as u32;
        let (origin, publisher, user, seq) = (0, 0, BROKER, self.system_sent);
        let message = Message { topic: id, origin, publisher, user, seq, total: len, len, flags: Flags::WHOLE };
        if self.decide(ports, &message, true).is_ok() {
            let Ports { egresses, counters, .. } = ports;
            let PubSub { topics, chosen, passed_over, overflow, .. } = self;
            miss(topics, passed_over, id);
            for chosen in chosen.iter() {
                let Some(subscription) = topics.subscriptions.get(chosen.subscription) else { continue };
                if !chosen.gets_it && chosen.keeps {
                    chosen.queue(&message, Payload::Bytes(bytes), (topics, egresses, counters), overflow);
                    continue;
                }
                if !chosen.gets_it {
                    chosen.pass_over(topics, egresses, counters);
                    continue;
                }
                let (owner, deliver) = (subscription.owner, message.deliver(chosen.subscription, subscription.dropped));
                chosen.name(id, owner, topics, egresses);
                egresses.push_planned(owner, &deliver, Payload::Bytes(bytes));
                chosen.charge(topics, egresses);
            }
        }
        self.release_topic(ports, id);
    }

    /// Frees the connection's number of a topic, and releases the topic. An unknown number is ignored, so a router that
    /// died in the middle releases the topic once.
    fn release_number(&mut self, ports: &mut Ports, key: u32, header: &Header) -> Result<(), CloseReason> {
        let Some(ingress) = ports.ingress_mut(key) else { return Ok(()) };
        if ingress.partial.as_ref().is_some_and(|partial| partial.id == header.id) {
            return Err(CloseReason::violation("topic released before the message on it was complete"));
        }
        if let Some(published) = ingress.topics.take(header.id) {
            self.release_topic(ports, published.topic);
        }
        Ok(())
    }
}

/// The users that a message passed over have missed it.
#[inline]
pub(super) fn miss(topics: &mut Topics, passed_over: &mut Vec<usize>, topic: TopicId) {
    if !passed_over.is_empty() {
        passed_over.drain(..).for_each(|user| topics.miss(topic, user));
    }
}

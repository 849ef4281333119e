//! Runs: messages of one publisher on one topic, of one shape, that are routed with one decision.
//!
//! What is the same for all of them is looked up and decided once: the topic, its subscriptions, their credit, the
//! headers. Each message is then placed for all receivers, or for none, and its source advances; what it adds to the
//! counters and takes off the credit is settled at the end. Everything else, and the first message that does not fit
//! into the run, is left to `publish`. Subscriptions of other users than the publisher's are in the run as long as
//! these can pay for it; it passes over the others.
//!
//! A router that dies within a run leaves its positions: the source's says how many messages are done, each receiver's
//! whether it has the next one. `settle_run` settles the first, and hands the other to `publish` in mid-commit.

use super::PubSub;
use super::chosen::Chosen;
use crate::broker::router::journal::{Journal, Receiver, Run, Work};
use crate::broker::router::message::Message;
use crate::broker::router::ports::Ports;
use crate::broker::router::runs::{self, Source};
use crate::broker::supervision::fault;
use crate::logic::routing::grace::Lack;
use crate::logic::routing::topics::turns::Turn;
use crate::shm::layout::{RingName, cells_for, message_cost};
use crate::shm::ring::{Payload, Record};
use crate::wire::control::DeliveryPolicy;
use crate::wire::record::{Flags, Header, Kind};

/// After so many records in one run further ones are likely to follow soon.
const STREAM_MESSAGES: u32 = 16;
/// The most subscriptions that a run serves.
pub(super) const MAX_RECEIVERS: usize = 16;
/// The word of a header with the sequence number.
const SEQ: usize = 3;

impl PubSub {
    /// Routes `record`, the next one of the bulk lane of `key`, and those behind it that are like it: whole messages,
    /// or fragments of one message (`fragments`). At most `most`, and about so many deliveries. Returns how many, and
    /// whether none is behind them; 0: it is to be routed by itself.
    #[inline]
    pub(in crate::broker::router) fn route_run(
        &mut self,
        ports: &mut Ports,
        key: u32,
        record: &Record,
        (most, deliveries): (u32, u32),
    ) -> (u32, bool) {
        let is_within = ports.ingress(key).is_some_and(|ingress| ingress.partial.is_some());
        let begun =
            if is_within { self.begin_fragments(ports, key, record) } else { self.begin_run(ports, key, record) };
        let Some(affordable) = begun else { return (0, false) };
        let Ports { ingresses, egresses, journal, .. } = ports;
        let Some(ingress) = ingresses.get_mut(key as usize).and_then(Option::as_deref_mut) else { return (0, false) };
        let Journal { work, run: Run { shape, sent, receivers, .. }, .. } = journal;
        let most = (deliveries / runs::deliveries(receivers.len())).max(1).min(most).min(affordable);
        let source = Source::<SEQ> { lane: &mut ingress.bulk, work, kind: Kind::Publish };
        // Word by word: `Extent` says why.
        let follows = |next: &Record, seq: u64| {
            let rises = if is_within { next.header[SEQ] == seq } else { next.header[SEQ] > seq };
            rises && (0..shape.len()).all(|word| next.header[word] == shape[word])
        };
        let done = |seq| *sent = seq;
        let (routed, is_dry) = match receivers.as_mut_slice() {
            [sole] => {
                let Some(mut ring) = egresses.ring_of(sole.owner) else { return (0, false) };
                // The push itself says whether it fits.
                let deliver = |seq, payload: Payload<'_>| {
                    fault::point("router.target", 0);
                    sole.header[SEQ] = seq;
                    if !ring.push(&sole.header, payload) {
                        return false;
                    }
                    fault::point("router.delivered", 0);
                    true
                };
                source.each(record, most, follows, deliver, done)
            }
            all => {
                let deliver = |seq, payload: Payload<'_>| {
                    egresses.fit(all, payload.len())
                        && all.iter_mut().enumerate().all(|(number, receiver)| {
                            fault::point("router.target", number as u64);
                            receiver.header[SEQ] = seq;
                            let ring = egresses.ring_of(receiver.owner);
                            if !ring.is_some_and(|mut ring| ring.push(&receiver.header, payload)) {
                                return false;
                            }
                            fault::point("router.delivered", number as u64);
                            true
                        })
                };
                source.each(record, most, follows, deliver, done)
            }
        };
        let more_comes = routed == most || routed >= STREAM_MESSAGES;
        if is_within {
            self.end_fragments(ports, key, more_comes);
        } else {
            // Without credit for more, none comes.
            self.end_run(ports, key, more_comes && routed < affordable);
        }
        (routed, is_dry)
    }

    /// Decides for a run that begins with `record`. Returns for how many messages there is credit; `None`: there is no
    /// run.
    #[inline]
    fn begin_run(&mut self, ports: &mut Ports, key: u32, record: &Record) -> Option<u32> {
        let ingress = ports.ingresses.get_mut(key as usize).and_then(Option::as_deref_mut)?;
        let header = Header::from_words(&record.header).ok()?;
        let is_whole = header.kind == Kind::Publish && header.flags == Flags::WHOLE && header.total == record.len;
        let position = ingress.bulk.consumed();
        if !is_whole
            || header.total > ports.settings.max_message_size
            || ingress.waiting_on.is_some()
            || ports.journal.suspects(ingress.info.id, RingName::Bulk, position)
        {
            return None;
        }
        let published = ingress.topics.get(header.id).filter(|published| header.seq > published.sent)?;
        let (topic, sent) = (published.topic, published.sent);
        let (origin, publisher, user) = (ingress.info.id, ingress.info.publisher, ingress.info.principal);
        let sole = self.topics.find_targets(topic, user);
        ports.egresses.start_plan();
        let run = &mut ports.journal.run;
        run.begin(position, header.id, topic, *record.header.first_chunk()?);
        (run.sent, run.has_others) = (sent, sole.is_none());
        let (total, len) = (header.total, record.len);
        let message = Message { topic, origin, publisher, user, seq: 0, total, len, flags: Flags::WHOLE };
        if let Some(user) = sole {
            return self.join_run(ports, &message, user, u32::MAX);
        }
        (0..self.topics.entry(topic).targets.len()).try_fold(u32::MAX, |most, user| {
            match self.topics.turn(topic, user, message.user, ports.now) {
                Turn::Decide => self.join_run(ports, &message, user, most),
                Turn::PassOver => {
                    ports.journal.run.passed_over.push(user);
                    Some(most)
                }
                Turn::Wait(..) => None,
            }
        })
    }

    /// The subscriptions of one user join the run. Returns how many messages it may have then; `None`: there is no run,
    /// because one of them cannot get all.
    #[inline(always)]
    fn join_run(&self, ports: &mut Ports, message: &Message, user: usize, mut most: u32) -> Option<u32> {
        let Ports { egresses, journal, settings, .. } = ports;
        let entry = self.topics.entry(message.topic);
        let subscriptions = &entry.targets[user].subscriptions;
        if journal.run.receivers.len() + subscriptions.len() > MAX_RECEIVERS {
            return None;
        }
        let slot_size = settings.geometry.slot_size();
        for key in subscriptions {
            let found = self.topics.subscriptions.get(*key)?;
            let cost = message_cost(message.total, slot_size, found.capacity);
            if found.overflow.is_some() || found.credit < cost || !entry.known.contains(found.owner) {
                return None;
            }
            // The client of a `drop_oldest` subscription returns no credit, so messages cost none.
            let cost = if found.policy == DeliveryPolicy::DropOldest { 0 } else { cost };
            most = found.credit.checked_div(cost).map_or(most, |affordable| most.min(affordable));
            let begins_at = egresses.join_run(found.owner)?;
            let header = message.deliver(*key, found.dropped).to_words();
            journal.run.receivers.push(Receiver { subscription: *key, owner: found.owner, begins_at, cost, header });
        }
        (most > 0).then_some(most)
    }

    /// Counts the messages of the run that are done, and takes their cost off the credit. `more_comes`: its receivers
    /// can expect further ones soon.
    #[inline]
    fn end_run(&mut self, ports: &mut Ports, key: u32, more_comes: bool) {
        let Ports { ingresses, egresses, journal, counters, .. } = ports;
        (journal.source, journal.work) = (None, Work::Undecided);
        let Some(ingress) = ingresses.get_mut(key as usize).and_then(Option::as_deref_mut) else { return };
        let (run, len) = (&journal.run, journal.run.len());
        let count = (ingress.bulk.consumed() - run.begins_at) / u64::from(cells_for(len));
        let bytes = count * u64::from(len);
        for receiver in &run.receivers {
            if let Some(found) = self.topics.subscriptions.get_mut(receiver.subscription) {
                let cost = u64::from(receiver.cost).saturating_mul(count);
                found.credit = found.credit.saturating_sub(u32::try_from(cost).unwrap_or(u32::MAX));
                if count > 0 {
                    found.dropped_told = found.dropped;
                    found.grace.got(egresses.now, egresses.drop_grace);
                }
            }
            if count > 0 {
                egresses.received(receiver.owner, (count, bytes), more_comes);
            }
        }
        if run.has_others {
            let user = ingress.info.principal;
            self.topics.end_run(run.topic, user, (count, len), &run.passed_over);
        }
        counters.published += count;
        counters.unmatched += if run.receivers.is_empty() { count } else { 0 };
        counters.delivered += count * run.receivers.len() as u64;
        counters.records += count;
        counters.bytes += bytes;
        ingress.messages += count;
        ingress.bytes += bytes;
        if let Some(published) = ingress.topics.get_mut(run.id) {
            published.sent = published.sent.max(run.sent);
        }
    }

    /// The last router died within a run: settles the messages that are done. One that some receivers have is in
    /// mid-commit then, as if it had been routed by itself.
    pub(in crate::broker::router) fn settle_run(&mut self, ports: &mut Ports) {
        let (Some((key, RingName::Bulk)), Work::Run(extent, seq)) = (ports.journal.source, ports.journal.work) else {
            return;
        };
        let Some(ingress) = ports.ingress_mut(key) else { return };
        let (origin, publisher) = (ingress.info.id, ingress.info.publisher);
        let (user, consumed) = (ingress.info.principal, ingress.bulk.consumed());
        let (source, run) = (ports.journal.source, &ports.journal.run);
        // Where a receiver is that has all that is done.
        let done = consumed - run.begins_at;
        let egresses = &ports.egresses;
        let has_it = |receiver: &&Receiver| {
            egresses.get(receiver.owner).is_some_and(|egress| egress.position() > receiver.begins_at + done)
        };
        let have_it = run.receivers.iter().take_while(has_it).count();
        if run.is_within {
            return self.settle_fragments(ports, key, (extent, seq), have_it);
        }
        self.chosen.clear();
        self.passed_over.clear();
        let gets_it = |receiver: &Receiver| Chosen {
            subscription: receiver.subscription,
            gets_it: true,
            announce: false,
            keeps: false,
            cost: receiver.cost,
            lack: Lack::Space,
        };
        self.chosen.extend(run.receivers.iter().map(gets_it));
        self.passed_over.extend(&run.passed_over);
        let (id, topic) = (run.id, run.topic);
        self.end_run(ports, key, false);
        ports.journal.source = source;
        if have_it > 0 {
            let (len, record) = (extent.len, ports.journal.run.message(extent, seq));
            let message = Message { topic, origin, publisher, user, seq, total: len, len, flags: Flags::WHOLE };
            for (chosen, receiver) in self.chosen.iter().zip(&ports.journal.run.receivers).take(have_it) {
                chosen.charge(&mut self.topics, &mut ports.egresses);
                // Its message is counted by the line above.
                ports.egresses.received(receiver.owner, (0, u64::from(len)), false);
                ports.counters.delivered += 1;
            }
            (ports.journal.step, ports.journal.before) = (have_it, None);
            ports.journal.work = Work::First(record, id, message);
        }
    }
}

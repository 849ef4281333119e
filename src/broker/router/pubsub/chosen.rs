//! The decision for one subscription of a message, and how it is carried out.

use crate::broker::router::counters::Counters;
use crate::broker::router::egress::{Egresses, OverflowWork};
use crate::broker::router::message::Message;
use crate::logic::routing::arena::Key;
use crate::logic::routing::grace::Lack;
use crate::logic::routing::topics::{TopicId, Topics};
use crate::shm::ring::Payload;
use crate::wire::control::DeliveryPolicy;
use crate::wire::record::{Header, Kind};

/// The decision for one subscription.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen {
    pub(super) subscription: Key,
    pub(super) gets_it: bool,
    pub(super) announce: bool,
    /// A `drop_oldest` subscription: messages without space are queued.
    pub(super) keeps: bool,
    pub(super) cost: u32,
    /// The resource that it lacks.
    pub(super) lack: Lack,
}

impl Chosen {
    /// The subscription has got the message: takes its cost off the credit.
    #[inline]
    pub(super) fn charge(&self, topics: &mut Topics, egresses: &mut Egresses) {
        let Some(subscription) = topics.subscriptions.get_mut(self.subscription) else { return };
        // The client of a `drop_oldest` subscription returns no credit, so messages cost none.
        if subscription.policy != DeliveryPolicy::DropOldest {
            subscription.credit = subscription.credit.saturating_sub(self.cost);
        }
        subscription.dropped_told = subscription.dropped;
        subscription.grace.got(egresses.now, egresses.drop_grace);
        if let Some(egress) = egresses.get_mut(subscription.owner) {
            egress.messages += 1;
        }
    }

    /// Sends the name of the topic to the subscription's owner, unless it knows it.
    #[inline]
    pub(super) fn name(&self, topic: TopicId, owner: u32, topics: &mut Topics, egresses: &mut Egresses) {
        if self.announce {
            let entry = topics.entry_mut(topic);
            if entry.known.contains(owner) {
                // By another subscription of the same connection.
                return;
            }
            let announce = Header { id: topic, ..Header::new(Kind::TopicName) };
            egresses.push_planned(owner, &announce, Payload::Bytes(entry.topic.as_str().as_bytes()));
            egresses.knows(owner, topic);
            entry.known.insert(owner);
        }
    }

    /// Drops the message for this subscription.
    pub(super) fn pass_over(&self, topics: &mut Topics, egresses: &mut Egresses, counters: &mut Counters) {
        let Some(subscription) = topics.subscriptions.get_mut(self.subscription) else { return };
        subscription.dropped = subscription.dropped.saturating_add(1);
        counters.dropped[subscription.policy as usize] += 1;
        egresses.missed(subscription.owner);
    }

    /// Queues a message's first record for this subscription.
    pub(super) fn queue(
        &self,
        message: &Message,
        payload: Payload<'_>,
        router: (&mut Topics, &mut Egresses, &mut Counters),
        work: &mut OverflowWork,
    ) {
        let header = message.deliver(self.subscription, 0);
        let (topics, egresses, counters) = router;
        egresses.queue(self.subscription, self.cost, &header, payload, (topics, counters), work);
    }
}

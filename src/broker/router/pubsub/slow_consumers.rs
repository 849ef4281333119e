//! Slow consumers: a bulk lane has waited for a subscription for the slow consumer timeout.

use super::PubSub;
use crate::broker::router::ingress::{NO_CONNECTION, Parked};
use crate::broker::router::message::Wait;
use crate::broker::router::ports::Ports;
use crate::broker::telemetry::events::Event;
use crate::logic::routing::arena::Key;
use crate::logic::routing::topics::Subscription;
use crate::logic::shares::{BROKER, Principal};
use crate::shm::ring::Payload;
use crate::wire::control::DeliveryPolicy;
use crate::wire::record::{Header, Kind};
use serde::Serialize;

/// The data of the event `$sys.subscription.evicted`.
#[derive(Serialize)]
struct Eviction {
    connection: u32,
    pattern: String,
    dropped: u32,
}

impl PubSub {
    /// The timeout of the bulk lane of `key` has passed: evicts the `block` subscriptions for which it waits. `drop_*`
    /// subscriptions, which make only a begun message wait, lose the message.
    pub(in crate::broker::router) fn waited_too_long(&mut self, ports: &mut Ports, key: u32) {
        let Some(ingress) = ports.ingress(key) else { return };
        if ingress.parked.is_none_or(|parked| ports.now < parked.until) {
            // The lane goes on, or was parked anew, since this timer was due.
            return;
        }
        let Some(parked) = ports.take_parked(key) else { return };
        if parked.is_grace {
            if let Some(egress) = ports.egresses.get_mut(parked.on) {
                egress.waiters.retain(|waiter| *waiter != key);
            }
            ports.schedule.wake(key);
            return;
        }
        if let Some(ingress) = ports.ingress_mut(key) {
            ingress.waiting_on = None;
        }
        if let Some(egress) = ports.egresses.get_mut(parked.on) {
            egress.waiters.retain(|waiter| *waiter != key);
        }
        ports.schedule.wake(key);
        if parked.on == NO_CONNECTION {
            return;
        }
        for subscription in self.blocking_subscriptions(ports, key, &parked) {
            match self.topics.subscriptions.get(subscription).map(|found| found.policy) {
                Some(DeliveryPolicy::Block) => self.evict(ports, subscription),
                Some(policy) => {
                    ports.counters.dropped[policy as usize] += 1;
                    if let Some(egress) = ports.egresses.get_mut(parked.on) {
                        egress.dropped += 1;
                    }
                    self.abort_target(ports, key, subscription);
                }
                None => {}
            }
        }
    }

    /// Evicts the subscription for which a publish of `user` is to wait, if others have waited for its user or process
    /// as long as they may. Returns whether it did.
    #[cold]
    pub(super) fn evict_at_once(&mut self, ports: &mut Ports, user: Principal, wait: &Wait) -> bool {
        let Some(subscription) = wait.subscription.filter(|_| ports.is_impatient(user, wait.on)) else { return false };
        self.evict(ports, subscription);
        true
    }

    /// The `block` subscriptions of a connection that do not get the message that was decided about.
    fn blocking_chosen(&self, on: u32) -> Vec<Key> {
        let blocks = |key: &Key| {
            let found = self.topics.subscriptions.get(*key);
            found.is_some_and(|found| found.owner == on && found.policy == DeliveryPolicy::Block)
        };
        self.chosen.iter().filter(|chosen| !chosen.gets_it).map(|chosen| chosen.subscription).filter(blocks).collect()
    }

    /// The subscriptions of the connection `parked.on` for which the bulk lane of `key` waits. Subscriptions of other
    /// connections that lack credit or space get a timeout of their own.
    fn blocking_subscriptions(&mut self, ports: &mut Ports, key: u32, parked: &Parked) -> Vec<Key> {
        if let Some(message) = &parked.message {
            if self.decide(ports, message, true).is_err() {
                return Vec::new();
            }
            return self.blocking_chosen(parked.on);
        }
        let Ports { ingresses, egresses, .. } = ports;
        let PubSub { topics, .. } = self;
        let Some(ingress) = ingresses[key as usize].as_deref_mut() else { return Vec::new() };
        let Ok(Some(record)) = ingress.bulk.peek() else { return Vec::new() };
        egresses.start_plan();
        let origin = ingress.info.id;
        let blocks = |found: &Subscription| found.owner == parked.on && !found.puts_together(origin);
        let is_theirs = |s: &&Key| topics.subscriptions.get(**s).is_some_and(blocks);
        let theirs = ingress.partial_targets.iter().filter(is_theirs);
        theirs.filter(|_| !egresses.plan(parked.on, &[record.len])).copied().collect()
    }

    /// Evicts a slow consumer: ends its subscription, and notifies its owner.
    fn evict(&mut self, ports: &mut Ports, key: Key) {
        let Some(subscription) = self.topics.unsubscribe(key) else { return };
        ports.counters.evicted += 1;
        let cost = ports.process(subscription.owner).map_or(0, |process| ports.patience.evicted(process, ports.now));
        let (mut id, mut user) = (0, BROKER);
        if let Some(ingress) = ports.ingress_mut(subscription.owner) {
            (id, user) = (ingress.info.id, ingress.info.principal);
            ingress.owes = ingress.owes.saturating_add(cost);
        }
        if let Some(egress) = ports.egresses.get_mut(subscription.owner) {
            egress.subscriptions.retain(|s| *s != key);
        }
        let notice = Header { id: key.to_u32(), dropped: subscription.dropped, ..Header::new(Kind::Evicted) };
        ports.egresses.send(subscription.owner, &notice, Payload::EMPTY);
        let event =
            Eviction { connection: id, pattern: subscription.pattern.to_string(), dropped: subscription.dropped };
        // Serialising strings and numbers cannot fail.
        let text = serde_json::to_string(&event).unwrap_or_default();
        self.publish_system(ports, "$sys.subscription.evicted", &text);
        ports.events.tell(Event::Evicted {
            connection: id,
            user,
            pattern: subscription.pattern,
            dropped: subscription.dropped,
        });
        ports.retry_waiters(subscription.owner);
    }
}

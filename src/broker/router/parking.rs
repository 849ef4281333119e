//! Parked bulk lanes: a publisher waits for credit or space of one connection, or until all bulk lanes are open.
//!
//! A broker that follows another takes no publish up before the sessions of the last one are back (`broker::roster`).
//! The end of the grace opens the lanes also if no order to open them comes.

use super::ingress::{NO_CONNECTION, Parked};
use super::message::{Message, Wait};
use super::state::RouterState;
use super::timers::Timer;
use crate::broker::events::Event;
use crate::routing::arena::Key;
use crate::routing::topics::Subscription;
use crate::shm::ring::Payload;
use crate::wire::control::DeliveryPolicy;
use crate::wire::record::{Header, Kind};

impl RouterState {
    /// Closes the bulk lanes until then, or until the order to open them.
    pub(crate) fn close_lanes(&mut self, until: u64) {
        self.lanes_open_at = Some(until);
    }

    /// Opens them.
    pub(super) fn open_lanes(&mut self) {
        if self.lanes_open_at.take().is_none() {
            return;
        }
        for key in 0..self.ingresses.len() as u32 {
            let parked = self.ingress(key).and_then(|ingress| ingress.parked);
            if parked.is_some_and(|parked| parked.on == NO_CONNECTION) {
                self.unpark(key);
            }
        }
    }

    /// Parks the bulk lane of `key` if it is closed and has something. One that breaks the protocol is found out.
    #[inline]
    pub(super) fn bulk_lane_waits(&mut self, key: u32) -> bool {
        match self.lanes_open_at {
            None => false,
            Some(until) => self.park_closed(key, until),
        }
    }

    #[cold]
    fn park_closed(&mut self, key: u32, until: u64) -> bool {
        if self.now >= until {
            self.open_lanes();
            return false;
        }
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else { return false };
        if !matches!(ingress.bulk.peek(), Ok(Some(_))) {
            return false;
        }
        let timer = self.wheel.set(until, Timer::Parked(key));
        ingress.parked = Some(Parked { timer, on: NO_CONNECTION, message: None, is_grace: false });
        self.counters.parked += 1;
        true
    }

    /// Publishers that were parked on `key` try again, who has waited longest first: what there is now may be enough
    /// for one of them only.
    pub(super) fn retry_waiters(&mut self, key: u32) {
        let Some(egress) = self.egresses.get_mut(key) else { return };
        let mut waiters = std::mem::take(&mut egress.waiters);
        if waiters.len() > 1 {
            waiters
                .sort_by_key(|waiter| self.ingress(*waiter).and_then(|ingress| ingress.waits).map(|(_, since)| since));
        }
        for waiter in waiters.drain(..) {
            self.unpark(waiter);
        }
        if let Some(egress) = self.egresses.get_mut(key) {
            egress.waiters = waiters;
        }
    }

    pub(super) fn unpark(&mut self, key: u32) {
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else { return };
        if let Some(parked) = ingress.parked.take() {
            self.wheel.cancel(parked.timer);
            self.schedule.wake(key);
        }
    }

    /// The bulk lane of `key` waits for a connection, to begin `message` or to go on within one.
    pub(super) fn park(&mut self, key: u32, wait: Wait, message: Option<Message>) {
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else { return };
        let on = wait.on;
        let until = wait.until.unwrap_or_else(|| {
            let since = ingress.waits.filter(|(whom, _)| *whom == on).map_or(self.now, |(_, since)| since);
            ingress.waits = Some((on, since));
            since + self.settings.slow_consumer_timeout
        });
        let timer = self.wheel.set(until, Timer::Parked(key));
        ingress.parked = Some(Parked { timer, on, message, is_grace: wait.until.is_some() });
        self.counters.parked += 1;
        if let Some(egress) = self.egresses.get_mut(on) {
            egress.waiters.push(key);
        }
    }

    /// The bulk lane of `key` has waited as long as it may: the subscriptions for which it waits are evicted; those
    /// that drop rather than wait do without the message, which had begun when they stopped.
    pub(super) fn waited_too_long(&mut self, key: u32) {
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else { return };
        if let Some(parked) = ingress.parked.filter(|parked| parked.is_grace) {
            ingress.parked = None;
            if let Some(egress) = self.egresses.get_mut(parked.on) {
                egress.waiters.retain(|waiter| *waiter != key);
            }
            self.schedule.wake(key);
            return;
        }
        let timeout = self.settings.slow_consumer_timeout;
        if ingress.waits.is_some_and(|(_, since)| self.now < since + timeout) {
            // It was parked anew since this timer was due.
            return;
        }
        let Some(parked) = ingress.parked.take() else { return };
        ingress.waits = None;
        if let Some(egress) = self.egresses.get_mut(parked.on) {
            egress.waiters.retain(|waiter| *waiter != key);
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
                    if let Some(egress) = self.egresses.get_mut(parked.on) {
                        egress.dropped += 1;
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
        let RouterState { ingresses, egresses, topics, .. } = self;
        let Some(ingress) = ingresses[key as usize].as_deref_mut() else { return Vec::new() };
        let Ok(Some(record)) = ingress.bulk.peek() else { return Vec::new() };
        egresses.start_plan();
        let origin = ingress.info.id;
        let waits = |found: &Subscription| found.owner == parked.on && !found.puts_together(origin);
        let is_theirs = |s: &&Key| topics.subscriptions.get(**s).is_some_and(waits);
        let theirs = ingress.partial_targets.iter().filter(is_theirs);
        theirs.filter(|_| !egresses.plan(parked.on, &[record.len])).copied().collect()
    }

    /// Ends a subscription that does not take its messages, and tells its owner.
    fn evict(&mut self, key: Key) {
        let Some(subscription) = self.topics.unsubscribe(key) else { return };
        self.counters.evicted += 1;
        let id = self.ingress(subscription.owner).map_or(0, |ingress| ingress.info.id);
        if let Some(egress) = self.egresses.get_mut(subscription.owner) {
            egress.subscriptions.retain(|s| *s != key);
        }
        let notice = Header { id: key.to_u32(), dropped: subscription.dropped, ..Header::new(Kind::Evicted) };
        self.egresses.send(subscription.owner, &notice, Payload::EMPTY);
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
}

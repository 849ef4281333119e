//! Subscriptions that drop: whether a publish waits for one of them, and how its client is notified.
//!
//! The next message of a subscription carries its number of drops. If none follows, a record `Dropped` does, after
//! [`NOTICE_DELAY_NS`], for all subscriptions of the client at once. While records wait for space in its ring, no
//! notice is sent, because the records behind carry a newer count.

use super::PubSub;
use crate::broker::router::egress::{DropNotice, Egress};
use crate::broker::router::journal::Timer;
use crate::broker::router::message::Wait;
use crate::broker::router::ports::Ports;
use crate::logic::routing::grace::Lack;
use crate::logic::shares::Principal;
use crate::shm::ring::Payload;
use crate::wire::record::{Header, Kind};

/// The time from the first drop to the notice, in nanoseconds.
const NOTICE_DELAY_NS: u64 = 50_000_000;

impl PubSub {
    /// Whether a message waits for a subscription that would drop it: for the grace, if its client reads.
    #[cold]
    pub(super) fn wait_for_readers(&mut self, ports: &mut Ports, user: Principal) -> Result<(), Wait> {
        let (now, grace) = (ports.now, ports.settings.drop_grace);
        for chosen in self.chosen.iter().filter(|chosen| !chosen.gets_it) {
            let Some(subscription) = self.topics.subscriptions.get_mut(chosen.subscription) else { continue };
            let taken = match chosen.lack {
                Lack::Credit => subscription.given,
                Lack::Space => ports.egresses.consumed(subscription.owner),
            };
            if let Some(until) = subscription.grace.wait(now, chosen.lack, taken, grace)
                && ports.may_wait(user, subscription.owner)
            {
                return Err(Wait { on: subscription.owner, until: Some(until), subscription: None });
            }
        }
        Ok(())
    }

    /// The owner of a subscription grants credit; publishers that wait for it try again.
    pub(in crate::broker::router) fn credit(&mut self, ports: &mut Ports, key: u32, header: &Header) {
        let subscriptions = &mut self.topics.subscriptions;
        // The subscription may have been evicted meanwhile: that is no violation.
        let found = subscriptions.find(header.id).and_then(|subscription| subscriptions.get_mut(subscription));
        let Some(found) = found.filter(|found| found.owner == key) else { return };
        let given = header.arg.min(found.capacity - found.credit);
        found.credit += given;
        found.given += u64::from(given);
        if found.dropped != found.dropped_told {
            found.dropped_told = found.dropped;
            let notice = Header { id: header.id, dropped: found.dropped, ..Header::new(Kind::Dropped) };
            ports.egresses.send(key, &notice, Payload::EMPTY);
        }
        // Credit that is not owed makes no room.
        if given > 0 {
            ports.retry_waiters(key);
        }
    }

    /// Sets the timer of the notice for connections that have missed their first message.
    #[inline]
    pub(in crate::broker::router) fn watch_drops(&mut self, ports: &mut Ports) {
        if self.topics.has_missed() {
            self.watch_missed(ports);
        }
        while let Some(key) = ports.egresses.missed.last().copied() {
            if let Some(id) = ports.ingress(key).map(|ingress| ingress.info.id) {
                ports.wheel.set(ports.now + NOTICE_DELAY_NS, Timer::Drops(key, id));
            }
            ports.egresses.missed.pop();
        }
    }

    /// What was dropped for all subscriptions of a user is counted at each of them, now or when the user's account has
    /// time for that.
    #[cold]
    fn watch_missed(&mut self, ports: &mut Ports) {
        if !self.counts
            && let Some(next) = self.topics.next_count()
        {
            ports.wheel.set(next.max(ports.now + NOTICE_DELAY_NS), Timer::Missed);
            self.counts = true;
        }
        while let Some((key, policy, count)) = self.topics.counted.pop() {
            ports.counters.dropped[policy as usize] += u64::from(count);
            ports.egresses.missed_many(key, u64::from(count));
        }
    }

    /// There is no timer to count.
    pub(in crate::broker::router) fn forget_count(&mut self) {
        self.counts = false;
    }

    /// The time to count has come.
    pub(in crate::broker::router) fn count_missed(&mut self, ports: &mut Ports) {
        self.counts = false;
        self.topics.count_missed_of_all(ports.now);
    }

    /// The notice to the connection `key` is due, if it is still the one with this id.
    pub(in crate::broker::router) fn tell_drops(&mut self, ports: &mut Ports, key: u32, id: u32) {
        if ports.ingress_of(key, id).is_none() {
            return;
        }
        if let Some(egress) = ports.egresses.get_mut(key) {
            egress.drops = DropNotice::Due;
        }
        self.tell_late_drops(ports, key);
    }

    /// Sends a notice that is due to the connection `key`, if its ring has space now.
    #[inline]
    pub(in crate::broker::router) fn tell_late_drops(&mut self, ports: &mut Ports, key: u32) {
        let is_late = |egress: &&mut Egress| {
            egress.drops == DropNotice::Due && !egress.has_backlog() && !egress.overflow.has_messages()
        };
        let Some(egress) = ports.egresses.get_mut(key).filter(is_late) else { return };
        egress.drops = DropNotice::None;
        let mut at = 0;
        while let Some(key_of) = ports.egresses.get(key).and_then(|egress| egress.subscriptions.get(at)).copied() {
            at += 1;
            let Some(found) = self.topics.subscriptions.get_mut(key_of) else { continue };
            if found.dropped == found.dropped_told {
                continue;
            }
            found.dropped_told = found.dropped;
            let notice = Header { id: key_of.to_u32(), dropped: found.dropped, ..Header::new(Kind::Dropped) };
            ports.egresses.send(key, &notice, Payload::EMPTY);
        }
    }
}

//! Subscriptions that do without messages: whether a publish waits for one of them, and how its client is told.
//!
//! A later message tells how many are missing by then; a record of its own tells it when none follows. A client is told
//! [`SOON`] after the first of them, of all its subscriptions at once. While something waits for space in its ring,
//! nothing more is said: the count behind that is newer.

use super::egress::{DropNotice, Egress};
use super::message::Wait;
use super::state::RouterState;
use super::timers::Timer;
use crate::routing::grace::Lack;
use crate::shm::ring::Payload;
use crate::wire::record::{Header, Kind};

/// How soon, in nanoseconds.
const SOON: u64 = 50_000_000;

impl RouterState {
    /// Whether a message waits for one of those who would do without it: for a moment, if it reads.
    #[cold]
    pub(super) fn wait_for_readers(&mut self) -> Result<(), Wait> {
        let (now, grace) = (self.now, self.settings.drop_grace);
        for chosen in self.chosen.iter().filter(|chosen| !chosen.gets_it) {
            let Some(subscription) = self.topics.subscriptions.get_mut(chosen.subscription) else { continue };
            let taken = match chosen.lack {
                Lack::Credit => subscription.given,
                Lack::Space => self.egresses.consumed(subscription.owner),
            };
            if let Some(until) = subscription.grace.wait(now, chosen.lack, taken, grace) {
                return Err(Wait { on: subscription.owner, until: Some(until) });
            }
        }
        Ok(())
    }

    /// The owner of a subscription can take more; publishers that wait for it try again.
    pub(super) fn credit(&mut self, key: u32, header: &Header) {
        let subscriptions = &mut self.topics.subscriptions;
        // One that was evicted meanwhile is no fault of its owner.
        let found = subscriptions.find(header.id).and_then(|subscription| subscriptions.get_mut(subscription));
        let Some(found) = found.filter(|found| found.owner == key) else { return };
        let given = header.arg.min(found.capacity - found.credit);
        found.credit += given;
        found.given += u64::from(given);
        if found.dropped != found.dropped_told {
            found.dropped_told = found.dropped;
            let notice = Header { id: header.id, dropped: found.dropped, ..Header::new(Kind::Dropped) };
            self.egresses.send(key, &notice, Payload::EMPTY);
        }
        self.retry_waiters(key);
    }

    /// Sets the time for connections that have missed their first message.
    #[inline]
    pub(super) fn watch_drops(&mut self) {
        while let Some(key) = self.egresses.missed.last().copied() {
            if let Some(id) = self.ingress(key).map(|ingress| ingress.info.id) {
                self.wheel.set(self.now + SOON, Timer::Drops(key, id));
            }
            self.egresses.missed.pop();
        }
    }

    /// It is time to tell the connection `key`, if it is still the one with this id.
    pub(super) fn tell_drops(&mut self, key: u32, id: u32) {
        if self.ingress_of(key, id).is_none() {
            return;
        }
        if let Some(egress) = self.egresses.get_mut(key) {
            egress.drops = DropNotice::Due;
        }
        self.tell_late_drops(key);
    }

    /// There may be space to tell the connection `key`.
    #[inline]
    pub(super) fn tell_late_drops(&mut self, key: u32) {
        let is_late =
            |egress: &&mut Egress| egress.drops == DropNotice::Due && !egress.has_backlog() && !egress.keeping.waits();
        let Some(egress) = self.egresses.get_mut(key).filter(is_late) else { return };
        egress.drops = DropNotice::None;
        let mut at = 0;
        while let Some(key_of) = self.egresses.get(key).and_then(|egress| egress.subscriptions.get(at)).copied() {
            at += 1;
            let Some(found) = self.topics.subscriptions.get_mut(key_of) else { continue };
            if found.dropped == found.dropped_told {
                continue;
            }
            found.dropped_told = found.dropped;
            let notice = Header { id: key_of.to_u32(), dropped: found.dropped, ..Header::new(Kind::Dropped) };
            self.egresses.send(key, &notice, Payload::EMPTY);
        }
    }
}

//! Aborted messages: the rest of a message of several records will not come, because its publisher has gone, a receiver
//! that drops has stopped, or the message is quarantined.

use super::state::RouterState;
use crate::routing::arena::Key;
use crate::shm::layout::message_cost;
use crate::shm::ring::Payload;
use crate::wire::record::{Header, Kind};

impl RouterState {
    /// The publisher of a message under way is gone: its receivers are told that the rest will not come.
    pub(super) fn abort_partial(&mut self, key: u32) {
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else { return };
        if ingress.partial.is_none() {
            return;
        }
        self.counters.aborted += u64::from(!ingress.partial_targets.is_empty());
        self.abort_targets(key);
        if let Some(ingress) = self.ingress_mut(key) {
            ingress.partial = None;
        }
    }

    /// Tells the receivers of the message under way that the rest of it will not come.
    pub(super) fn abort_targets(&mut self, key: u32) {
        while let Some(subscription) = self.ingress(key).and_then(|ingress| ingress.partial_targets.last().copied()) {
            self.abort_target(key, subscription);
        }
    }

    /// Tells one receiver of the message under way that the rest of it will not come.
    pub(super) fn abort_target(&mut self, key: u32, subscription: Key) {
        let slot_size = self.settings.geometry.slot_size();
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else { return };
        if let Some(at) = ingress.partial_targets.iter().rposition(|target| *target == subscription) {
            ingress.partial_targets.remove(at);
        }
        let (Some(partial), origin) = (&ingress.partial, ingress.info.id) else { return };
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
        self.egresses.send(owner, &notice, Payload::EMPTY);
        self.retry_waiters(owner);
    }
}

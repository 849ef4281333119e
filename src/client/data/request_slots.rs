//! Requests without an outcome, by slot, and the cancels of those that end at this side.
//!
//! A request that ends here keeps its slot until its cancel is placed. So there are never more cancels than requests
//! may be outstanding, and none reaches a later request in the same slot.

use super::pending_call::{Failure, PendingCall};
use super::spares::Spares;
use crate::wire::record::{Header, Kind as RecordKind, Outcome};
use std::sync::Arc;

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    /// The entry of its service among the interned names.
    service: u32,
    pending: Option<Arc<PendingCall>>,
}

/// The slot of a request, and the request itself.
#[derive(Debug)]
pub(crate) struct ClaimedSlot {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) pending: Arc<PendingCall>,
}

#[derive(Debug, Default)]
pub(crate) struct RequestSlots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots of requests that have ended here, and whose cancels wait for space.
    cancels: Vec<u32>,
    spares: Spares<PendingCall>,
}

impl RequestSlots {
    /// A slot for a request to a service, whose body may begin with `credit` cells; `None`: `max` are in use.
    pub(crate) fn claim(&mut self, credit: u32, service: u32, max: u32) -> Option<ClaimedSlot> {
        let number = match self.free.pop() {
            // Slots beyond the limit of the present broker are left out by `restart`.
            Some(number) => number,
            None if self.slots.len() >= max as usize => return None,
            None => {
                self.slots.push(Slot::default());
                self.slots.len() as u32 - 1
            }
        };
        let slot = &mut self.slots[number as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.service = service;
        let pending = self.spares.share(PendingCall::new(credit));
        slot.pending = Some(pending.clone());
        Some(ClaimedSlot { slot: number, generation: slot.generation, pending })
    }

    /// The request in a slot, if it has no outcome yet.
    #[inline]
    pub(crate) fn get(&self, number: u32, generation: u32) -> Option<&Arc<PendingCall>> {
        self.slots.get(number as usize).filter(|slot| slot.generation == generation)?.pending.as_ref()
    }

    /// Whether a request may still send a part of its body to this service.
    pub(crate) fn sends_to(&self, service: u32) -> bool {
        let mut requests =
            self.slots.iter().filter(|slot| slot.service == service).filter_map(|slot| slot.pending.as_ref());
        requests.any(|pending| pending.is_sending())
    }

    fn take(&mut self, number: u32, generation: u32) -> Option<Arc<PendingCall>> {
        self.slots.get_mut(number as usize).filter(|slot| slot.generation == generation)?.pending.take()
    }

    /// Frees the slot of a request that the broker has ended, or has never received. In another session it was ended
    /// with all others.
    pub(crate) fn release(&mut self, number: u32, generation: u32) {
        if let Some(pending) = self.take(number, generation) {
            self.spares.release(pending);
            self.free.push(number);
        }
    }

    /// Ends a request here with this outcome. Returns whether there was one, whose cancel is to be placed.
    pub(crate) fn cancel(&mut self, number: u32, generation: u32, outcome: Outcome) -> bool {
        let Some(pending) = self.take(number, generation) else { return false };
        pending.end(Err(Failure::Outcome(outcome, None)));
        self.cancels.push(number);
        true
    }

    /// Ends all requests here as disconnected. Their cancels are to be placed: their broker may live all the same.
    pub(crate) fn cancel_all(&mut self) {
        for (number, slot) in self.slots.iter_mut().enumerate() {
            if let Some(pending) = slot.pending.take() {
                pending.end(Err(Failure::Outcome(Outcome::Disconnected, None)));
                self.cancels.push(number as u32);
            }
        }
    }

    /// Places cancels by `place` until it finds no space. Returns whether none is left.
    pub(crate) fn place_cancels(&mut self, mut place: impl FnMut(&Header) -> bool) -> bool {
        while let Some(number) = self.cancels.last().copied() {
            let generation = self.slots[number as usize].generation;
            if !place(&Header { id: number, id2: generation, ..Header::new(RecordKind::Cancel) }) {
                return false;
            }
            self.cancels.pop();
            self.free.push(number);
        }
        true
    }

    /// Another session begins: all requests end as disconnected, and `max` slots may be used.
    pub(crate) fn restart(&mut self, max: u32) {
        for slot in &mut self.slots {
            if let Some(pending) = slot.pending.take() {
                pending.end(Err(Failure::Outcome(Outcome::Disconnected, None)));
            }
        }
        self.cancels.clear();
        self.free = (0..self.slots.len().min(max as usize) as u32).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(slots: &mut RequestSlots, service: u32, max: u32) -> Option<(u32, u32)> {
        slots.claim(1, service, max).map(|claimed| (claimed.slot, claimed.generation))
    }

    #[test]
    fn a_slot_is_used_again_only_when_its_cancel_is_placed() {
        let mut slots = RequestSlots::default();
        assert_eq!(claim(&mut slots, 0, 1), Some((0, 1)));
        assert!(!slots.cancel(0, 2, Outcome::Cancelled) && slots.cancel(0, 1, Outcome::Cancelled));
        assert!(!slots.cancel(0, 1, Outcome::Cancelled), "it has ended");
        assert_eq!(claim(&mut slots, 0, 1), None);
        assert!(!slots.place_cancels(|_| false));
        assert_eq!(claim(&mut slots, 0, 1), None);
        assert!(slots.place_cancels(|cancel| (cancel.id, cancel.id2) == (0, 1)));
        assert_eq!(claim(&mut slots, 0, 1), Some((0, 2)));
    }

    #[test]
    fn a_service_is_in_use_until_the_body_of_the_last_request_to_it_is_placed() {
        let mut slots = RequestSlots::default();
        let ClaimedSlot { slot, generation, pending: call } = slots.claim(1, 7, 2).unwrap();
        assert!(slots.sends_to(7) && !slots.sends_to(0));
        assert!(matches!(call.send(1, false, || Ok(true)), Some(Ok(true))));
        assert!(slots.sends_to(7), "there is more of it");
        call.add_body_credit(1);
        assert!(matches!(call.send(1, true, || Ok(false)), Some(Ok(false))));
        assert!(slots.sends_to(7), "it found no space");
        assert!(matches!(call.send(1, true, || Ok(true)), Some(Ok(true))));
        assert!(!slots.sends_to(7) && slots.get(slot, generation).is_some());
        let (slot, generation) = claim(&mut slots, 7, 2).unwrap();
        slots.cancel(slot, generation, Outcome::Cancelled);
        assert!(!slots.sends_to(7), "it has ended");
    }

    #[test]
    fn another_session_ends_all_requests_and_may_allow_fewer() {
        let mut slots = RequestSlots::default();
        let calls: Vec<_> = (0..3).map(|_| slots.claim(1, 0, 3).unwrap().pending).collect();
        slots.cancel(1, 1, Outcome::Cancelled);
        slots.restart(2);
        assert!(calls.iter().all(|call| call.is_over()) && slots.get(0, 1).is_none());
        assert!(slots.place_cancels(|_| unreachable!("they have ended with their session")));
        assert_eq!((0..3).filter_map(|_| claim(&mut slots, 0, 2)).count(), 2);
    }
}

//! Requests without an outcome, by slot, and the cancels of those that end at this side.
//!
//! A request that ends here keeps its slot until its cancel is placed. So there are never more cancels than requests
//! may be outstanding, and none reaches a later request in the same slot.
//!
//! A request of a batch has no `PendingCall`: its batch takes the reply out of the ring. Where a record for it is
//! sorted all the same, or it ends here, it gets one, and the batch finds it among the *diverted* requests.

use super::pending_call::{Failure, PendingCall};
use super::spares::Spares;
use crate::wire::record::{Header, Kind as RecordKind, Outcome};
use std::sync::Arc;

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    /// The entry of its service among the interned names.
    service: u32,
    holder: Holder,
}

/// Where the reply of a slot's request goes.
#[derive(Debug, Default)]
enum Holder {
    #[default]
    Free,
    /// The batch with this number takes it out of the ring.
    Batch(u64),
    Call(Arc<PendingCall>),
}

/// A request of a batch, which has become one like others.
#[derive(Debug)]
pub(crate) struct DivertedCall {
    batch: u64,
    pub(crate) claimed: ClaimedSlot,
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
    /// The number of the last batch.
    last_batch: u64,
    diverted: Vec<DivertedCall>,
}

impl RequestSlots {
    /// A slot for a request to a service, whose body may begin with `credit` cells; `None`: `max` are in use.
    pub(crate) fn claim(&mut self, credit: u32, service: u32, max: u32) -> Option<ClaimedSlot> {
        let number = self.claim_number(max)?;
        let pending = self.spares.share(PendingCall::new(credit));
        let slot = &mut self.slots[number as usize];
        slot.service = service;
        slot.holder = Holder::Call(pending.clone());
        Some(ClaimedSlot { slot: number, generation: slot.generation, pending })
    }

    /// The same for a request of a batch, as slot and generation. Its record is placed under the same lock of the
    /// table.
    #[inline]
    pub(crate) fn claim_for_batch(&mut self, batch: u64, service: u32, max: u32) -> Option<(u32, u32)> {
        let number = self.claim_number(max)?;
        let slot = &mut self.slots[number as usize];
        slot.service = service;
        slot.holder = Holder::Batch(batch);
        Some((number, slot.generation))
    }

    #[inline]
    fn claim_number(&mut self, max: u32) -> Option<u32> {
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
        Some(number)
    }

    /// A number for a batch, never 0.
    pub(crate) fn begin_batch(&mut self) -> u64 {
        self.last_batch += 1;
        self.last_batch
    }

    /// The request in a slot, if it has no outcome yet. One of a batch is diverted.
    #[inline]
    pub(crate) fn get(&mut self, number: u32, generation: u32) -> Option<&Arc<PendingCall>> {
        let slot = self.slots.get_mut(number as usize).filter(|slot| slot.generation == generation)?;
        if let Holder::Batch(batch) = slot.holder {
            let pending = self.spares.share(PendingCall::placed());
            slot.holder = Holder::Call(pending.clone());
            self.diverted.push(DivertedCall { batch, claimed: ClaimedSlot { slot: number, generation, pending } });
        }
        match &slot.holder {
            Holder::Call(pending) => Some(pending),
            Holder::Free | Holder::Batch(_) => None,
        }
    }

    /// Passes the diverted requests of a batch to `take`.
    #[inline]
    pub(crate) fn take_diverted(&mut self, batch: u64, mut take: impl FnMut(ClaimedSlot)) {
        if !self.diverted.is_empty() {
            for diverted in self.diverted.extract_if(.., |diverted| diverted.batch == batch) {
                take(diverted.claimed);
            }
        }
    }

    /// Whether a request may still send a part of its body to this service. One of a batch is placed whole.
    pub(crate) fn sends_to(&self, service: u32) -> bool {
        self.slots.iter().any(|slot| match &slot.holder {
            Holder::Call(pending) => slot.service == service && pending.is_sending(),
            Holder::Free | Holder::Batch(_) => false,
        })
    }

    /// What held the slot of a request; `None`: the request is over.
    #[inline]
    fn take(&mut self, number: u32, generation: u32) -> Option<Holder> {
        let slot = self.slots.get_mut(number as usize).filter(|slot| slot.generation == generation)?;
        match std::mem::take(&mut slot.holder) {
            Holder::Free => None,
            holder => Some(holder),
        }
    }

    /// Frees the slot of a request that the broker has ended, or has never received. In another session it was ended
    /// with all others.
    pub(crate) fn release(&mut self, number: u32, generation: u32) {
        match self.take(number, generation) {
            Some(Holder::Call(pending)) => self.spares.release(pending),
            Some(_) => {}
            None => return,
        }
        self.free.push(number);
    }

    /// Ends a request here with this outcome. Returns whether there was one, whose cancel is to be placed.
    pub(crate) fn cancel(&mut self, number: u32, generation: u32, outcome: Outcome) -> bool {
        let Some(holder) = self.take(number, generation) else { return false };
        if let Holder::Call(pending) = holder {
            pending.end(Err(Failure::Outcome(outcome, None)));
        }
        self.cancels.push(number);
        true
    }

    /// Ends all requests here as disconnected. Their cancels are to be placed: their broker may live all the same.
    pub(crate) fn cancel_all(&mut self) {
        for number in 0..self.slots.len() as u32 {
            if self.disconnect(number) {
                self.cancels.push(number);
            }
        }
    }

    /// Ends the request in a slot as disconnected. Returns whether there was one.
    fn disconnect(&mut self, number: u32) -> bool {
        let generation = self.slots[number as usize].generation;
        // One of a batch is diverted first.
        let Some(pending) = self.get(number, generation) else { return false };
        pending.end(Err(Failure::Outcome(Outcome::Disconnected, None)));
        self.slots[number as usize].holder = Holder::Free;
        true
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
        for number in 0..self.slots.len() as u32 {
            self.disconnect(number);
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

    #[test]
    fn a_request_of_a_batch_is_diverted_when_its_reply_is_sorted_or_it_ends_here() {
        let mut slots = RequestSlots::default();
        let (one, other) = (slots.begin_batch(), slots.begin_batch());
        let claimed: Vec<_> = (0..3).map(|_| slots.claim_for_batch(one, 7, 4).unwrap()).collect();
        let (slot, generation) = slots.claim_for_batch(other, 7, 4).unwrap();
        assert!(claim(&mut slots, 7, 4).is_none() && !slots.sends_to(7));
        slots.release(claimed[0].0, claimed[0].1);
        assert!(slots.get(claimed[0].0, claimed[0].1).is_none(), "its reply was taken");
        assert!(slots.get(claimed[1].0, claimed[1].1).is_some_and(|call| !call.is_over()));
        assert!(slots.cancel(slot, generation, Outcome::DeadlineExceeded));
        slots.cancel_all();
        let mut diverted = Vec::new();
        slots.take_diverted(other, |_| unreachable!("its batch has ended it"));
        slots.take_diverted(one, |call| diverted.push((call.slot, call.generation, call.pending.is_over())));
        assert_eq!(diverted, [(claimed[1].0, claimed[1].1, true), (claimed[2].0, claimed[2].1, true)]);
        slots.take_diverted(one, |_| unreachable!("they were taken"));
    }
}

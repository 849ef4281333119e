//! Calls that this side ends by itself: their broker is told by a cancel, at once or when the lane has space.
//!
//! The place of such a call is not given to another before its cancel is placed: so there are never more to be placed
//! than requests may be under way, and none reaches a later call in the same place.

use super::inner::{Inner, Table, lock};
use super::pending::Failure;
use crate::sync::Ordering;
use crate::wire::record::{Header, Kind as RecordKind, Outcome};

impl Inner {
    /// Nobody listens at the socket, so no answer is to be expected: requests under way end as disconnected, not when
    /// some broker comes. The one that has them may live all the same.
    pub(super) fn end_requests(&self) {
        let mut table = lock(&self.table);
        let Table { requests, owed_cancels, .. } = &mut *table;
        for (number, slot) in requests.iter_mut().enumerate() {
            if let Some(pending) = slot.pending.take() {
                pending.end(Err(Failure::Outcome(Outcome::Disconnected, None)));
                owed_cancels.push(number as u32);
            }
        }
        self.place_owed(&mut table);
    }

    /// A call whose outcome its owner does not wait for any more: it has this one.
    pub(super) fn give_up(&self, slot: u32, generation: u32, outcome: Outcome) {
        let mut table = lock(&self.table);
        let place = table.requests.get_mut(slot as usize).filter(|place| place.generation == generation);
        if let Some(pending) = place.and_then(|place| place.pending.take()) {
            pending.end(Err(Failure::Outcome(outcome, None)));
            table.owed_cancels.push(slot);
            self.place_owed(&mut table);
        }
    }

    /// Places what has been waiting for space.
    #[inline]
    pub(super) fn place_cancels(&self) {
        if self.owes_cancels.load(Ordering::Relaxed) != 0 {
            self.place_owed(&mut lock(&self.table));
        }
    }

    /// Places as many as there is space for; a bell says when there is more.
    pub(super) fn place_owed(&self, table: &mut Table) {
        let Table { requests, free_requests, owed_cancels, session, .. } = table;
        while let Some(number) = owed_cancels.last().copied() {
            let generation = requests[number as usize].generation;
            let cancel = Header { id: number, id2: generation, ..Header::new(RecordKind::Cancel) };
            // An error says that its session is over, and every call with it.
            if matches!(self.try_express(*session, &cancel, &[]), Ok(false)) {
                break;
            }
            owed_cancels.pop();
            free_requests.push(number);
        }
        self.owes_cancels.store(u64::from(!owed_cancels.is_empty()), Ordering::Relaxed);
    }
}

//! Records of a call that nobody waits to place: cancels, and errors for calls that nobody answers. They end a call, so
//! there are no more of them than calls.
//!
//! What finds no space stays in the lane's list of what is to be placed before anything else. Whoever uses the lane
//! next empties it, and whoever reads, when the bell tells of space: while nobody does either, it waits.

use super::inner::{Inner, lock};
use super::unsent::Unsent;
use crate::sync::Ordering;
use crate::wire::record::Header;

impl Inner {
    /// Places a record of a call in the express lane: now, or when there is space. Never waits.
    pub(super) fn post(&self, session: u64, header: &Header, payload: &[u8]) {
        let Ok(mut lane) = self.express().claim() else { return };
        if lane.session != session {
            // Every call of that session is over.
            return;
        }
        // Noted before the lane asks to be woken: a reader whom that bell wakes looks here, and waits for the lane.
        self.has_posted.store(1, Ordering::Relaxed);
        match lane.try_push(header, payload) {
            Ok(false) => lane.unsents.push(Unsent::record(header, payload)),
            // What is wrong with a lane is told to who uses it next.
            Ok(true) | Err(_) => self.has_posted.store(0, Ordering::Relaxed),
        }
    }

    /// Places what was posted, as far as there is space.
    #[inline]
    pub(super) fn place_posted(&self) {
        if self.has_posted.load(Ordering::Relaxed) != 0 {
            self.place_posted_now();
        }
    }

    #[cold]
    fn place_posted_now(&self) {
        let Ok(mut lane) = self.express().claim() else { return };
        if !matches!(lane.send_again(), Ok(false)) {
            self.has_posted.store(0, Ordering::Relaxed);
        }
    }

    /// Ends a request that the broker has never heard of: only its place is to be given back.
    pub(super) fn forget_request(&self, slot: u32, generation: u32) {
        let mut table = lock(&self.table);
        let place = table.requests.get_mut(slot as usize).filter(|place| place.generation == generation);
        // In another session it was ended, and given back, with all others.
        if place.is_some_and(|place| place.pending.take().is_some()) {
            table.free_requests.push(slot);
        }
    }
}

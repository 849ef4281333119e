//! Whether the bulk lanes are open. A broker that follows another takes no publish up before the sessions of the last
//! one are back (`broker::roster`). The end of the grace opens the lanes also if no order to open them comes.

use super::inlet::{NO_CONNECTION, Parked};
use super::state::{RouterState, Timer};

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
        for key in 0..self.inlets.len() as u32 {
            let parked = self.inlet(key).and_then(|inlet| inlet.parked);
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
        let Some(inlet) = self.inlets[key as usize].as_deref_mut() else { return false };
        if !matches!(inlet.bulk.peek(), Ok(Some(_))) {
            return false;
        }
        let timer = self.wheel.set(until, Timer::Parked(key));
        inlet.parked = Some(Parked { timer, on: NO_CONNECTION, message: None, is_grace: false });
        self.counters.parked += 1;
        true
    }
}

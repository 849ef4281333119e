//! The timers of calls. Nearly every call ends long before its deadline, so it does not set and cancel one of its own:
//! a timer belongs to a place of the table, and stays when its call has ended.
//!
//! It is due when the call in its place is to be looked at, or before that: one that was set for an earlier call is not
//! moved, but set anew when it is due. A place has one timer at most, so there are no more of them than there ever were
//! calls at a time, and those of places without a call are gone after the longest deadline.

use super::Calls;
use crate::broker::router::journal::Timer;
use crate::broker::router::ports::Ports;
use crate::logic::routing::arena::Key;
use crate::logic::routing::wheel::TimerId;

/// The timer of a place.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlaceTimer {
    id: Option<TimerId>,
    /// When it is due; `u64::MAX` if none is set.
    at: u64,
}

const NONE: PlaceTimer = PlaceTimer { id: None, at: u64::MAX };

impl Calls {
    /// The call is to be looked at by `at`.
    #[inline]
    pub(super) fn look_by(&mut self, ports: &mut Ports, call: Key, at: u64) {
        if self.timers.get(call.index()).is_none_or(|timer| timer.at > at) {
            self.set_timer(ports, call.index(), at);
        }
    }

    fn set_timer(&mut self, ports: &mut Ports, place: usize, at: u64) {
        self.forget_timer(ports, place);
        if let Some(timer) = self.timers.get_mut(place).filter(|_| at < NONE.at) {
            *timer = PlaceTimer { id: Some(ports.wheel.set(at, Timer::Call(place as u32))), at };
        }
    }

    /// The timer of a place is due, or is to be another. It is cancelled in both cases, because the work of one that is
    /// due may begin twice, and set another meanwhile.
    fn forget_timer(&mut self, ports: &mut Ports, place: usize) {
        if self.timers.len() <= place {
            self.timers.resize(place + 1, NONE);
        }
        if let Some(id) = std::mem::replace(&mut self.timers[place], NONE).id {
            ports.wheel.cancel(id);
        }
    }

    /// The timer of a place is due. Returns the call that is in the place now.
    pub(super) fn timer_due(&mut self, ports: &mut Ports, place: u32) -> Option<Key> {
        self.forget_timer(ports, place as usize);
        self.table.key_at(place as usize)
    }
}

//! The timers of calls. Nearly every call ends long before its deadline, so it does not set and cancel one of its own:
//! a timer belongs to a place of the table, and stays when its call has ended.
//!
//! It is due when the call in its place is to be looked at, or before that: one that was set for an earlier call is not
//! moved, but set anew when it is due. A place has one timer at most, so there are no more of them than there ever were
//! calls at a time, and those of places without a call are gone after the longest deadline.

use crate::broker::router::journal::Timer;
use crate::logic::routing::arena::Key;
use crate::logic::routing::wheel::{TimerId, Wheel};

/// The timers of the calls, by the places of these.
#[derive(Debug, Default)]
pub(super) struct CallTimers(Vec<PlaceTimer>);

/// The timer of a place.
#[derive(Clone, Copy, Debug)]
struct PlaceTimer {
    id: Option<TimerId>,
    /// When it is due; `u64::MAX` if none is set.
    at: u64,
}

const NONE: PlaceTimer = PlaceTimer { id: None, at: u64::MAX };

impl CallTimers {
    /// The call is to be looked at by `at`.
    #[inline]
    pub(super) fn look_by(&mut self, wheel: &mut Wheel<Timer>, call: Key, at: u64) {
        if self.0.get(call.index()).is_none_or(|timer| timer.at > at) {
            self.set(wheel, call.index(), at);
        }
    }

    fn set(&mut self, wheel: &mut Wheel<Timer>, place: usize, at: u64) {
        if self.0.len() <= place {
            self.0.resize(place + 1, NONE);
        }
        self.forget(wheel, place);
        if at < NONE.at {
            self.0[place] = PlaceTimer { id: Some(wheel.set(at, Timer::Call(place as u32))), at };
        }
    }

    /// The timer of a place is due, or is to be another. It is cancelled in both cases, because the work of one that is
    /// due may begin twice, and set another meanwhile.
    pub(super) fn forget(&mut self, wheel: &mut Wheel<Timer>, place: usize) {
        if let Some(timer) = self.0.get_mut(place)
            && let Some(id) = std::mem::replace(timer, NONE).id
        {
            wheel.cancel(id);
        }
    }
}

//! How a waiting side asks to be woken: one shared flag per condition.
//!
//! ```text
//!  sleeper                                  waker
//!  arm:  flag := 1 (swap)                   publish (a tag, or `consumed`)
//!        fence (Site::Sleep)                fence (Site::Wake)
//!        look once more; something: disarm  take: flag = 1 ? swap to 0, ring
//!        sleep on the doorbell
//! ```
//!
//! Of the two fences one comes first in their total order, so either the sleeper's last look sees the publication or
//! the waker sees the flag (R8). The doorbell is rung at most once for each time that the flag was armed.
//!
//! An asymmetric barrier (`membarrier`) would take the fences off a publish, and cost microseconds whenever a side
//! sleeps; it was not tried.

use crate::shm::words::Words;
use crate::sync::{Ordering, Site, fence};

/// A flag in shared memory. Either side may find nonsense in it; all that can come of it is one ring too many, or none
/// for the side that wrote the nonsense.
#[derive(Clone, Debug)]
pub(crate) struct Signal {
    control: Words,
    word: usize,
}

impl Signal {
    pub(crate) fn new(control: Words, word: usize) -> Signal {
        Signal { control, word }
    }

    /// Sleeper: asks to be woken. Look once more after this, before sleeping.
    #[inline]
    pub(crate) fn arm(&self) {
        self.control.as_slice()[self.word].swap(1, Ordering::AcqRel);
        fence(Site::Sleep);
    }

    /// Sleeper: no longer asks.
    #[inline]
    pub(crate) fn disarm(&self) {
        self.control.as_slice()[self.word].swap(0, Ordering::AcqRel);
    }

    /// Whether a side asks to be woken. A hint: only `take` decides.
    #[inline]
    pub(crate) fn is_armed(&self) -> bool {
        self.control.as_slice()[self.word].load(Ordering::Relaxed) != 0
    }

    /// Waker, after [`publication_fence`]: whether to ring.
    #[inline]
    pub(crate) fn take(&self) -> bool {
        let flag = &self.control.as_slice()[self.word];
        flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::AcqRel) != 0
    }
}

/// Waker: stands between what was published and the looks at the flags. One serves any number of both.
#[inline]
pub(crate) fn publication_fence() {
    fence(Site::Wake);
}

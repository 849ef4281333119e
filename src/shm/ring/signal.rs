//! The request of a waiting side to be woken: one shared flag per condition.
//!
//! ```text
//!  sleeper                                  waker
//!  arm:  flag := 1 (swap)                   publish (a tag, or `consumed`)
//!        fence (Site::Sleep)                fence (Site::Wake)
//!        look once more; something: disarm  take: flag = 1 ? swap to 0, ring
//!        sleep on the doorbell
//! ```
//!
//! The two fences have a total order, so either the last look of the sleeper sees the publication, or the waker sees
//! the flag (R8). The doorbell rings at most once for each time that the flag was armed.
//!
//! An asymmetric barrier (`membarrier`) would remove the fence from a publish, but cost microseconds at each sleep. A
//! build without these fences was no faster (`docs/speed.md`).

use crate::shm::words::Words;
use crate::sync::{Ordering, Site, fence};

/// A flag in shared memory. A side that writes nonsense into it causes one ring too many, or misses its own wake-up;
/// nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Signal {
    control: Words,
    word: usize,
}

impl Signal {
    pub(crate) fn new(control: Words, word: usize) -> Signal {
        Signal { control, word }
    }

    /// Sleeper: requests a ring. The caller must look once more after this, before it sleeps.
    #[inline]
    pub(crate) fn arm(&self) {
        self.control.as_slice()[self.word].swap(1, Ordering::AcqRel);
        fence(Site::Sleep);
    }

    /// Sleeper: withdraws the request.
    #[inline]
    pub(crate) fn disarm(&self) {
        self.control.as_slice()[self.word].swap(0, Ordering::AcqRel);
    }

    /// Whether a ring is requested. A hint: only `take` decides.
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

/// Waker: the fence between publications and the looks at the flags. One fence serves any number of both.
#[inline]
pub(crate) fn publication_fence() {
    fence(Site::Wake);
}

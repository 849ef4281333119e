//! Pages go back to the system on threads of their own.
//!
//! Punching a hole takes the file's lock in the kernel, and a client can hold that for as long as it likes: it writes
//! to the file out of memory whose page faults it handles itself (FUSE, userfaultfd). The router must not wait for
//! that. Leasing needs no such lock (see `Segment::lease`), so only this is done elsewhere. Until it is done, the pages
//! count as leased, and the connection leases nothing.
//!
//! When [`MAX_WORKERS`] are held up, memory is not taken back until one is let go; nothing else waits for them.

use crate::shm::layout::RingName;
use crate::shm::segment::Segment;
use crate::sync::{AtomicU64, Ordering};
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;

/// Threads at a time. Each ends when there is nothing more to do.
const MAX_WORKERS: u64 = 4;
/// Reclaims that wait for a thread. Those beyond it are tried again later.
const MAX_WAITING: usize = 256;
/// They call the system and nothing else.
const STACK_BYTES: usize = 64 * 1024;

/// Extensions of one segment that are no longer used, with their cells.
#[derive(Debug)]
struct Work {
    segment: Arc<Segment>,
    rings: Vec<(RingName, u32)>,
    is_done: Arc<AtomicU64>,
}

/// A reclaim that has begun.
#[derive(Debug)]
pub(super) struct Reclaim {
    is_done: Arc<AtomicU64>,
    /// Cells whose pages are on their way back.
    cells: u64,
}

impl Reclaim {
    /// Whether the pages are gone, so that the extension may be leased again.
    pub(super) fn is_done(&self) -> bool {
        // Pairs with the Release in `Shared::work`.
        self.is_done.load(Ordering::Acquire) != 0
    }

    /// Cells whose pages the segment may still hold: read it before the segment's pages are counted.
    pub(super) fn pending(&self) -> u64 {
        if self.is_done() { 0 } else { self.cells }
    }
}

#[derive(Debug)]
struct Shared {
    waiting: ArrayQueue<Work>,
    workers: AtomicU64,
    /// Cells that were given back and are not yet known to be.
    freed: AtomicU64,
    refused: AtomicU64,
}

/// Gives pages back to the system.
#[derive(Debug)]
pub(super) struct Reclaimer(Arc<Shared>);

impl Default for Reclaimer {
    fn default() -> Reclaimer {
        let counter = || AtomicU64::new(0);
        let (workers, freed, refused) = (counter(), counter(), counter());
        Reclaimer(Arc::new(Shared { waiting: ArrayQueue::new(MAX_WAITING), workers, freed, refused }))
    }
}

impl Reclaimer {
    /// Whether another one would find a place.
    pub(super) fn has_room(&self) -> bool {
        !self.0.waiting.is_full()
    }

    /// Gives the first cells of these rings' extensions back, soon. They must not be used from now on.
    pub(super) fn start(&mut self, segment: &Arc<Segment>, rings: Vec<(RingName, u32)>) -> Reclaim {
        let is_done = Arc::new(AtomicU64::new(0));
        let cells = rings.iter().map(|(_, cells)| u64::from(*cells)).sum();
        let work = Work { segment: segment.clone(), rings, is_done: is_done.clone() };
        if self.0.waiting.push(work).is_err() {
            debug_assert!(false, "has_room was checked");
        }
        if self.0.claim() {
            let shared = self.0.clone();
            let builder = std::thread::Builder::new().name("reclaim".to_owned()).stack_size(STACK_BYTES);
            if builder.spawn(move || shared.run()).is_err() {
                // The next one that is started may find a thread, for both.
                self.0.workers.fetch_sub(1, Ordering::SeqCst);
            }
        }
        Reclaim { is_done, cells }
    }

    /// Cells given back since the last call.
    pub(super) fn take_freed(&mut self) -> u64 {
        self.0.freed.swap(0, Ordering::Relaxed)
    }

    /// The same, and they stay to be taken.
    pub(super) fn freed(&self) -> u64 {
        self.0.freed.load(Ordering::Relaxed)
    }

    /// How often the system refused.
    pub(super) fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Becomes one worker more, unless there are enough.
    fn claim(&self) -> bool {
        let more = |workers| (workers < MAX_WORKERS).then_some(workers + 1);
        self.workers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    fn run(&self) {
        loop {
            while let Some(work) = self.waiting.pop() {
                self.work(&work);
            }
            self.workers.fetch_sub(1, Ordering::SeqCst);
            // What came between the last look and this was left to us, if there were enough.
            if self.waiting.is_empty() || !self.claim() {
                return;
            }
        }
    }

    fn work(&self, work: &Work) {
        for (ring, cells) in &work.rings {
            if work.segment.give_back(*ring, *cells).is_err() {
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
            self.freed.fetch_add(u64::from(*cells), Ordering::Relaxed);
        }
        work.is_done.store(1, Ordering::Release);
    }
}

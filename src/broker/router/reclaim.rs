//! Threads that give pages back to the system.
//!
//! Punching a hole takes the file's lock in the kernel. A client can hold that lock without limit: it writes to the
//! file from memory whose page faults it handles itself (FUSE, userfaultfd). The router must not wait for the lock, so
//! other threads punch the holes. Leasing needs no lock (see `Segment::lease`). Until the hole is punched, the pages
//! count as leased, and the connection leases nothing.
//!
//! While all [`MAX_WORKERS`] threads are blocked, no memory is given back; nothing else waits for them.

use crate::shm::layout::RingName;
use crate::shm::segment::Segment;
use crate::sync::{AtomicU64, Ordering};
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;

/// The limit of threads. Each ends when the queue is empty.
const MAX_WORKERS: u64 = 4;
/// The capacity of the queue. Reclaims beyond it are tried again later.
const MAX_WAITING: usize = 256;
/// Small, because the threads only make system calls.
const STACK_BYTES: usize = 64 * 1024;

/// Unused extensions of one segment, with their cells.
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
    /// Cells whose pages are to be given back.
    cells: u64,
}

impl Reclaim {
    /// Whether the pages are given back, so that the extension may be leased again.
    pub(super) fn is_done(&self) -> bool {
        // Pairs with the Release in `Shared::work`.
        self.is_done.load(Ordering::Acquire) != 0
    }

    /// Cells whose pages may still be resident. The caller reads this before it counts the segment's pages.
    pub(super) fn pending(&self) -> u64 {
        if self.is_done() { 0 } else { self.cells }
    }
}

#[derive(Debug)]
struct Shared {
    waiting: ArrayQueue<Work>,
    workers: AtomicU64,
    /// Cells given back since the last `take_freed`.
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
    /// Whether the queue has space.
    pub(super) fn has_room(&self) -> bool {
        !self.0.waiting.is_full()
    }

    /// Queues the first cells of these rings' extensions to be given back. The caller must not use them from now on.
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
                // The next reclaim tries to start a thread again, which then serves both.
                self.0.workers.fetch_sub(1, Ordering::SeqCst);
            }
        }
        Reclaim { is_done, cells }
    }

    /// Cells given back since the last call.
    pub(super) fn take_freed(&mut self) -> u64 {
        self.0.freed.swap(0, Ordering::Relaxed)
    }

    /// The same, without a reset.
    pub(super) fn freed(&self) -> u64 {
        self.0.freed.load(Ordering::Relaxed)
    }

    /// The number of refusals of the system.
    pub(super) fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Counts one more worker, unless the limit is reached.
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
            // While the limit was reached, a reclaim that came after the last look started no thread, so look again.
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

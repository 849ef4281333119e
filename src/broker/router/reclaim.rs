//! Threads that give pages back to the system.
//!
//! Punching a hole takes the file's lock in the kernel. A client can hold that lock without limit: it writes to the
//! file from memory whose page faults it handles itself (FUSE, userfaultfd). The router must not wait for the lock, so
//! other threads punch the holes. Leasing needs no lock (see `Segment::lease`). Until the hole is punched, the pages
//! count as leased, and the connection leases nothing.
//!
//! Each user has a queue and threads of its own ([`Reclaimers`]), so a client whose locks block them makes only
//! connections of its user wait. While all [`MAX_WORKERS`] threads of a user are blocked, none of its memory is given
//! back; nothing else waits for them.

use crate::logic::shares::Principal;
use crate::shm::layout::RingName;
use crate::shm::segment::Segment;
use crate::sync::{AtomicU64, Ordering};
use crossbeam_queue::ArrayQueue;
use std::collections::HashMap;
use std::sync::Arc;

/// The limit of a user's threads. Each ends when the queue is empty.
const MAX_WORKERS: u64 = 4;
/// The capacity of a user's queue. Reclaims beyond it are tried again later.
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

/// Gives pages of one user back to the system.
#[derive(Debug)]
struct Reclaimer(Arc<Shared>);

impl Default for Reclaimer {
    fn default() -> Reclaimer {
        let counter = || AtomicU64::new(0);
        let (workers, freed, refused) = (counter(), counter(), counter());
        Reclaimer(Arc::new(Shared { waiting: ArrayQueue::new(MAX_WAITING), workers, freed, refused }))
    }
}

impl Reclaimer {
    fn start(&mut self, work: Work) {
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
    }

    /// Whether no reclaim waits, and all threads have ended: nothing changes any more.
    fn is_idle(&mut self) -> bool {
        Arc::get_mut(&mut self.0).is_some_and(|shared| shared.waiting.is_empty())
    }
}

/// Gives pages back to the system, those of each user on threads of its own.
#[derive(Debug, Default)]
pub(super) struct Reclaimers {
    /// Users with reclaims that are not accounted for yet.
    users: HashMap<Principal, Reclaimer>,
    /// The number of refusals of the system, of those that are.
    refused: u64,
}

impl Reclaimers {
    /// Whether the queue of a user has space.
    pub(super) fn has_room(&self, user: Principal) -> bool {
        self.users.get(&user).is_none_or(|reclaimer| !reclaimer.0.waiting.is_full())
    }

    /// Queues the first cells of these rings' extensions to be given back. The caller must not use them from now on.
    pub(super) fn start(&mut self, user: Principal, segment: &Arc<Segment>, rings: Vec<(RingName, u32)>) -> Reclaim {
        let is_done = Arc::new(AtomicU64::new(0));
        let cells = rings.iter().map(|(_, cells)| u64::from(*cells)).sum();
        let work = Work { segment: segment.clone(), rings, is_done: is_done.clone() };
        self.users.entry(user).or_default().start(work);
        Reclaim { is_done, cells }
    }

    /// Passes each user to `freed`, with its cells that were given back since the last call.
    pub(super) fn take_freed(&mut self, mut freed: impl FnMut(Principal, u64)) {
        if self.users.is_empty() {
            return;
        }
        self.users.retain(|user, reclaimer| {
            // Before the counts are read: they are final then.
            let is_idle = reclaimer.is_idle();
            freed(*user, reclaimer.0.freed.swap(0, Ordering::Relaxed));
            self.refused += reclaimer.0.refused.swap(0, Ordering::Relaxed);
            !is_idle
        });
    }

    /// Cells of all users that were given back since `take_freed`.
    pub(super) fn freed(&self) -> u64 {
        self.users.values().map(|reclaimer| reclaimer.0.freed.load(Ordering::Relaxed)).sum()
    }

    /// The number of refusals of the system.
    pub(super) fn refused(&self) -> u64 {
        let recent = self.users.values().map(|reclaimer| reclaimer.0.refused.load(Ordering::Relaxed));
        self.refused + recent.sum::<u64>()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::shares::uid;
    use crate::shm::layout::Geometry;
    use crate::shm::segment::Nonces;
    use std::time::{Duration, Instant};

    fn wait_until(mut is_so: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !is_so() {
            assert!(Instant::now() < until, "waited for a reclaim");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_user_whose_threads_are_blocked_makes_no_other_wait() {
        let geometry = Geometry::new(1024, 1024).unwrap();
        let segment = Arc::new(Segment::create(geometry, Nonces::random().unwrap(), 0o600).unwrap());
        let mut reclaimers = Reclaimers::default();
        let rings = || vec![(RingName::Bulk, 128), (RingName::Egress, 256)];
        // As if each of them waited for the lock of a file.
        reclaimers.users.entry(uid(1)).or_default().0.workers.store(MAX_WORKERS, Ordering::SeqCst);
        let blocked: Vec<Reclaim> = (0..MAX_WAITING).map(|_| reclaimers.start(uid(1), &segment, rings())).collect();
        assert!(!reclaimers.has_room(uid(1)) && reclaimers.has_room(uid(2)));
        let other = reclaimers.start(uid(2), &segment, rings());
        wait_until(|| other.is_done());
        assert_eq!(reclaimers.freed(), 384);
        assert!(blocked.iter().all(|reclaim| reclaim.pending() == 384));
        let mut freed = Vec::new();
        reclaimers.take_freed(|user, cells| freed.push((user, cells)));
        freed.sort_unstable();
        assert_eq!((freed, reclaimers.freed()), (vec![(uid(1), 0), (uid(2), 384)], 0));

        // The next one starts a thread as soon as one may run.
        reclaimers.users.entry(uid(1)).or_default().0.workers.store(0, Ordering::SeqCst);
        let shared = reclaimers.users[&uid(1)].0.clone();
        shared.claim();
        shared.run();
        drop(shared);
        assert!(blocked.iter().all(Reclaim::is_done));
        let mut freed = 0;
        wait_until(|| {
            reclaimers.take_freed(|_, cells| freed += cells);
            reclaimers.users.is_empty()
        });
        assert_eq!((freed, reclaimers.refused()), (MAX_WAITING as u64 * 384, 0));
    }
}

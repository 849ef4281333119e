//! Atomics, fences and mutexes that count how often a thread uses them: for the feature `count-sync`, which no shipped
//! build has. They replace the machine's own in `sync`, so what does not come from there is not counted: the counts of
//! references in an `Arc`, and what the allocator and the system do.
//!
//! Each thread has counts of its own, which no other thread changes. The figures are those of the source: two
//! operations that a compiler could merge are two here.

use std::cell::Cell;
use std::ops::{AddAssign, Sub};
use std::sync::atomic::{self, Ordering};
use std::sync::{LockResult, MutexGuard, TryLockResult};

std::thread_local!(static HERE: Cell<Counts> = const { Cell::new(Counts { updates: 0, fences: 0, locks: 0 }) });

/// How often a thread did what other CPUs must wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counts {
    /// Atomic operations that read, change and write: locked instructions on x86.
    pub updates: u64,
    /// Sequentially consistent fences and stores: full fences on x86.
    pub fences: u64,
    /// Locks of a mutex, tried or taken. Without contention each costs two locked instructions, which are not among
    /// `updates`.
    pub locks: u64,
}

impl Counts {
    /// What this thread has done so far.
    #[must_use]
    pub fn here() -> Counts {
        HERE.get()
    }

    /// What this thread does in `work`.
    pub fn of<T>(work: impl FnOnce() -> T) -> (T, Counts) {
        let before = Counts::here();
        let result = work();
        (result, Counts::here() - before)
    }
}

impl Sub for Counts {
    type Output = Counts;

    fn sub(self, other: Counts) -> Counts {
        Counts {
            updates: self.updates - other.updates,
            fences: self.fences - other.fences,
            locks: self.locks - other.locks,
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.updates += other.updates;
        self.fences += other.fences;
        self.locks += other.locks;
    }
}

#[inline]
fn note(counts: Counts) {
    let mut all = HERE.get();
    all += counts;
    HERE.set(all);
}

fn note_update() {
    note(Counts { updates: 1, ..Counts::default() });
}

fn note_lock() {
    note(Counts { locks: 1, ..Counts::default() });
}

/// A fence of `order`.
#[inline]
pub(super) fn fence(order: Ordering) {
    note_fence(order);
    atomic::fence(order);
}

fn note_fence(order: Ordering) {
    note(Counts { fences: u64::from(order == Ordering::SeqCst), ..Counts::default() });
}

/// The machine's `AtomicU64`. It may lie in shared memory, so it has the layout of that and nothing besides.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct AtomicU64(atomic::AtomicU64);

#[allow(missing_docs, clippy::missing_errors_doc, reason = "std has them under the same names")]
impl AtomicU64 {
    #[must_use]
    pub const fn new(value: u64) -> AtomicU64 {
        AtomicU64(atomic::AtomicU64::new(value))
    }

    #[inline]
    pub fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }

    #[inline]
    pub fn store(&self, value: u64, order: Ordering) {
        note_fence(order);
        self.0.store(value, order);
    }

    #[inline]
    pub fn fetch_update(
        &self,
        success: Ordering,
        failure: Ordering,
        mut next: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        self.0.fetch_update(success, failure, |now| next(now).inspect(|_| note_update()))
    }
}

/// The operations of one update each, under std's names.
macro_rules! updates {
    ($($name:ident($($argument:ident: $of:ty),*) -> $result:ty;)*) => {
        #[allow(missing_docs, clippy::missing_errors_doc, reason = "std has them under the same names")]
        impl AtomicU64 {
            $(
                #[inline]
                pub fn $name(&self, $($argument: $of),*) -> $result {
                    note_update();
                    self.0.$name($($argument),*)
                }
            )*
        }
    };
}

updates! {
    swap(value: u64, order: Ordering) -> u64;
    fetch_add(value: u64, order: Ordering) -> u64;
    fetch_sub(value: u64, order: Ordering) -> u64;
    compare_exchange(now: u64, next: u64, success: Ordering, failure: Ordering) -> Result<u64, u64>;
}

/// The system's `Mutex`.
#[derive(Debug, Default)]
pub struct Mutex<T>(std::sync::Mutex<T>);

#[allow(missing_docs, clippy::missing_errors_doc, reason = "std has them under the same names")]
impl<T> Mutex<T> {
    pub const fn new(value: T) -> Mutex<T> {
        Mutex(std::sync::Mutex::new(value))
    }

    #[inline]
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        note_lock();
        self.0.lock()
    }

    #[inline]
    pub fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        note_lock();
        self.0.try_lock()
    }
}

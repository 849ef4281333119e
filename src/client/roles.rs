//! What a waiting thread is at the moment, as guards: however it leaves, also by a panic in what the user does, the
//! others go on.

use super::inner::Inner;
use super::lane::thread;
use super::reader::Reader;
use crate::sync::{AtomicU64, Ordering};
use std::sync::MutexGuard;

/// It has the reader role. When it leaves, another one is told.
pub(super) struct Lead<'a> {
    // In this order: the role is free before anybody is told.
    pub(super) reader: MutexGuard<'a, Reader>,
    _passes_on: PassesOn<'a>,
}

impl<'a> Lead<'a> {
    pub(super) fn new(reader: MutexGuard<'a, Reader>, inner: &'a Inner) -> Lead<'a> {
        Lead { reader, _passes_on: PassesOn(inner) }
    }
}

struct PassesOn<'a>(&'a Inner);

impl Drop for PassesOn<'_> {
    fn drop(&mut self) {
        self.0.pass_on();
    }
}

/// Another one has the role, and it may sleep until it is told something.
pub(super) struct Following<'a>(&'a AtomicU64);

impl Following<'_> {
    pub(super) fn new(followers: &AtomicU64) -> Following<'_> {
        followers.fetch_add(1, Ordering::SeqCst);
        Following(followers)
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// It has the reader role, and the user looks at a record in the ring. What the user does meanwhile must not wait: it
/// would wait for itself.
pub(super) struct Viewing<'a>(&'a AtomicU64);

impl Viewing<'_> {
    pub(super) fn new(viewer: &AtomicU64) -> Viewing<'_> {
        viewer.store(thread(), Ordering::Relaxed);
        Viewing(viewer)
    }

    /// Only this thread itself can have stored its number.
    pub(super) fn is_of_this_thread(viewer: &AtomicU64) -> bool {
        viewer.load(Ordering::Relaxed) == thread()
    }
}

impl Drop for Viewing<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

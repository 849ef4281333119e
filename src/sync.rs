//! The switch between the machine's atomics, loom's model of them, and ones that count; and nothing else.
//!
//! Lock-free code takes its atomics from here, and the hot path its mutexes. Under `--cfg lapce_ipc_loom` the atomics
//! are loom's, so that the model checker runs the production code. Every fence and ordering that the protocol needs is
//! named by a [`Site`]: under loom a test can switch one off and must then see a failure, which shows that the site is
//! needed and that the test would notice. With the feature `count-sync` atomics, fences and mutexes count their uses
//! (`sync::counted`).

#[cfg(all(feature = "count-sync", not(lapce_ipc_loom)))]
pub mod counted;

#[cfg(all(feature = "count-sync", not(lapce_ipc_loom)))]
pub(crate) use counted::{AtomicU64, Mutex};
#[cfg(not(lapce_ipc_loom))]
pub(crate) use std::sync::atomic::Ordering;
#[cfg(not(any(feature = "count-sync", lapce_ipc_loom)))]
pub(crate) use std::sync::{Mutex, atomic::AtomicU64};

#[cfg(all(feature = "count-sync", not(lapce_ipc_loom)))]
use counted as machine;
#[cfg(not(any(feature = "count-sync", lapce_ipc_loom)))]
use std::sync::atomic as machine;

#[cfg(lapce_ipc_loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};

/// A place in the protocol whose ordering matters; the rules (R*n*) are in `actors.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// The store of a record's tag (R4).
    Publish,
    /// The load of a record's tag (R4).
    Take,
    /// The store of `consumed` (R5).
    Consume,
    /// The load of `consumed` (R5).
    Reclaim,
    /// Sleeper: between the flag and the last look (R8).
    Sleep,
    /// Waker: between the publication and the look at the flag (R8).
    Wake,
    /// Producer: between `busy` and the look at the window (R7).
    Enter,
    /// Owner of the budget: between the announced window and the look at `busy` (R7).
    Trim,
    /// The store that ends `busy` (R7).
    Leave,
    /// The change of a gate's turn, after the time that belongs to it (B7).
    #[cfg(any(feature = "broker", lapce_ipc_loom))]
    GateChange,
    /// The load of a gate's turn, before the time that belongs to it (B7).
    #[cfg(any(feature = "broker", lapce_ipc_loom))]
    GateLook,
    /// That a gate's turn is compared and swapped in one operation (B3).
    #[cfg(lapce_ipc_loom)]
    GateSwap,
}

/// A sequentially consistent fence.
#[inline(always)]
pub(crate) fn fence(site: Site) {
    #[cfg(not(lapce_ipc_loom))]
    {
        let _ = site;
        machine::fence(Ordering::SeqCst);
    }
    #[cfg(lapce_ipc_loom)]
    if !mutant::is(site) {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// `Release`, unless a test has switched the site off.
#[inline(always)]
pub(crate) fn release(site: Site) -> Ordering {
    weakened(site, Ordering::Release)
}

/// `Acquire`, unless a test has switched the site off.
#[inline(always)]
pub(crate) fn acquire(site: Site) -> Ordering {
    weakened(site, Ordering::Acquire)
}

#[inline(always)]
fn weakened(site: Site, order: Ordering) -> Ordering {
    #[cfg(lapce_ipc_loom)]
    if mutant::is(site) {
        return Ordering::Relaxed;
    }
    let _ = site;
    order
}

/// Which site is switched off for the model that runs on this thread (loom runs all threads of a model on one).
#[cfg(lapce_ipc_loom)]
pub(crate) mod mutant {
    use super::Site;
    use std::cell::Cell;

    std::thread_local!(static OFF: Cell<Option<Site>> = const { Cell::new(None) });

    pub(crate) fn is(site: Site) -> bool {
        OFF.get() == Some(site)
    }

    /// Runs `model` with `site` switched off.
    #[cfg(test)]
    pub(crate) fn without(site: Site, model: impl FnOnce()) {
        OFF.set(Some(site));
        model();
    }
}

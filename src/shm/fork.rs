//! Detects a child of `fork`: whether this process is the one that created a value.
//!
//! The mark is a word in a page of its own that the kernel clears in each child (`MADV_WIPEONFORK`, Linux 4.14), so a
//! check costs a load and no system call. A child inherits positions in rings, locks that other threads held, and a
//! socket, and must use none of them.

use super::words::Words;
use crate::sync::{AtomicU64, Ordering};
use memmap2::{MmapOptions, MmapRaw};
use rustix::mm::{Advice, madvise};
use std::sync::Arc;

const PAGE_BYTES: usize = 4096;

/// Distinguishes the process that created it from its children by `fork`.
#[derive(Debug)]
pub(crate) struct ForkMark {
    /// `None`: the system does not clear pages at a fork. Then every process counts as the one that made the mark.
    page: Option<Words>,
}

impl ForkMark {
    /// Marks this process.
    pub(crate) fn new() -> ForkMark {
        let wiped_at_fork = || {
            let page: MmapRaw = MmapOptions::new().len(PAGE_BYTES).map_anon().ok()?.into();
            // SAFETY: `madvise` asks for
            // - a range of whole pages that is mapped: `page` starts at a page, is mapped here for `PAGE_BYTES`, and is
            //   still owned;
            // - advice that does not break what others rely on: this one changes nothing in this process. In a child,
            //   the page reads as zero, and every bit pattern is a valid `u64` (see `words`).
            unsafe { madvise(page.as_mut_ptr().cast(), page.len(), Advice::LinuxWipeOnFork) }.ok()?;
            Some(Words::of_mapping(Arc::new(page)))
        };
        let mark = ForkMark { page: wiped_at_fork() };
        if let Some(word) = mark.word() {
            word.store(1, Ordering::Relaxed);
        }
        mark
    }

    /// Whether this process made the mark.
    #[inline]
    pub(crate) fn is_ours(&self) -> bool {
        self.word().is_none_or(|word| word.load(Ordering::Relaxed) != 0)
    }

    fn word(&self) -> Option<&AtomicU64> {
        self.page.as_ref()?.as_slice().first()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_made_a_mark_keeps_it() {
        let mark = ForkMark::new();
        assert!(mark.page.is_some(), "MADV_WIPEONFORK");
        assert!(mark.is_ours());
    }
}

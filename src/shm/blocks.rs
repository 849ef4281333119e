//! Copies of whole blocks between shared words and private bytes, or other shared words.
//!
//! On x86-64 sixteen bytes at a time, by instructions that the compiler does not make from atomic accesses: a message
//! of 1 KiB is copied three times on its way. Elsewhere, and under loom, word by word. The peer may write meanwhile; as
//! with relaxed loads and stores of words, that changes bytes of the payload and nothing else.

use crate::sync::AtomicU64;
#[cfg(any(lapce_ipc_loom, not(target_arch = "x86_64")))]
use crate::sync::Ordering;
use std::mem::MaybeUninit;

/// Bytes in a word.
const WORD: usize = size_of::<u64>();
/// Words in a block.
pub(super) const BLOCK: usize = 8;
/// Bytes in a block.
pub(super) const BLOCK_BYTES: usize = BLOCK * WORD;

/// Copies private bytes, as many blocks as both sides have.
#[inline(always)]
pub(super) fn write(to: &[[AtomicU64; BLOCK]], from: &[[u8; BLOCK_BYTES]]) {
    #[cfg(all(target_arch = "x86_64", not(lapce_ipc_loom)))]
    // SAFETY: neither slice is shorter than the number of blocks, and they do not overlap: `from` is private. Atomics
    // may be written through a shared reference.
    unsafe {
        wide::copy(to.as_ptr().cast_mut().cast(), from.as_ptr().cast(), to.len().min(from.len()));
    }
    #[cfg(any(lapce_ipc_loom, not(target_arch = "x86_64")))]
    for (to, from) in to.iter().zip(from) {
        for (to, from) in to.iter().zip(from.as_chunks::<WORD>().0) {
            to.store(u64::from_le_bytes(*from).to_le(), Ordering::Relaxed);
        }
    }
}

/// Copies to private bytes, as many blocks as both sides have. These bytes are initialised then.
#[inline(always)]
pub(super) fn read(to: &mut [[MaybeUninit<u8>; BLOCK_BYTES]], from: &[[AtomicU64; BLOCK]]) {
    #[cfg(all(target_arch = "x86_64", not(lapce_ipc_loom)))]
    // SAFETY: neither slice is shorter than the number of blocks, and they do not overlap: `to` is borrowed mutably.
    unsafe {
        wide::copy(to.as_mut_ptr().cast(), from.as_ptr().cast(), to.len().min(from.len()));
    }
    #[cfg(any(lapce_ipc_loom, not(target_arch = "x86_64")))]
    for (to, from) in to.iter_mut().zip(from) {
        for (to, from) in to.as_chunks_mut::<WORD>().0.iter_mut().zip(from) {
            *to = u64::from_le(from.load(Ordering::Relaxed)).to_le_bytes().map(MaybeUninit::new);
        }
    }
}

/// Copies shared words, as many blocks as both sides have.
#[inline(always)]
pub(super) fn copy(to: &[[AtomicU64; BLOCK]], from: &[[AtomicU64; BLOCK]]) {
    #[cfg(all(target_arch = "x86_64", not(lapce_ipc_loom)))]
    // SAFETY: neither slice is shorter than the number of blocks. Slices that overlap would only mix bytes of payloads,
    // as another writer can. Atomics may be written through a shared reference.
    unsafe {
        wide::copy(to.as_ptr().cast_mut().cast(), from.as_ptr().cast(), to.len().min(from.len()));
    }
    #[cfg(any(lapce_ipc_loom, not(target_arch = "x86_64")))]
    for (to, from) in to.iter().zip(from) {
        for (to, from) in to.iter().zip(from) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(lapce_ipc_loom)))]
mod wide {
    use super::BLOCK_BYTES;

    /// Copies `blocks` blocks.
    ///
    /// A process that shares the memory may access it meanwhile. That is no data race: to Rust's memory model this is
    /// opaque code, which does what relaxed loads and stores could do as well.
    ///
    /// # Safety
    ///
    /// `from` must be readable and `to` writable for `blocks` blocks. Every register that it changes is declared, and
    /// it uses no stack.
    #[inline(always)]
    pub(super) unsafe fn copy(to: *mut u8, from: *const u8, blocks: usize) {
        if blocks == 0 {
            return;
        }
        // SAFETY: as above. Every x86-64 has SSE2, and `movups` needs no alignment.
        unsafe {
            std::arch::asm!(
                "2:",
                "movups {a}, [{from}]",
                "movups {b}, [{from} + 16]",
                "movups {c}, [{from} + 32]",
                "movups {d}, [{from} + 48]",
                "movups [{to}], {a}",
                "movups [{to} + 16], {b}",
                "movups [{to} + 32], {c}",
                "movups [{to} + 48], {d}",
                "add {from}, {bytes}",
                "add {to}, {bytes}",
                "dec {left}",
                "jnz 2b",
                from = inout(reg) from => _,
                to = inout(reg) to => _,
                left = inout(reg) blocks => _,
                a = out(xmm_reg) _,
                b = out(xmm_reg) _,
                c = out(xmm_reg) _,
                d = out(xmm_reg) _,
                bytes = const BLOCK_BYTES,
                options(nostack),
            );
        }
    }
}

#[cfg(all(test, not(lapce_ipc_loom)))]
mod tests {
    use super::*;
    use crate::sync::Ordering;

    #[test]
    fn as_many_blocks_are_copied_as_both_sides_have() {
        let words = |blocks: usize, word: u64| -> Vec<[AtomicU64; BLOCK]> {
            (0..blocks).map(|_| std::array::from_fn(|_| AtomicU64::new(word))).collect()
        };
        let values = |blocks: &[[AtomicU64; BLOCK]]| -> Vec<u64> {
            blocks.iter().flatten().map(|word| word.load(Ordering::Relaxed)).collect()
        };
        for (to_blocks, from_blocks) in [(0, 3), (3, 0), (1, 1), (2, 5), (5, 2), (16, 16)] {
            let both = to_blocks.min(from_blocks);
            let bytes: Vec<[u8; BLOCK_BYTES]> =
                (0..from_blocks).map(|block| std::array::from_fn(|at| (block * BLOCK_BYTES + at) as u8)).collect();
            let expected: Vec<u64> = bytes[..both]
                .as_flattened()
                .as_chunks::<WORD>()
                .0
                .iter()
                .map(|word| u64::from_le_bytes(*word))
                .collect();
            let expected = [expected, vec![7; (to_blocks - both) * BLOCK]].concat();
            let to = words(to_blocks, 7);
            write(&to, &bytes);
            assert_eq!(values(&to).iter().map(|word| u64::from_le(*word)).collect::<Vec<_>>(), expected);
            let again = words(to_blocks, 7);
            copy(&again, &to[..both]);
            assert_eq!(values(&again), values(&to));
            let mut back = vec![[MaybeUninit::new(7); BLOCK_BYTES]; from_blocks];
            read(&mut back, &to[..both]);
            // SAFETY: all of it was initialised above.
            let back: Vec<u8> = back.iter().flatten().map(|byte| unsafe { byte.assume_init() }).collect();
            assert_eq!(back[..both * BLOCK_BYTES], *bytes[..both].as_flattened());
            assert!(back[both * BLOCK_BYTES..].iter().all(|byte| *byte == 7));
        }
    }
}

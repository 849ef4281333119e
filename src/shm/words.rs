//! Shared memory as a run of 64-bit atomic words.
//!
//! A mapping becomes a Rust reference in this file only. A peer may write any word at any time, so the words are never
//! seen as bytes or as a struct, but as `AtomicU64`, whose interior may change under a shared reference. Payloads are
//! copied with relaxed loads and stores of whole words, and blocks of words with wider moves (`blocks`): that is no
//! data race, neither for the compiler nor for loom. A peer that writes during a copy changes *bytes*, never a length
//! or a position: those come from private copies.
//!
//! Words are little endian in memory on every machine, so the bytes of a payload keep their order.

use super::blocks::{self, BLOCK, BLOCK_BYTES};
use crate::sync::{AtomicU64, Ordering};
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Bytes in a word.
pub(crate) const WORD: usize = 8;

/// A run of shared words: a part of a mapped segment (or, under loom, of a heap allocation).
#[derive(Clone)]
pub(crate) struct Words {
    #[cfg(not(lapce_ipc_loom))]
    words: &'static [AtomicU64],
    #[cfg(not(lapce_ipc_loom))]
    _map: Arc<memmap2::MmapRaw>,
    #[cfg(lapce_ipc_loom)]
    words: (Arc<Vec<AtomicU64>>, usize, usize),
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Words({})", self.as_slice().len())
    }
}

impl Words {
    /// The whole of a mapping, which stays mapped for as long as any part of it is in use.
    #[cfg(not(lapce_ipc_loom))]
    pub(crate) fn of_mapping(map: Arc<memmap2::MmapRaw>) -> Words {
        let start = map.as_mut_ptr();
        assert_eq!(start as usize % WORD, 0, "a mapping starts at a page");
        let len = map.len() / WORD;
        // SAFETY: `from_raw_parts` asks for
        // - a non-null, aligned pointer: asserted above, and a mapping is never at null;
        // - `len` words inside one allocation, readable and writable: `len * 8 <= map.len()`, and `MmapRaw` maps a file
        //   or anonymous memory for reading and writing;
        // - initialised memory: pages read as zero or as what was written, and every bit pattern is a `u64`;
        // - no mutation except through interior mutability: nothing in this process makes another reference to the
        //   mapping, and other processes' writes are what `AtomicU64` allows for;
        // - memory that outlives the reference: `_map` is kept beside it, private, and `all` hands it out for the
        //   lifetime of `self` only. A file cannot shrink under the mapping (`F_SEAL_SHRINK`, see `segment`), and
        //   anonymous memory has no file (`fork`).
        let words = unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), len) };
        Words { words, _map: map }
    }

    /// Zeroed words on the heap, for the model checker.
    #[cfg(lapce_ipc_loom)]
    #[cfg_attr(not(test), allow(dead_code, reason = "only models call it"))]
    pub(crate) fn on_heap(len: usize) -> Words {
        Words { words: (Arc::new((0..len).map(|_| AtomicU64::new(0)).collect()), 0, len) }
    }

    /// The part of `len` words that starts at word `start`.
    ///
    /// # Panics
    ///
    /// If the part does not lie within these words.
    pub(crate) fn part(&self, start: usize, len: usize) -> Words {
        #[cfg(not(lapce_ipc_loom))]
        return Words { words: &self.words[start..start + len], _map: self._map.clone() };
        #[cfg(lapce_ipc_loom)]
        {
            assert!(start + len <= self.words.2, "{start}+{len} of {}", self.words.2);
            Words { words: (self.words.0.clone(), self.words.1 + start, len) }
        }
    }

    /// Allocates memory for `len` bytes of the mapping from byte `start` on; new memory reads as zero.
    ///
    /// # Errors
    ///
    /// If the system has no memory.
    #[cfg(not(lapce_ipc_loom))]
    pub(crate) fn populate(&self, start: usize, len: usize) -> std::io::Result<()> {
        self._map.advise_range(memmap2::Advice::PopulateWrite, start, len)
    }

    /// All of these words.
    #[inline(always)]
    pub(crate) fn as_slice(&self) -> &[AtomicU64] {
        #[cfg(not(lapce_ipc_loom))]
        return self.words;
        #[cfg(lapce_ipc_loom)]
        &self.words.0[self.words.1..self.words.1 + self.words.2]
    }
}

/// Copies `bytes` into `to`, whose last word is filled up with zeros.
#[inline(always)]
pub(crate) fn write_bytes(to: &[AtomicU64], bytes: &[u8]) {
    let (whole, rest) = bytes.as_chunks::<BLOCK_BYTES>();
    let (to_whole, to_rest) = to.split_at(whole.len() * BLOCK);
    blocks::write(to_whole.as_chunks().0, whole);
    if !rest.is_empty() {
        write_rest(to_rest, rest);
    }
}

/// Writes less than a block.
fn write_rest(to: &[AtomicU64], bytes: &[u8]) {
    let (whole, rest) = bytes.as_chunks::<WORD>();
    for (word, chunk) in to.iter().zip(whole) {
        word.store(u64::from_le_bytes(*chunk).to_le(), Ordering::Relaxed);
    }
    if !rest.is_empty() {
        let mut last = [0; WORD];
        last[..rest.len()].copy_from_slice(rest);
        to[whole.len()].store(u64::from_le_bytes(last).to_le(), Ordering::Relaxed);
    }
}

/// Writes `bytes` at byte `offset`; the other bytes of the first and last word stay. For memory without another writer.
pub(crate) fn write_bytes_at(to: &[AtomicU64], mut offset: usize, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (at, within) = (offset / WORD, offset % WORD);
        if within == 0 && bytes.len() >= WORD {
            let whole = bytes.len() / WORD * WORD;
            write_bytes(&to[at..], &bytes[..whole]);
            (offset, bytes) = (offset + whole, &bytes[whole..]);
            continue;
        }
        let some = bytes.len().min(WORD - within);
        let mut word = u64::from_le(to[at].load(Ordering::Relaxed)).to_le_bytes();
        word[within..within + some].copy_from_slice(&bytes[..some]);
        to[at].store(u64::from_le_bytes(word).to_le(), Ordering::Relaxed);
        (offset, bytes) = (offset + some, &bytes[some..]);
    }
}

/// Reads bytes from byte `offset` on until `bytes` is full.
#[inline]
pub(crate) fn read_bytes_at(from: &[AtomicU64], mut offset: usize, mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        let (at, within) = (offset / WORD, offset % WORD);
        if within == 0 {
            return read_bytes(&from[at..], bytes);
        }
        let word = u64::from_le(from[at].load(Ordering::Relaxed)).to_le_bytes();
        let some = bytes.len().min(WORD - within);
        let (now, rest) = bytes.split_at_mut(some);
        now.copy_from_slice(&word[within..within + some]);
        (offset, bytes) = (offset + some, rest);
    }
}

/// Copies bytes out of `from` until `bytes` is full.
#[inline(always)]
pub(crate) fn read_bytes(from: &[AtomicU64], bytes: &mut [u8]) {
    // SAFETY: the two have the same layout, and `read_uninit` writes nothing that is not initialised.
    read_uninit(from, unsafe { &mut *(std::ptr::from_mut(bytes) as *mut [MaybeUninit<u8>]) });
}

/// Appends `len` bytes out of `from`.
#[inline]
pub(crate) fn append_bytes(from: &[AtomicU64], len: usize, to: &mut Vec<u8>) {
    to.reserve(len);
    read_uninit(from, &mut to.spare_capacity_mut()[..len]);
    // SAFETY: the vector has so much capacity, for it was sliced above, and `read_uninit` has initialised all of that.
    unsafe { to.set_len(to.len() + len) };
}

/// Copies bytes out of `from` until all of `bytes` is initialised.
#[inline(always)]
fn read_uninit(from: &[AtomicU64], bytes: &mut [MaybeUninit<u8>]) {
    let (whole, rest) = bytes.as_chunks_mut::<BLOCK_BYTES>();
    let (from_whole, from_rest) = from.split_at(whole.len() * BLOCK);
    blocks::read(whole, from_whole.as_chunks().0);
    if !rest.is_empty() {
        read_rest(from_rest, rest);
    }
}

/// Reads less than a block.
///
/// # Panics
///
/// If `from` has fewer bytes.
fn read_rest(from: &[AtomicU64], bytes: &mut [MaybeUninit<u8>]) {
    let (whole, rest) = bytes.as_chunks_mut::<WORD>();
    let bytes_of = |word: &AtomicU64| u64::from_le(word.load(Ordering::Relaxed)).to_le_bytes().map(MaybeUninit::new);
    let (from_whole, from_rest) = from.split_at(whole.len());
    for (word, chunk) in from_whole.iter().zip(whole) {
        *chunk = bytes_of(word);
    }
    if !rest.is_empty() {
        rest.copy_from_slice(&bytes_of(&from_rest[0])[..rest.len()]);
    }
}

/// Copies words within shared memory, all of `from`.
#[inline(always)]
pub(crate) fn copy_words(to: &[AtomicU64], from: &[AtomicU64]) {
    let (whole, rest) = from.as_chunks();
    let (to_whole, to_rest) = to.split_at(whole.len() * BLOCK);
    blocks::copy(to_whole.as_chunks().0, whole);
    for (to, from) in to_rest.iter().zip(rest) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[cfg(all(test, not(lapce_ipc_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_at_any_offset_are_those_of_a_slice(
            start in prop::collection::vec(any::<u8>(), 64),
            writes in prop::collection::vec((0usize..40, prop::collection::vec(any::<u8>(), 0..24)), 0..10),
            read in (0usize..40, 0usize..24), long in prop::collection::vec(any::<u8>(), 0..600)
        ) {
            let words: Vec<AtomicU64> = (0..8).map(|_| AtomicU64::new(0)).collect();
            let mut model = start;
            write_bytes(&words, &model);
            for (offset, bytes) in writes {
                write_bytes_at(&words, offset, &bytes);
                model[offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
            let mut out = vec![0; read.1];
            read_bytes_at(&words, read.0, &mut out);
            prop_assert_eq!(&out[..], &model[read.0..read.0 + read.1]);
            let mut all = [0; 61];
            read_bytes(&words, &mut all);
            prop_assert_eq!(&all[..], &model[..61]);
            let mut appended = vec![9];
            append_bytes(&words, 13, &mut appended);
            prop_assert_eq!(&appended[1..], &model[..13]);
            let ring = |word| -> Vec<AtomicU64> { (0..80).map(|_| AtomicU64::new(word)).collect() };
            let (from, to, words) = (ring(0), ring(u64::MAX), long.len().div_ceil(WORD));
            write_bytes(&from, &long);
            copy_words(&to, &from[..words]);
            let mut copied = vec![0; long.len()];
            read_bytes(&to, &mut copied);
            prop_assert_eq!(&copied, &long);
            let mut appended = vec![9];
            append_bytes(&to, long.len(), &mut appended);
            prop_assert_eq!((appended[0], &appended[1..]), (9, &long[..]));
            prop_assert!(to[words..].iter().all(|word| word.load(Ordering::Relaxed) == u64::MAX));
        }
    }
}

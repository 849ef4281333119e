//! Memory of this process alone. Large buffers are mappings of their own, so their pages are with the system again as
//! soon as a buffer is dropped, whatever else is allocated.

#![allow(clippy::disallowed_types, reason = "an anonymous mapping, which no peer can write")]

use memmap2::MmapMut;
use std::ops::{Deref, DerefMut};

/// From this size on, a buffer is a mapping.
const MAPPED: usize = 32 * 1024;

/// A buffer.
#[derive(Debug)]
pub(crate) enum PrivateBuffer {
    Heap(Box<[u8]>),
    Mapped(MmapMut),
}

impl PrivateBuffer {
    /// So many bytes, all 0.
    pub(crate) fn zeroed(bytes: usize) -> PrivateBuffer {
        let mapped = if bytes >= MAPPED { MmapMut::map_anon(bytes).ok() } else { None };
        match mapped {
            Some(mapped) => PrivateBuffer::Mapped(mapped),
            // A small one, or the system refuses one more mapping.
            None => PrivateBuffer::Heap(vec![0; bytes].into()),
        }
    }
}

impl Deref for PrivateBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            PrivateBuffer::Heap(bytes) => bytes,
            PrivateBuffer::Mapped(bytes) => bytes,
        }
    }
}

impl DerefMut for PrivateBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            PrivateBuffer::Heap(bytes) => bytes,
            PrivateBuffer::Mapped(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_buffers_are_on_the_heap_and_large_ones_are_mapped() {
        for bytes in [0, 1, MAPPED - 1, MAPPED, 1 << 20] {
            let mut buffer = PrivateBuffer::zeroed(bytes);
            assert_eq!(matches!(buffer, PrivateBuffer::Mapped(_)), bytes >= MAPPED);
            assert!(buffer.len() == bytes && buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
            assert!(buffer.iter().all(|byte| *byte == 7));
        }
    }
}

//! A queue of records in few large buffers.
//!
//! Thousands of small allocations among others leave an allocator with pages that are mostly free, and that it cannot
//! return to the system. So records lie one behind the other in buffers, the first of which is small, and a buffer goes
//! when its last record has gone. An empty queue has none.

use crate::wire::record::HEADER_WORDS;
use std::collections::VecDeque;
use std::ops::DerefMut;

/// Bytes in front of a record's payload: its length, then its header.
const HEADER: usize = 8 * (1 + HEADER_WORDS);
/// The size of the first buffer of a queue, and of the further ones, unless a record is larger.
const FIRST: usize = 4096;
const FURTHER: usize = 65_536;

/// Where records lie.
pub(crate) trait Buffer: DerefMut<Target = [u8]> {
    /// So many bytes, all 0.
    fn zeroed(bytes: usize) -> Self;
}

/// A queue of records.
#[derive(Debug)]
pub(crate) struct PackedQueue<B> {
    buffers: VecDeque<Filled<B>>,
    /// Where the first record begins in the first buffer.
    front: usize,
    len: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Filled<B> {
    buffer: B,
    /// Bytes in use, from the start.
    used: usize,
}

impl<B> Default for PackedQueue<B> {
    fn default() -> PackedQueue<B> {
        PackedQueue { buffers: VecDeque::new(), front: 0, len: 0, bytes: 0 }
    }
}

impl<B> PackedQueue<B> {
    /// Whether it has no record.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of records.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of all records, with their headers.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<B: Buffer> PackedQueue<B> {
    /// Adds a record with a payload of `len` bytes, which `fill` writes.
    pub(crate) fn push(&mut self, header: &[u64; HEADER_WORDS], len: u32, fill: impl FnOnce(&mut [u8])) {
        let size = HEADER + len as usize;
        let has_space = self.buffers.back().is_some_and(|last| last.buffer.len() - last.used >= size);
        if !has_space {
            let capacity = if self.buffers.is_empty() { FIRST } else { FURTHER };
            self.buffers.push_back(Filled { buffer: B::zeroed(capacity.max(size)), used: 0 });
        }
        let Some(last) = self.buffers.back_mut() else { return };
        let (record, payload) = last.buffer[last.used..last.used + size].split_at_mut(HEADER);
        let words = std::iter::once(u64::from(len)).chain(header.iter().copied());
        for (to, word) in record.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        fill(payload);
        last.used += size;
        (self.len, self.bytes) = (self.len + 1, self.bytes + size);
    }

    /// The first record: its header and its payload.
    pub(crate) fn front(&self) -> Option<([u64; HEADER_WORDS], &[u8])> {
        let first = self.buffers.front()?;
        let record = &first.buffer[self.front..first.used];
        let word = |at: usize| u64::from_ne_bytes(record[8 * at..8 * at + 8].try_into().expect("eight bytes"));
        Some((std::array::from_fn(|at| word(at + 1)), &record[HEADER..HEADER + word(0) as usize]))
    }

    /// Removes the first record.
    pub(crate) fn pop_front(&mut self) {
        let Some((_, payload)) = self.front() else { return };
        let size = HEADER + payload.len();
        self.front += size;
        (self.len, self.bytes) = (self.len - 1, self.bytes - size);
        if self.buffers.front().is_some_and(|first| first.used == self.front) {
            self.buffers.pop_front();
            self.front = 0;
        }
        if self.is_empty() {
            self.buffers = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Buffer for Box<[u8]> {
        fn zeroed(bytes: usize) -> Box<[u8]> {
            vec![0; bytes].into()
        }
    }

    type Queue = PackedQueue<Box<[u8]>>;

    fn push(queue: &mut Queue, number: u64, len: u32) {
        queue.push(&[number; HEADER_WORDS], len, |payload| payload.fill(number as u8));
    }

    #[test]
    fn few_buffers_hold_many_records() {
        let mut queue = Queue::default();
        for number in 0..10_000 {
            push(&mut queue, number, 36);
        }
        assert_eq!((queue.len(), queue.bytes()), (10_000, 1_000_000));
        assert_eq!(queue.buffers.len(), 1 + 1_000_000_usize.div_ceil(FURTHER));
        push(&mut queue, 0, 100_000);
        assert_eq!(queue.buffers.back().map(|last| last.buffer.len()), Some(100_000 + HEADER));
    }

    proptest! {
        #[test]
        fn records_come_out_as_they_went_in(steps in prop::collection::vec((any::<bool>(), 0u32..30_000), 0..300)) {
            let (mut queue, mut oracle, mut number) = (Queue::default(), VecDeque::new(), 0);
            for (pushes, len) in steps {
                if pushes {
                    number += 1;
                    push(&mut queue, number, len);
                    oracle.push_back((number, len));
                } else {
                    queue.pop_front();
                    oracle.pop_front();
                }
                let front = queue.front().map(|(header, payload)| {
                    assert!(header == [header[0]; HEADER_WORDS] && payload.iter().all(|byte| *byte == header[0] as u8));
                    (header[0], payload.len() as u32)
                });
                prop_assert_eq!(front, oracle.front().copied());
                prop_assert_eq!((queue.len(), queue.is_empty()), (oracle.len(), oracle.is_empty()));
                let bytes: usize = oracle.iter().map(|(_, len)| HEADER + *len as usize).sum();
                prop_assert_eq!(queue.bytes(), bytes);
                // A buffer is new because the record did not fit into the one before.
                let capacity: usize = queue.buffers.iter().map(|filled| filled.buffer.len()).sum();
                prop_assert!(capacity <= 2 * (bytes + FURTHER), "{} for {}", capacity, bytes);
                prop_assert!(bytes > 0 || capacity == 0);
            }
        }
    }
}

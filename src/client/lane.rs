//! Placing records in a lane towards the broker.
//!
//! Many threads of a client produce into one lane. The producer role is guarded by a mutex that lives in this process,
//! not in shared memory, and that is held for the length of one record (of one message, in the bulk lane); what a peer
//! does cannot make anybody wait for it. Uncontended it is one compare-and-swap, as a role claimed by hand would be,
//! and it needs no second path for those who find it taken.

use super::error::{Kind, Result};
use super::inner::{Inner, lock};
use crate::shm::layout::HEADER_WORDS;
use crate::shm::ring::{Payload, Producer, Signal, Violation, publication_fence};
use crate::shm::words::write_bytes_at;
use crate::sync::{AtomicU64, Ordering};
use crate::wire::record::{Flags, Header, Kind as RecordKind};
use std::sync::{Mutex, MutexGuard};

#[derive(Debug)]
pub(super) struct Lane {
    producer: Mutex<Producer>,
    /// Ours: a thread waits for space.
    space: Signal,
    /// The router's: it does not poll us.
    data: Signal,
    /// The thread that holds a loan, as a number; 0: none.
    lender: AtomicU64,
}

/// A number for this thread, never 0.
fn thread() -> u64 {
    std::thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark) as u64)
}

fn broken(violation: Violation) -> Kind {
    Kind::Protocol(violation.to_string())
}

impl Lane {
    pub(super) fn new(producer: Producer, space: Signal, data: Signal) -> Lane {
        Lane { producer: Mutex::new(producer), space, data, lender: AtomicU64::new(0) }
    }

    /// The producer role.
    pub(super) fn claim(&self) -> Result<MutexGuard<'_, Producer>> {
        if self.lender.load(Ordering::Relaxed) == thread() {
            return Err(Kind::LoanOutstanding.into());
        }
        Ok(lock(&self.producer))
    }

    /// Places a record if there is space.
    #[inline]
    fn place(&self, producer: &mut Producer, header: &[u64; HEADER_WORDS], payload: Payload<'_>) -> Result<bool> {
        producer.enter();
        let pushed = producer.push(header, payload);
        producer.leave();
        Ok(pushed.map_err(broken)?)
    }

    /// Wakes the router, if it does not poll us.
    #[inline]
    fn announce(&self, inner: &Inner) {
        publication_fence();
        if self.data.take() {
            inner.bells.ring();
        }
    }

    /// Places a record if there is space; if not, asks to be woken when there is. Never waits.
    #[inline]
    pub(super) fn try_push(
        &self,
        inner: &Inner,
        producer: &mut Producer,
        header: &Header,
        payload: &[u8],
    ) -> Result<bool> {
        let (words, payload) = (header.to_words(), Payload::Bytes(payload));
        if !self.place(producer, &words, payload)? {
            self.space.arm();
            // The flag first, then once more: space that came in between is not missed.
            if !self.place(producer, &words, payload)? {
                return Ok(false);
            }
            self.space.disarm();
        }
        self.announce(inner);
        Ok(true)
    }

    /// Places a record, waiting for space if need be.
    #[inline]
    pub(super) fn push(&self, inner: &Inner, producer: &mut Producer, header: &Header, payload: &[u8]) -> Result<()> {
        if self.try_push(inner, producer, header, payload)? {
            return Ok(());
        }
        inner.wait_for_bell(|| match self.try_push(inner, producer, header, payload) {
            Ok(false) => None,
            Ok(true) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        })?
    }
}

impl Inner {
    /// Places a record in the express lane if there is space. For records that are placed while waiting.
    pub(super) fn try_express(&self, header: &Header, payload: &[u8]) -> Result<bool> {
        let mut producer = self.express().claim()?;
        self.express().try_push(self, &mut producer, header, payload)
    }

    /// Places a record in the bulk lane if there is space; `None`: there is none yet.
    #[cfg(feature = "tokio")]
    pub(super) fn try_bulk(&self, header: &Header, payload: &[u8]) -> Option<Result<()>> {
        let mut producer = match self.bulk().claim() {
            Ok(producer) => producer,
            Err(error) => return Some(Err(error)),
        };
        match self.bulk().try_push(self, &mut producer, header, payload) {
            Ok(false) => None,
            Ok(true) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        }
    }

    /// Places a record in the express lane, waiting for space if need be.
    pub(super) fn push_express(&self, header: &Header, payload: &[u8]) -> Result<()> {
        if self.try_express(header, payload)? {
            return Ok(());
        }
        // The role is claimed for each try anew: whoever reads meanwhile may have to place records too.
        self.wait_for_bell(|| match self.try_express(header, payload) {
            Ok(false) => None,
            Ok(true) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        })?
    }

    /// The flags of the part `at..at + len` of a message of `total` bytes.
    pub(super) fn part_flags(at: usize, len: usize, total: usize) -> Flags {
        Flags::default().with_if(Flags::FIRST, at == 0).with_if(Flags::LAST, at + len == total)
    }

    /// A message's length, if it is not too large.
    pub(super) fn check_size(&self, len: usize) -> Result<u32> {
        let max = self.limits.max_message_size;
        u32::try_from(len).ok().filter(|len| *len <= max).ok_or_else(|| Kind::TooLarge { len, max }.into())
    }
}

/// Space in the bulk lane, lent for a message that is written in place; see
/// [`Publisher::loan`](super::Publisher::loan). Dropped, it leaves no trace. Other threads' publishes wait meanwhile.
///
/// Bytes that are not written have no particular value.
pub struct Loan<'a> {
    inner: &'a Inner,
    producer: MutexGuard<'a, Producer>,
    topic: u32,
    len: u32,
}

impl<'a> Loan<'a> {
    pub(super) fn new(inner: &'a Inner, topic: u32, len: usize) -> Result<Loan<'a>> {
        let slot_size = inner.limits.slot_size;
        let len =
            u32::try_from(len).ok().filter(|len| *len <= slot_size).ok_or(Kind::TooLarge { len, max: slot_size })?;
        let lane = inner.bulk();
        let mut producer = lane.claim()?;
        let reserve = |producer: &mut Producer| {
            producer.enter();
            match producer.reserve(len) {
                Ok(Some(_)) => return Some(Ok(())),
                Ok(None) => {}
                Err(violation) => return Some(Err(broken(violation).into())),
            }
            producer.leave();
            None
        };
        if let Some(error) = reserve(&mut producer)
            .unwrap_or_else(|| {
                inner.wait_for_bell(|| {
                    lane.space.arm();
                    reserve(&mut producer)
                })?
            })
            .err()
        {
            producer.leave();
            return Err(error);
        }
        lane.lender.store(thread(), Ordering::Relaxed);
        Ok(Loan { inner, producer, topic, len })
    }

    /// Bytes that were asked for.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Panics
    ///
    /// If they reach behind the loan's end.
    pub fn write_at(&mut self, offset: usize, bytes: &[u8]) {
        assert!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len()),
            "{} bytes at {offset} reach behind a loan of {}",
            bytes.len(),
            self.len
        );
        // The same place each time: nothing moves before the publication.
        if let Ok(Some(slot)) = self.producer.reserve(self.len) {
            write_bytes_at(slot.payload(), offset, bytes);
        }
    }

    /// Publishes what was written.
    pub fn publish(mut self) {
        let header =
            Header { flags: Flags::WHOLE, id: self.topic, total: self.len, ..Header::new(RecordKind::Publish) };
        if let Ok(Some(slot)) = self.producer.reserve(self.len) {
            slot.publish(&header.to_words(), self.len);
        }
        // What remains, and waking the router, is the drop's.
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        self.producer.leave();
        self.inner.bulk().lender.store(0, Ordering::Relaxed);
        self.inner.bulk().announce(self.inner);
    }
}

impl std::fmt::Debug for Loan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loan({} bytes)", self.len)
    }
}

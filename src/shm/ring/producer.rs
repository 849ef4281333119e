//! The producer's half of a ring.

use super::position::{Bank, Place, Plan};
use super::{Channel, Signal, Violation};
use crate::shm::layout::{CELL_WORDS, HEADER_WORDS, cells_for};
use crate::shm::words::{copy_words, read_bytes, write_bytes};
use crate::sync::{AtomicU64, Ordering, Site, acquire, fence, release};

/// The payload of a record.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    Bytes(&'a [u8]),
    /// Bytes in another ring: their number, and the words that hold them.
    Words(u32, &'a [AtomicU64]),
}

impl Payload<'_> {
    pub(crate) const EMPTY: Payload<'static> = Payload::Bytes(&[]);

    pub(crate) fn len(&self) -> u32 {
        match self {
            Payload::Bytes(bytes) => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            Payload::Words(len, _) => *len,
        }
    }
}

/// Places records in a ring. The value is the role, so one thread at a time has it.
#[derive(Debug)]
pub(crate) struct Producer {
    ring: Channel,
    plan: Plan,
    /// The consumed count as last read (R1: private, validated).
    consumed: u64,
    /// Usable cells of the extension.
    window: u32,
}

impl Producer {
    pub(crate) fn new(ring: Channel) -> Producer {
        Producer { ring, plan: Plan::START, consumed: 0, window: 0 }
    }

    /// A client calls this before it places records: it marks the producer as inside, then reads the window (R7).
    #[inline(always)]
    pub(crate) fn enter(&mut self) {
        let control = self.ring.control.as_slice();
        control[self.ring.ids.busy].store(1, Ordering::Relaxed);
        fence(Site::Enter);
        // Pairs with the Release in `Consumer::grow`.
        let window = control[self.ring.ids.window].load(Ordering::Acquire);
        self.window =
            u32::try_from(window).unwrap_or(0).min((self.ring.extension.as_slice().len() / CELL_WORDS) as u32);
    }

    /// A client calls this after it has placed its records or found no space (R7).
    #[inline(always)]
    pub(crate) fn leave(&mut self) {
        self.ring.control.as_slice()[self.ring.ids.busy].store(0, release(Site::Leave));
    }

    /// All cells claimed so far; changes only when a record is published.
    #[inline]
    pub(crate) fn claimed(&self) -> u64 {
        self.plan.claimed()
    }

    /// Whether no record is in flight now.
    ///
    /// # Errors
    ///
    /// If the consumer's count is impossible.
    pub(crate) fn is_drained(&mut self) -> Result<bool, Violation> {
        self.refresh()?;
        Ok(self.consumed == self.plan.claimed())
    }

    /// All cells that the consumer has consumed until now.
    ///
    /// # Errors
    ///
    /// If the consumer's count is impossible.
    pub(crate) fn look(&mut self) -> Result<u64, Violation> {
        self.refresh()?;
        Ok(self.consumed)
    }

    /// Reads back the records that are placed and not consumed, in order, after the death of the consumer. `each` gets
    /// the header and payload of a record. The consumer could write here, so everything is validated.
    ///
    /// # Errors
    ///
    /// If the consumer's count is impossible, or a record was changed; `each` has got the records before it.
    pub(crate) fn unconsumed(&mut self, mut each: impl FnMut(&[u64; HEADER_WORDS], Vec<u8>)) -> Result<(), Violation> {
        self.refresh()?;
        let mut count = self.consumed;
        let mut place = (Bank::Base, 0);
        while count < self.plan.claimed() {
            // Found as a consumer finds it; only the first record may be anywhere.
            let starts = [place, (Bank::Base, 0), (Bank::Extension, 0)];
            let mut found = starts.into_iter().find(|(bank, at)| self.is_at(*bank, *at, count));
            if found.is_none() && count == self.consumed {
                let cells = |bank: Bank| (0..self.size(bank)).map(move |at| (bank, at));
                let mut all = cells(Bank::Base).chain(cells(Bank::Extension));
                found = all.find(|(bank, at)| self.is_at(*bank, *at, count));
            }
            let (bank, at) = found.ok_or(Violation::Outside { at: place.1, cells: 0, window: self.size(place.0) })?;
            let record = &self.ring.bank(bank).as_slice()[at as usize * CELL_WORDS..];
            let header: [u64; HEADER_WORDS] = std::array::from_fn(|n| record[n + 1].load(Ordering::Relaxed));
            let (len, max) = (header[0] as u32, self.ring.max_payload);
            if len > max {
                return Err(Violation::Length { len, max });
            }
            let (cells, window) = (cells_for(len), self.size(bank));
            if cells > window.saturating_sub(at) {
                return Err(Violation::Outside { at, cells, window });
            }
            let mut bytes = vec![0; len as usize];
            read_bytes(&record[1 + HEADER_WORDS..][..(len as usize).div_ceil(8)], &mut bytes);
            each(&header, bytes);
            count += u64::from(cells);
            place = (bank, at + cells);
        }
        Ok(())
    }

    fn size(&self, bank: Bank) -> u32 {
        if bank == Bank::Base { self.base_cells() } else { self.window }
    }

    fn is_at(&self, bank: Bank, at: u32, count: u64) -> bool {
        at < self.size(bank)
            && self.ring.bank(bank).as_slice()[at as usize * CELL_WORDS].load(Ordering::Relaxed) == self.ring.tag(count)
    }

    /// Cells of the ring: of the base window, and of the extension in use.
    pub(crate) fn cells(&self) -> u32 {
        self.base_cells() + self.window
    }

    /// Cells of the extension in use by this ring.
    pub(crate) fn window(&self) -> u32 {
        self.window
    }

    /// For the broker as a producer: uses `cells` of the extension from now on, and publishes the window to the
    /// consumer. The ring must be drained before its window shrinks.
    ///
    /// # Panics
    ///
    /// If the extension has fewer cells.
    pub(crate) fn set_window(&mut self, cells: u32) {
        assert!(cells as usize * CELL_WORDS <= self.ring.extension.as_slice().len(), "window of {cells} cells");
        self.window = cells;
        self.ring.control.as_slice()[self.ring.ids.window].store(u64::from(cells), Ordering::Relaxed);
    }

    /// A plan from the current position, to check with [`Producer::plan`] whether several records fit.
    pub(crate) fn start_plan(&self) -> Plan {
        self.plan
    }

    /// Whether a record of `len` bytes fits behind the records in `plan`. Claims its cells in `plan` only.
    ///
    /// # Errors
    ///
    /// If the consumer's count is impossible.
    #[inline]
    pub(crate) fn plan(&mut self, plan: &mut Plan, len: u32) -> Result<bool, Violation> {
        let (cells, base) = (cells_for(len), self.base_cells());
        if plan.claim(cells, self.consumed, base, self.window).is_some() {
            return Ok(true);
        }
        // The consumer's word is read only when needed, because that transfers a cache line.
        self.refresh()?;
        Ok(plan.claim(cells, self.consumed, base, self.window).is_some())
    }

    /// Whether a record of `len` bytes fits now.
    ///
    /// # Errors
    ///
    /// If the consumer's count is impossible.
    #[inline]
    pub(crate) fn fits(&mut self, len: u32) -> Result<bool, Violation> {
        let mut plan = self.plan;
        self.plan(&mut plan, len)
    }

    /// Overwrites the header of the last record, which has one cell, as a hostile client can.
    #[cfg(all(test, not(lapce_ipc_loom)))]
    pub(crate) fn forge_last(&self, header: &[u64; HEADER_WORDS]) {
        let cells = |bank: Bank| (0..self.size(bank)).map(move |at| (bank, at));
        let mut all = cells(Bank::Base).chain(cells(Bank::Extension));
        let (bank, at) = all.find(|(bank, at)| self.is_at(*bank, *at, self.claimed() - 1)).expect("one cell");
        for (n, word) in header.iter().enumerate() {
            self.ring.bank(bank).as_slice()[at as usize * CELL_WORDS + 1 + n].store(*word, Ordering::Relaxed);
        }
    }

    /// Places one record and publishes it. `false`: there is no space, and nothing has changed.
    ///
    /// The low half of `header[0]` is the payload's length; the ring fills it in.
    ///
    /// # Errors
    ///
    /// If the consumer's count is impossible.
    #[inline(always)]
    pub(crate) fn push(&mut self, header: &[u64; HEADER_WORDS], payload: Payload<'_>) -> Result<bool, Violation> {
        let len = payload.len();
        let Some(slot) = self.reserve(len)? else { return Ok(false) };
        match payload {
            Payload::Bytes(bytes) => write_bytes(slot.payload(), bytes),
            Payload::Words(len, words) => copy_words(slot.payload(), &words[..len.div_ceil(8) as usize]),
        }
        slot.publish(header, len);
        Ok(true)
    }

    /// A client's thread places one record and publishes it. If there is no space, it asks by `space` to be woken, and
    /// looks once more (R8). `false`: there was none then, either, and nothing has changed.
    ///
    /// The request stays after a record that the second look placed: the threads of a client share the flag, and
    /// another one may wait for it. At worst the router rings once too often.
    ///
    /// # Errors
    ///
    /// If the consumer's count is impossible.
    #[inline(always)]
    pub(crate) fn push_or_arm(
        &mut self,
        header: &[u64; HEADER_WORDS],
        payload: Payload<'_>,
        space: &Signal,
    ) -> Result<bool, Violation> {
        if self.push_inside(header, payload)? {
            return Ok(true);
        }
        self.arm_and_push(header, payload, space)
    }

    #[cold]
    fn arm_and_push(
        &mut self,
        header: &[u64; HEADER_WORDS],
        payload: Payload<'_>,
        space: &Signal,
    ) -> Result<bool, Violation> {
        space.arm();
        self.push_inside(header, payload)
    }

    #[inline(always)]
    fn push_inside(&mut self, header: &[u64; HEADER_WORDS], payload: Payload<'_>) -> Result<bool, Violation> {
        self.enter();
        let pushed = self.push(header, payload);
        self.leave();
        pushed
    }

    /// Reserves the slot of the next record. A dropped slot leaves no trace (R6).
    ///
    /// # Errors
    ///
    /// If the consumer's count is impossible.
    ///
    /// # Panics
    ///
    /// If `len` is larger than a record may be.
    #[inline(always)]
    pub(crate) fn reserve(&mut self, len: u32) -> Result<Option<Slot<'_>>, Violation> {
        assert!(len <= self.ring.max_payload, "record of {len} bytes");
        let (cells, base) = (cells_for(len), self.base_cells());
        let mut place = self.plan.find(cells, self.consumed, base, self.window);
        if place.is_none() {
            self.refresh()?;
            place = self.plan.find(cells, self.consumed, base, self.window);
        }
        let Some(place) = place else { return Ok(None) };
        let Producer { ring, plan, .. } = self;
        let (start, tag) = (place.at as usize * CELL_WORDS, ring.tag(plan.claimed()));
        let record = &ring.bank(place.bank).as_slice()[start..start + cells as usize * CELL_WORDS];
        Ok(Some(Slot { plan, place, record, tag }))
    }

    #[inline(always)]
    fn base_cells(&self) -> u32 {
        (self.ring.base.as_slice().len() / CELL_WORDS) as u32
    }

    /// Reads the consumer's count once, validates it and stores it (R1, R5).
    #[cold]
    fn refresh(&mut self) -> Result<(), Violation> {
        let consumed = self.ring.control.as_slice()[self.ring.ids.consumed].load(acquire(Site::Reclaim));
        if consumed < self.consumed || consumed > self.plan.claimed() {
            return Err(Violation::Consumed { consumed, last: self.consumed, claimed: self.plan.claimed() });
        }
        self.consumed = consumed;
        Ok(())
    }
}

/// The slot of a record that is being written; invisible to the consumer before [`Slot::publish`].
pub(crate) struct Slot<'a> {
    plan: &'a mut Plan,
    place: Place,
    record: &'a [AtomicU64],
    tag: u64,
}

impl Slot<'_> {
    /// The words for the payload.
    #[inline(always)]
    pub(crate) fn payload(&self) -> &[AtomicU64] {
        &self.record[1 + HEADER_WORDS..]
    }

    /// Writes the header, then the tag, which makes the record and its position visible at once (R4, R6).
    ///
    /// # Panics
    ///
    /// If `len` takes another number of cells than the reserved length.
    #[inline(always)]
    pub(crate) fn publish(self, header: &[u64; HEADER_WORDS], len: u32) {
        let cells = cells_for(len);
        assert_eq!(cells as usize * CELL_WORDS, self.record.len(), "a record keeps the size that was reserved");
        let Some((tag, words)) = self.record.split_first() else { return };
        let Some(words) = words.first_chunk::<HEADER_WORDS>() else { return };
        words[0].store(header[0] & !0xffff_ffff | u64::from(len), Ordering::Relaxed);
        for at in 1..HEADER_WORDS {
            words[at].store(header[at], Ordering::Relaxed);
        }
        // Pairs with the Acquire in `Consumer::peek`.
        tag.store(self.tag, release(Site::Publish));
        self.plan.take(self.place, cells);
    }
}

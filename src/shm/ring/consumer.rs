//! The consumer's half of a ring.

use super::position::Bank;
use super::{Channel, Violation};
use crate::shm::layout::{CELL_WORDS, HEADER_WORDS, cells_for};
use crate::shm::words::append_bytes;
use crate::sync::{AtomicU64, Ordering, Site, acquire, fence, release};

/// Reads records from a ring.
#[derive(Debug)]
pub(crate) struct Consumer {
    ring: Channel,
    /// All cells consumed so far: published in shared memory, never read back (R1).
    consumed: u64,
    /// The published part of `consumed`.
    published: u64,
    bank: Bank,
    offset: u32,
    /// Cells of the extension in which records may lie.
    window: u32,
    /// Whether the window is read from the control words (a client) or set by `set_window` (the broker).
    follows: bool,
}

/// A record that was found, validated, and not yet consumed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    /// The header's words after the tag: a private copy (R1).
    pub(crate) header: [u64; HEADER_WORDS],
    /// Payload bytes.
    pub(crate) len: u32,
    bank: Bank,
    at: u32,
}

/// The same without its header. A loop over records keeps this, and of the header the words that it needs: each copy of
/// a whole header waits until its words are stored, because it reads them two at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Payload bytes.
    pub(crate) len: u32,
    bank: Bank,
    at: u32,
}

impl Record {
    /// Where it lies.
    #[inline(always)]
    pub(crate) fn extent(&self) -> Extent {
        Extent { len: self.len, bank: self.bank, at: self.at }
    }

    /// The record that lies there, with a header that is known.
    pub(crate) fn with_header(Extent { len, bank, at }: Extent, header: [u64; HEADER_WORDS]) -> Record {
        Record { header, len, bank, at }
    }
}

impl Consumer {
    /// The broker's consumer, which sets the window itself.
    pub(crate) fn new(ring: Channel) -> Consumer {
        Consumer { ring, consumed: 0, published: 0, bank: Bank::Base, offset: 0, window: 0, follows: false }
    }

    /// The client's consumer, which reads the window from the control words.
    pub(crate) fn following(ring: Channel) -> Consumer {
        Consumer { follows: true, ..Consumer::new(ring) }
    }

    /// The next record, if one is published.
    ///
    /// # Errors
    ///
    /// If the record has an impossible length or reaches behind the window.
    #[inline(always)]
    pub(crate) fn peek(&mut self) -> Result<Option<Record>, Violation> {
        self.find().map(|(bank, at)| self.read(bank, at)).transpose()
    }

    /// Whether a record is published, valid or not.
    #[inline]
    pub(crate) fn has_record(&mut self) -> bool {
        self.find().is_some()
    }

    /// The place of the next record: behind the last one, or at the start of a bank, where laps begin.
    #[inline(always)]
    fn find(&mut self) -> Option<(Bank, u32)> {
        let tag = self.ring.tag(self.consumed);
        if self.bank == Bank::Extension && self.published == self.consumed {
            // Cells beyond the window are not read: a read of a punched hole allocates a page. A window shrinks only
            // when all cells were given back.
            self.follow();
        }
        if self.is_at(self.bank, self.offset, tag) {
            return Some((self.bank, self.offset));
        }
        self.find_lap(tag)
    }

    /// The same where the next record does not lie behind the last one, as far as the window is known.
    #[inline(never)]
    fn find_lap(&mut self, tag: u64) -> Option<(Bank, u32)> {
        if self.bank == Bank::Extension {
            // The next record may lie in cells that the window has just grown by.
            self.follow();
            if self.is_at(self.bank, self.offset, tag) {
                return Some((self.bank, self.offset));
            }
        }
        if self.is_at(Bank::Base, 0, tag) {
            return Some((Bank::Base, 0));
        }
        self.follow();
        self.is_at(Bank::Extension, 0, tag).then_some((Bank::Extension, 0))
    }

    /// The words of a record's payload. The peer may change them during the read.
    #[inline(always)]
    pub(crate) fn payload(&self, record: &Record) -> &[AtomicU64] {
        self.payload_of(record.extent())
    }

    /// The same of the record that lies there.
    #[inline(always)]
    pub(crate) fn payload_of(&self, Extent { len, bank, at }: Extent) -> &[AtomicU64] {
        let start = at as usize * CELL_WORDS + 1 + HEADER_WORDS;
        &self.ring.bank(bank).as_slice()[start..start + (len as usize).div_ceil(8)]
    }

    /// Appends a record's payload to `to`.
    pub(crate) fn append_payload(&self, record: &Record, to: &mut Vec<u8>) {
        append_bytes(self.payload(record), record.len as usize, to);
    }

    /// Consumes `record`, which must be the one that `peek` found last. Its cells stay the consumer's until
    /// `publish_consumed`.
    #[inline(always)]
    pub(crate) fn advance(&mut self, record: &Record) {
        self.advance_behind(record.extent());
    }

    /// The same of the record that lies there.
    #[inline(always)]
    pub(crate) fn advance_behind(&mut self, Extent { len, bank, at }: Extent) {
        let cells = cells_for(len);
        self.consumed += u64::from(cells);
        (self.bank, self.offset) = (bank, at + cells);
    }

    /// All cells consumed so far: the position of the next record.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Consumed cells that are not given back yet.
    #[inline]
    pub(crate) fn unpublished(&self) -> u64 {
        self.consumed - self.published
    }

    /// Gives the consumed cells back to the producer (R5). Pairs with the Acquire in `Producer::refresh`.
    #[inline]
    pub(crate) fn publish_consumed(&mut self) {
        if self.published != self.consumed {
            self.published = self.consumed;
            self.ring.control.as_slice()[self.ring.ids.consumed].store(self.consumed, release(Site::Consume));
        }
    }

    /// Cells of the extension in which the producer may place records.
    pub(crate) fn window(&self) -> u32 {
        self.window
    }

    /// Lets the producer use `cells` of the extension, at least as many as before. Their memory must be allocated.
    ///
    /// # Panics
    ///
    /// If the window would shrink (see [`Consumer::try_trim`]), or the extension has fewer cells.
    pub(crate) fn grow(&mut self, cells: u32) {
        assert!(
            cells >= self.window && cells as usize * CELL_WORDS <= self.ring.extension.as_slice().len(),
            "{cells} cells"
        );
        self.window = cells;
        // Pairs with the Acquire in `Producer::enter`: the memory is allocated before the producer sees the window.
        self.ring.control.as_slice()[self.ring.ids.window].store(u64::from(cells), Ordering::Release);
    }

    /// Takes the extension back, if the producer is outside and no record is in flight (R7). `true`: its pages may be
    /// freed; `false`: nothing has changed.
    ///
    /// # Errors
    ///
    /// If a record breaks the protocol.
    pub(crate) fn try_trim(&mut self) -> Result<bool, Violation> {
        self.publish_consumed();
        let window = self.window;
        let control = self.ring.control.clone();
        let announced = &control.as_slice()[self.ring.ids.window];
        announced.store(0, Ordering::Relaxed);
        fence(Site::Trim);
        // Pairs with the Release in `Producer::leave`: `peek` sees the records that a producer placed before it left.
        let outside = control.as_slice()[self.ring.ids.busy].load(acquire(Site::Leave)) == 0;
        if outside && self.peek()?.is_none() {
            self.window = 0;
            return Ok(true);
        }
        // As the Release in `grow`, the fence orders the memory before this store.
        announced.store(u64::from(window), Ordering::Relaxed);
        Ok(false)
    }

    /// Updates the window, if this consumer reads it from the control words.
    #[inline]
    fn follow(&mut self) {
        if self.follows {
            let window = self.ring.control.as_slice()[self.ring.ids.window].load(Ordering::Relaxed);
            self.window =
                u32::try_from(window).unwrap_or(0).min((self.ring.extension.as_slice().len() / CELL_WORDS) as u32);
        }
    }

    #[inline(always)]
    fn size(&self, bank: Bank) -> u32 {
        match bank {
            Bank::Base => (self.ring.base.as_slice().len() / CELL_WORDS) as u32,
            Bank::Extension => self.window,
        }
    }

    #[inline(always)]
    fn is_at(&self, bank: Bank, offset: u32, tag: u64) -> bool {
        // The end of the base window is that of its words.
        let is_inside = bank == Bank::Base || offset < self.window;
        let word = self.ring.bank(bank).as_slice().get(offset as usize * CELL_WORDS).filter(|_| is_inside);
        // Pairs with the Release in `Slot::publish` (R4).
        word.is_some_and(|word| word.load(acquire(Site::Take)) == tag)
    }

    /// Copies the header once and validates it; only the copy is used from here on (R1).
    #[inline(always)]
    fn read(&mut self, bank: Bank, at: u32) -> Result<Record, Violation> {
        let start = at as usize * CELL_WORDS + 1;
        let words = &self.ring.bank(bank).as_slice()[start..start + HEADER_WORDS];
        let header = std::array::from_fn(|i| words[i].load(Ordering::Relaxed));
        let len = (header[0] & 0xffff_ffff) as u32;
        if len > self.ring.max_payload {
            return Err(Violation::Length { len, max: self.ring.max_payload });
        }
        let cells = cells_for(len);
        // The producer had its window before it stored the tag, so the window is visible after the tag.
        if cells > self.size(bank).saturating_sub(at) {
            self.follow();
        }
        let window = self.size(bank);
        if cells > window.saturating_sub(at) {
            return Err(Violation::Outside { at, cells, window });
        }
        Ok(Record { header, len, bank, at })
    }
}

//! The queue of a `drop_oldest` subscription whose client's ring is full: it holds the newest messages.
//!
//! Only whole messages are queued. A message of several records is assembled apart, and queued with its last record: so
//! a publisher that stops within a message delays no other. Beyond the limits the oldest messages are dropped. A
//! message whose first record was sent to the client is no longer dropped here: the client does that itself.

use crate::wire::record::{Flags, Header};
use std::collections::VecDeque;

/// Bytes that a message counts for besides its payload.
const OVERHEAD: usize = 64;
/// Buffers that are reused.
const MAX_SPARE: usize = 64;

/// The bounds of a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// In cells of credit.
    pub(crate) cells: u32,
    pub(crate) bytes: usize,
}

/// A message, or its records so far.
#[derive(Debug)]
pub(crate) struct QueuedMessage {
    /// The header of its first record.
    pub(crate) header: Header,
    bytes: Vec<u8>,
    cost: u32,
    /// Bytes that were sent to the client.
    sent: usize,
    /// It exceeds the limits: its further records are discarded.
    is_lost: bool,
    has_begun: bool,
}

/// The result of adding a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// Stored; its message is not complete yet.
    Begun,
    /// Stored; its message is complete and queued.
    Whole,
    /// Its message exceeds the limits.
    TooLarge,
    /// It belongs to an unknown message.
    Unknown,
}

#[derive(Debug, Default)]
pub(crate) struct DropOldestQueue {
    whole: VecDeque<QueuedMessage>,
    begun: Vec<QueuedMessage>,
    /// Of whole messages of which no record was sent.
    cells: u32,
    bytes: usize,
    spare: Vec<Vec<u8>>,
}

impl DropOldestQueue {
    /// Whether it holds neither messages nor parts of one.
    pub(crate) fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.begun.is_empty()
    }

    /// Whether whole messages are queued.
    #[inline]
    pub(crate) fn has_whole(&self) -> bool {
        !self.whole.is_empty()
    }

    /// Bytes of all messages and parts.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a message of `origin` is being assembled.
    pub(crate) fn is_begun(&self, origin: u32) -> bool {
        self.begun.iter().any(|kept| kept.header.origin == origin)
    }

    /// Adds the record of `len` bytes that `fill` copies; `cost` is that of the whole message. Then drops messages
    /// beyond the limits and passes each to `gone`, also the new one if it is too large.
    pub(crate) fn add(
        &mut self,
        header: &Header,
        (cost, len): (u32, usize),
        fill: impl FnOnce(&mut [u8]),
        bounds: Bounds,
        mut gone: impl FnMut(&Header),
    ) -> Added {
        let mut kept = match self.begun.iter().position(|kept| kept.header.origin == header.origin) {
            Some(at) => self.begun.swap_remove(at),
            None if !header.flags.has(Flags::FIRST) => return Added::Unknown,
            None if header.total as usize + OVERHEAD > bounds.bytes => {
                gone(header);
                return Added::TooLarge;
            }
            None => {
                self.bytes += OVERHEAD;
                let bytes = self.spare.pop().unwrap_or_default();
                QueuedMessage { header: *header, bytes, cost, sent: 0, is_lost: false, has_begun: false }
            }
        };
        let is_whole = header.flags.has(Flags::LAST);
        if kept.is_lost {
            if is_whole {
                self.recycle(kept)
            } else {
                self.begun.push(kept)
            }
            return Added::TooLarge;
        }
        let from = kept.bytes.len();
        kept.bytes.resize(from + len, 0);
        fill(&mut kept.bytes[from..]);
        self.bytes += len;
        let cells = if is_whole { cost } else { 0 };
        while self.cells + cells > bounds.cells || self.bytes > bounds.bytes {
            let Some(oldest) = self.drop_oldest() else { break };
            gone(&oldest);
        }
        if self.bytes > bounds.bytes {
            gone(&kept.header);
            self.bytes -= kept.bytes.len();
            (kept.bytes, kept.is_lost) = (Vec::new(), true);
            if is_whole {
                self.recycle(kept)
            } else {
                self.begun.push(kept)
            }
            return Added::TooLarge;
        }
        if !is_whole {
            self.begun.push(kept);
            return Added::Begun;
        }
        self.cells += cost;
        self.whole.push_back(kept);
        Added::Whole
    }

    fn drop_oldest(&mut self) -> Option<Header> {
        let at = usize::from(self.whole.front().is_some_and(|front| front.has_begun));
        let oldest = self.whole.remove(at)?;
        self.cells -= oldest.cost;
        let header = oldest.header;
        self.recycle(oldest);
        Some(header)
    }

    fn recycle(&mut self, mut kept: QueuedMessage) {
        self.bytes -= OVERHEAD + kept.bytes.len();
        if self.spare.len() < MAX_SPARE {
            kept.bytes.clear();
            self.spare.push(kept.bytes);
        }
    }

    /// Discards the part of a message of `origin`, whose rest will not come. Returns its header, unless it was
    /// discarded before.
    pub(crate) fn abort(&mut self, origin: u32) -> Option<Header> {
        let at = self.begun.iter().position(|kept| kept.header.origin == origin)?;
        let kept = self.begun.swap_remove(at);
        let header = (!kept.is_lost).then_some(kept.header);
        self.recycle(kept);
        header
    }

    /// The next record for the client, of at most `slot_size` bytes: its header and its payload.
    pub(crate) fn next(&self, slot_size: usize) -> Option<(Header, &[u8])> {
        let kept = self.whole.front()?;
        let payload = &kept.bytes[kept.sent..(kept.sent + slot_size).min(kept.bytes.len())];
        let is_last = kept.sent + payload.len() == kept.bytes.len();
        let flags = Flags(kept.header.flags.0 & !Flags::WHOLE.0);
        let flags = flags.with_if(Flags::FIRST, !kept.has_begun).with_if(Flags::LAST, is_last);
        Some((Header { flags, ..kept.header }, payload))
    }

    /// The next record was sent. Returns the header of its message if that is complete now.
    pub(crate) fn sent(&mut self, slot_size: usize) -> Option<Header> {
        let kept = self.whole.front_mut()?;
        if !std::mem::replace(&mut kept.has_begun, true) {
            self.cells -= kept.cost;
        }
        kept.sent = (kept.sent + slot_size).min(kept.bytes.len());
        if kept.sent < kept.bytes.len() {
            return None;
        }
        let kept = self.whole.pop_front()?;
        let header = kept.header;
        self.recycle(kept);
        Some(header)
    }

    /// The headers of all messages.
    pub(crate) fn headers(&self) -> impl Iterator<Item = &Header> {
        self.whole.iter().chain(self.begun.iter().filter(|kept| !kept.is_lost)).map(|kept| &kept.header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::record::Kind;

    const BOUNDS: Bounds = Bounds { cells: 10, bytes: 10_000 };

    fn header(origin: u32, seq: u64, total: u32, flags: Flags) -> Header {
        Header { origin, seq, total, flags, ..Header::new(Kind::Deliver) }
    }

    /// Adds a message in records of 100 bytes; returns those that went.
    fn add(newest: &mut DropOldestQueue, seq: u64, len: usize, cost: u32, bounds: Bounds) -> (Added, Vec<u64>) {
        let (mut gone, mut last) = (Vec::new(), Added::Unknown);
        let parts = len.div_ceil(100).max(1);
        for part in 0..parts {
            let here = (len - part * 100).min(100);
            let flags = Flags::default().with_if(Flags::FIRST, part == 0).with_if(Flags::LAST, part + 1 == parts);
            let header = header(1, seq, len as u32, flags);
            let added = newest.add(&header, (cost, here), |to| to.fill(seq as u8), bounds, |h| gone.push(h.seq));
            if added != Added::Unknown {
                last = added;
            }
        }
        (last, gone)
    }

    fn take(newest: &mut DropOldestQueue) -> Option<(u64, usize)> {
        let mut len = 0;
        loop {
            let (header, payload) = newest.next(100)?;
            assert!(payload.iter().all(|byte| *byte == header.seq as u8));
            assert_eq!(header.flags.has(Flags::FIRST), len == 0);
            len += payload.len();
            if newest.sent(100).is_some() {
                assert!(header.flags.has(Flags::LAST));
                return Some((header.seq, len));
            }
        }
    }

    #[test]
    fn exactly_the_newest_that_fit_are_kept_in_order() {
        let mut newest = DropOldestQueue::default();
        for seq in 1..=100 {
            let (added, gone) = add(&mut newest, seq, 10, 3, BOUNDS);
            assert_eq!((added, gone.len()), (Added::Whole, usize::from(seq > 3)), "{seq}");
        }
        for seq in 98..=100 {
            assert_eq!(take(&mut newest), Some((seq, 10)));
        }
        assert_eq!((take(&mut newest), newest.bytes(), newest.cells), (None, 0, 0));
    }

    #[test]
    fn messages_of_several_records_come_back_whole_or_not_at_all() {
        let mut newest = DropOldestQueue::default();
        for (seq, len) in [(1, 250), (2, 0), (3, 100), (4, 901)] {
            assert_eq!(add(&mut newest, seq, len, 1, BOUNDS), (Added::Whole, vec![]));
        }
        let taken: Vec<_> = std::iter::from_fn(|| take(&mut newest)).collect();
        assert_eq!(taken, [(1, 250), (2, 0), (3, 100), (4, 901)]);
        assert_eq!(add(&mut newest, 5, 20_000, 1, BOUNDS), (Added::TooLarge, vec![5]));
        assert!(newest.is_empty());
        assert_eq!(newest.bytes(), 0);
    }

    #[test]
    fn a_message_that_goes_to_the_client_is_not_dropped_and_leaves_room() {
        let mut newest = DropOldestQueue::default();
        add(&mut newest, 1, 250, 6, BOUNDS);
        assert!(newest.sent(100).is_none());
        assert_eq!(add(&mut newest, 2, 10, 6, BOUNDS), (Added::Whole, vec![]));
        assert_eq!(add(&mut newest, 3, 10, 6, BOUNDS), (Added::Whole, vec![2]));
        assert_eq!(newest.next(100).map(|(header, payload)| (header.seq, payload.len())), Some((1, 100)));
        assert!(newest.sent(100).is_none());
        assert_eq!(newest.sent(100).map(|header| header.seq), Some(1));
        assert_eq!(take(&mut newest), Some((3, 10)));
    }

    #[test]
    fn a_publisher_that_stops_in_mid_message_holds_up_no_other() {
        let mut newest = DropOldestQueue::default();
        let first = header(7, 1, 300, Flags::FIRST);
        let added = newest.add(&first, (1, 100), |to| to.fill(1), BOUNDS, |_| panic!("nothing goes"));
        assert_eq!(added, Added::Begun);
        add(&mut newest, 2, 10, 1, BOUNDS);
        assert_eq!(take(&mut newest), Some((2, 10)));
        assert!(!newest.is_empty() && newest.is_begun(7) && newest.next(100).is_none());
        assert_eq!(newest.abort(7).map(|header| header.seq), Some(1));
        let rest = header(7, 1, 300, Flags::LAST);
        let added = newest.add(&rest, (1, 100), |to| to.fill(1), BOUNDS, |_| panic!("nothing goes"));
        assert_eq!((added, newest.bytes()), (Added::Unknown, 0));
    }

    #[test]
    fn bytes_are_bounded_with_those_of_messages_that_are_not_whole() {
        let (mut newest, bounds) = (DropOldestQueue::default(), Bounds { cells: 1000, bytes: 1000 });
        for seq in 1..=5 {
            add(&mut newest, seq, 100, 1, bounds);
        }
        let (added, gone) = add(&mut newest, 6, 500, 1, bounds);
        assert_eq!((added, gone), (Added::Whole, vec![1, 2, 3]));
        assert!(newest.bytes() <= 1000);
        assert_eq!(newest.headers().map(|header| header.seq).collect::<Vec<_>>(), [4, 5, 6]);
    }

    #[test]
    fn a_message_that_grows_beyond_the_limit_is_lost_with_all_that_comes_of_it() {
        let (mut newest, large) = (DropOldestQueue::default(), Bounds { cells: 10, bytes: 10_000 });
        let small = Bounds { bytes: 150, ..large };
        let mut gone = 0;
        let mut add = |newest: &mut DropOldestQueue, flags, bounds| {
            newest.add(&header(1, 9, 400, flags), (1, 100), |to| to.fill(1), bounds, |_| gone += 1)
        };
        assert_eq!(add(&mut newest, Flags::FIRST, large), Added::Begun);
        assert_eq!(add(&mut newest, Flags::default(), small), Added::TooLarge);
        assert_eq!(add(&mut newest, Flags::default(), large), Added::TooLarge);
        assert!(newest.is_begun(1) && newest.headers().next().is_none());
        assert_eq!(add(&mut newest, Flags::LAST, large), Added::TooLarge);
        assert!(newest.is_empty() && newest.bytes() == 0 && gone == 1);
    }

    #[test]
    fn a_full_queue_allocates_nothing() {
        let mut newest = DropOldestQueue::default();
        let flags = Flags::WHOLE;
        let round = |newest: &mut DropOldestQueue, seq| {
            newest.add(&header(1, seq, 64, flags), (1, 64), |to| to.fill(0), BOUNDS, |_| {});
        };
        (0..100).for_each(|seq| round(&mut newest, seq));
        let counted = allocation_counter::measure(|| (100..1000).for_each(|seq| round(&mut newest, seq)));
        assert_eq!(counted.count_total, 0, "{counted:?}");
    }
}

//! Messages that a broker had not consumed when it died: taken out of the lane, to be placed in the next one. Also
//! records of calls that found no space in the express lane, and die with it.

use super::names::Renumbering;
use crate::shm::ring::{Producer, Violation};
use crate::wire::record::{Flags, Header, Kind};
use std::collections::VecDeque;

/// A message to be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resend {
    header: Header,
    payload: Vec<u8>,
}

impl Resend {
    /// A flush that is sent again behind the messages.
    pub(crate) fn flush(number: u64) -> Resend {
        Resend { header: Header { seq: number, ..Header::new(Kind::Flush) }, payload: Vec::new() }
    }

    /// A record of a call that found no space.
    pub(crate) fn record(header: &Header, payload: &[u8]) -> Resend {
        Resend { header: *header, payload: payload.to_vec() }
    }

    fn publish(header: &Header, payload: Vec<u8>) -> Resend {
        Resend { header: Header { flags: Flags::RESENT, ..*header }, payload }
    }
}

/// A message of several records of which the first may be consumed, and written over, before the last.
#[derive(Debug)]
struct Large {
    header: Header,
    payload: Vec<u8>,
    /// Cells that were claimed when it was placed.
    end: u64,
}

/// Messages to be sent again, in order; and large messages that may yet have to be.
#[derive(Debug, Default)]
pub(crate) struct ResendQueue {
    queue: VecDeque<Resend>,
    /// Bytes of the first that were placed.
    at: usize,
    large: VecDeque<Large>,
}

impl ResendQueue {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn push(&mut self, resend: Resend) {
        self.queue.push_back(resend);
    }

    /// The next record to place, of at most `most` bytes.
    pub(crate) fn next(&self, most: usize) -> Option<(Header, &[u8])> {
        let Resend { header, payload } = self.queue.front()?;
        let part = &payload[self.at..payload.len().min(self.at + most)];
        let flags = match header.kind {
            Kind::Publish => header.flags.with(Flags::fragment(self.at, part.len(), payload.len())),
            _ => header.flags,
        };
        Some((Header { flags, ..*header }, part))
    }

    /// The next record was placed; `claimed` cells are by now.
    pub(crate) fn placed(&mut self, most: usize, claimed: u64) {
        let Some(Resend { payload, .. }) = self.queue.front() else { return };
        self.at = payload.len().min(self.at + most);
        if self.at < payload.len() {
            return;
        }
        self.at = 0;
        if let Some(Resend { header, payload }) = self.queue.pop_front()
            && payload.len() > most
        {
            self.large.push_back(Large { header, payload, end: claimed });
        }
    }

    /// A message of several records was placed; `claimed` cells are by now, `consumed` of them consumed.
    pub(crate) fn keep(&mut self, header: &Header, payload: &[u8], claimed: u64, consumed: u64) {
        self.forget(consumed);
        if consumed < claimed {
            self.large.push_back(Large { header: *header, payload: payload.to_vec(), end: claimed });
        }
    }

    /// Notes that this many cells are consumed.
    pub(crate) fn forget(&mut self, consumed: u64) {
        while self.large.front().is_some_and(|large| large.end <= consumed) {
            self.large.pop_front();
        }
    }

    /// Leaves out messages of more than `most` bytes. Returns how many those are.
    pub(crate) fn discard_above(&mut self, most: usize) -> usize {
        let before = self.queue.len();
        self.queue.retain(|resend| resend.header.kind != Kind::Publish || resend.payload.len() <= most);
        before - self.queue.len()
    }

    /// The lane's broker has died: what it had not consumed comes first, then what was to be sent again already, all
    /// with the topics' numbers at the next one. Returns how many messages are on topics that have none.
    ///
    /// # Errors
    ///
    /// If the lane holds what was never placed: what follows is lost, and shows as a gap.
    pub(crate) fn take_from(
        &mut self,
        lane: &mut Producer,
        numbers: &mut Renumbering,
    ) -> (usize, Result<(), Violation>) {
        let mut found = VecDeque::new();
        // The message that is read, and whether it is whole already.
        let mut open: Option<(Resend, bool)> = None;
        let large = std::mem::take(&mut self.large);
        let read = lane.unconsumed(|words, payload| {
            let Ok(header) = Header::from_words(words) else { return };
            if header.kind == Kind::Release {
                numbers.release(header.id);
            }
            if header.kind != Kind::Publish {
                return;
            }
            if header.flags.has(Flags::FIRST) {
                open = Some((Resend::publish(&header, payload), false));
            } else if let Some((resend, is_whole)) = &mut open {
                if !*is_whole {
                    resend.payload.extend_from_slice(&payload);
                }
            } else {
                // Its beginning was consumed. One that is still being placed begins again by itself.
                let is = |large: &&Large| (large.header.id, large.header.seq) == (header.id, header.seq);
                let whole = large.iter().find(is);
                open = whole.map(|large| (Resend::publish(&large.header, large.payload.clone()), true));
            }
            if header.flags.has(Flags::LAST)
                && let Some((resend, _)) = open.take()
                && resend.payload.len() == resend.header.total as usize
            {
                let number = numbers.publish(resend.header.id);
                found.push_back((resend, number));
            }
        });
        self.at = 0;
        let waiting = std::mem::take(&mut self.queue);
        found.extend(waiting.into_iter().map(|resend| {
            let number = numbers.publish(resend.header.id);
            (resend, number)
        }));
        let before = found.len();
        self.queue.extend(found.into_iter().filter_map(|(mut resend, number)| {
            if resend.header.kind == Kind::Publish {
                resend.header.id = number?;
            }
            Some(resend)
        }));
        (before - self.queue.len(), read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::layout::Geometry;
    use crate::shm::ring::{Consumer, Payload};
    use crate::shm::segment::{Nonces, Segment};

    const SLOT: usize = 1024;

    fn lane() -> (Producer, Consumer) {
        let segment = Segment::create(Geometry::new(SLOT as u32, 64).unwrap(), Nonces::random().unwrap(), 0o600);
        let segment = segment.unwrap();
        (segment.client_ends().0, segment.broker_ends().0)
    }

    /// The topic has the same number at the next broker.
    fn same() -> Renumbering {
        let mut numbers = Renumbering::default();
        numbers.add(3, Some(3));
        numbers
    }

    fn header(seq: u64, len: usize) -> Header {
        Header { id: 3, seq, total: len as u32, ..Header::new(Kind::Publish) }
    }

    /// Places parts of a message, as far as they fit.
    fn place(lane: &mut Producer, seq: u64, payload: &[u8], from: usize) -> usize {
        let mut at = from;
        while at < payload.len() || (at == 0 && payload.is_empty()) {
            let part = &payload[at..payload.len().min(at + SLOT)];
            let header = Header { flags: Flags::fragment(at, part.len(), payload.len()), ..header(seq, payload.len()) };
            if !lane.push(&header.to_words(), Payload::Bytes(part)).unwrap() || part.is_empty() {
                break;
            }
            at += part.len();
        }
        at
    }

    fn consume(broker: &mut Consumer, records: usize) {
        for _ in 0..records {
            let record = broker.peek().unwrap().expect("a record");
            broker.advance(&record);
        }
        broker.publish_consumed();
    }

    fn taken(resends: &mut ResendQueue) -> Vec<(u64, usize, Flags)> {
        let mut all = Vec::new();
        while let Some((header, part)) = resends.next(SLOT) {
            all.push((header.seq, part.len(), header.flags));
            resends.placed(SLOT, 0);
        }
        all
    }

    #[test]
    fn what_was_not_consumed_is_sent_again_in_order() {
        let (mut lane, mut broker) = lane();
        for seq in 1..=4 {
            place(&mut lane, seq, &vec![seq as u8; seq as usize * 10], 0);
        }
        consume(&mut broker, 2);
        let mut resends = ResendQueue::default();
        resends.push(Resend::flush(9));
        assert_eq!(resends.take_from(&mut lane, &mut same()), (0, Ok(())));
        let whole = Flags::WHOLE.with(Flags::RESENT);
        assert_eq!(resends.queue[0].payload, [3; 30]);
        assert_eq!(taken(&mut resends), [(3, 30, whole), (4, 40, whole), (9, 0, Flags(0))]);
    }

    #[test]
    fn a_large_message_that_was_begun_is_sent_again_whole() {
        let (mut lane, mut broker) = lane();
        let payload: Vec<u8> = (0..3000).map(|n| n as u8).collect();
        let mut resends = ResendQueue::default();
        let mut at = place(&mut lane, 1, &payload, 0);
        assert!(at < payload.len(), "the base window is not so large");
        consume(&mut broker, 1);
        at = place(&mut lane, 1, &payload, at);
        consume(&mut broker, 1);
        at = place(&mut lane, 1, &payload, at);
        assert_eq!(at, payload.len());
        let claimed = lane.claimed();
        resends.keep(&header(1, payload.len()), &payload, claimed, lane.look().unwrap());
        assert_eq!(resends.take_from(&mut lane, &mut same()), (0, Ok(())));
        assert_eq!((resends.queue.len(), &resends.queue[0].payload), (1, &payload));
        let (first, last) = (Flags::FIRST.with(Flags::RESENT), Flags::LAST.with(Flags::RESENT));
        assert_eq!(taken(&mut resends), [(1, 1024, first), (1, 1024, Flags::RESENT), (1, 952, last)]);
        assert_eq!(resends.large.len(), 1, "it may have to be sent once more");
        resends.forget(u64::MAX);
        assert!(resends.large.is_empty());
    }

    #[test]
    fn one_that_is_still_being_placed_is_its_publishers_business() {
        let (mut lane, mut broker) = lane();
        assert!(place(&mut lane, 1, &[1; 3000], 0) < 3000);
        let mut resends = ResendQueue::default();
        assert_eq!(resends.take_from(&mut lane, &mut same()), (0, Ok(())));
        assert!(resends.is_empty());
        consume(&mut broker, 1);
        assert_eq!(resends.take_from(&mut lane, &mut same()), (0, Ok(())));
        assert!(resends.is_empty());
    }

    #[test]
    fn a_broker_that_died_again_gets_the_rest_later() {
        let (mut lane, _broker) = lane();
        let mut resends = ResendQueue::default();
        resends.push(Resend::publish(&header(5, 3000), vec![5; 3000]));
        resends.push(Resend::publish(&header(6, 1), vec![6]));
        let (first, part) = resends.next(SLOT).unwrap();
        assert!(lane.push(&first.to_words(), Payload::Bytes(part)).unwrap());
        resends.placed(SLOT, lane.claimed());
        assert_eq!(resends.take_from(&mut lane, &mut same()), (0, Ok(())));
        let sequences: Vec<_> = resends.queue.iter().map(|resend| resend.header.seq).collect();
        assert_eq!((sequences, resends.at), (vec![5, 6], 0));
    }

    #[test]
    fn a_number_that_was_released_and_given_again_stands_for_both_topics_in_their_order() {
        let (mut lane, _broker) = lane();
        let mut numbers = Renumbering::default();
        for number in [Some(0), None, Some(2)] {
            numbers.add(3, number);
        }
        for seq in 1..=3 {
            place(&mut lane, seq, b"x", 0);
            let release = Header { id: 3, ..Header::new(Kind::Release) };
            assert!(lane.push(&release.to_words(), Payload::EMPTY).unwrap());
        }
        let mut resends = ResendQueue::default();
        assert_eq!(resends.take_from(&mut lane, &mut numbers), (1, Ok(())), "one has no number there");
        let again: Vec<_> = resends.queue.iter().map(|resend| (resend.header.id, resend.header.seq)).collect();
        assert_eq!(again, [(0, 1), (2, 3)]);
    }
}

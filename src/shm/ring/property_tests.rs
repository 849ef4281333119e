//! The whole ring over a real segment, with both ends in one process: against an obvious oracle when the peer is
//! honest, and against nothing but "no panic, nothing outside the window" when it is not.

use super::{Channel, Consumer, Payload, Producer, Violation};
use crate::shm::layout::{CELL_WORDS, Geometry, HEADER_WORDS, PAGE_CELLS, RingName, cells_for, control};
use crate::shm::segment::{Nonces, Segment};
use crate::shm::words::Words;
use crate::sync::{AtomicU64, Ordering};
use memmap2::MmapOptions;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;

const EXTENSION_PAGES: u32 = 3;
const NONCES: Nonces = Nonces { bulk: u64::MAX >> 1, express: 1, egress: 1 << 40 };

#[derive(Debug, Clone)]
enum Step {
    Push(u32),
    /// From words that lie elsewhere, as the router does it.
    PushWords(u32),
    ReserveAndDrop(u32),
    /// Plans these records, then pushes them.
    PlanAndPush(Vec<u32>),
    /// Takes up to so many records without giving their cells back.
    Take(u8),
    Publish,
    /// As many pages, if that is more than before.
    Grow(u32),
    Trim,
}

/// One ring of a segment: the two ends, the pages, and the words as a peer could write them.
struct Ring {
    segment: Segment,
    name: RingName,
    slot_size: u32,
    channel: Channel,
    producer: Producer,
    consumer: Consumer,
}

impl Ring {
    fn new(name: RingName, slot_size: u32) -> Ring {
        let geometry = Geometry::new(slot_size, EXTENSION_PAGES * PAGE_CELLS).unwrap();
        let segment = Segment::create(geometry, NONCES, 0o600).unwrap();
        // A second mapping, as in another process.
        let file = segment.as_fd().try_clone_to_owned().unwrap();
        let map = MmapOptions::new().len(geometry.segment_bytes()).map_raw(&file).unwrap();
        let nonce = if name == RingName::Egress { NONCES.egress } else { NONCES.bulk };
        let channel = Channel::new(&Words::of_mapping(Arc::new(map)), &geometry, name, nonce);
        let (producer, consumer) = match name {
            RingName::Egress => (segment.broker_ends().2, Consumer::following(channel.clone())),
            _ => (segment.client_ends().0, Consumer::new(channel.clone())),
        };
        Ring { segment, name, slot_size, channel, producer, consumer }
    }

    fn broker_produces(&self) -> bool {
        self.name == RingName::Egress
    }

    fn inside<T>(&mut self, act: impl FnOnce(&mut Producer) -> T) -> T {
        if self.broker_produces() {
            return act(&mut self.producer);
        }
        self.producer.enter();
        let done = act(&mut self.producer);
        self.producer.leave();
        done
    }

    fn window(&self) -> u32 {
        if self.broker_produces() { self.producer.window() } else { self.consumer.window() }
    }

    fn grow(&mut self, cells: u32) {
        if cells > self.window() {
            self.segment.lease(self.name, 0, cells).unwrap();
            if self.broker_produces() { self.producer.set_window(cells) } else { self.consumer.grow(cells) }
        }
    }

    /// Takes the extension away, if that may be, and gives its pages back.
    fn trim(&mut self) -> Result<bool, Violation> {
        let window = self.window();
        let trimmed = if self.broker_produces() {
            let drained = self.producer.is_drained()?;
            if drained {
                self.producer.set_window(0);
            }
            drained
        } else {
            self.consumer.try_trim()?
        };
        if trimmed && window > 0 {
            self.segment.give_back(self.name, window).unwrap();
        }
        Ok(trimmed)
    }

    /// Looks for a record and checks that it lies where the consumer may look.
    fn peek(&mut self) -> Result<Option<super::Record>, Violation> {
        let Some(record) = self.consumer.peek()? else { return Ok(None) };
        assert!(record.len <= self.slot_size);
        let payload = self.consumer.payload(&record);
        let lies_in = |cells: &[AtomicU64]| {
            let cells = cells.as_ptr_range();
            let start = payload.as_ptr().wrapping_sub(1 + HEADER_WORDS);
            cells.contains(&start) && start.wrapping_add(cells_for(record.len) as usize * CELL_WORDS) <= cells.end
        };
        let window = &self.channel.extension.as_slice()[..self.consumer.window() as usize * CELL_WORDS];
        assert!(lies_in(self.channel.base.as_slice()) || lies_in(window), "{record:?}");
        Ok(Some(record))
    }
}

fn header(id: u64) -> [u64; HEADER_WORDS] {
    std::array::from_fn(|i| if i == 0 { id << 32 } else { id.wrapping_mul(0x9e37_79b9_7f4a_7c15) + i as u64 })
}

fn bytes(id: u64, len: u32) -> Vec<u8> {
    (0..u64::from(len)).map(|i| (id.wrapping_mul(31) + i * 7) as u8).collect()
}

/// The ring, and beside it what it should hold.
struct Checked {
    ring: Ring,
    pushed: u64,
    /// Id and length of each record that was pushed and not yet taken.
    waiting: VecDeque<(u64, u32)>,
    /// Records that were taken and not yet given back.
    taken: usize,
}

impl Checked {
    fn pushed(&mut self, len: u32, done: bool) {
        if done {
            self.waiting.push_back((self.pushed, len));
            self.pushed += 1;
        } else {
            assert!(self.waiting.len() + self.taken > 0, "a drained ring has room for {len} bytes");
        }
    }

    fn push(&mut self, len: u32) -> bool {
        let (id, payload) = (self.pushed, bytes(self.pushed, len));
        let (fits, done) =
            self.ring.inside(|p| (p.fits(len).unwrap(), p.push(&header(id), Payload::Bytes(&payload)).unwrap()));
        assert_eq!(fits, done, "`fits` and `push` agree");
        self.pushed(len, done);
        done
    }

    fn take(&mut self) -> bool {
        let record = self.ring.peek().unwrap();
        let again = self.ring.peek().unwrap();
        assert_eq!(record.map(|r| r.header), again.map(|r| r.header), "a look changes nothing");
        let (Some(record), Some((id, len))) = (record, self.waiting.front().copied()) else {
            assert!(record.is_none() && self.waiting.is_empty(), "{record:?}, waiting {:?}", self.waiting);
            return false;
        };
        let mut expected = header(id);
        expected[0] |= u64::from(len);
        assert_eq!((record.header, record.len), (expected, len));
        let mut payload = vec![0xff];
        self.ring.consumer.append_payload(&record, &mut payload);
        assert_eq!(payload[1..], bytes(id, len));
        self.ring.consumer.advance(&record);
        self.waiting.pop_front();
        self.taken += 1;
        true
    }

    fn publish(&mut self) {
        self.ring.consumer.publish_consumed();
        self.taken = 0;
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Push(len) => _ = self.push(*len),
            Step::PushWords(len) => {
                let (id, payload) = (self.pushed, bytes(self.pushed, *len));
                let words: Vec<_> = payload
                    .chunks(8)
                    .map(|chunk| {
                        let mut word = [0; 8];
                        word[..chunk.len()].copy_from_slice(chunk);
                        AtomicU64::new(u64::from_ne_bytes(word))
                    })
                    .collect();
                let done = self.ring.inside(|p| p.push(&header(id), Payload::Words(*len, &words)).unwrap());
                self.pushed(*len, done);
            }
            Step::ReserveAndDrop(len) => {
                self.ring.inside(|p| {
                    let before = p.start_plan().claimed();
                    if let Some(slot) = p.reserve(*len).unwrap() {
                        slot.payload().iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
                    }
                    assert_eq!(p.start_plan().claimed(), before, "a dropped slot leaves no trace");
                });
            }
            Step::PlanAndPush(lens) => {
                let planned: Vec<bool> = self.ring.inside(|p| {
                    let mut plan = p.start_plan();
                    lens.iter().map(|len| p.plan(&mut plan, *len).unwrap()).collect()
                });
                let done: Vec<bool> = lens.iter().map(|len| self.push(*len)).collect();
                assert_eq!(planned, done, "the plan says what `push` then does");
            }
            Step::Take(records) => {
                let _ = (0..*records).all(|_| self.take());
            }
            Step::Publish => self.publish(),
            Step::Grow(pages) => self.ring.grow(pages * PAGE_CELLS),
            Step::Trim => {
                let drained = self.waiting.is_empty() && (self.taken == 0 || !self.ring.broker_produces());
                assert_eq!(self.ring.trim().unwrap(), drained);
                if !self.ring.broker_produces() {
                    self.taken = 0;
                }
            }
        }
    }

    /// What the producer finds when its consumer has died is what the consumer has not given back.
    fn read_back(&mut self) {
        let mut read = Vec::new();
        self.ring.producer.unconsumed(|header, payload| read.push((header[0] >> 32, payload))).unwrap();
        assert_eq!(read.len(), self.taken + self.waiting.len());
        let taken = (self.pushed - read.len() as u64)..;
        assert!(read.iter().map(|(id, _)| *id).eq(taken.take(read.len())), "in order");
        assert!(read.iter().all(|(id, payload)| *payload == bytes(*id, payload.len() as u32)));
        let lens = read[self.taken..].iter().map(|(id, payload)| (*id, payload.len() as u32));
        assert!(lens.eq(self.waiting.iter().copied()));
    }

    fn audit(&mut self) {
        let cells = u64::from(self.ring.window());
        let base = self.ring.segment.geometry().base_bytes() as u64 / 4096;
        assert_eq!(
            self.ring.segment.pages().unwrap(),
            base + cells / u64::from(PAGE_CELLS),
            "pages are what is leased"
        );
        if self.taken == 0 && self.waiting.is_empty() {
            assert!(self.ring.producer.is_drained().unwrap());
        }
    }
}

fn sizes(slot_size: u32) -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0..=slot_size, 1 => Just(slot_size), 2 => 0..=64u32]
}

fn step(slot_size: u32) -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => sizes(slot_size).prop_map(Step::Push),
        2 => sizes(slot_size).prop_map(Step::PushWords),
        1 => sizes(slot_size).prop_map(Step::ReserveAndDrop),
        2 => prop::collection::vec(sizes(slot_size), 1..6).prop_map(Step::PlanAndPush),
        5 => (1u8..6).prop_map(Step::Take),
        3 => Just(Step::Publish),
        1 => (1..=EXTENSION_PAGES).prop_map(Step::Grow),
        1 => Just(Step::Trim),
    ]
}

fn rings() -> impl Strategy<Value = (RingName, u32)> {
    (prop_oneof![Just(RingName::Bulk), Just(RingName::Egress)], prop_oneof![Just(64u32), Just(200), Just(1024)])
}

/// What a hostile peer writes.
#[derive(Debug, Clone)]
enum Harm {
    /// Any control word.
    Control(usize, u64),
    /// The control words of this ring (consumed, window, busy), some cells beside what they are.
    Nudge(usize, i8),
    /// Any word of the base or the extension, to the modulus.
    Word(bool, usize, u64),
    /// A record that looks real, at this cell, for what the consumer expects next.
    Forge(bool, usize, u32),
}

fn harm() -> impl Strategy<Value = Harm> {
    let value = || prop_oneof![any::<u64>(), 0..200u64, Just(u64::MAX), Just(1 << 32)];
    prop_oneof![
        1 => (0..control::END, value()).prop_map(|(word, value)| Harm::Control(word, value)),
        2 => (0..3usize, any::<i8>()).prop_map(|(word, by)| Harm::Nudge(word, by)),
        2 => (any::<bool>(), any::<usize>(), value()).prop_map(|(bank, word, value)| Harm::Word(bank, word, value)),
        3 => (any::<bool>(), prop_oneof![Just(0), any::<usize>()], prop_oneof![0..1200u32, any::<u32>()])
            .prop_map(|(bank, cell, len)| Harm::Forge(bank, cell, len)),
    ]
}

fn hurt(ring: &Ring, consumed: u64, harm: &Harm) {
    let (channel, order) = (&ring.channel, Ordering::Relaxed);
    let control = channel.control.as_slice();
    let bank = |extension: &bool| if *extension { channel.extension.as_slice() } else { channel.base.as_slice() };
    match harm {
        Harm::Control(word, value) => control[*word].store(*value, order),
        Harm::Nudge(which, by) => {
            let word = [channel.ids.consumed, channel.ids.window, channel.ids.busy][*which];
            control[word].store(control[word].load(order).wrapping_add_signed(i64::from(*by)), order);
        }
        Harm::Word(extension, word, value) => {
            let words = bank(extension);
            words[word % words.len()].store(*value, order);
        }
        Harm::Forge(extension, cell, len) => {
            let words = bank(extension);
            let start = cell % (words.len() / CELL_WORDS) * CELL_WORDS;
            words[start + 1].store(u64::from(*len), order);
            words[start].store(channel.tag(consumed), order);
        }
    }
}

/// Does a step and ignores its result. Returns the cells that were consumed with it.
fn step_blindly(ring: &mut Ring, step: &Step) -> Result<u64, Violation> {
    let mut consumed = 0;
    match step {
        Step::Push(len) | Step::PushWords(len) => {
            let payload = bytes(1, *len);
            let _: bool = ring.inside(|p| p.push(&header(1), Payload::Bytes(&payload)))?;
        }
        Step::ReserveAndDrop(len) => ring.inside(|p| p.reserve(*len).map(drop))?,
        Step::PlanAndPush(lens) => ring.inside(|p| {
            let mut plan = p.start_plan();
            lens.iter().try_for_each(|len| p.plan(&mut plan, *len).map(drop))
        })?,
        Step::Take(records) => {
            for _ in 0..*records {
                let Some(record) = ring.peek()? else { break };
                let mut payload = Vec::new();
                ring.consumer.append_payload(&record, &mut payload);
                assert_eq!(payload.len(), record.len as usize);
                ring.consumer.advance(&record);
                consumed += u64::from(cells_for(record.len));
            }
        }
        Step::Publish => ring.consumer.publish_consumed(),
        Step::Grow(pages) => ring.grow(pages * PAGE_CELLS),
        Step::Trim => _ = ring.trim()?,
    }
    Ok(consumed)
}

proptest! {
    /// Every record arrives once, in order, with its header and bytes, through wrap, restart, growth and trim; what the
    /// ring says of its space is true; its pages are those that are leased.
    #[test]
    fn a_ring_is_a_queue(
        (name, slot_size, steps) in rings().prop_flat_map(|(name, slot)| {
            (Just(name), Just(slot), prop::collection::vec(step(slot), 1..250))
        })
    ) {
        let ring = Ring::new(name, slot_size);
        let mut checked = Checked { ring, pushed: 0, waiting: VecDeque::new(), taken: 0 };
        for step in &steps {
            checked.step(step);
            checked.audit();
        }
        checked.read_back();
        while checked.take() {}
        checked.publish();
        prop_assert!(checked.push(slot_size), "a drained ring has room for the largest record");
    }

    /// Whatever a peer writes between two steps: a result or a violation, no panic, no record outside the window or
    /// larger than a record may be. (A connection ends at its first violation; here it goes on, which is harder.)
    #[test]
    fn a_hostile_peer_breaks_nothing(
        (name, slot_size, steps) in rings().prop_flat_map(|(name, slot)| {
            let harms = prop::collection::vec(harm(), 0..3);
            (Just(name), Just(slot), prop::collection::vec((harms, step(slot)), 1..250))
        })
    ) {
        let mut ring = Ring::new(name, slot_size);
        let mut consumed = 0;
        for (harms, step) in &steps {
            harms.iter().for_each(|harm| hurt(&ring, consumed, harm));
            consumed += step_blindly(&mut ring, step).unwrap_or(0);
        }
    }
}

/// A tag of 0 would be found in every cell that nothing was written to.
#[test]
fn no_tag_is_ever_0() {
    for _ in 0..64 {
        let Nonces { bulk, express, egress } = Nonces::random().unwrap();
        assert!([bulk, express, egress].iter().all(|nonce| (1..1 << 63).contains(nonce)));
    }
}

#[test]
fn impossible_lengths_places_and_counts_are_named() {
    let mut ring = Ring::new(RingName::Bulk, 200);
    hurt(&ring, 0, &Harm::Forge(false, 0, 201));
    assert_eq!(ring.peek().unwrap_err(), Violation::Length { len: 201, max: 200 });
    hurt(&ring, 0, &Harm::Forge(false, 0, 0));
    let record = ring.peek().unwrap().unwrap();
    ring.consumer.advance(&record);
    hurt(&ring, 1, &Harm::Forge(false, 1, 200));
    assert_eq!(ring.peek().unwrap_err(), Violation::Outside { at: 1, cells: 3, window: 3 });
    assert!(ring.producer.push(&header(0), Payload::EMPTY).unwrap());
    hurt(&ring, 0, &Harm::Nudge(0, 2));
    let error = ring.producer.is_drained().unwrap_err();
    assert_eq!(error, Violation::Consumed { consumed: 2, last: 0, claimed: 1 });
}

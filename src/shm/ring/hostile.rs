//! A ring whose memory a hostile peer rewrites between the steps of the other side, for the fuzzer and the tests. The
//! input is a program: each byte is a step, the bytes behind it are its operands.
//!
//! Either side may get nonsense or a violation. Neither may panic, look outside its window, or move by more than what
//! it was given.

use super::{Channel, Consumer, Payload, Producer, Record, Violation};
use crate::shm::layout::{CELL_WORDS, Geometry, HEADER_WORDS, PAGE_CELLS, RingName, cells_for};
use crate::shm::words::Words;
use crate::sync::{AtomicU64, Ordering};
use memmap2::{MmapOptions, MmapRaw};
use std::sync::Arc;

const EXTENSION_CELLS: u32 = 2 * PAGE_CELLS;
/// Steps of a program.
const STEPS_MAX: u32 = 512;

/// The bytes of a program. Behind its end all operands are 0.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All bytes that are left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(crate) fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, n| word | u64::from(self.byte()) << (8 * n))
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.byte() as usize % of.len()]
    }

    /// A number of the kind that lies at an edge somewhere, a small one, or any.
    pub(crate) fn edge(&mut self) -> u64 {
        const EDGES: [u64; 16] = [
            0,
            1,
            8,
            9,
            64,
            1023,
            1024,
            1025,
            4096,
            10_485_760,
            (1 << 31) - 1,
            (1 << 32) - 1,
            1 << 32,
            1 << 63,
            u64::MAX - 1,
            u64::MAX,
        ];
        match self.byte() {
            at @ 0..16 => EDGES[at as usize],
            16 => self.word(),
            small => u64::from(small) - 17,
        }
    }
}

/// The words of a ring, and its nonce.
struct Memory {
    channel: Channel,
    slot_size: u32,
}

impl Memory {
    /// `None`: the system has no memory.
    fn new(name: RingName, slot_size: u32) -> Option<Memory> {
        let geometry = Geometry::new(slot_size, EXTENSION_CELLS).ok()?;
        let map: MmapRaw = MmapOptions::new().len(geometry.segment_bytes()).map_anon().ok()?.into();
        // Near the end of the numbers: tags wrap after a few records.
        let channel = Channel::new(&Words::of_mapping(Arc::new(map)), &geometry, name, u64::MAX - 40);
        Some(Memory { channel, slot_size })
    }

    /// One step of the peer, which may write any word. `count` is the position of the next record.
    fn scribble(&self, input: &mut Input, count: u64) {
        let banks = [&self.channel.base, &self.channel.extension];
        match input.byte() % 4 {
            // A record that is nearly right, at any cell.
            0 => {
                let words = banks[usize::from(input.byte() & 1)].as_slice();
                let at = input.byte() as usize % (words.len() / CELL_WORDS) * CELL_WORDS;
                let tag = self.channel.tag(count).wrapping_add(u64::from(input.byte() % 4));
                let len = input.edge() & 0xffff_ffff;
                words[at + 1].store(len | input.word() << 32, Ordering::Relaxed);
                words[at].store(tag, Ordering::Relaxed);
            }
            1 => {
                let words = self.channel.control.as_slice();
                words[input.byte() as usize % words.len()].store(input.edge(), Ordering::Relaxed);
            }
            2 => {
                let ids = self.channel.ids;
                let word = input.pick(&[ids.consumed, ids.window, ids.busy]);
                let value = if input.byte() & 1 == 0 { count.wrapping_add(input.edge()) } else { input.edge() };
                self.channel.control.as_slice()[word].store(value, Ordering::Relaxed);
            }
            _ => {
                let words = banks[usize::from(input.byte() & 1)].as_slice();
                words[input.word() as usize % words.len()].store(input.edge(), Ordering::Relaxed);
            }
        }
    }

    /// A record lies within the windows, and its payload within the record.
    fn check(&self, consumer: &Consumer, record: &Record) {
        assert!(record.len <= self.slot_size, "{record:?}");
        let payload = consumer.payload(record);
        assert_eq!(payload.len(), (record.len as usize).div_ceil(8));
        let lies_in = |cells: &[AtomicU64]| {
            let cells = cells.as_ptr_range();
            let start = payload.as_ptr().wrapping_sub(1 + HEADER_WORDS);
            cells.contains(&start) && start.wrapping_add(cells_for(record.len) as usize * CELL_WORDS) <= cells.end
        };
        let window = &self.channel.extension.as_slice()[..consumer.window() as usize * CELL_WORDS];
        assert!(lies_in(self.channel.base.as_slice()) || lies_in(window), "{record:?} in {} cells", consumer.window());
    }
}

/// Runs a program against a consumer or a producer of the broker or of a client.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (side, slot_size) = (input.byte(), input.pick(&[64, 256, 1024, 65_536]));
    let name = input.pick(&[RingName::Bulk, RingName::Express, RingName::Egress]);
    let Some(memory) = Memory::new(name, slot_size) else { return };
    // An error ends a connection. What is called after it must keep the rules all the same.
    let _: Result<(), Violation> = match side % 3 {
        0 => consume(&mut input, &memory, Consumer::new(memory.channel.clone()), true),
        1 => consume(&mut input, &memory, Consumer::following(memory.channel.clone()), false),
        _ => produce(&mut input, &memory, Producer::new(memory.channel.clone())),
    };
}

/// `owns`: the consumer is the broker's, which sets the window.
fn consume(input: &mut Input, memory: &Memory, mut consumer: Consumer, owns: bool) -> Result<(), Violation> {
    let (mut payload, mut steps, mut result) = (Vec::new(), 0, Ok(()));
    while !input.is_empty() && steps < STEPS_MAX {
        steps += 1;
        let before = consumer.consumed();
        let step = match input.byte() % 8 {
            0..=2 => {
                memory.scribble(input, before);
                continue;
            }
            3 => consumer.peek().map(|record| {
                if let Some(record) = record {
                    memory.check(&consumer, &record);
                }
            }),
            4 | 5 => consumer.peek().map(|record| {
                let Some(record) = record else { return };
                // The peer writes between the look and the copy.
                memory.scribble(input, before);
                memory.check(&consumer, &record);
                payload.clear();
                consumer.append_payload(&record, &mut payload);
                assert_eq!(payload.len(), record.len as usize);
                consumer.advance(&record);
                assert_eq!(consumer.consumed(), before + u64::from(cells_for(record.len)));
            }),
            6 if owns => {
                let more = u32::from(input.byte()) % (EXTENSION_CELLS - consumer.window() + 1);
                consumer.grow(consumer.window() + more);
                Ok(())
            }
            7 if owns => {
                let window = consumer.window();
                let trimmed = consumer.try_trim();
                assert_eq!(consumer.window(), if trimmed == Ok(true) { 0 } else { window });
                trimmed.map(|_| ())
            }
            _ => {
                consumer.publish_consumed();
                assert_eq!(consumer.unpublished(), 0);
                Ok(())
            }
        };
        assert!(consumer.window() <= EXTENSION_CELLS);
        result = result.and(step);
    }
    result
}

fn produce(input: &mut Input, memory: &Memory, mut producer: Producer) -> Result<(), Violation> {
    let (mut steps, mut result) = (0, Ok(()));
    while !input.is_empty() && steps < STEPS_MAX {
        steps += 1;
        let before = producer.claimed();
        let len = |input: &mut Input| input.edge() as u32 % (memory.slot_size + 1);
        let step = match input.byte() % 8 {
            0 | 1 => {
                memory.scribble(input, before);
                continue;
            }
            2 | 3 => {
                let bytes = vec![0x5a; len(input) as usize];
                producer.push(&[input.word(); HEADER_WORDS], Payload::Bytes(&bytes)).map(|pushed| {
                    let cells = if pushed { cells_for(bytes.len() as u32) } else { 0 };
                    assert_eq!(producer.claimed(), before + u64::from(cells));
                })
            }
            4 => {
                let mut plan = producer.start_plan();
                let planned = (0..input.byte() % 4).try_for_each(|_| producer.plan(&mut plan, len(input)).map(|_| ()));
                assert_eq!(producer.claimed(), before);
                planned
            }
            5 => {
                producer.enter();
                producer.leave();
                Ok(())
            }
            // The broker's: larger, or away from a drained ring.
            6 => producer.is_drained().map(|is_drained| {
                let least = if is_drained { 0 } else { producer.window() };
                producer.set_window(least + u32::from(input.byte()) % (EXTENSION_CELLS - least + 1));
            }),
            _ => {
                let mut cells = 0;
                let read = producer.unconsumed(|_, payload| {
                    assert!(payload.len() <= memory.slot_size as usize);
                    cells += u64::from(cells_for(payload.len() as u32));
                });
                // A hostile consumer may shorten records, so that more follow, up to the position.
                assert!(cells <= before + u64::from(cells_for(memory.slot_size)), "{cells} of {before}");
                read
            }
        };
        assert!(producer.window() <= EXTENSION_CELLS);
        result =
            result.and(step.and_then(|()| producer.look()).map(|consumed| assert!(consumed <= producer.claimed())));
    }
    result
}

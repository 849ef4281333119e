//! What the models share: a tiny ring whose cells are shadowed, numbered records, a doorbell, the
//! explorer.
#![allow(clippy::print_stderr)]

use crate::shm::layout::{CELL_WORDS, HEADER_WORDS, cells_for};
use crate::shm::ring::{Channel, Consumer, Payload, Producer, Record, Signal};
use crate::shm::words::{Words, read_bytes, write_bytes};
use crate::sync::{AtomicU64, Ordering};
use loom::cell::UnsafeCell;
use loom::sync::{Condvar, Mutex};
use std::sync::Arc;

/// Payload bytes that fill one cell, and two.
pub(super) const ONE: u32 = 64;
pub(super) const TWO: u32 = 72;

/// Stands for a cell as plain memory. It holds nothing: only loom's record of its accesses matters.
#[derive(Default)]
pub(super) struct Track(UnsafeCell<()>);

// SAFETY: `Sync` asks that `&Track` may be used from several threads. The cell holds `()`, so there is no memory to
// race for, and loom runs a model's threads one at a time.
unsafe impl Sync for Track {}

/// A tiny ring and the shadows of its cells.
#[derive(Clone)]
pub(super) struct Ring {
    pub(super) channel: Channel,
    tracks: Arc<Vec<Track>>,
}

impl Ring {
    pub(super) fn new(base_cells: usize, extension_cells: usize) -> Ring {
        let tracks = (0..base_cells + extension_cells).map(|_| Track::default()).collect();
        Ring { channel: Channel::tiny(base_cells, extension_cells), tracks: Arc::new(tracks) }
    }

    pub(super) fn base_cells(&self) -> usize {
        self.channel.base.as_slice().len() / CELL_WORDS
    }

    /// The shadows of the record whose payload is given.
    pub(super) fn tracks(&self, payload: &[AtomicU64], len: u32) -> &[Track] {
        let record = payload.as_ptr().wrapping_sub(1 + HEADER_WORDS);
        let in_bank = |bank: &Words| bank.as_slice().iter().position(|word| std::ptr::eq(word, record));
        let first = match in_bank(&self.channel.base) {
            Some(word) => word / CELL_WORDS,
            None => self.base_cells() + in_bank(&self.channel.extension).expect("a record lies in a bank") / CELL_WORDS,
        };
        &self.tracks[first..first + cells_for(len) as usize]
    }

    /// As the kernel when pages are punched out: the words read as zero.
    pub(super) fn punch(&self) {
        for word in self.channel.extension.as_slice() {
            word.store(0, Ordering::Relaxed);
        }
        self.tracks[self.base_cells()..].iter().for_each(|track| track.0.with_mut(|_| ()));
    }
}

pub(super) fn header(id: u64) -> [u64; HEADER_WORDS] {
    std::array::from_fn(|i| (id << 32) + ((i as u64) << 40))
}

pub(super) fn push(ring: &Ring, producer: &mut Producer, id: u64, len: u32) -> bool {
    let Some(slot) = producer.reserve(len).unwrap() else { return false };
    ring.tracks(slot.payload(), len).iter().for_each(|track| track.0.with_mut(|_| ()));
    write_bytes(&slot.payload()[..1], &id.to_le_bytes());
    write_bytes(&slot.payload()[len as usize / 8 - 1..], &id.to_le_bytes());
    slot.publish(&header(id), len);
    true
}

pub(super) fn push_inside(ring: &Ring, producer: &mut Producer, id: u64, len: u32) -> bool {
    producer.enter();
    let pushed = push(ring, producer, id, len);
    producer.leave();
    pushed
}

/// As [`push_inside`], and asks to be woken if there is no space.
pub(super) fn push_or_arm(producer: &mut Producer, id: u64, len: u32, space: &Signal) -> bool {
    let payload = id.to_le_bytes().repeat(len as usize / 8);
    producer.push_or_arm(&header(id), Payload::Bytes(&payload), space).unwrap()
}

/// Takes the next record, if it is there, and gives its cells back.
pub(super) fn take(ring: &Ring, consumer: &mut Consumer) -> Option<u64> {
    let record = consumer.peek().unwrap()?;
    let id = verify(ring, consumer, &record);
    consumer.advance(&record);
    consumer.publish_consumed();
    Some(id)
}

pub(super) fn verify(ring: &Ring, consumer: &Consumer, record: &Record) -> u64 {
    let payload = consumer.payload(record);
    ring.tracks(payload, record.len).iter().for_each(|track| track.0.with(|_| ()));
    let id = record.header[1] >> 32 & 0xff;
    let mut expected = header(id);
    expected[0] |= u64::from(record.len);
    assert_eq!(record.header, expected, "header of another record");
    for word in [&payload[..1], &payload[payload.len() - 1..]] {
        let mut bytes = [0; 8];
        read_bytes(word, &mut bytes);
        assert_eq!(u64::from_le_bytes(bytes), id, "payload of another record");
    }
    id
}

pub(super) fn take_all(ring: &Ring, consumer: &mut Consumer, got: &mut Vec<u64>) {
    got.extend(std::iter::from_fn(|| take(ring, consumer)));
}

/// A doorbell that remembers one ring. A sleeper that is never rung is a deadlock, which loom reports.
#[derive(Default)]
pub(super) struct Bell {
    rang: Mutex<bool>,
    wake: Condvar,
}

impl Bell {
    pub(super) fn ring(&self) {
        *self.rang.lock().unwrap() = true;
        self.wake.notify_one();
    }

    pub(super) fn sleep(&self) {
        let mut rang = self.rang.lock().unwrap();
        while !*rang {
            rang = self.wake.wait(rang).unwrap();
        }
        *rang = false;
    }
}

/// A doorbell that wakes all sleepers, each to look for itself.
#[derive(Default)]
pub(super) struct Turns {
    turns: Mutex<u64>,
    turn: Condvar,
}

impl Turns {
    pub(super) fn ring(&self) {
        *self.turns.lock().unwrap() += 1;
        self.turn.notify_all();
    }

    pub(super) fn seen(&self) -> u64 {
        *self.turns.lock().unwrap()
    }

    pub(super) fn sleep(&self, seen: u64) {
        let mut turns = self.turns.lock().unwrap();
        while *turns == seen {
            turns = self.turn.wait(turns).unwrap();
        }
    }
}

pub(super) fn take_or_sleep(ring: &Ring, consumer: &mut Consumer, data: &Signal, bell: &Bell) -> u64 {
    loop {
        if let Some(id) = take(ring, consumer) {
            return id;
        }
        data.arm();
        if consumer.peek().unwrap().is_some() {
            data.disarm();
        } else {
            bell.sleep();
        }
    }
}

/// Explores `model` with at most `preemptions` involuntary switches, and says how many executions that took.
pub(super) fn explore(name: &'static str, preemptions: usize, model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 100_000;
    let executions = Arc::new(std::sync::Mutex::new(0u64));
    let (count, start) = (executions.clone(), std::time::Instant::now());
    builder.check(move || {
        *count.lock().unwrap() += 1;
        model();
    });
    let executions = *executions.lock().unwrap();
    eprintln!("{name}: {executions} executions, {:.1} s", start.elapsed().as_secs_f32());
}

//! The ring under the model checker: loom runs the production code of producer, consumer and signal through the
//! interleavings and stale reads that the memory model allows.
//!
//! Each model is small: one or two cells, a handful of records, a bounded number of attempts on either side; what is
//! then still in the ring is taken out after `join`, so nothing spins. Two things are checked in every model:
//!
//! - each record arrives once, in its producer's order, with its own header and payload;
//! - the cells behave as plain memory that is handed over and back. For that a [`Track`] shadows each cell: a touch of
//!   it by one side that does not *happen after* the last touch by the other fails the model. Without it the orderings
//!   by which cells go *back* (R5) could not be seen: loom never lets a load return a value of the future.
//!
//! The `mutants` switch one [`Site`] off and expect a model to fail, which shows that the site is needed and that
//! the model would notice its loss.
//!
//! `RUSTFLAGS="--cfg lapce_ipc_loom" cargo test --release --no-default-features --lib loom`; `LOOM_MAX_PREEMPTIONS`
//! overrides the bound of each model, `--nocapture` shows how many executions each took.
mod fixture;
mod mutants;

use super::{Consumer, Producer, Signal, publication_fence};
use crate::shm::layout::cells_for;
use crate::shm::words::Words;
use fixture::{Bell, ONE, Ring, TWO, Turns, explore, push, push_inside, push_or_arm, take, take_all, take_or_sleep};
use loom::sync::Mutex;
use loom::thread;
use std::sync::Arc;

/// Pushes records of the sizes `lens` with one attempt more than there are records, then takes what is left.
fn pass(ring: Ring, lens: &'static [u32], attempts: usize) {
    let (mut producer, mut consumer) = (Producer::new(ring.channel.clone()), Consumer::new(ring.channel.clone()));
    let there = ring.clone();
    let producing = thread::spawn(move || {
        let mut pushed = 0;
        for _ in 0..=lens.len() {
            if let Some(len) = lens.get(pushed)
                && push(&there, &mut producer, pushed as u64 + 1, *len)
            {
                pushed += 1;
            } else {
                thread::yield_now();
            }
        }
        (producer, pushed)
    });
    let mut got = Vec::new();
    for _ in 0..attempts {
        match take(&ring, &mut consumer) {
            Some(id) => got.push(id),
            None => thread::yield_now(),
        }
    }
    let (mut producer, pushed) = producing.join().unwrap();
    take_all(&ring, &mut consumer, &mut got);
    // A drained ring has room for any record, at the start of its base.
    assert!(push(&ring, &mut producer, pushed as u64 + 1, lens[0]), "a drained ring is not full");
    take_all(&ring, &mut consumer, &mut got);
    assert_eq!(got, (1..=pushed as u64 + 1).collect::<Vec<_>>());
}

fn one_cell() {
    pass(Ring::new(1, 0), &[ONE, ONE, ONE], 3);
}

fn wrap_and_restart() {
    pass(Ring::new(2, 0), &[ONE, TWO, ONE, ONE], 4);
}

fn two_producers() {
    let ring = Ring::new(2, 0);
    let mut consumer = Consumer::new(ring.channel.clone());
    let producer = Arc::new(Mutex::new(Producer::new(ring.channel.clone())));
    let threads: Vec<_> = [10, 20]
        .map(|name| {
            let (ring, producer) = (ring.clone(), producer.clone());
            thread::spawn(move || {
                let mut pushed = Vec::new();
                for n in 0..2 {
                    if push_inside(&ring, &mut producer.lock().unwrap(), name + n, ONE) {
                        pushed.push(name + n);
                    }
                }
                pushed
            })
        })
        .into();
    let mut got = Vec::new();
    got.extend(take(&ring, &mut consumer));
    let pushed: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    take_all(&ring, &mut consumer, &mut got);
    for (name, pushed) in [1, 2].into_iter().zip(pushed) {
        assert_eq!(got.iter().copied().filter(|id| id / 10 == name).collect::<Vec<_>>(), pushed);
    }
}

fn growth() {
    let ring = Ring::new(1, 2);
    let (mut producer, mut consumer) = (Producer::new(ring.channel.clone()), Consumer::new(ring.channel.clone()));
    let there = ring.clone();
    let producing = thread::spawn(move || {
        let mut pushed = 0;
        for _ in 0..4 {
            pushed += u64::from(push_inside(&there, &mut producer, pushed + 1, ONE));
        }
        (producer, pushed)
    });
    let mut got = Vec::new();
    got.extend(take(&ring, &mut consumer));
    consumer.grow(1);
    got.extend(take(&ring, &mut consumer));
    consumer.grow(2);
    got.extend(take(&ring, &mut consumer));
    let (mut producer, pushed) = producing.join().unwrap();
    take_all(&ring, &mut consumer, &mut got);
    // Drained: on through the extension, back to the base, and into the extension again.
    for id in pushed + 1..=pushed + 3 {
        assert!(push_inside(&ring, &mut producer, id, ONE), "a drained ring is not full");
        take_all(&ring, &mut consumer, &mut got);
    }
    assert_eq!(got, (1..=pushed + 3).collect::<Vec<_>>());
}

/// One producer that is inside now and then, while the broker takes the extension away. With `regrow`, it leases it
/// again.
fn trim(regrow: bool) {
    let ring = Ring::new(1, 1);
    let (mut producer, mut consumer) = (Producer::new(ring.channel.clone()), Consumer::new(ring.channel.clone()));
    consumer.grow(1);
    let there = ring.clone();
    let producing = thread::spawn(move || {
        let mut pushed = 0;
        for _ in 0..3 {
            pushed += u64::from(push_inside(&there, &mut producer, pushed + 1, ONE));
        }
        (producer, pushed)
    });
    let mut got = Vec::new();
    let mut trimmed = false;
    for _ in 0..2 {
        got.extend(take(&ring, &mut consumer));
        if !trimmed && consumer.try_trim().unwrap() {
            ring.punch();
            trimmed = !regrow;
            if regrow {
                consumer.grow(1);
            }
        }
    }
    let (mut producer, pushed) = producing.join().unwrap();
    take_all(&ring, &mut consumer, &mut got);
    assert_eq!(got, (1..=pushed).collect::<Vec<_>>());
    if !trimmed {
        assert!(consumer.try_trim().unwrap(), "drained, and no side is inside");
        ring.punch();
    }
    assert!(push_inside(&ring, &mut producer, pushed + 1, ONE));
    assert!(!push_inside(&ring, &mut producer, pushed + 2, ONE), "the extension is taken away");
    assert_eq!(take(&ring, &mut consumer), Some(pushed + 1));
}

fn trim_once() {
    trim(false);
}

fn trim_and_regrow() {
    trim(true);
}

fn trim_with_two_producers() {
    let ring = Ring::new(1, 1);
    let mut consumer = Consumer::new(ring.channel.clone());
    consumer.grow(1);
    let producer = Arc::new(Mutex::new(Producer::new(ring.channel.clone())));
    let threads: Vec<_> = [1, 2]
        .map(|id| {
            let (ring, producer) = (ring.clone(), producer.clone());
            thread::spawn(move || push_inside(&ring, &mut producer.lock().unwrap(), id, ONE).then_some(id))
        })
        .into();
    let mut got = Vec::new();
    got.extend(take(&ring, &mut consumer));
    if consumer.try_trim().unwrap() {
        ring.punch();
    }
    let mut pushed: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
    take_all(&ring, &mut consumer, &mut got);
    got.sort_unstable();
    pushed.sort_unstable();
    assert_eq!(got, pushed);
}

/// A producer that sleeps when there is no space, a consumer that sleeps when there is no record: `records` get
/// through.
fn sleepers(cells: usize, records: u64) {
    let ring = Ring::new(cells, 0);
    let flags = Words::on_heap(2);
    let (data, space) = (Signal::new(flags.clone(), 0), Signal::new(flags, 1));
    let (data_bell, space_bell) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
    let (mut producer, mut consumer) = (Producer::new(ring.channel.clone()), Consumer::new(ring.channel.clone()));
    let producing = {
        let (ring, data, space) = (ring.clone(), data.clone(), space.clone());
        let (data_bell, space_bell) = (data_bell.clone(), space_bell.clone());
        thread::spawn(move || {
            for id in 1..=records {
                while !push(&ring, &mut producer, id, ONE) {
                    space.arm();
                    if producer.fits(ONE).unwrap() {
                        space.disarm();
                    } else {
                        space_bell.sleep();
                    }
                }
                publication_fence();
                if data.take() {
                    data_bell.ring();
                }
            }
        })
    };
    for id in 1..=records {
        assert_eq!(take_or_sleep(&ring, &mut consumer, &data, &data_bell), id);
        publication_fence();
        if space.take() {
            space_bell.ring();
        }
    }
    producing.join().unwrap();
}

fn data_wakes() {
    sleepers(2, 2);
}

fn space_wakes() {
    sleepers(1, 2);
}

/// The egress ring: its producer widens the window while the consumer sleeps. Each record has the window before it.
fn window_grows_before_a_sleeper(records: &'static [(u32, u32)]) {
    let ring = Ring::new(cells_for(records[0].1) as usize, 3);
    let data = Signal::new(Words::on_heap(1), 0);
    let bell = Arc::new(Bell::default());
    let (mut producer, mut consumer) = (Producer::new(ring.channel.clone()), Consumer::following(ring.channel.clone()));
    let producing = {
        let (ring, data, bell) = (ring.clone(), data.clone(), bell.clone());
        thread::spawn(move || {
            for (id, (window, len)) in (1..).zip(records) {
                producer.set_window(*window);
                assert!(push(&ring, &mut producer, id, *len));
                publication_fence();
                if data.take() {
                    bell.ring();
                }
            }
        })
    };
    for id in 1..=records.len() as u64 {
        assert_eq!(take_or_sleep(&ring, &mut consumer, &data, &bell), id);
    }
    producing.join().unwrap();
}

/// The egress ring: its producer takes the extension away when all is consumed, and leases it again.
fn window_closes_when_drained() {
    let ring = Ring::new(1, 1);
    let (mut producer, mut consumer) = (Producer::new(ring.channel.clone()), Consumer::following(ring.channel.clone()));
    let there = ring.clone();
    producer.set_window(1);
    let producing = thread::spawn(move || {
        let mut pushed = 0;
        for _ in 0..4 {
            pushed += u64::from(push(&there, &mut producer, pushed + 1, ONE));
            if producer.is_drained().unwrap() {
                producer.set_window(0);
                there.punch();
                producer.set_window(1);
            }
        }
        pushed
    });
    let mut got = Vec::new();
    for _ in 0..3 {
        got.extend(take(&ring, &mut consumer));
    }
    let pushed = producing.join().unwrap();
    take_all(&ring, &mut consumer, &mut got);
    assert_eq!(got, (1..=pushed).collect::<Vec<_>>());
}

/// A producer that found no space is woken by a window that grows, without a record being consumed.
fn growth_wakes() {
    let ring = Ring::new(1, 1);
    let space = Signal::new(Words::on_heap(1), 0);
    let bell = Arc::new(Bell::default());
    let (mut producer, mut consumer) = (Producer::new(ring.channel.clone()), Consumer::new(ring.channel.clone()));
    let producing = {
        let (ring, space, bell) = (ring.clone(), space.clone(), bell.clone());
        thread::spawn(move || {
            for id in 1..=2 {
                while !push_inside(&ring, &mut producer, id, ONE) {
                    space.arm();
                    if push_inside(&ring, &mut producer, id, ONE) {
                        space.disarm();
                        break;
                    }
                    bell.sleep();
                }
            }
        })
    };
    assert!(take(&ring, &mut consumer).is_none_or(|id| id == 1));
    consumer.grow(1);
    publication_fence();
    if space.take() {
        bell.ring();
    }
    producing.join().unwrap();
}

/// Two threads of a client wait for space in its lane. One that finds some does not keep the ring from the other.
fn space_wakes_each_thread() {
    let ring = Ring::new(1, 0);
    let flags = Words::on_heap(2);
    let (data, space) = (Signal::new(flags.clone(), 0), Signal::new(flags, 1));
    let (data_bell, space_bell) = (Arc::new(Bell::default()), Arc::new(Turns::default()));
    let (mut producer, mut consumer) = (Producer::new(ring.channel.clone()), Consumer::new(ring.channel.clone()));
    assert!(push(&ring, &mut producer, 1, ONE));
    let producer = Arc::new(Mutex::new(producer));
    let threads: Vec<_> = [2, 3]
        .map(|id| {
            let (producer, data, space) = (producer.clone(), data.clone(), space.clone());
            let (data_bell, space_bell) = (data_bell.clone(), space_bell.clone());
            thread::spawn(move || {
                loop {
                    let seen = space_bell.seen();
                    if push_or_arm(&mut producer.lock().unwrap(), id, ONE, &space) {
                        break;
                    }
                    space_bell.sleep(seen);
                }
                publication_fence();
                if data.take() {
                    data_bell.ring();
                }
            })
        })
        .into();
    let mut got = Vec::new();
    while got.len() < 3 {
        got.push(take_or_sleep(&ring, &mut consumer, &data, &data_bell));
        publication_fence();
        if space.take() {
            space_bell.ring();
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    got.sort_unstable();
    assert_eq!(got, [1, 2, 3]);
}

#[test]
fn loom_space_wakes_each_thread() {
    explore("space wakes each thread", 3, space_wakes_each_thread);
}

#[test]
fn loom_growth_wakes_a_producer() {
    explore("growth wakes", 4, growth_wakes);
}

#[test]
fn loom_a_sleeper_looks_into_a_window_that_has_grown() {
    // The third record lies where the window has just grown.
    explore("new window", 3, || window_grows_before_a_sleeper(&[(0, ONE), (1, ONE), (2, ONE)]));
}

#[test]
fn loom_a_record_may_reach_into_a_window_that_has_grown() {
    explore("across the old window", 3, || window_grows_before_a_sleeper(&[(0, TWO), (2, ONE), (3, TWO)]));
}

#[test]
fn loom_a_drained_window_closes_and_opens() {
    explore("window closes when drained", 3, window_closes_when_drained);
}

#[test]
fn loom_one_cell_carries_record_after_record() {
    explore("one cell", 8, one_cell);
}

#[test]
fn loom_records_wrap_and_restart() {
    explore("wrap and restart", 5, wrap_and_restart);
}

#[test]
fn loom_two_producers_keep_their_order() {
    explore("two producers", 5, two_producers);
}

#[test]
fn loom_a_ring_grows_and_comes_back() {
    explore("growth", 3, growth);
}

#[test]
fn loom_a_trim_loses_no_record() {
    explore("trim", 3, trim_once);
}

#[test]
fn loom_a_trimmed_extension_can_be_leased_again() {
    explore("trim and regrow", 3, trim_and_regrow);
}

#[test]
fn loom_a_trim_loses_no_record_of_two_producers() {
    explore("trim with two producers", 4, trim_with_two_producers);
}

#[test]
fn loom_no_wake_up_for_data_is_lost() {
    explore("data wakes", 5, data_wakes);
}

#[test]
fn loom_no_wake_up_for_space_is_lost() {
    explore("space wakes", 4, space_wakes);
}

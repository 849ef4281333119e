//! Whether the broker holds newer messages than those in the egress ring, for subscriptions that drop the oldest.
//!
//! The broker increments a counter in the segment when its backlog begins and when it ends. While the counter differs
//! from its value at the last empty ring, a `drop_oldest` subscription reads on before it returns a message, so that
//! the oldest messages are dropped and the newest stay. An invalid counter delays this client's own messages only, for
//! a limited time.

use super::lock::lock;
use crate::shm::segment::Newer;
use crate::sync::{AtomicU64, Mutex, Ordering};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

/// How long a subscription reads on without new records.
const CATCH_UP: Duration = Duration::from_millis(100);
/// The total time limit: a publisher may be faster than this client.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// The pause after a time limit was reached, as a multiple of the time spent.
const PAUSE_FACTOR: u32 = 10;

#[derive(Debug)]
pub(crate) struct BrokerBacklog {
    word: Mutex<Newer>,
    /// The counter at the last empty ring.
    read: AtomicU64,
    /// The number of received records. Only the reader writes.
    records: AtomicU64,
}

impl BrokerBacklog {
    pub(crate) fn new(word: Newer) -> BrokerBacklog {
        BrokerBacklog { word: Mutex::new(word), read: AtomicU64::new(0), records: AtomicU64::new(0) }
    }

    fn word(&self) -> MutexGuard<'_, Newer> {
        lock(&self.word)
    }

    /// Another session's segment.
    pub(crate) fn renew(&self, word: Newer) {
        let mut present = self.word();
        *present = word;
        self.read.store(0, Ordering::Relaxed);
    }

    /// Whether the broker holds newer messages.
    pub(crate) fn has_newer(&self) -> bool {
        let word = self.word();
        word.get() != self.read.load(Ordering::Relaxed)
    }

    /// Notes that this many records have arrived.
    pub(crate) fn note_records(&self, records: usize) {
        self.records.store(self.records() + records as u64, Ordering::Relaxed);
    }

    /// The number of received records.
    pub(crate) fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// The ring was empty after `count` was read. Returns whether that ends a backlog.
    pub(crate) fn mark_read(&self, count: u64) -> bool {
        if !count.is_multiple_of(2) || self.read.load(Ordering::Relaxed) == count {
            return false;
        }
        self.read.store(count, Ordering::Release);
        true
    }

    /// Whether the ring was empty at this count.
    pub(crate) fn has_read(&self, count: u64) -> bool {
        self.read.load(Ordering::Relaxed) == count
    }
}

/// The time that a subscription has spent catching up.
#[derive(Debug, Default)]
pub(crate) struct CatchUp(Option<Reading>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    since: Instant,
    /// When records came last, and how many had come by then.
    came_at: Instant,
    records: u64,
    /// When a time limit was reached.
    ended: Option<Instant>,
}

impl CatchUp {
    /// Whether to read on at `now`, given the number of received records.
    pub(crate) fn should_wait(&mut self, has_newer: bool, records: u64, now: Instant) -> bool {
        if !has_newer {
            self.0 = None;
            return false;
        }
        let begins = Reading { since: now, came_at: now, records, ended: None };
        let reading = self.0.get_or_insert(begins);
        if let Some(ended) = reading.ended {
            if now.saturating_duration_since(ended) < (ended - reading.since) * PAUSE_FACTOR {
                return false;
            }
            *reading = begins;
        }
        if reading.records != records {
            (reading.records, reading.came_at) = (records, now);
        }
        if now >= reading.until() {
            reading.ended = Some(now);
        }
        reading.ended.is_none()
    }

    /// The end of the wait, if no more records arrive.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.0.filter(|reading| reading.ended.is_none()).map(|reading| reading.until())
    }
}

impl Reading {
    fn until(&self) -> Instant {
        (self.came_at + CATCH_UP).min(self.since + CATCH_UP_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |ms| start + Duration::from_millis(ms)
    }

    #[test]
    fn an_owner_waits_a_tenth_of_the_time_for_a_broker_that_does_not_go_on() {
        let (mut catch_up, at) = (CatchUp::default(), clock());
        assert!(!catch_up.should_wait(false, 7, at(0)) && catch_up.until().is_none());
        assert!(catch_up.should_wait(true, 7, at(0)) && catch_up.should_wait(true, 7, at(99)));
        assert_eq!(catch_up.until(), Some(at(100)));
        assert!(!catch_up.should_wait(true, 7, at(100)) && catch_up.until().is_none());
        assert!(!catch_up.should_wait(true, 8, at(1099)));
        assert!(catch_up.should_wait(true, 8, at(1100)) && !catch_up.should_wait(true, 8, at(1200)));
        assert!(!catch_up.should_wait(false, 8, at(1201)) && catch_up.should_wait(true, 8, at(1202)), "another time");
    }

    #[test]
    fn an_owner_waits_longer_while_messages_come_but_not_for_ever() {
        let (mut catch_up, at) = (CatchUp::default(), clock());
        let ends = (0..).find(|n| !catch_up.should_wait(true, *n, at(n * 50))).expect("an end");
        assert_eq!(ends * 50, 2_000);
        assert!(!catch_up.should_wait(true, 0, at(21_999)) && catch_up.should_wait(true, 0, at(22_000)));
    }
}

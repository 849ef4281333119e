//! Whether the broker holds newer messages than those in the egress ring, for subscriptions that drop the oldest.
//!
//! The broker counts in the segment when it begins to hold some, and when it holds none any more. While the count is
//! another than when all was last read, a subscription that drops the oldest reads on before it gives a message to its
//! owner, so that the oldest go and the newest stay. Nonsense in that word delays this client's own messages, for a
//! time that has a limit.

use super::lock::lock;
use crate::shm::segment::Newer;
use crate::sync::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a subscription reads on while nothing comes.
const CATCH_UP: Duration = Duration::from_millis(100);
/// How long in all: a publisher may be faster than this client reads.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// When it may do so again, if it was in vain: times the time that it took.
const PAUSE_FACTOR: u32 = 10;

#[derive(Debug)]
pub(crate) struct BrokerBacklog {
    word: Mutex<Newer>,
    /// The count when all was last read.
    read: AtomicU64,
    /// Records that have come. Only the reader writes.
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

    /// Whether there is more to be read first.
    pub(crate) fn has_newer(&self) -> bool {
        let word = self.word();
        word.get() != self.read.load(Ordering::Relaxed)
    }

    /// Notes that this many records have arrived.
    pub(crate) fn note_records(&self, records: usize) {
        self.records.store(self.records() + records as u64, Ordering::Relaxed);
    }

    /// How many records have come in all.
    pub(crate) fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// The ring was found empty after `count` was read. Returns whether that ends a time of being behind.
    pub(crate) fn mark_read(&self, count: u64) -> bool {
        if !count.is_multiple_of(2) || self.read.load(Ordering::Relaxed) == count {
            return false;
        }
        self.read.store(count, Ordering::Release);
        true
    }

    /// Whether all was read when the count was this.
    pub(crate) fn has_read(&self, count: u64) -> bool {
        self.read.load(Ordering::Relaxed) == count
    }
}

/// How long a subscription has been behind.
#[derive(Debug, Default)]
pub(crate) struct CatchUp(Option<Reading>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    since: Instant,
    /// When records came last, and how many had come by then.
    came_at: Instant,
    records: u64,
    /// When it was found to be in vain.
    ended: Option<Instant>,
}

impl CatchUp {
    /// Whether its owner is to wait, as of `now`: so many `records` have come to this client.
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

    /// Until when, if it waits and nothing more comes.
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

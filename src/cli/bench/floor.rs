//! The floor: how long two cores need to exchange a word.
//!
//! Two threads, on two CPUs if there are two, hand a counter to and fro through two words on lines of their own.
//! Nothing that goes through shared memory and back can be faster.

use crate::sync::{AtomicU64, Ordering};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::time::{Duration, Instant};

/// Round trips of which one time is taken.
const BATCH: u64 = 200;
/// How long it is measured at a time.
const DURATION: Duration = Duration::from_millis(100);
/// Between CPUs a word is there after a thousand looks at most; later its sender does not run, and needs our CPU
/// perhaps.
const LOOKS: u32 = 20_000;
/// The last word.
const END: u64 = u64::MAX;

#[repr(align(128))]
struct Word(AtomicU64);

impl Word {
    /// Waits for another value than `old`.
    fn await_change(&self, old: u64) -> u64 {
        let mut looks = 0;
        loop {
            let now = self.0.load(Ordering::Acquire);
            if now != old {
                return now;
            }
            looks += 1;
            if looks % LOOKS == 0 {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

/// Round trips in nanoseconds, of batches at several times.
pub(super) struct Floor {
    round_trips_ns: Vec<u64>,
}

impl Floor {
    pub(super) fn new() -> Floor {
        Floor { round_trips_ns: Vec::new() }
    }

    /// Measures for a tenth of a second.
    pub(super) fn measure(&mut self) {
        let (there, back) = (Word(AtomicU64::new(0)), Word(AtomicU64::new(0)));
        let cpus = two_cpus();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pin(cpus.map(|cpus| cpus[0]));
                let mut seen = 0;
                while seen != END {
                    seen = there.await_change(seen);
                    back.0.store(seen, Ordering::Release);
                }
            });
            // Not on the calling thread, which would stay pinned.
            let ping = scope.spawn(|| {
                pin(cpus.map(|cpus| cpus[1]));
                let mut measured = Vec::new();
                let started = Instant::now();
                let (mut number, mut last) = (0, started);
                while last - started < DURATION {
                    for _ in 0..BATCH {
                        number += 1;
                        there.0.store(number, Ordering::Release);
                        back.await_change(number - 1);
                    }
                    let now = Instant::now();
                    measured.push(u64::try_from((now - last).as_nanos()).unwrap_or(u64::MAX) / BATCH);
                    last = now;
                }
                there.0.store(END, Ordering::Release);
                measured
            });
            self.round_trips_ns.extend(ping.join().unwrap_or_default());
        });
    }

    /// The median of all that was measured.
    pub(super) fn median_ns(mut self) -> u64 {
        self.round_trips_ns.sort_unstable();
        self.round_trips_ns.get(self.round_trips_ns.len() / 2).copied().unwrap_or_default()
    }
}

/// Two CPUs of the affinity mask.
fn two_cpus() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(None).ok()?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    Some([cpus.next()?, cpus.next()?])
}

/// Without it, the scheduler chooses.
fn pin(cpu: Option<usize>) {
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        set.set(cpu);
        let _ = sched_setaffinity(None, &set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_floor() {
        let mut floor = Floor::new();
        floor.measure();
        assert!(floor.median_ns() > 0);
    }
}

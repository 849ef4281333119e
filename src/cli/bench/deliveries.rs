//! `pubsub` and `fanout`: this process publishes, others subscribe, each in a process of its own.
//!
//! The first byte of a message tells its phase: warm-up, measured, the end. Subscribers count the measured messages and
//! print the count when they see the end; nothing may be missing. The time runs until the last of them has printed.

use super::processes::{Processes, Role};
use super::work::{Throughput, Work};
use crate::cli::failure::{Code, Failure};
use std::time::{Duration, Instant};

pub(super) const TOPIC: &str = "bench.deliveries";
/// The phases.
const WARM_UP: u8 = b'w';
pub(super) const MEASURED: u8 = b'm';
pub(super) const END: u8 = b'e';

/// Messages between two looks at the clock; fewer when they are large.
const BATCH: usize = 128;
const BATCH_BYTES: usize = 1 << 20;

/// Counts deliveries to all subscribers together.
///
/// # Errors
///
/// If a process fails, or a message is lost.
pub(super) fn run(processes: &mut Processes, subscribers: usize, work: Work) -> Result<Throughput, Failure> {
    for _ in 0..subscribers {
        processes.start(Role::Subscriber)?;
    }
    let client = processes.connect()?;
    let publisher = client.publisher(TOPIC)?;
    let batch = (BATCH_BYTES / work.size).clamp(1, BATCH);
    let mut payload = vec![0; work.size];
    let mut publish_for = |phase: u8, duration: Duration| -> Result<u64, Failure> {
        payload[0] = phase;
        let (until, mut published) = (Instant::now() + duration, 0);
        while Instant::now() < until {
            for _ in 0..batch {
                publisher.publish(&payload)?;
            }
            published += batch as u64;
        }
        Ok(published)
    };
    publish_for(WARM_UP, work.warm_up)?;
    let from = Instant::now();
    let published = publish_for(MEASURED, work.measured)?;
    publisher.publish([END])?;
    let mut samples = 0;
    for member in &mut processes.clients {
        let failed = |why: String| Failure::new(Code::Unavailable, format!("a subscriber failed: {why}"));
        let count = member.line().map_err(|error| failed(error.to_string()))?;
        let count: u64 = count.parse().map_err(|_| failed(format!("unexpected output {count:?}")))?;
        if count != published {
            return Err(failed(format!("received {count} of {published} messages")));
        }
        samples += count;
    }
    Ok(Throughput { samples, elapsed: from.elapsed(), subscribers: Some(subscribers), outstanding: None })
}

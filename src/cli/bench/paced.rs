//! `paced`: a single message, and silence until all sides sleep; then the next.
//!
//! This process publishes and subscribes, each over a connection of its own. A message carries the time at which it was
//! published, so one that is late delays no other's figure.

use super::processes::Processes;
use super::round_trips::nanoseconds;
use super::work::Work;
use crate::cli::failure::{Code, Failure};
use crate::client::{Publisher, View};
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

const TOPIC: &str = "bench.paced";
/// The silence between two messages: far longer than a side spins by default.
const PAUSE: Duration = Duration::from_millis(1);
/// Instead of a time: no more messages come.
const END: u64 = u64::MAX;
/// Bytes of the time in a message.
pub(super) const STAMP: usize = size_of::<u64>();

/// Measures the time from the call that publishes a message until a subscriber reads it, in nanoseconds.
///
/// # Errors
///
/// If the connection ends.
pub(super) fn run(processes: &Processes, work: Work) -> Result<Histogram<u64>, Failure> {
    let (client, subscribed) = (processes.connect()?, processes.connect()?);
    let publisher = client.publisher(TOPIC)?;
    let mut subscription = subscribed.subscribe(TOPIC)?;
    let started = Instant::now();
    let since = move || u64::try_from(started.elapsed().as_nanos()).unwrap_or(END);
    let from = u64::try_from(work.warm_up.as_nanos()).unwrap_or(END);
    let read = move || -> Result<Histogram<u64>, Failure> {
        let mut latencies = nanoseconds()?;
        loop {
            let stamp = |view: &View<'_>| {
                let mut stamp = [0; STAMP];
                view.copy_to(0, &mut stamp);
                u64::from_le_bytes(stamp)
            };
            let published = subscription.read_next(stamp)?;
            let now = since();
            if published == END {
                return Ok(latencies);
            }
            if published >= from {
                latencies.saturating_record(now.saturating_sub(published));
            }
        }
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(read);
        let published = publish(&publisher, work, since);
        if published.is_err() {
            // Otherwise the reader waits for ever.
            subscribed.close();
        }
        let panicked = |_| Failure::new(Code::Unavailable, "the subscriber panicked".to_owned());
        let latencies = reader.join().map_err(panicked)?;
        published.and(latencies)
    })
}

/// One message after each pause, until the time is over; then the end.
fn publish(publisher: &Publisher, work: Work, since: impl Fn() -> u64) -> Result<(), Failure> {
    let until = u64::try_from((work.warm_up + work.measured).as_nanos()).unwrap_or(END);
    let mut payload = vec![0; work.size];
    loop {
        std::thread::sleep(PAUSE);
        let now = since();
        payload[..STAMP].copy_from_slice(&if now < until { now } else { END }.to_le_bytes());
        publisher.publish(&payload)?;
        if now >= until {
            return Ok(());
        }
    }
}

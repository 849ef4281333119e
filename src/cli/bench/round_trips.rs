//! `latency` and `routed`: one request after the other.

use super::processes::Processes;
use super::work::Work;
use crate::cli::failure::{Code, Failure};
use hdrhistogram::Histogram;
use std::time::Instant;

/// The longest time of a histogram: a minute, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;

/// An empty histogram of times, in nanoseconds.
///
/// # Errors
///
/// If there is no memory for it.
pub(super) fn nanoseconds() -> Result<Histogram<u64>, Failure> {
    let no_memory = |error| Failure::new(Code::Unavailable, format!("no histogram: {error}"));
    Histogram::new_with_bounds(1, LONGEST_NS, 3).map_err(no_memory)
}

/// Measures round trips to `service`, in nanoseconds.
///
/// # Errors
///
/// If a request fails.
pub(super) fn run(processes: &Processes, service: &str, work: Work) -> Result<Histogram<u64>, Failure> {
    let client = processes.connect()?;
    let requester = client.requester(service)?;
    let (payload, mut reply) = (vec![b'x'; work.size], Vec::new());
    let mut round_trips = nanoseconds()?;
    let started = Instant::now();
    let (from, until) = (started + work.warm_up, started + work.warm_up + work.measured);
    // One clock read for each: where one round trip ends the next begins.
    let mut last = started;
    while last < until {
        requester.call_into(&payload, &mut reply)?;
        let now = Instant::now();
        if reply.len() != payload.len() {
            return Err(Failure::new(Code::ErrorReply, format!("sent {} bytes, received {}", work.size, reply.len())));
        }
        if last >= from {
            round_trips.saturating_record(u64::try_from((now - last).as_nanos()).unwrap_or(LONGEST_NS));
        }
        last = now;
    }
    Ok(round_trips)
}

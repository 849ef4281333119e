//! `requests`: many requests outstanding, as clients have them that do not wait for one reply to ask the next.

use super::processes::Processes;
use super::work::{Throughput, Work};
use crate::cli::failure::{Code, Failure};
use std::collections::VecDeque;
use std::time::Instant;

/// Requests outstanding at a time; fewer when they are large.
const OUTSTANDING: usize = 256;
/// Bytes outstanding at a time, about.
const OUTSTANDING_BYTES: usize = 4 << 20;

/// Counts replies of the broker's echo.
///
/// # Errors
///
/// If a request fails.
pub(super) fn run(processes: &Processes, work: Work) -> Result<Throughput, Failure> {
    let client = processes.connect()?;
    let payload = vec![b'x'; work.size];
    let window = (OUTSTANDING_BYTES / work.size).clamp(1, OUTSTANDING);
    let mut outstanding = VecDeque::with_capacity(window);
    let started = Instant::now();
    let (mut from, until) = (started, started + work.warm_up + work.measured);
    let (mut replies, mut is_warm) = (0u64, false);
    loop {
        while outstanding.len() < window {
            outstanding.push_back(client.request_stream("echo", &payload)?);
        }
        // Half of them, then as many new ones: so both sides have a batch to work on.
        for _ in 0..window.div_ceil(2) {
            let Some(mut stream) = outstanding.pop_front() else { break };
            let reply = stream.next().transpose()?.unwrap_or_default();
            if reply.len() != payload.len() {
                let message = format!("sent {} bytes, received {}", work.size, reply.len());
                return Err(Failure::new(Code::ErrorReply, message));
            }
            replies += 1;
        }
        let now = Instant::now();
        if !is_warm && now - started >= work.warm_up {
            (from, replies, is_warm) = (now, 0, true);
        }
        if now >= until {
            return Ok(Throughput {
                samples: replies,
                elapsed: now - from,
                subscribers: None,
                outstanding: Some(window),
            });
        }
    }
}

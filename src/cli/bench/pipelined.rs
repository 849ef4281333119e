//! `requests`: many requests outstanding, as clients have them that do not wait for one reply to ask the next: by
//! `Requester::call_batch`.

use super::processes::Processes;
use super::work::{Throughput, Work};
use crate::cli::failure::{Code, Failure};
use std::time::Instant;

/// Requests outstanding at a time; fewer when they are large.
const OUTSTANDING: usize = 256;
/// Bytes outstanding at a time, about.
const OUTSTANDING_BYTES: usize = 4 << 20;
/// Windows of a batch: none is outstanding at its end.
const WINDOWS: usize = 16;

/// Counts replies of the broker's echo.
///
/// # Errors
///
/// If a request fails.
pub(super) fn run(processes: &Processes, work: Work) -> Result<Throughput, Failure> {
    let client = processes.connect()?;
    let echo = client.requester("echo")?;
    let payload = vec![b'x'; work.size];
    let window = (OUTSTANDING_BYTES / work.size).clamp(1, OUTSTANDING);
    // A smaller window than that of the call is the whole batch.
    let batch = vec![&payload[..]; if window == OUTSTANDING { WINDOWS * window } else { window }];
    let started = Instant::now();
    let (mut from, until) = (started, started + work.warm_up + work.measured);
    let (mut replies, mut is_warm) = (0u64, false);
    loop {
        let mut failure = None;
        echo.call_batch(&batch, |_, reply| match reply {
            Ok(reply) if reply.len() == payload.len() => replies += 1,
            Ok(reply) => {
                let message = format!("sent {} bytes, received {}", work.size, reply.len());
                failure = Some(Failure::new(Code::ErrorReply, message));
            }
            Err(error) => failure = Some(error.into()),
        })?;
        if let Some(failure) = failure {
            return Err(failure);
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

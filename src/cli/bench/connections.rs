//! `connections`: the cost of a connection: the broker's memory after use, and its CPU while idle.
//!
//! All connections are this process's. Each has a subscription, and messages and replies go through its rings first: a
//! page that no process has touched would cost nothing. Page tables are no part of resident memory, and count beside
//! it.

use super::processes::Processes;
use super::work::Work;
use crate::cli::failure::{Code, Failure};
use crate::client::{Client, Publisher, Subscription};
use crate::metrics::memory::Memory;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::time::Duration;

/// Messages, and requests, of each connection.
const ROUNDS: usize = 4;
/// How long the broker may take to reclaim leases: an idle connection's windows shrink after half a second.
const SETTLING: Duration = Duration::from_secs(1);

/// The result.
#[derive(Debug)]
pub(super) struct Cost {
    pub(super) connections: u32,
    /// Of all connections together.
    pub(super) grown: Memory,
    pub(super) idle_cpu_ticks: u64,
    pub(super) idle: Duration,
}

/// Clock ticks that a process has run, in user and kernel mode, out of `/proc/PID/stat`.
fn parse_cpu_ticks(stat: &str) -> Option<u64> {
    // The second field is the program's name, in parentheses, and may hold anything.
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut user_and_system = behind_name.split_ascii_whitespace().skip(11);
    let mut next = || user_and_system.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// Reads and parses a file of the broker's in `/proc`.
fn read_proc<T>(broker: u32, file: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Failure> {
    let path = format!("/proc/{broker}/{file}");
    let failed = |why: String| Failure::new(Code::Unavailable, format!("cannot read {path}: {why}"));
    let text = std::fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
    parse(&text).ok_or_else(|| failed("unknown format".to_owned()))
}

/// A connection with a subscription.
pub(super) struct Used {
    // Dropped in this order: the handles before the client.
    subscription: Subscription,
    publisher: Publisher,
    client: Client,
}

impl Used {
    /// The connection of this number.
    fn open(processes: &Processes, number: u32) -> Result<Used, Failure> {
        let client = processes.connect()?;
        let topic = format!("bench.connections.{number}");
        Ok(Used { subscription: client.subscribe(&topic)?, publisher: client.publisher(&topic)?, client })
    }

    /// A message to itself, and a request.
    fn exchange(&mut self, payload: &[u8]) -> Result<(), Failure> {
        self.publisher.publish(payload)?;
        let message = self.subscription.next().transpose()?.map(|message| message.payload().len());
        let reply = self.client.request("echo", payload)?.len();
        if message != Some(payload.len()) || reply != payload.len() {
            let got = format!("sent {} bytes, received {message:?} as a message and {reply} as a reply", payload.len());
            return Err(Failure::new(Code::ErrorReply, got));
        }
        Ok(())
    }

    /// Is idle for a time.
    fn idle(&self, duration: Duration) -> Result<(), Failure> {
        match self.client.closed(Some(duration)) {
            Err(error) if error.is_timeout() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// So many connections that are idle.
///
/// # Errors
///
/// If the broker refuses one.
pub(super) fn open_idle(processes: &Processes, count: u32) -> Result<Vec<Used>, Failure> {
    raise_descriptor_limit();
    (0..count).map(|number| Used::open(processes, number)).collect()
}

/// Opens connections to the broker, uses them, and looks at it while they are idle.
///
/// # Errors
///
/// If the broker was not started here, refuses a connection, or fails.
pub(super) fn run(processes: &Processes, count: u32, work: Work) -> Result<Cost, Failure> {
    let Some(broker) = processes.broker() else {
        let message = "bench connections needs its own broker";
        return Err(Failure::new(Code::Usage, message).hint("omit --socket"));
    };
    raise_descriptor_limit();
    let before = read_proc(broker, "status", Memory::parse)?;
    let mut connections = Vec::new();
    for number in 0..count {
        connections.push(Used::open(processes, number)?);
    }
    let payload = vec![b'x'; work.size];
    for _ in 0..ROUNDS {
        connections.iter_mut().try_for_each(|connection| connection.exchange(&payload))?;
    }
    let idle = |duration| connections.first().map_or(Ok(()), |connection| connection.idle(duration));
    idle(SETTLING)?;
    let ticks = read_proc(broker, "stat", parse_cpu_ticks)?;
    idle(work.measured)?;
    let idle_cpu_ticks = read_proc(broker, "stat", parse_cpu_ticks)?.saturating_sub(ticks);
    let grown = read_proc(broker, "status", Memory::parse)?.since(before);
    Ok(Cost { connections: count, grown, idle_cpu_ticks, idle: work.measured })
}

/// Each connection takes descriptors of this process, too. If the hard limit is too low, opening a connection fails.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_ticks_are_read_behind_any_name() {
        let stat = "41 (a) b (c) S 1 41 41 0 -1 4194560 100 0 0 0 70 8 9 9 20 0 5 0 12345";
        assert_eq!(parse_cpu_ticks(stat), Some(78));
        assert_eq!(parse_cpu_ticks("41 (a) S 1 2"), None);
        let own = read_proc(std::process::id(), "stat", parse_cpu_ticks);
        assert!(own.is_ok(), "{own:?}");
        let own = read_proc(std::process::id(), "status", Memory::parse).unwrap();
        assert!(own.rss > 0 && own.page_tables > 0, "{own:?}");
    }
}

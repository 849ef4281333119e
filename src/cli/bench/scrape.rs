//! `scrape`: the router thread's cost of a metrics scrape, under full load and with many connections.
//!
//! The CPU time that the router spent is in the scraped metrics.

use super::connections::open_idle;
use super::deliveries::{self, Load};
use super::processes::Processes;
use super::work::Work;
use crate::cli::failure::{Code, Failure};
use hdrhistogram::Histogram;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// Between two scrapes.
const EVERY: Duration = Duration::from_millis(100);
/// How long a response may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The result.
#[derive(Debug)]
pub(super) struct Scrapes {
    pub(super) connections: u32,
    /// CPU time of the router's thread for each, in nanoseconds.
    pub(super) router_cpu: Histogram<u64>,
    /// Time to the complete response, in nanoseconds.
    pub(super) took: Histogram<u64>,
    /// Bytes of the last response.
    pub(super) bytes: u64,
    /// Messages a second meanwhile.
    pub(super) msgs_per_s: u64,
}

/// A free port for the broker's health endpoints.
///
/// # Errors
///
/// If there is none.
pub(super) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Opens idle connections, publishes at full speed, and scrapes meanwhile.
///
/// # Errors
///
/// If a process fails, or the broker does not reply.
pub(super) fn run(processes: &mut Processes, count: u32, port: u16, work: Work) -> Result<Scrapes, Failure> {
    if processes.broker().is_none() {
        let message = "bench scrape needs its own broker";
        return Err(Failure::new(Code::Usage, message).hint("omit --socket"));
    }
    let idle = open_idle(processes, count)?;
    let (over, is_over) = sync_channel::<()>(0);
    let (load, scraped) = std::thread::scope(|scope| {
        let scraper = scope.spawn(move || scrape_until(port, &is_over));
        let load = deliveries::run(processes, Load::PAIR, work);
        drop(over);
        (load, scraper.join())
    });
    drop(idle);
    let failed = |why: String| Failure::new(Code::Unavailable, format!("cannot scrape port {port}: {why}"));
    let scraped = scraped.map_err(|_| failed("the thread panicked".to_owned()))?;
    let (router_cpu, took, bytes) = scraped.map_err(|error| failed(error.to_string()))?;
    Ok(Scrapes { connections: count, router_cpu, took, bytes, msgs_per_s: load?.msgs_per_s() as u64 })
}

type Scraped = (Histogram<u64>, Histogram<u64>, u64);

fn scrape_until(port: u16, is_over: &Receiver<()>) -> io::Result<Scraped> {
    let new = || Histogram::new(3).map_err(io::Error::other);
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let (mut router_cpu, mut took, mut bytes) = (new()?, new()?, 0);
    let mut before = probes(&get(port)?)?;
    while is_over.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
        let sent = Instant::now();
        let text = get(port)?;
        took.record(nanos(sent.elapsed())).map_err(io::Error::other)?;
        bytes = text.len() as u64;
        let now = probes(&text)?;
        if now.0 > before.0 {
            let spent = nanos(Duration::from_secs_f64((now.1 - before.1).max(0.0)));
            router_cpu.record(spent / (now.0 - before.0)).map_err(io::Error::other)?;
        }
        before = now;
    }
    Ok((router_cpu, took, bytes))
}

fn get(port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The number of probes, and the seconds of CPU that they took.
fn probes(text: &str) -> io::Result<(u64, f64)> {
    let value = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse::<f64>().ok())
    };
    match (value("lapce_ipc_router_probes_total"), value("lapce_ipc_router_probe_cpu_seconds_total")) {
        (Some(probes), Some(seconds)) => Ok((probes as u64, seconds)),
        _ => Err(io::Error::other(format!("no probe metrics: {}", text.lines().next().unwrap_or_default()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_read() {
        let text = "HTTP/1.1 200 OK\r\n\r\n# HELP lapce_ipc_router_probes_total x\nlapce_ipc_router_probes_total 7\n\
                    lapce_ipc_router_probe_cpu_seconds_total 0.000125\n";
        assert_eq!(probes(text).unwrap(), (7, 0.000_125));
        assert!(probes("HTTP/1.1 404 Not Found\r\n\r\n").is_err());
    }
}

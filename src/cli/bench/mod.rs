//! `bench`: measures, beside the floor of the same run.
//!
//! Each mode runs between real processes: this one, a broker of its own (unless `--socket` names one), and what else
//! the mode needs, started from this very program as `bench-part`. Round trips on one machine drift with its mood, so
//! the time that two cores need to exchange a word is measured before and after, and figures are read as multiples of
//! it.
//!
//! | file | idea |
//! |---|---|
//! | `round_trips` | `latency`, `routed`: one request after the other |
//! | `pipelined` | `requests`: many requests outstanding |
//! | `deliveries` | `pubsub`, `fanout`: one publisher, one or eight subscribers |
//! | `connections` | many connections: memory, and CPU while they are idle |
//! | `scrape` | the router's cost of a metrics scrape |
//! | `part` | the other processes |
//! | `stepped` | the router and its clients on one thread, for callgrind |
//! | `processes` | starting them, and their end |
//! | `floor` | the floor |
//! | `work` | the input of a measurement |
//! | `report` | the figures, for people and as JSON |

mod connections;
mod deliveries;
mod floor;
pub(super) mod part;
mod pipelined;
mod processes;
mod report;
mod round_trips;
mod scrape;
pub(super) mod stepped;
mod work;

use super::failure::{Code, Failure};
use super::options::WaitOption;
use super::output::{Out, note};
use super::target::BrokerTarget;
use clap::{Args, ValueEnum};
use processes::{BrokerOptions, Processes, Role};
use report::{Figures, Report};
use std::io::IsTerminal;
use std::time::Duration;
use work::Work;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// The measurement
    #[arg(value_enum)]
    mode: Mode,
    /// Bytes of a message
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    size: u32,
    /// Number of connections to open; for `connections` and `scrape` only [default: 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: Option<u32>,
    /// Seconds to measure, after the warm-up
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    #[command(flatten)]
    wait: WaitOption,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc bench latency --wait busy
  lapce-ipc bench pubsub --size 1024 --seconds 5
  lapce-ipc bench routed --json | jq .p99_ns
  lapce-ipc bench connections --count 500 --seconds 10

It starts its own broker, with the built-in defaults (or --config) and --wait for its router too, and its client \
processes; all exit with it. With --socket it measures a running broker. The floor is the median round trip of one \
word between two cores, measured in the same run.

bench connections always starts its own broker. Each connection gets a subscription, some messages and some replies; \
then all are idle for --seconds. Memory is the growth of the broker; a clock tick is 10 ms of CPU.

bench scrape runs bench pubsub with --count idle connections, and requests /metrics every 100 ms. The broker's router \
counts the CPU time that it spends on them.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Round trips to the broker's own echo
    Latency,
    /// Round trips to a service of another process
    Routed,
    /// Requests per second to the broker's echo, with many outstanding
    Requests,
    /// Messages per second from one publisher to one subscriber
    Pubsub,
    /// Messages per second from one publisher to eight subscribers, in eight processes
    Fanout,
    /// The broker's memory per connection, and its CPU while all are idle
    Connections,
    /// The router's cost of a metrics scrape, under load and with many connections
    Scrape,
}

impl Mode {
    fn as_str(self) -> &'static str {
        match self {
            Mode::Latency => "latency",
            Mode::Routed => "routed",
            Mode::Requests => "requests",
            Mode::Pubsub => "pubsub",
            Mode::Fanout => "fanout",
            Mode::Connections => "connections",
            Mode::Scrape => "scrape",
        }
    }
}

/// Connections that `connections` and `scrape` open, by default.
const CONNECTIONS: u32 = 1000;

/// Measures and prints the figures.
///
/// # Errors
///
/// If a process cannot be started or fails, or the broker does not reply.
pub(super) fn run(target: &BrokerTarget, args: &BenchArgs) -> Result<(), Failure> {
    let connections = match (args.mode, args.count) {
        (Mode::Connections | Mode::Scrape, count) => Some(count.unwrap_or(CONNECTIONS)),
        (mode, Some(_)) => {
            let message = format!("--count is for bench connections and scrape, not for bench {}", mode.as_str());
            return Err(Failure::new(Code::Usage, message));
        }
        (_, None) => None,
    };
    let measured = Duration::from_secs(args.seconds);
    let work = Work {
        size: usize::try_from(args.size).unwrap_or(usize::MAX),
        warm_up: (measured / 5).min(Duration::from_secs(1)),
        measured,
    };
    if std::io::stderr().is_terminal() {
        note(format_args!("measuring {} for {} s", args.mode.as_str(), args.seconds));
    }
    let mut floor = floor::Floor::new();
    floor.measure();
    let port = match args.mode {
        Mode::Scrape => scrape::free_port().map_err(|error| Failure::new(Code::Unavailable, error.to_string()))?,
        _ => 0,
    };
    let count = connections.unwrap_or(CONNECTIONS);
    // Besides those that are counted, some that do the work.
    let connections = connections.map(|count| if args.mode == Mode::Scrape { count.saturating_add(8) } else { count });
    let limits = BrokerOptions { connections, health_port: (port > 0).then_some(port) };
    let mut processes = Processes::new(target, args.wait.wait, limits)?;
    let figures = match args.mode {
        Mode::Latency => Figures::RoundTrips(round_trips::run(&processes, "echo", work)?),
        Mode::Routed => {
            processes.start(Role::Responder)?;
            Figures::RoundTrips(round_trips::run(&processes, part::SERVICE, work)?)
        }
        Mode::Requests => Figures::Throughput(pipelined::run(&processes, work)?),
        Mode::Pubsub => Figures::Throughput(deliveries::run(&mut processes, 1, work)?),
        Mode::Fanout => Figures::Throughput(deliveries::run(&mut processes, 8, work)?),
        Mode::Connections => Figures::Cost(connections::run(&processes, count, work)?),
        Mode::Scrape => Figures::Scrapes(scrape::run(&mut processes, count, port, work)?),
    };
    let process_count = processes.count();
    drop(processes);
    floor.measure();
    let report = Report {
        mode: args.mode.as_str(),
        wait: args.wait.wait.as_str(),
        size: args.size,
        seconds: args.seconds,
        processes: process_count,
        floor_ns: floor.median_ns(),
        figures,
    };
    let mut out = Out::new()?;
    out.write(if args.json { report.json() } else { report.text() }.as_bytes())?;
    out.flush()
}

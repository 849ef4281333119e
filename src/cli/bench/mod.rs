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
//! | `deliveries` | `pubsub`, `fanout`: publishers and subscribers |
//! | `paced` | single messages, each after a silence |
//! | `connections` | many connections: memory, and CPU while they are idle |
//! | `scrape` | the router's cost of a metrics scrape |
//! | `runs` | several runs, in turn with those of another build |
//! | `part` | the other processes |
//! | `stepped` | the router and its clients on one thread, for callgrind |
//! | `processes` | starting them, and their end |
//! | `floor` | the floor |
//! | `work` | the input of a measurement |
//! | `report` | the figures, for people and as JSON |

mod connections;
mod deliveries;
mod floor;
mod paced;
pub(super) mod part;
mod pipelined;
mod processes;
mod report;
mod round_trips;
mod runs;
mod scrape;
pub(super) mod stepped;
mod work;

use super::failure::{Code, Failure};
use super::options::WaitOption;
use super::output::{Out, note};
use super::target::BrokerTarget;
use clap::{Args, ValueEnum};
use connections::open_idle;
use deliveries::Load;
use processes::{BrokerOptions, Processes, Role};
use report::{Figures, Report};
use runs::Series;
use std::io::IsTerminal;
use std::path::PathBuf;
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
    /// Further connections that are idle; not for `connections` and `scrape`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    idle: Option<u32>,
    /// Subscribers, in up to eight processes; for `fanout` only [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    subscribers: Option<u32>,
    /// Publishers, in one process; for `pubsub` only [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    publishers: Option<u32>,
    /// Topics, on which each publisher publishes in turn; for `pubsub` only [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    topics: Option<u32>,
    /// Publish so many messages with each call, and read all that have arrived with one; for `pubsub` and `fanout` only
    /// [default: one message a call]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: Option<u32>,
    #[command(flatten)]
    wait: WaitOption,
    /// Measure so many times, and print medians and quartiles
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=999))]
    runs: u32,
    /// Measure another build in turn with this one, and print the ratios: the path of its lapce-ipc
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl BenchArgs {
    /// The command line of one run.
    fn words(&self) -> Vec<String> {
        let mut words = vec![self.mode.as_str().to_owned(), "--wait".to_owned(), self.wait.wait.as_str().to_owned()];
        let numbers = [
            ("--size", Some(u64::from(self.size))),
            ("--seconds", Some(self.seconds)),
            ("--count", self.count.map(u64::from)),
            ("--idle", self.idle.map(u64::from)),
            ("--subscribers", self.subscribers.map(u64::from)),
            ("--publishers", self.publishers.map(u64::from)),
            ("--topics", self.topics.map(u64::from)),
            ("--batch", self.batch.map(u64::from)),
        ];
        for (name, number) in numbers {
            words.extend(number.into_iter().flat_map(|number| [name.to_owned(), number.to_string()]));
        }
        words
    }

    /// Refuses an option that is not for the mode.
    fn check(&self) -> Result<(), Failure> {
        use Mode::{Connections, Fanout, Latency, Paced, Pubsub, Requests, Routed, Scrape};
        let options: [(&str, bool, &[Mode]); 6] = [
            ("--count", self.count.is_some(), &[Connections, Scrape]),
            ("--idle", self.idle.is_some(), &[Latency, Routed, Requests, Pubsub, Fanout, Paced]),
            ("--subscribers", self.subscribers.is_some(), &[Fanout]),
            ("--publishers", self.publishers.is_some(), &[Pubsub]),
            ("--topics", self.topics.is_some(), &[Pubsub]),
            ("--batch", self.batch.is_some(), &[Pubsub, Fanout]),
        ];
        if self.mode == Paced && (self.size as usize) < paced::STAMP {
            let message = format!("bench paced needs a --size of {} bytes or more, for the time", paced::STAMP);
            return Err(Failure::new(Code::Usage, message));
        }
        let wrong = options.iter().find(|(_, is_set, modes)| *is_set && !modes.contains(&self.mode));
        wrong.map_or(Ok(()), |(name, _, modes)| {
            let modes: Vec<_> = modes.iter().map(|mode| format!("bench {}", mode.as_str())).collect();
            let message = format!("{name} is for {}, not for bench {}", modes.join(", "), self.mode.as_str());
            Err(Failure::new(Code::Usage, message))
        })
    }

    /// The publishers and subscribers.
    fn load(&self) -> Load {
        let fanout = if self.mode == Mode::Fanout { SUBSCRIBERS } else { 1 };
        Load {
            subscribers: self.subscribers.unwrap_or(fanout),
            publishers: self.publishers.unwrap_or(1),
            topics: self.topics.unwrap_or(1),
            batch: self.batch,
        }
    }
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc bench latency --wait busy
  lapce-ipc bench pubsub --size 1024 --seconds 5
  lapce-ipc bench routed --json | jq .p99_ns
  lapce-ipc bench connections --count 500 --seconds 10
  lapce-ipc bench fanout --subscribers 100 --runs 7
  lapce-ipc bench pubsub --runs 7 --against /path/to/another/lapce-ipc

It starts its own broker, with the built-in defaults (or --config) and --wait for its router too, and its client \
processes; all exit with it. With --socket it measures a running broker. The floor is the median round trip of one \
word between two cores, measured in the same run.

bench connections always starts its own broker. Each connection gets a subscription, some messages and some replies; \
then all are idle for --seconds. Memory is the growth of the broker; a clock tick is 10 ms of CPU.

bench scrape runs bench pubsub with --count idle connections, and requests /metrics every 100 ms. The broker's router \
counts the CPU time that it spends on them.

--runs and --against measure in processes of their own, in turn. Figures of one machine differ from minute to minute, \
so the ratio of two builds is the median of the ratios of runs in turn.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Round trips to the broker's own echo
    Latency,
    /// Round trips to a service of another process
    Routed,
    /// Requests per second to the broker's echo, with many outstanding
    Requests,
    /// Messages per second to one subscriber
    Pubsub,
    /// Messages per second from one publisher to several subscribers
    Fanout,
    /// The time of a single message to a subscriber, one after each millisecond of silence
    Paced,
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
            Mode::Paced => "paced",
            Mode::Connections => "connections",
            Mode::Scrape => "scrape",
        }
    }
}

/// Connections that `connections` and `scrape` open, by default.
const CONNECTIONS: u32 = 1000;
/// So many connections each broker takes.
const FEW: u32 = 64;
/// Subscribers of `fanout`, by default.
const SUBSCRIBERS: u32 = 8;

/// Measures and prints the figures.
///
/// # Errors
///
/// If a process cannot be started or fails, or the broker does not reply.
pub(super) fn run(target: &BrokerTarget, args: &BenchArgs) -> Result<(), Failure> {
    args.check()?;
    if args.runs > 1 || args.against.is_some() {
        let mut out = Out::new()?;
        let series = Series { words: args.words(), runs: args.runs, against: args.against.clone(), json: args.json };
        out.write(runs::run(target, &series)?.as_bytes())?;
        return out.flush();
    }
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
    let (count, load) = (args.count.unwrap_or(CONNECTIONS), args.load());
    let connections = match args.mode {
        Mode::Connections => Some(count),
        // Besides those that are counted, some that do the work.
        Mode::Scrape => Some(count.saturating_add(8)),
        _ => {
            let all = load.connections().saturating_add(args.idle.unwrap_or(0));
            (all > FEW).then(|| all.saturating_add(8))
        }
    };
    let health_port = (port > 0).then_some(port);
    let options = BrokerOptions { connections, health_port, topics: Some(load.topics) };
    let mut processes = Processes::new(target, args.wait.wait, options)?;
    let idle = open_idle(&processes, args.idle.unwrap_or(0))?;
    let figures = match args.mode {
        Mode::Latency => Figures::RoundTrips(round_trips::run(&processes, "echo", work)?),
        Mode::Routed => {
            processes.start(Role::Responder, &[])?;
            Figures::RoundTrips(round_trips::run(&processes, part::SERVICE, work)?)
        }
        Mode::Requests => Figures::Throughput(pipelined::run(&processes, work)?),
        Mode::Pubsub | Mode::Fanout => Figures::Throughput(deliveries::run(&mut processes, load, work)?),
        Mode::Paced => Figures::OneWay(paced::run(&processes, work)?),
        Mode::Connections => Figures::Cost(connections::run(&processes, count, work)?),
        Mode::Scrape => Figures::Scrapes(scrape::run(&mut processes, count, port, work)?),
    };
    let process_count = processes.count();
    drop(idle);
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

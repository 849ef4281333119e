//! The order of the measurements: every run measures each peer once, in turn, and begins with another peer.

use crate::error::Result;
use crate::peer::{Peer, Scene};
use crate::peers;
use crate::process::Process;
use crate::report::{self, Report, Row};
use crate::role::{Options as RoleOptions, Role};
use crate::usage::{self, cpu_seconds, memory_kib};
use crate::work::Figures;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Connections whose memory is measured.
const CONNECTIONS: u32 = 100;
/// The time for a broker to accept connections.
const START: Duration = Duration::from_secs(10);
/// What a measurement may last beyond its measured time.
const SLACK: Duration = Duration::from_secs(15);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often each peer is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Measured time of each quantity, after a warm-up of a quarter of it
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Measure only these peers: their keys in the JSON file, separated by commas
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    #[command(flatten)]
    report: report::Outputs,
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    if (0.05..=600.0).contains(&seconds) { Ok(seconds) } else { Err("0.05 to 600 seconds".to_owned()) }
}

/// The figures of one run of a peer, by the keys of [`report::METRICS`].
pub(crate) type Run = BTreeMap<String, f64>;

pub(crate) fn measure(options: &Options) -> Result<()> {
    let known = peers::all();
    if let Some(unknown) = options.peers.iter().find(|key| !known.iter().any(|peer| peer.about().key == **key)) {
        let keys: Vec<&str> = known.iter().map(|peer| peer.about().key).collect();
        return Err(format!("no such peer: {unknown}; there are {}", keys.join(", ")).into());
    }
    let is_chosen =
        |peer: &&dyn Peer| options.peers.is_empty() || options.peers.iter().any(|key| *key == peer.about().key);
    let chosen: Vec<&dyn Peer> = known.iter().copied().filter(is_chosen).collect();
    let mut report = Report::new(options.runs, options.seconds);
    report.rows = chosen.iter().map(|peer| Row::new(&peer.about())).collect();
    let present: Vec<usize> = (0..chosen.len()).filter(|at| chosen[*at].missing().is_none()).collect();
    for (peer, row) in chosen.iter().zip(&mut report.rows) {
        row.notes.extend(peer.caveat());
        row.notes.extend(peer.missing().map(|reason| format!("not measured: {reason}")));
    }
    for run in 0..options.runs as usize {
        for turn in 0..present.len() {
            let at = present[(turn + run * present.len() / options.runs as usize) % present.len()];
            let (peer, row) = (chosen[at], &mut report.rows[at]);
            let begun = Instant::now();
            let (figures, failure) = measure_peer(peer, Duration::from_secs_f64(options.seconds));
            let failed = failure.as_ref().map(|error| format!("; failed: {error}")).unwrap_or_default();
            eprintln!("run {}: {} ({:.1} s){failed}", run + 1, row.name, begun.elapsed().as_secs_f64());
            row.runs.push(figures);
            row.notes.extend(failure.map(|error| format!("run {} failed: {error}", run + 1)));
        }
    }
    report.load_after = usage::load_average();
    report::write(&report, &options.report)
}

/// Measures a peer once. What was measured before a failure is kept.
fn measure_peer(peer: &dyn Peer, time: Duration) -> (Run, Option<crate::error::Error>) {
    let mut run = Run::new();
    let failure = Stage::open(peer, time).and_then(|mut stage| stage.measure(&mut run)).err();
    (run, failure)
}

/// A folder, and the broker if there is one, for one run of a peer.
struct Stage<'a> {
    peer: &'a dyn Peer,
    time: Duration,
    // Dropped in this order.
    broker: Option<Process>,
    folder: Folder,
}

/// Is removed when dropped. Short, for the path of a socket has at most 107 bytes.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl<'a> Stage<'a> {
    fn open(peer: &'a dyn Peer, time: Duration) -> Result<Self> {
        let folder = Folder(std::env::temp_dir().join(format!("peers-{}", std::process::id())));
        std::fs::create_dir(&folder.0).map_err(|error| format!("cannot create {}: {error}", folder.0.display()))?;
        let mut stage = Self { peer, time, broker: None, folder };
        let scene = stage.scene(64);
        if let Some(command) = peer.broker(&scene)? {
            let mut broker = Process::start(command, "broker", &scene.folder)?;
            let deadline = Instant::now() + START;
            while !peer.is_ready(&scene) {
                broker.check()?;
                if Instant::now() > deadline {
                    return Err("the broker does not accept connections in time".into());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            stage.broker = Some(broker);
        }
        Ok(stage)
    }

    fn scene(&self, size: usize) -> Scene {
        Scene { folder: self.folder.0.clone(), size }
    }

    fn measure(&mut self, run: &mut Run) -> Result<()> {
        let mut set = |key: &str, figure: f64| run.insert(key.to_owned(), figure);
        {
            let mut responder = self.start(Role::Respond, "responder", 64)?;
            responder.wait_for("ready", Instant::now() + SLACK)?;
            // First, while no process has memory left over from other work.
            let memory = self.observe(Role::Connect, 64, &responder, memory_kib)?;
            set("memory_kib", memory.used / f64::from(CONNECTIONS));
            for size in [64, 1024] {
                let trips = self.observe(Role::Request, size, &responder, cpu_seconds)?;
                set(&format!("round_trip_{size}_p50_us"), trips.figures.p50_us);
                set(&format!("round_trip_{size}_p99_us"), trips.figures.p99_us);
                if size == 64 {
                    set("round_trip_cpu", trips.per_million());
                }
            }
            let streams = self.observe(Role::Stream, 64, &responder, cpu_seconds)?;
            set("stream_p50_us", streams.figures.p50_us);
        }
        for size in [64, 1024] {
            let mut receiver = self.start(Role::Receive, "receiver", size)?;
            receiver.wait_for("ready", Instant::now() + SLACK)?;
            let sender = self.start(Role::Send, "sender", size)?;
            let flow = self.watch(&mut receiver, &sender, cpu_seconds).map_err(|error| self.blame(error, sender))?;
            set(&format!("one_way_{size}_per_s"), flow.figures.messages as f64 / flow.figures.seconds);
            if size == 64 {
                set("one_way_cpu", flow.per_million());
            }
        }
        Ok(())
    }

    /// Starts an end that leads, beside the responder.
    fn observe(&self, role: Role, size: usize, other: &Process, usage: Usage) -> Result<Observation> {
        let mut leader = self.start(role, "requester", size)?;
        self.watch(&mut leader, other, usage)
    }

    /// Waits for the figures of `leader`, and takes the usage of all processes over its measured time.
    fn watch(&self, leader: &mut Process, other: &Process, usage: Usage) -> Result<Observation> {
        let deadline = Instant::now() + self.time * 2 + SLACK;
        let mut pids = vec![leader.pid(), other.pid()];
        pids.extend(self.broker.as_ref().map(Process::pid));
        leader.wait_for("start", deadline)?;
        let before = usage(&pids)?;
        leader.wait_for("end", deadline)?;
        let used = usage(&pids)? - before;
        let figures: Figures = serde_json::from_str(&leader.wait_for("result", deadline)?)?;
        Ok(Observation { figures, used })
    }

    /// A receiver that waits in vain says little; the reason is the sender's.
    fn blame(&self, error: crate::error::Error, mut sender: Process) -> crate::error::Error {
        sender.check().err().unwrap_or(error)
    }

    fn start(&self, role: Role, name: &'static str, size: usize) -> Result<Process> {
        let scene = self.scene(size);
        let arguments = RoleOptions::arguments(self.peer, role, &scene, self.time, CONNECTIONS);
        let command: Command = self.peer.end(&scene, &arguments)?;
        Process::start(command, name, &scene.folder)
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        self.broker = None;
        self.peer.clean(&self.scene(64));
    }
}

/// What processes have used so far.
type Usage = fn(&[u32]) -> Result<f64>;

struct Observation {
    figures: Figures,
    /// By all processes, in the measured time.
    used: f64,
}

impl Observation {
    fn per_million(&self) -> f64 {
        self.used / self.figures.messages as f64 * 1e6
    }
}

//! What a run leaves: `peers.json` with every figure, and from it `peers.md`, `peers.svg`, and a section of a README.

mod markdown;
mod svg;

use crate::driver::Run;
use crate::error::Result;
use crate::peer::About;
use crate::usage;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The section that `--readme` fills stands between these.
const BEGIN: &str = "<!-- peers: begin -->";
const END: &str = "<!-- peers: end -->";
/// The peer that the others are compared with.
const OURS: &str = "lapce_ipc";
/// A load average at the start above which the machine is called loaded.
const QUIET: f64 = 0.3;

#[derive(clap::Args)]
pub(crate) struct Outputs {
    /// The folder of peers.md, peers.json and peers.svg
    #[arg(long, default_value = "docs/peers")]
    out: PathBuf,
    /// Also fill the section between the markers in this file
    #[arg(long)]
    readme: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    outputs: Outputs,
}

/// A figure that is measured.
pub(crate) struct Metric {
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: Unit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Microseconds,
    PerSecond,
    CpuSeconds,
    KiB,
}

pub(crate) const METRICS: &[Metric] = &[
    Metric { key: "round_trip_64_p50_us", title: "round trip, 64 B, median", unit: Unit::Microseconds },
    Metric { key: "round_trip_64_p99_us", title: "round trip, 64 B, 99 %", unit: Unit::Microseconds },
    Metric { key: "round_trip_1024_p50_us", title: "round trip, 1 KiB, median", unit: Unit::Microseconds },
    Metric { key: "round_trip_1024_p99_us", title: "round trip, 1 KiB, 99 %", unit: Unit::Microseconds },
    Metric { key: "one_way_64_per_s", title: "one way, 64 B", unit: Unit::PerSecond },
    Metric { key: "one_way_1024_per_s", title: "one way, 1 KiB", unit: Unit::PerSecond },
    Metric { key: "stream_p50_us", title: "a reply of 1,000 tokens", unit: Unit::Microseconds },
    Metric { key: "one_way_cpu", title: "CPU, a million messages one way, 64 B", unit: Unit::CpuSeconds },
    Metric { key: "round_trip_cpu", title: "CPU, a million round trips, 64 B", unit: Unit::CpuSeconds },
    Metric { key: "memory_kib", title: "memory of a connection", unit: Unit::KiB },
];

impl Metric {
    fn of(key: &str) -> &'static Metric {
        METRICS.iter().find(|metric| metric.key == key).expect("a metric of the table")
    }
}

impl Unit {
    fn text(self, figure: f64) -> String {
        match self {
            Unit::Microseconds if figure >= 1000.0 => format!("{:.2} ms", figure / 1000.0),
            Unit::Microseconds => format!("{figure:.1} µs"),
            Unit::PerSecond if figure >= 1e6 => format!("{:.2} M/s", figure / 1e6),
            Unit::PerSecond => format!("{:.0} k/s", figure / 1e3),
            Unit::CpuSeconds => format!("{figure:.2} s"),
            Unit::KiB => format!("{figure:.0} KiB"),
        }
    }

    /// The better of two figures.
    fn better(self, a: f64, b: f64) -> f64 {
        if self == Unit::PerSecond { a.max(b) } else { a.min(b) }
    }

    fn worse(self, a: f64, b: f64) -> f64 {
        if self == Unit::PerSecond { a.min(b) } else { a.max(b) }
    }
}

/// All that is known of a measurement.
#[derive(Deserialize, Serialize)]
pub(crate) struct Report {
    date: String,
    commit: String,
    machine: String,
    load_before: f64,
    pub(crate) load_after: f64,
    runs: u32,
    seconds: f64,
    pub(crate) rows: Vec<Row>,
}

/// A peer.
#[derive(Deserialize, Serialize)]
pub(crate) struct Row {
    key: String,
    pub(crate) name: String,
    version: String,
    path: String,
    processes: u32,
    wait: String,
    compares: String,
    pub(crate) runs: Vec<Run>,
    /// Why figures are missing, and what else sets a run apart.
    pub(crate) notes: Vec<String>,
}

impl Report {
    /// Without rows, at the beginning of a measurement.
    pub(crate) fn new(runs: u32, seconds: f64) -> Self {
        Self {
            date: line_of(Command::new("date").args(["-u", "+%Y-%m-%d"])),
            commit: line_of(Command::new("git").args([
                "-C",
                env!("CARGO_MANIFEST_DIR"),
                "rev-parse",
                "--short",
                "HEAD",
            ])),
            machine: usage::machine(),
            load_before: usage::load_average(),
            load_after: f64::NAN,
            runs,
            seconds,
            rows: Vec::new(),
        }
    }

    /// Where and when.
    fn place(&self) -> String {
        format!("{}, commit {}; {}", self.date, self.commit, self.machine)
    }

    /// Whether the machine had other work, and how often each figure was measured.
    fn conditions(&self) -> String {
        let state = if self.load_before <= QUIET { "quiet" } else { "loaded by other work" };
        let runs = if self.runs == 1 { "one run".to_owned() } else { format!("{} runs, medians", self.runs) };
        let (load, seconds) = (self.load_before, self.seconds);
        format!("Machine {state} (load average {load:.2} at the start); {runs}, {seconds} s for each figure, in turn")
    }

    fn circumstances(&self) -> String {
        format!("{}. {}.", self.place(), self.conditions())
    }

    fn ours(&self) -> Option<&Row> {
        self.rows.iter().find(|row| row.key == OURS)
    }
}

impl Row {
    pub(crate) fn new(about: &About) -> Self {
        Self {
            key: about.key.to_owned(),
            name: about.name.to_owned(),
            version: about.version.clone(),
            path: about.path.to_owned(),
            processes: about.processes,
            wait: about.wait.to_owned(),
            compares: about.compares.to_owned(),
            runs: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn figures(&self, metric: &Metric) -> Vec<f64> {
        let mut figures: Vec<f64> = self.runs.iter().filter_map(|run| run.get(metric.key).copied()).collect();
        figures.sort_by(f64::total_cmp);
        figures
    }

    fn median(&self, metric: &Metric) -> Option<f64> {
        let figures = self.figures(metric);
        let middle = figures.len() / 2;
        match figures.len() {
            0 => None,
            len if len % 2 == 1 => Some(figures[middle]),
            _ => Some(f64::midpoint(figures[middle - 1], figures[middle])),
        }
    }

    fn best(&self, metric: &Metric) -> Option<f64> {
        self.figures(metric).into_iter().reduce(|a, b| metric.unit.better(a, b))
    }

    fn worst(&self, metric: &Metric) -> Option<f64> {
        self.figures(metric).into_iter().reduce(|a, b| metric.unit.worse(a, b))
    }
}

fn line_of(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

pub(crate) fn write(report: &Report, outputs: &Outputs) -> Result<()> {
    fs::create_dir_all(&outputs.out)?;
    let json = serde_json::to_string_pretty(report)? + "\n";
    put(&outputs.out.join("peers.json"), &json)?;
    put(&outputs.out.join("peers.svg"), &svg::plot(report))?;
    put(&outputs.out.join("peers.md"), &markdown::page(report))?;
    if let Some(readme) = &outputs.readme {
        let folder = outputs.out.to_string_lossy();
        let text = fs::read_to_string(readme).map_err(|error| format!("{}: {error}", readme.display()))?;
        put(readme, &fill(&text, &markdown::section(report, folder.trim_start_matches("./")))?)?;
    }
    Ok(())
}

/// Writes the other files again from `peers.json`.
pub(crate) fn rewrite(options: &Options) -> Result<()> {
    let path = options.outputs.out.join("peers.json");
    let json = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    write(&serde_json::from_str(&json)?, &options.outputs)
}

/// Replaces a file as a whole: a run that is stopped leaves the old one.
fn put(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, path))
        .map_err(|error| format!("{}: {error}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

fn fill(text: &str, section: &str) -> Result<String> {
    let missing = || format!("the lines `{BEGIN}` and `{END}` are missing");
    let (before, rest) = text.split_once(BEGIN).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    Ok(format!("{before}{BEGIN}\n{section}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_between_the_markers_is_replaced_and_nothing_else() {
        let text = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let filled = fill(&text, "new\n").expect("filled");
        assert_eq!(filled, format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert!(fill("no markers", "new").is_err());
    }

    #[test]
    fn the_best_of_a_rate_is_its_highest_and_of_a_time_its_lowest() {
        let about =
            About { key: "a", name: "a", version: String::new(), path: "", processes: 2, wait: "", compares: "" };
        let mut row = Row::new(&about);
        for figure in [3.0, 1.0, 2.0] {
            row.runs.push(METRICS.iter().map(|metric| (metric.key.to_owned(), figure)).collect());
        }
        let (time, rate) = (Metric::of("stream_p50_us"), Metric::of("one_way_64_per_s"));
        assert_eq!((row.best(time), row.worst(time), row.median(time)), (Some(1.0), Some(3.0), Some(2.0)));
        assert_eq!((row.best(rate), row.worst(rate)), (Some(3.0), Some(1.0)));
    }
}

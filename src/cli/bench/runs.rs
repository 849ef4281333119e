//! `--runs` and `--against`: several runs of a measurement, in turn with those of another build, and their medians.
//!
//! Each run is a process of its own, `bench MODE --json`. What a machine does meanwhile changes from one minute to the
//! next, so two builds are measured in turn, and the ratio is the median of the ratios of each pair.

use crate::broker::processes::children::Running;
use crate::cli::failure::{Code, Failure};
use crate::cli::output::note;
use crate::cli::target::BrokerTarget;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The figures of a run, by their keys in its JSON.
const FIGURES: [&str; 13] = [
    "floor_ns",
    "p50_ns",
    "p99_ns",
    "p999_ns",
    "p50_floors",
    "msgs_per_s",
    "bytes_per_s",
    "bytes_per_connection",
    "idle_cpu_ticks",
    "router_cpu_p50_ns",
    "router_cpu_max_ns",
    "scrape_p50_ns",
    "scrape_max_ns",
];

/// The measurement to repeat.
pub(super) struct Series {
    /// The command line of one run.
    pub(super) words: Vec<String>,
    pub(super) runs: u32,
    /// The other build's program.
    pub(super) against: Option<PathBuf>,
    pub(super) json: bool,
}

/// The runs of one build.
struct Build {
    program: PathBuf,
    runs: Vec<Map<String, Value>>,
}

/// The median, and the quartiles around it.
#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    quartiles: [f64; 2],
}

/// Repeats a measurement, and returns the text to print.
///
/// # Errors
///
/// If a run fails.
pub(super) fn run(target: &BrokerTarget, series: &Series) -> Result<String, Failure> {
    let own = std::env::current_exe().map_err(|error| failed(Path::new("this program"), &error))?;
    let mut builds = vec![Build { program: own, runs: Vec::new() }];
    builds.extend(series.against.iter().map(|program| Build { program: program.clone(), runs: Vec::new() }));
    for number in 0..series.runs {
        if io::stderr().is_terminal() {
            note(format_args!("run {} of {}", number + 1, series.runs));
        }
        for build in &mut builds {
            let figures = measure(&build.program, target, series)?;
            build.runs.push(figures);
        }
    }
    Ok(if series.json { as_json(&builds) } else { as_text(&builds) })
}

fn failed(program: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::Unavailable, format!("bench --runs: {}: {why}", program.display()))
}

/// One run.
fn measure(program: &Path, target: &BrokerTarget, series: &Series) -> Result<Map<String, Value>, Failure> {
    let mut command = Command::new(program);
    command.arg("bench").args(&series.words).arg("--json");
    target.pass_on(&mut command);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut running = Running::start(&mut command).map_err(|error| failed(program, &error))?;
    let mut text = String::new();
    let read = running.child.stdout.take().map_or(Ok(0), |mut stdout| stdout.read_to_string(&mut text));
    read.map_err(|error| failed(program, &error))?;
    running.await_exit(None);
    serde_json::from_str(&text).map_err(|_| failed(program, &"it has printed no figures; see above"))
}

impl Build {
    fn values(&self, key: &str) -> Vec<f64> {
        self.runs.iter().filter_map(|run| run.get(key)?.as_f64()).collect()
    }
}

impl Spread {
    /// `None` of no values.
    fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let at = |part: usize| values.get((values.len() * part / 4).min(values.len().saturating_sub(1))).copied();
        Some(Spread { median: at(2)?, quartiles: [at(1)?, at(3)?] })
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "quartiles": self.quartiles })
    }
}

/// The ratios of a figure, this build's to the other's, of the runs that were in turn.
fn ratios(builds: &[Build], key: &str) -> Vec<f64> {
    let [own, other] = builds else { return Vec::new() };
    own.values(key)
        .iter()
        .zip(other.values(key))
        .filter(|(_, other)| *other > 0.0)
        .map(|(own, other)| own / other)
        .collect()
}

fn as_json(builds: &[Build]) -> String {
    let spreads = |values: &dyn Fn(&str) -> Vec<f64>| -> Map<String, Value> {
        let found = FIGURES.iter().filter_map(|key| Some(((*key).to_owned(), Spread::of(values(key))?.json())));
        found.collect()
    };
    let mut all = builds.first().and_then(|build| build.runs.first().cloned()).unwrap_or_default();
    all.retain(|key, _| !FIGURES.contains(&key.as_str()));
    all.insert("runs".to_owned(), builds.first().map_or(0, |build| build.runs.len()).into());
    for (name, build) in ["this", "against"].into_iter().zip(builds) {
        all.insert(name.to_owned(), spreads(&|key| build.values(key)).into());
    }
    if builds.len() > 1 {
        all.insert("ratio".to_owned(), spreads(&|key| ratios(builds, key)).into());
    }
    Value::Object(all).to_string() + "\n"
}

fn as_text(builds: &[Build]) -> String {
    let first = builds.first().and_then(|build| build.runs.first());
    let word = |key: &str| first.and_then(|run| run.get(key)).map(|value| value.to_string().replace('"', ""));
    let mut text = String::new();
    // Writing into a string cannot fail.
    let _ = writeln!(
        text,
        "{}: {} bytes, {} processes, wait {}, {} s, {} runs; medians and quartiles",
        word("mode").unwrap_or_default(),
        word("size").unwrap_or_default(),
        word("processes").unwrap_or_default(),
        word("wait").unwrap_or_default(),
        word("seconds").unwrap_or_default(),
        builds.first().map_or(0, |build| build.runs.len()),
    );
    let cell = |values: Vec<f64>, digits: usize| {
        let shown = |Spread { median, quartiles: [low, high] }| {
            format!("{median:.digits$} ({low:.digits$} to {high:.digits$})")
        };
        Spread::of(values).map_or(String::new(), shown)
    };
    if builds.len() > 1 {
        let _ = writeln!(text, "{:<22} {:<38} {:<38} this / against", "", "this build", "against");
    }
    for key in FIGURES {
        let values: Vec<Vec<f64>> = builds.iter().map(|build| build.values(key)).collect();
        if values.iter().all(Vec::is_empty) {
            continue;
        }
        let digits = if key == "p50_floors" { 2 } else { 0 };
        let mut line = format!("{key:<22}");
        for values in values {
            let _ = write!(line, " {:<38}", cell(values, digits));
        }
        if builds.len() > 1 {
            let _ = write!(line, " {}", cell(ratios(builds, key), 3));
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(values: &[u64]) -> Build {
        let run = |value: &u64| {
            json!({ "mode": "pubsub", "size": 64, "processes": 3, "wait": "busy", "seconds": 1,
            "floor_ns": 100, "msgs_per_s": value })
        };
        let runs = values.iter().map(|value| run(value).as_object().cloned().unwrap_or_default()).collect();
        Build { program: PathBuf::new(), runs }
    }

    #[test]
    fn medians_are_of_each_build_and_ratios_of_each_pair() {
        let builds = [build(&[10, 20, 30]), build(&[5, 20, 10])];
        let json: Value = serde_json::from_str(&as_json(&builds)).unwrap();
        assert_eq!((&json["mode"], &json["runs"]), (&"pubsub".into(), &3.into()));
        assert_eq!(json["this"]["msgs_per_s"]["median"], 20.0);
        assert_eq!(json["against"]["msgs_per_s"], json!({ "median": 10.0, "quartiles": [5.0, 20.0] }));
        // 2, 1 and 3.
        assert_eq!(json["ratio"]["msgs_per_s"]["median"], 2.0);
        let text = as_text(&builds);
        assert!(text.starts_with("pubsub: 64 bytes, 3 processes, wait busy, 1 s, 3 runs"), "{text}");
        let line = text.lines().find(|line| line.starts_with("msgs_per_s")).unwrap();
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>().join(" "),
            "msgs_per_s 20 (10 to 30) 10 (5 to 20) 2.000 (1.000 to 3.000)"
        );
        assert!(!text.contains("p50_ns"), "{text}");
    }

    #[test]
    fn one_build_has_no_ratio() {
        let builds = [build(&[10])];
        let json: Value = serde_json::from_str(&as_json(&builds)).unwrap();
        assert!(json.get("ratio").is_none() && json.get("against").is_none(), "{json}");
        assert!(!as_text(&builds).contains("against"));
    }
}

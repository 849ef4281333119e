//! A well-behaved pair beside a hostile client: the table of attacks.
//!
//!     cargo test --release --test hostile_table -- --nocapture
//!
//! Each row has a broker of its own with the shipped configuration. The pair is one publisher at full rate with a
//! `block` subscriber, one of 2,000 messages a second with another, and a requester with one request outstanding to a
//! responder; each is a process, and their ledgers are exact. The full rate is measured in the first half of a row, the
//! rest in the second. Beside them one hostile process plays the row's attack (`support/hostile`). Each row is run with
//! an attacker of another user (uid) than the pair's, then of the same; the first needs root.
//!
//! What a row is compared with is the control row, which is run before each: a hostile process takes a part of the
//! machine, too. No core sleeps in any row (`support/hostile/awake.rs`), or the control row would be the fastest.
//! The p99 of a request is compared with that of the pair alone where that is longer, for a tail of the pair itself is
//! nothing that an attacker adds. With `LAPCE_IPC_TABLE_TIMES=n` a row is run n times, in turn with the control row,
//! and the medians of the ratios count.
//!
//! | verdict | attacker of another user | of the same user |
//! |---|---|---|
//! | throughput, full and paced, as part of the control row's | ≥ 0.9 | printed |
//! | p99 of a request, as multiple of the longer one of the control row and the pair alone | ≤ 1.5 | printed |
//! | a third user connects, offers a service, requests, subscribes, publishes | yes | yes |
//! | status, `/live`, no open breaker, log below 1 MB, memory below 64 MB | yes | status and `/live` |
//! | nothing lost, doubled, reordered, evicted; the broker runs, and no thread hangs | always | always |
//!
//! The last line fails the test in any build; the others in a release build with `LAPCE_IPC_STRICT=1`.
//! `LAPCE_IPC_TABLE_SECS` (4) is the time of a row, `LAPCE_IPC_TABLE_ROWS=name,name` (or `all`, for a debug build)
//! selects rows, and `LAPCE_IPC_TABLE_USERS=other` or `same` one half. `LAPCE_IPC_INJECT=lost` or `doubled` has the
//! ledgers find a fault.
//!
//! Left out: locks of segments' files that are held (that needs userfaultfd or FUSE), and what a process of the same
//! user can do by `/proc` and ptrace.

#[path = "support/hostile/mod.rs"]
mod hostile;
#[path = "support/raw.rs"]
mod raw;
mod support;

use hostile::awake::Awake;
use hostile::pair::{Figures, Pair};
use hostile::rows::{ALONE, CONTROL, ROWS, Row};
use hostile::stage::{Company, Seen, Stage, Users};
use hostile::{attack, members};
use serde_json::{Value, json};
use std::time::Duration;
use support::criteria::{MEASURES, Report, scaled};
use support::probe::note;
use support::role::role;

const NAME: &str = "hostile_table";
/// Bytes of log in a row, and megabytes of memory that a broker may grow by.
const LOG_MAX: usize = 1_000_000;
const MEMORY_MAX_MB: f64 = 64.0;

fn play(role: &str) {
    let words: Vec<&str> = role.split(' ').collect();
    match words[0] {
        "attack" => attack::play(&words[1..]),
        other => members::play(other, &words[1..]),
    }
}

/// What a row has found.
struct Outcome {
    row: Row,
    users: Users,
    /// The pair's beside the control row.
    control: Figures,
    /// The p99 of a request of the pair alone, in microseconds; 0: not measured.
    alone_p99: f64,
    /// The pair's, unless it could not begin, or did not come through: then why not.
    figures: Result<Figures, String>,
    seen: Seen,
    /// Growth of the broker's memory during the attack, and when the attacker has gone.
    grown: f64,
    kept: f64,
    /// What must never be.
    fault: Option<String>,
    note: String,
}

/// One row with a broker of its own.
fn run(company: &Company, row: &Row, users: Users, time: Duration, (control, alone_p99): (&Figures, f64)) -> Outcome {
    let mut stage = Stage::start(company, NAME, row);
    let mut pair = if row.comes_late { Err(String::new()) } else { Pair::start(&stage, row.size) };
    let before = stage.memory();
    let mut attacker = (row.name != ALONE.name).then(|| stage.attack(row, users));
    if row.comes_late {
        pair = Pair::start(&stage, row.size).map_err(|why| format!("cannot begin: {why}"));
    }
    let begun = stage.grown(before);
    let mut fault = if row.comes_late { None } else { pair.as_ref().err().cloned() };
    let figures = pair
        .as_mut()
        .map_err(|why| why.clone())
        .and_then(|pair| pair.measure(time).inspect_err(|why| fault = Some(why.clone())));
    let seen = stage.look();
    let grown = begun.max(stage.grown(before));
    let note = attacker.as_mut().and_then(|attacker| attacker.said("note ")).unwrap_or_default();
    if let Some(mut attacker) = attacker {
        attacker.kill();
    }
    let settled = pair.map_or(Ok(()), Pair::finish);
    // What the broker says may be the cause of what the pair has met.
    let faults: Vec<String> = fault.or(settled.err()).into_iter().chain(stage.check().err()).collect();
    let fault = (!faults.is_empty()).then(|| faults.join("; "));
    let kept = stage.grown(before);
    Outcome { row: *row, users, control: control.clone(), alone_p99, figures, seen, grown, kept, fault, note }
}

impl Outcome {
    fn name(&self) -> String {
        let size = if self.row.size == ALONE.size { String::new() } else { format!(" {} bytes", self.row.size) };
        format!("{} {}{size}", self.users.name(), self.row.name)
    }

    /// Throughput (full, paced) against the control row's, and p99 against the longer one of that and the pair alone.
    fn ratios(&self) -> Option<[f64; 3]> {
        let (figures, control) = (self.figures.as_ref().ok()?, &self.control);
        let p99 = figures.round_trips[1] / control.round_trips[1].max(self.alone_p99);
        // A pair without replies has no round trips.
        let p99 = if figures.answered == 0 { f64::INFINITY } else { p99 };
        Some([figures.full / control.full, figures.paced / control.paced, p99])
    }

    /// Where the verdict of this half does not hold, but for the ratios.
    fn misses(&self) -> Vec<String> {
        let (seen, mut missed) = (&self.seen, Vec::new());
        let mut must = |holds: bool, text: String| missed.extend((!holds).then_some(text));
        must(self.fault.is_none(), "fault".to_owned());
        must(seen.innocent.is_ok(), "newcomer".to_owned());
        must(seen.status.is_ok(), "status".to_owned());
        must(seen.live.is_ok(), "/live".to_owned());
        if self.users == Users::Other {
            must(seen.open_breakers.is_empty(), "breaker".to_owned());
            must(seen.log_bytes < LOG_MAX, format!("log {:.1} MB", seen.log_bytes as f64 / 1e6));
            must(self.grown < MEMORY_MAX_MB, format!("{:+.0} MB", self.grown));
        }
        missed
    }

    fn line(&self) -> String {
        let text = match (&self.figures, self.ratios()) {
            (Ok(f), Some([full, paced, p99])) => format!(
                "{:>9.0}/s {full:>6.3}x paced {:>4.0} {paced:>5.2}x p50 {:>7.0} p99 {:>8.0} µs {p99:>7.2}x{}",
                f.full,
                f.paced,
                f.round_trips[0],
                f.round_trips[1],
                if f.failed.as_object().is_some_and(|failed| !failed.is_empty()) {
                    format!(" {} answered, {}", f.answered, f.failed)
                } else {
                    String::new()
                }
            ),
            (figures, _) => figures.as_ref().err().cloned().unwrap_or_default(),
        };
        let seen = &self.seen;
        let mut text =
            format!("{text} | {:+.1} MB, kept {:+.1}, log {} kB", self.grown, self.kept, seen.log_bytes / 1_000);
        for (what, result) in [("newcomer", &seen.innocent), ("status", &seen.status), ("/live", &seen.live)] {
            text += &match result {
                Ok(millis) => format!(" | {what} {millis:.0} ms"),
                Err(error) => format!(" | {what} FAILS: {error}"),
            };
        }
        if !seen.open_breakers.is_empty() {
            text += &format!(" | breaker open: {}", seen.open_breakers.join(", "));
        }
        if let Some(fault) = &self.fault {
            text += &format!(" | FAULT: {fault}");
        }
        if !self.note.is_empty() {
            text += &format!(" | attacker: {}", self.note.chars().take(80).collect::<String>());
        }
        text
    }

    fn json(&self) -> Value {
        let (figures, seen) = (self.figures.clone().unwrap_or_default(), &self.seen);
        let [full, paced, p99] = self.ratios().unwrap_or_default();
        json!({
            "users": self.users.name(), "about": self.row.about, "cannot": self.figures.as_ref().err(),
            "full": figures.full.round(), "paced": figures.paced.round(), "p50_us": figures.round_trips[0],
            "p99_us": figures.round_trips[1], "max_us": figures.round_trips[2], "answered": figures.answered,
            "failed": figures.failed, "ratios": [full, paced, p99], "grown_mb": self.grown, "kept_mb": self.kept,
            "log_bytes": seen.log_bytes, "newcomer_refused": seen.innocent.as_ref().err(),
            "status_fails": seen.status.as_ref().err(), "live_fails": seen.live.as_ref().err(),
            "open_breakers": seen.open_breakers, "fault": self.fault, "attacker": self.note,
        })
    }
}

/// The verdict on the rounds of a row: whether it holds, and in a few words why not. Ratios count by their medians.
fn verdict(rounds: &[Outcome]) -> (bool, String) {
    let ratios: Vec<[f64; 3]> = rounds.iter().filter_map(Outcome::ratios).collect();
    let medians: [f64; 3] =
        std::array::from_fn(|at| median(&mut ratios.iter().map(|ratios| ratios[at]).collect::<Vec<_>>()));
    let mut missed: Vec<String> = rounds.iter().flat_map(Outcome::misses).collect();
    missed.sort();
    missed.dedup();
    let [full, paced, p99] = medians;
    let is_other = rounds.iter().any(|round| round.users == Users::Other);
    let undisturbed = full.min(paced) >= 0.9 && p99 <= 1.5;
    let text = match ratios.is_empty() {
        true => "it cannot begin".to_owned(),
        false => format!("full {full:.2}x, paced {paced:.2}x, p99 {p99:.1}x"),
    };
    (
        missed.is_empty() && (undisturbed || !is_other),
        std::iter::once(text).chain(missed).collect::<Vec<_>>().join(", "),
    )
}

/// The median; of none it is 0.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The value of a variable as a list.
fn listed(name: &str) -> Option<Vec<String>> {
    let value = std::env::var(name).ok()?;
    Some(value.split(',').map(str::to_owned).collect())
}

#[test]
fn hostile_table() {
    if let Some(role) = role() {
        return play(&role);
    }
    let company = Company::new();
    let seconds = std::env::var("LAPCE_IPC_TABLE_SECS").ok().and_then(|secs| secs.parse().ok());
    let time = Duration::from_secs_f64(seconds.unwrap_or(scaled(4.0, 0.6)));
    let (names, halves) = (listed("LAPCE_IPC_TABLE_ROWS"), listed("LAPCE_IPC_TABLE_USERS"));
    let chosen = |row: &&Row| match &names {
        Some(names) => names.iter().any(|name| name == row.name || name == "all"),
        None => MEASURES || row.in_debug,
    };
    for name in names.iter().flatten() {
        assert!(name == "all" || ROWS.iter().any(|row| row.name == name), "no row {name}");
    }
    let times = std::env::var("LAPCE_IPC_TABLE_TIMES").map_or(1, |times| times.parse().expect("a number"));
    let mut report = Report::new(NAME);
    let awake = MEASURES.then(Awake::start).transpose();
    if let Err(error) = &awake {
        note(&format!("the cores may sleep, so that latencies do not compare: {error}"));
    }
    let mut faults = Vec::new();
    for users in [Users::Other, Users::Same] {
        if halves.as_ref().is_some_and(|halves| !halves.iter().any(|half| half == users.name())) {
            continue;
        }
        if users == Users::Other && !company.is_root {
            report.not_measured("all rows", "attacker of another user", "only root can become another user");
            continue;
        }
        let mut show = |report: &mut Report, outcome: &Outcome| {
            let name = outcome.name();
            note(&format!("{name:<28} {}", outcome.line()));
            report.detail(&name, outcome.json());
            faults.extend(outcome.fault.as_ref().map(|fault| format!("{name}: {fault}")));
        };
        let target = if users == Users::Other { ">= 0.9, p99 <= 1.5" } else { "others are served" };
        let (mut control, mut alone) = (Figures::default(), Vec::new());
        for row in [ALONE].iter().filter(|_| MEASURES).chain(ROWS.iter().filter(chosen)) {
            let mut rounds = Vec::new();
            for _ in 0..times {
                // In a build to measure each round has its own: the machine may be another's at times.
                if MEASURES || control.full == 0.0 {
                    let busy = Row { size: row.size, ..CONTROL };
                    let beside = run(&company, &busy, users, time, (&control, 0.0));
                    control = beside.figures.clone().unwrap_or_default();
                    show(&mut report, &Outcome { control: control.clone(), ..beside });
                }
                rounds.push(run(&company, row, users, time, (&control, median(&mut alone))));
                rounds.iter().last().into_iter().for_each(|round| show(&mut report, round));
            }
            if row.name == ALONE.name {
                alone = rounds.iter().flat_map(|round| &round.figures).map(|figures| figures.round_trips[1]).collect();
            }
            let ((is_met, text), name) = (verdict(&rounds), rounds[0].name());
            match row.is_attack() {
                true => report.criterion(&name, target, text, is_met),
                false => report.figure(&name, text),
            }
        }
    }
    note(&faults.join("\n"));
    report.finish();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

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
//! What a row is compared with is the control row, three times, by its medians: a hostile process takes a part of the
//! machine, too.
//!
//! | verdict | attacker of another user | of the same user |
//! |---|---|---|
//! | throughput, full and paced, as part of the control row's | ≥ 0.9 | printed |
//! | p99 of a request, as multiple of the control row's | ≤ 1.5 | printed |
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

use hostile::pair::{Figures, Pair};
use hostile::rows::{ALONE, CONTROL, ROWS, Row};
use hostile::stage::{Company, Seen, Stage, Users};
use hostile::{attack, members};
use serde_json::{Value, json};
use std::collections::BTreeMap;
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
fn run(company: &Company, row: &Row, users: Users, time: Duration) -> Outcome {
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
    let fault = fault.or(settled.err()).or(stage.check().err());
    let kept = stage.grown(before);
    Outcome { row: *row, users, figures, seen, grown, kept, fault, note }
}

impl Outcome {
    fn name(&self) -> String {
        let size = if self.row.size == ALONE.size { String::new() } else { format!(" {} bytes", self.row.size) };
        format!("{} {}{size}", self.users.name(), self.row.name)
    }

    /// Throughput (full, paced) and p99 against the control row's.
    fn ratios(&self, control: &Figures) -> Option<[f64; 3]> {
        let figures = self.figures.as_ref().ok()?;
        let p99 = figures.round_trips[1] / control.round_trips[1];
        // A pair without replies has no round trips.
        let p99 = if figures.answered == 0 { f64::INFINITY } else { p99 };
        Some([figures.full / control.full, figures.paced / control.paced, p99])
    }

    /// Where the verdict of this half does not hold.
    fn misses(&self, control: &Figures) -> Vec<String> {
        let (seen, mut missed) = (&self.seen, Vec::new());
        let mut must = |holds: bool, text: String| missed.extend((!holds).then_some(text));
        must(self.fault.is_none(), "fault".to_owned());
        must(seen.innocent.is_ok(), "newcomer".to_owned());
        must(seen.status.is_ok(), "status".to_owned());
        must(seen.live.is_ok(), "/live".to_owned());
        if self.users == Users::Other {
            let [full, paced, p99] = self.ratios(control).unwrap_or_default();
            must(self.figures.is_ok(), "cannot begin".to_owned());
            must(full >= 0.9, format!("full {full:.3}x"));
            must(paced >= 0.9, format!("paced {paced:.2}x"));
            must(p99 <= 1.5, format!("p99 {p99:.1}x"));
            must(seen.open_breakers.is_empty(), "breaker".to_owned());
            must(seen.log_bytes < LOG_MAX, format!("log {:.1} MB", seen.log_bytes as f64 / 1e6));
            must(self.grown < MEMORY_MAX_MB, format!("{:+.0} MB", self.grown));
        }
        missed
    }

    /// The verdict in a few words.
    fn verdict(&self, control: &Figures) -> String {
        let missed = self.misses(control);
        let ratios = self.ratios(control).map(|[full, paced, p99]| format!("{full:.2}x, {paced:.2}x, p99 {p99:.1}x"));
        if missed.is_empty() { ratios.unwrap_or("it cannot begin".to_owned()) } else { missed.join(", ") }
    }

    fn line(&self, control: &Figures) -> String {
        let text = match (&self.figures, self.ratios(control)) {
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

    fn json(&self, control: &Figures) -> Value {
        let (figures, seen) = (self.figures.clone().unwrap_or_default(), &self.seen);
        let [full, paced, p99] = self.ratios(control).unwrap_or_default();
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
    let mut report = Report::new(NAME);
    let mut faults = Vec::new();
    for users in [Users::Other, Users::Same] {
        if halves.as_ref().is_some_and(|halves| !halves.iter().any(|half| half == users.name())) {
            continue;
        }
        if users == Users::Other && !company.is_root {
            report.not_measured("all rows", "attacker of another user", "only root can become another user");
            continue;
        }
        let mut compared = BTreeMap::new();
        let mut show = |outcome: &Outcome, control: &Figures| {
            let name = outcome.name();
            note(&format!("{name:<28} {}", outcome.line(control)));
            report.detail(&name, outcome.json(control));
            let verdict = outcome.verdict(control);
            let target = if users == Users::Other { ">= 0.9, p99 <= 1.5" } else { "others are served" };
            if outcome.row.is_attack() {
                report.criterion(&name, target, verdict, outcome.misses(control).is_empty());
            } else {
                report.figure(&name, verdict);
            }
            faults.extend(outcome.fault.as_ref().map(|fault| format!("{name}: {fault}")));
        };
        for row in [ALONE].iter().filter(|_| MEASURES).chain(ROWS.iter().filter(chosen)) {
            let control = compared.entry(row.size).or_insert_with(|| {
                let control = Row { size: row.size, ..CONTROL };
                let controls = Vec::from_iter((0..scaled(3, 1)).map(|_| run(&company, &control, users, time)));
                let medians = Figures::medians(controls.iter().flat_map(|outcome| &outcome.figures));
                controls.iter().for_each(|outcome| show(outcome, &medians));
                medians
            });
            show(&run(&company, row, users, time), control);
        }
    }
    note(&faults.join("\n"));
    report.finish();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

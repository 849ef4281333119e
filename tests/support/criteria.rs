//! Figures against their targets: a table, one JSON line, and what makes a test fail.
//!
//! A build without optimisation measures nothing: its figures are printed as they are, without a verdict. With
//! `LAPCE_IPC_STRICT=1` a criterion that is missed or not measured fails the test; otherwise it is printed only.

use serde_json::{Value, json};
use std::io::Write;

/// Whether this build is one to measure.
pub const MEASURES: bool = !cfg!(debug_assertions);

/// `full` in a build to measure, `small` in a debug build.
pub fn scaled<T>(full: T, small: T) -> T {
    if MEASURES { full } else { small }
}

/// Whether a criterion that is missed fails the test.
pub fn is_strict() -> bool {
    std::env::var("LAPCE_IPC_STRICT").is_ok_and(|value| value == "1")
}

/// A fault that the load generator is to have: `lost`, `doubled`, `stall`, `allocation`, or `mapping` (one that is kept
/// at each start). To see a test fail.
pub fn injected() -> String {
    std::env::var("LAPCE_IPC_INJECT").unwrap_or_else(|_| "none".to_owned())
}

struct Row {
    name: String,
    target: String,
    actual: String,
    is_met: Option<bool>,
}

/// The report of one test.
pub struct Report {
    test: &'static str,
    rows: Vec<Row>,
    figures: serde_json::Map<String, Value>,
    details: serde_json::Map<String, Value>,
}

impl Report {
    pub fn new(test: &'static str) -> Report {
        Report { test, rows: Vec::new(), figures: serde_json::Map::new(), details: serde_json::Map::new() }
    }

    /// What only the JSON line has.
    pub fn detail(&mut self, name: &str, value: Value) {
        self.details.insert(name.to_owned(), value);
    }

    /// A criterion with its verdict.
    pub fn criterion(&mut self, name: &str, target: &str, actual: String, is_met: bool) {
        self.row(name, target, actual, MEASURES.then_some(is_met));
    }

    /// A criterion that this run cannot decide.
    pub fn not_measured(&mut self, name: &str, target: &str, reason: &str) {
        self.row(name, target, format!("not measured ({reason})"), None);
    }

    fn row(&mut self, name: &str, target: &str, actual: String, is_met: Option<bool>) {
        self.rows.push(Row { name: name.to_owned(), target: target.to_owned(), actual, is_met });
    }

    /// A figure beside the criteria.
    pub fn figure(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        // Three digits behind the point say enough.
        let value = value.as_f64().filter(|_| value.is_f64()).map_or(value, |f| json!((f * 1e3).round() / 1e3));
        self.figures.insert(name.to_owned(), value);
    }

    /// Prints it, and fails in strict mode unless all criteria are met.
    ///
    /// # Panics
    ///
    /// In strict mode, with the criteria that are missed or not measured.
    pub fn finish(self) {
        let mut text = format!("\n{}", self.test);
        text += if MEASURES { "\n" } else { " (debug build: scaled down, ledgers and counts only, no verdicts)\n" };
        for (name, value) in &self.figures {
            text += &format!("  {name:<44} {value}\n");
        }
        let verdict = |row: &Row| match row.is_met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not measured",
        };
        for (index, row) in self.rows.iter().enumerate() {
            let (name, target, actual) = (&row.name, &row.target, &row.actual);
            text += &format!("  {} {name:<22} {target:<26} {actual:<52} {}\n", index + 1, verdict(row));
        }
        let criteria: Vec<Value> = self
            .rows
            .iter()
            .map(|row| json!({"name": row.name, "target": row.target, "actual": row.actual, "verdict": verdict(row)}))
            .collect();
        let line = json!({
            "test": self.test,
            "debug": !MEASURES,
            "strict": is_strict(),
            "figures": self.figures,
            "details": self.details,
            "criteria": criteria,
        });
        let _ = writeln!(std::io::stdout(), "{text}{line}");
        let missing: Vec<&str> =
            self.rows.iter().filter(|row| row.is_met != Some(true)).map(|row| row.name.as_str()).collect();
        assert!(!is_strict() || missing.is_empty(), "missed or not measured: {}", missing.join(", "));
    }
}

/// The value below which this part of the samples lies. The samples are sorted by it.
pub fn quantile(samples: &mut [u64], part: f64) -> u64 {
    samples.sort_unstable();
    let index = (samples.len() as f64 * part) as usize;
    samples.get(index.min(samples.len().saturating_sub(1))).copied().unwrap_or_default()
}

//! The tables.

use super::{METRICS, Metric, Report, Row};
use std::fmt::Write;

const RATIO: &str = "In parentheses: the figure as a multiple of lapce-ipc's.";

/// The whole page, `peers.md`.
pub(super) fn page(report: &Report) -> String {
    let mut page = String::from("# lapce-ipc beside its neighbours\n\n");
    let _ = write!(
        page,
        "{}\nWritten by `benches/peers/run`; all figures are in `peers.json`.\n\n",
        report.circumstances()
    );
    page += "![Medians of all peers](peers.svg)\n\n";
    let _ = write!(page, "{RATIO} Each message is checked byte by byte, and a lost or doubled one is a failure.\n\n");
    page += "## Round trip\n\nOne request at a time, to a service in another process.\n\n";
    page += &table(report, &METRICS[..4]);
    page +=
        "\n## Throughput\n\nOne sender, one receiver. A reply of 1,000 tokens of 16 bytes is sent token by token.\n\n";
    page += &table(report, &METRICS[4..7]);
    page += "\n## Cost\n\nCPU time of all processes involved, brokers included; work of the kernel outside of them is \
             not counted. Memory: what 100 more connections to a service, each used once, add to all processes \
             involved (`Pss`), for each; buffers in the kernel are not counted.\n\n";
    page += &table(report, &METRICS[7..]);
    page += "\n## The worst run of lapce-ipc beside the best of the others\n\nIn parentheses: the figure as a multiple \
             of lapce-ipc's worst run.\n\n";
    page += &extremes(report, &[0, 2, 4, 5, 6].map(|at| &METRICS[at]));
    page += "\n## What is compared\n\n| | version | way of a message | processes | an end waits | what the figures do \
             and do not compare |\n|---|---|---|---|---|---|\n";
    for row in &report.rows {
        let Row { name, version, path, processes, wait, compares, .. } = row;
        let _ = writeln!(page, "| {name} | {version} | {path} | {processes} | {wait} | {compares} |");
    }
    page += &notes(report);
    page
}

/// The section of a README; `folder` is where the other files are.
pub(super) fn section(report: &Report, folder: &str) -> String {
    let mut section = format!("{} {RATIO}\n\n", report.circumstances());
    let _ = write!(section, "![Medians of all peers]({folder}/peers.svg)\n\n");
    section += &table(report, &[0, 1, 4, 5, 6, 7, 9].map(|at| &METRICS[at]));
    let _ = write!(
        section,
        "\nUnix socket, ZeroMQ, iceoryx2 and Node.js have no broker between the ends, NATS crosses TCP, and the ends \
         of iceoryx2 poll, each on a core of its own. [{folder}/peers.md]({folder}/peers.md) has all figures, the \
         worst run beside the others' best, wait strategies, and what each figure does and does not compare.\n"
    );
    section + &notes(report)
}

/// One row for each peer, with medians.
fn table<M: std::borrow::Borrow<Metric>>(report: &Report, metrics: &[M]) -> String {
    let mut table = head(metrics);
    for row in &report.rows {
        let _ = write!(table, "| {} |", row.name);
        for metric in metrics.iter().map(std::borrow::Borrow::borrow) {
            let ours = report.ours().and_then(|ours| ours.median(metric));
            let _ = write!(table, " {} |", cell(metric, row.median(metric), ours, is_ours(report, row)));
        }
        table.push('\n');
    }
    table
}

fn extremes(report: &Report, metrics: &[&Metric]) -> String {
    let mut table = head(metrics);
    for row in &report.rows {
        let is_ours = is_ours(report, row);
        let _ = write!(table, "| {}, {} |", row.name, if is_ours { "worst" } else { "best" });
        for metric in metrics {
            let ours = report.ours().and_then(|ours| ours.worst(metric));
            let figure = if is_ours { row.worst(metric) } else { row.best(metric) };
            let _ = write!(table, " {} |", cell(metric, figure, ours, is_ours));
        }
        table.push('\n');
    }
    table
}

fn head<M: std::borrow::Borrow<Metric>>(metrics: &[M]) -> String {
    let titles: Vec<&str> = metrics.iter().map(|metric| metric.borrow().title).collect();
    format!("| | {} |\n|---|{}\n", titles.join(" | "), "--:|".repeat(metrics.len()))
}

fn is_ours(report: &Report, row: &Row) -> bool {
    report.ours().is_some_and(|ours| ours.key == row.key)
}

fn cell(metric: &Metric, figure: Option<f64>, ours: Option<f64>, is_ours: bool) -> String {
    let Some(figure) = figure else { return "not measured".to_owned() };
    let text = metric.unit.text(figure);
    match ours {
        Some(ours) if !is_ours && ours > 0.0 => format!("{text} ({})", ratio(figure / ours)),
        _ => text,
    }
}

fn ratio(ratio: f64) -> String {
    if ratio >= 10.0 {
        format!("{ratio:.0}×")
    } else if ratio >= 0.1 {
        format!("{ratio:.1}×")
    } else {
        format!("{ratio:.2}×")
    }
}

fn notes(report: &Report) -> String {
    let mut text = String::new();
    for row in &report.rows {
        for note in &row.notes {
            let _ = write!(text, "\n- {}: {}", row.name, note.replace('\n', " ").trim());
        }
    }
    if text.is_empty() { text } else { text + "\n" }
}

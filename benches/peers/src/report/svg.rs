//! The plot: a panel for each of four metrics, a bar for each peer, logarithmic, so that a nanosecond peer and a
//! millisecond peer fit on one scale.

use super::{Metric, Report, Row, Unit};
use std::fmt::Write;

const PANELS: &[(&str, &str)] = &[
    ("round_trip_64_p50_us", "round trip, 64 B, median (shorter is better)"),
    ("one_way_64_per_s", "messages one way, 64 B (longer is better)"),
    ("stream_p50_us", "a reply of 1,000 tokens, median (shorter is better)"),
    ("one_way_cpu", "CPU time, a million messages one way, 64 B (shorter is better)"),
];
const WIDTH: f64 = 960.0;
const PANEL: f64 = WIDTH / 2.0;
const LABEL: f64 = 118.0;
const VALUE: f64 = 76.0;
const LINE: f64 = 22.0;
const TITLE: f64 = 40.0;

pub(super) fn plot(report: &Report) -> String {
    let panel_height = TITLE + LINE * report.rows.len() as f64 + 12.0;
    let height = panel_height * PANELS.len().div_ceil(2) as f64 + 44.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for (index, (key, title)) in PANELS.iter().enumerate() {
        let (left, top) = ((index % 2) as f64 * PANEL, (index / 2) as f64 * panel_height);
        panel(&mut svg, report, Metric::of(key), title, left, top);
    }
    let notes = [report.place(), format!("{}; logarithmic scales", report.conditions())];
    for (index, note) in notes.iter().enumerate() {
        text(&mut svg, 12.0, height - 26.0 + 16.0 * index as f64, "", "#555555", note);
    }
    svg + "</svg>\n"
}

fn panel(svg: &mut String, report: &Report, metric: &Metric, title: &str, left: f64, top: f64) {
    text(svg, left + 12.0, top + 26.0, "font-weight=\"bold\"", "#111111", title);
    let figures = report.rows.iter().filter_map(|row| row.median(metric)).filter(|figure| *figure > 0.0);
    let (min, max) = figures.fold((f64::MAX, f64::MIN), |(min, max), figure| (min.min(figure), max.max(figure)));
    // The shortest bar keeps a length.
    let (low, span) = ((min / 2.0).ln(), (max / min * 2.0).ln());
    for (index, row) in report.rows.iter().enumerate() {
        let y = top + TITLE + LINE * index as f64;
        text(svg, left + LABEL, y + 14.0, "text-anchor=\"end\"", "#111111", &row.name);
        let figure = row.median(metric).filter(|figure| *figure > 0.0);
        let length = figure.map_or(0.0, |figure| (figure.ln() - low) / span * (PANEL - LABEL - VALUE - 16.0));
        let x = left + LABEL + 8.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"{}\"/>",
            LINE - 5.0,
            colour(row)
        );
        let value = figure.map_or("not measured".to_owned(), |figure| Unit::text(metric.unit, figure));
        text(svg, x + length + 5.0, y + 14.0, "", "#333333", &value);
    }
}

fn colour(row: &Row) -> &'static str {
    if row.key.starts_with(super::OURS) { "#2f6fdb" } else { "#9aa7b8" }
}

fn text(svg: &mut String, x: f64, y: f64, attributes: &str, fill: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{fill}\" {attributes}>{text}</text>");
}

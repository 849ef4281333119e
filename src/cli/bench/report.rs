//! The figures, for people and as JSON.

use super::connections::Cost;
use super::scrape::Scrapes;
use super::work::Throughput;
use hdrhistogram::Histogram;
use serde::Serialize;

/// The results.
#[derive(Debug)]
pub(super) enum Figures {
    /// In nanoseconds.
    RoundTrips(Histogram<u64>),
    /// From a publisher to a subscriber, in nanoseconds.
    OneWay(Histogram<u64>),
    Throughput(Throughput),
    Cost(Cost),
    Scrapes(Scrapes),
}

/// One measurement.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) mode: &'static str,
    pub(super) wait: &'static str,
    pub(super) size: u32,
    pub(super) seconds: u64,
    pub(super) processes: usize,
    pub(super) floor_ns: u64,
    pub(super) figures: Figures,
}

/// As JSON. Keys stay what they are: scripts read them.
#[derive(Default, Serialize)]
struct Json {
    mode: &'static str,
    wait: &'static str,
    size: u32,
    seconds: u64,
    processes: usize,
    floor_ns: u64,
    samples: u64,
    #[serde(flatten)]
    times: Option<JsonTimes>,
    #[serde(flatten)]
    throughput: Option<JsonThroughput>,
    #[serde(flatten)]
    cost: Option<JsonCost>,
    #[serde(flatten)]
    scrapes: Option<JsonScrapes>,
}

#[derive(Serialize)]
struct JsonTimes {
    min_ns: u64,
    p50_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
    max_ns: u64,
    /// The median as a multiple of the floor.
    p50_floors: f64,
}

#[derive(Serialize)]
struct JsonThroughput {
    msgs_per_s: u64,
    bytes_per_s: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscribers: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outstanding: Option<usize>,
}

#[derive(Serialize)]
struct JsonCost {
    connections: u32,
    rss_bytes_per_connection: u64,
    page_table_bytes_per_connection: u64,
    /// Both together.
    bytes_per_connection: u64,
    idle_cpu_ticks: u64,
    idle_seconds: u64,
}

#[derive(Serialize)]
struct JsonScrapes {
    connections: u32,
    /// Of the router's thread, for each scrape.
    router_cpu_p50_ns: u64,
    router_cpu_max_ns: u64,
    scrape_p50_ns: u64,
    scrape_max_ns: u64,
    scrape_bytes: u64,
    msgs_per_s: u64,
}

impl JsonCost {
    fn new(cost: &Cost) -> JsonCost {
        let each = |bytes: u64| bytes / u64::from(cost.connections.max(1));
        JsonCost {
            connections: cost.connections,
            rss_bytes_per_connection: each(cost.grown.rss),
            page_table_bytes_per_connection: each(cost.grown.page_tables),
            bytes_per_connection: each(cost.grown.rss + cost.grown.page_tables),
            idle_cpu_ticks: cost.idle_cpu_ticks,
            idle_seconds: cost.idle.as_secs(),
        }
    }
}

impl Report {
    /// One object, and a newline.
    pub(super) fn json(&self) -> String {
        let mut json = Json {
            mode: self.mode,
            wait: self.wait,
            size: self.size,
            seconds: self.seconds,
            processes: self.processes,
            floor_ns: self.floor_ns,
            ..Json::default()
        };
        match &self.figures {
            Figures::RoundTrips(histogram) | Figures::OneWay(histogram) => {
                json.samples = histogram.len();
                json.times = Some(JsonTimes {
                    min_ns: histogram.min(),
                    p50_ns: histogram.value_at_quantile(0.5),
                    p99_ns: histogram.value_at_quantile(0.99),
                    p999_ns: histogram.value_at_quantile(0.999),
                    max_ns: histogram.max(),
                    p50_floors: (self.floors(histogram.value_at_quantile(0.5)) * 100.0).round() / 100.0,
                });
            }
            Figures::Throughput(throughput) => {
                json.samples = throughput.samples;
                json.throughput = Some(JsonThroughput {
                    // A float becomes the nearest integer.
                    msgs_per_s: throughput.msgs_per_s() as u64,
                    bytes_per_s: (throughput.msgs_per_s() * f64::from(self.size)) as u64,
                    subscribers: throughput.subscribers,
                    outstanding: throughput.outstanding,
                });
            }
            Figures::Cost(cost) => {
                json.samples = u64::from(cost.connections);
                json.cost = Some(JsonCost::new(cost));
            }
            Figures::Scrapes(scrapes) => {
                json.samples = scrapes.took.len();
                json.scrapes = Some(JsonScrapes {
                    connections: scrapes.connections,
                    router_cpu_p50_ns: scrapes.router_cpu.value_at_quantile(0.5),
                    router_cpu_max_ns: scrapes.router_cpu.max(),
                    scrape_p50_ns: scrapes.took.value_at_quantile(0.5),
                    scrape_max_ns: scrapes.took.max(),
                    scrape_bytes: scrapes.bytes,
                    msgs_per_s: scrapes.msgs_per_s,
                });
            }
        }
        // Strings and numbers always serialise.
        serde_json::to_string(&json).unwrap_or_default() + "\n"
    }

    /// A block of lines.
    pub(super) fn text(&self) -> String {
        let mut lines = vec![(
            self.mode,
            format!("{} bytes, {} processes, wait {}, {} s", self.size, self.processes, self.wait, self.seconds),
        )];
        lines.push(("floor", time(self.floor_ns)));
        match &self.figures {
            Figures::RoundTrips(histogram) | Figures::OneWay(histogram) => {
                let at = |ns| format!("{}  ({:.1} floors)", time(ns), self.floors(ns));
                lines.push(("min", at(histogram.min())));
                lines.push(("p50", at(histogram.value_at_quantile(0.5))));
                lines.push(("p99", at(histogram.value_at_quantile(0.99))));
                lines.push(("p99.9", at(histogram.value_at_quantile(0.999))));
                lines.push(("max", at(histogram.max())));
                let is_one_way = matches!(self.figures, Figures::OneWay(_));
                let counted = if is_one_way { "deliveries" } else { "round trips" };
                lines.push((counted, histogram.len().to_string()));
            }
            Figures::Throughput(throughput) => {
                let rate = throughput.msgs_per_s();
                lines.push(("messages/s", format!("{:.3} M", rate / 1e6)));
                lines.push(("MB/s", format!("{:.1}", rate * f64::from(self.size) / 1e6)));
                lines.push(("messages", throughput.samples.to_string()));
                lines.extend(throughput.subscribers.map(|number| ("subscribers", number.to_string())));
                lines.extend(throughput.outstanding.map(|number| ("outstanding", number.to_string())));
            }
            Figures::Cost(cost) => {
                let each = JsonCost::new(cost);
                let kib = |bytes: u64| format!("{:.1} KiB", bytes as f64 / 1024.0);
                lines.push(("connections", each.connections.to_string()));
                lines.push(("resident", format!("{} each", kib(each.rss_bytes_per_connection))));
                lines.push(("page tables", format!("{} each", kib(each.page_table_bytes_per_connection))));
                lines.push(("together", format!("{} each", kib(each.bytes_per_connection))));
                lines.push(("idle CPU", format!("{} ticks in {} s", each.idle_cpu_ticks, each.idle_seconds)));
            }
            Figures::Scrapes(scrapes) => {
                let both =
                    |h: &Histogram<u64>| format!("{} (at most {})", time(h.value_at_quantile(0.5)), time(h.max()));
                lines.push(("connections", scrapes.connections.to_string()));
                lines.push(("router CPU", both(&scrapes.router_cpu)));
                lines.push(("scrape", format!("{}, {} bytes", both(&scrapes.took), scrapes.bytes)));
                lines.push(("scrapes", scrapes.took.len().to_string()));
                lines.push(("messages/s", format!("{:.3} M", scrapes.msgs_per_s as f64 / 1e6)));
            }
        }
        lines.into_iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect()
    }

    fn floors(&self, ns: u64) -> f64 {
        ns as f64 / self.floor_ns.max(1) as f64
    }
}

fn time(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.2} µs", ns as f64 / 1e3),
        _ => format!("{:.2} ms", ns as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::memory::Memory;
    use std::time::Duration;

    fn report(figures: Figures) -> Report {
        Report { mode: "m", wait: "busy", size: 64, seconds: 1, processes: 2, floor_ns: 100, figures }
    }

    #[test]
    fn json_has_the_keys_that_are_promised() {
        let mut histogram = Histogram::new(3).unwrap();
        histogram.record(250).unwrap();
        let json: serde_json::Value = serde_json::from_str(&report(Figures::RoundTrips(histogram)).json()).unwrap();
        for key in ["p50_ns", "p99_ns", "p999_ns", "floor_ns", "size", "processes", "samples", "seconds"] {
            assert!(json[key].is_u64(), "{key} in {json}");
        }
        assert_eq!(json["wait"], "busy");
        assert_eq!(json["p50_floors"], 2.5);
        assert!(json.get("msgs_per_s").is_none());

        let elapsed = Duration::from_secs(2);
        let throughput = Throughput { samples: 10, elapsed, subscribers: Some(8), outstanding: None };
        let json: serde_json::Value = serde_json::from_str(&report(Figures::Throughput(throughput)).json()).unwrap();
        assert_eq!(json["msgs_per_s"], 5);
        assert_eq!(json["bytes_per_s"], 320);
        assert_eq!(json["subscribers"], 8);
        assert!(json.get("p50_ns").is_none() && json.get("outstanding").is_none());

        let grown = Memory { rss: 40_960, page_tables: 8192 };
        let cost = Cost { connections: 10, grown, idle_cpu_ticks: 3, idle: elapsed };
        let json: serde_json::Value = serde_json::from_str(&report(Figures::Cost(cost)).json()).unwrap();
        for (key, value) in [
            ("connections", 10),
            ("samples", 10),
            ("rss_bytes_per_connection", 4096),
            ("page_table_bytes_per_connection", 819),
            ("bytes_per_connection", 4915),
            ("idle_cpu_ticks", 3),
            ("idle_seconds", 2),
            ("processes", 2),
        ] {
            assert_eq!(json[key], value, "{key} in {json}");
        }
        assert!(json.get("msgs_per_s").is_none() && json.get("p50_ns").is_none());
    }
}

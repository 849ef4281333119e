//! Metrics for Prometheus: the families, and the exposition format. It knows numbers and
//! names, but not their sources.
//!
//! Nothing is counted twice: the router has plain counters that only it writes, and the handler of `/metrics` reads
//! them into [`Samples`]. So metrics cost nothing between scrapes.

pub(crate) mod families;
pub(crate) mod memory;

pub(crate) use families::{Family, Kind};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, Registry, TextEncoder};
use std::collections::BTreeMap;

/// The content type of what [`Samples::render`] writes.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The samples of one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(BTreeMap<&'static str, (&'static Family, BTreeMap<Vec<String>, Sample>)>);

/// One sample of a family.
#[derive(Clone, Debug)]
enum Sample {
    Value(f64),
    Distribution(Distribution),
}

/// A histogram: observation counts per bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Distribution {
    /// Upper bounds of the buckets, ascending, and the observations in each (not cumulative).
    pub(crate) buckets: Vec<(f64, u64)>,
    /// All observations, including those beyond the last bound.
    pub(crate) count: u64,
    pub(crate) sum: f64,
}

impl Samples {
    /// Adds to the sample of these labels, which begins with 0. The labels are in the family's order.
    pub(crate) fn add(&mut self, family: &'static Family, labels: &[&str], value: f64) {
        debug_assert!(family.kind != Kind::Histogram, "{}", family.name);
        if let Sample::Value(sum) = self.sample(family, labels, Sample::Value(0.0)) {
            *sum += value;
        }
    }

    /// Adds to the histogram of these labels, which begins empty. All of one family have the same bounds.
    pub(crate) fn distribute(&mut self, family: &'static Family, labels: &[&str], more: Distribution) {
        debug_assert!(family.kind == Kind::Histogram, "{}", family.name);
        let buckets = more.buckets.iter().map(|(bound, _)| (*bound, 0)).collect();
        let empty = Sample::Distribution(Distribution { buckets, ..Distribution::default() });
        if let Sample::Distribution(sum) = self.sample(family, labels, empty) {
            sum.buckets.iter_mut().zip(more.buckets).for_each(|((_, count), (_, more))| *count += more);
            sum.count += more.count;
            sum.sum += more.sum;
        }
    }

    fn sample(&mut self, family: &'static Family, labels: &[&str], first: Sample) -> &mut Sample {
        debug_assert_eq!(family.labels.len(), labels.len(), "{}", family.name);
        let (_, samples) = self.0.entry(family.name).or_insert_with(|| (family, BTreeMap::new()));
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        samples.entry(labels).or_insert(first)
    }

    /// The samples in the text format of Prometheus.
    ///
    /// # Errors
    ///
    /// If two families have one name, or a name is invalid, which a test excludes.
    pub(crate) fn render(self) -> Result<String, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(self))?;
        let mut text = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl Collector for Samples {
    fn desc(&self) -> Vec<&Desc> {
        // The registry distinguishes collectors by their descriptions. There is only one.
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0.values().map(|(family, samples)| collected(family, samples)).collect()
    }
}

fn collected(family: &Family, samples: &BTreeMap<Vec<String>, Sample>) -> MetricFamily {
    let metric = |(labels, sample): (&Vec<String>, &Sample)| {
        let mut metric = Metric::from_label(
            family
                .labels
                .iter()
                .zip(labels)
                .map(|(name, value)| {
                    let mut pair = LabelPair::default();
                    pair.set_name((*name).to_owned());
                    pair.set_value(value.clone());
                    pair
                })
                .collect(),
        );
        match sample {
            Sample::Value(value) if family.kind == Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(*value);
                metric.set_counter(counter);
            }
            Sample::Value(value) => {
                let mut gauge = Gauge::default();
                gauge.set_value(*value);
                metric.set_gauge(gauge);
            }
            Sample::Distribution(distribution) => metric.set_histogram(histogram(distribution)),
        }
        metric
    };
    let mut collected = MetricFamily::default();
    collected.set_name(family.name.to_owned());
    collected.set_help(family.help.to_owned());
    collected.set_field_type(match family.kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    collected.set_metric(samples.iter().map(metric).collect());
    collected
}

/// In Prometheus' form: each bucket counts those before it, too. (The one without a bound is written by the encoder.)
fn histogram(distribution: &Distribution) -> Histogram {
    let mut below = 0;
    let bucket = |(bound, count): &(f64, u64)| {
        below += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(below);
        bucket
    };
    let mut histogram = Histogram::default();
    histogram.set_bucket(distribution.buckets.iter().map(bucket).collect());
    histogram.set_sample_count(distribution.count);
    histogram.set_sample_sum(distribution.sum);
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeSet, HashMap};

    /// A family by the library's own rules of names.
    fn checked(family: &Family) -> Result<Desc, prometheus::Error> {
        let labels = family.labels.iter().map(|label| (*label).to_owned()).collect();
        Desc::new(family.name.to_owned(), family.help.to_owned(), labels, HashMap::new())
    }

    #[test]
    fn families_are_named_as_prometheus_wants_them() {
        let mut names = BTreeSet::new();
        for family in families::ALL {
            let name = family.name;
            assert!(checked(family).is_ok(), "{name}");
            assert!(names.insert(name), "{name} is there twice");
            assert!(name.starts_with("lapce_ipc_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), family.kind == Kind::Counter, "{name}");
            assert!(family.help.ends_with('.') && family.help.len() > 10, "{name}: {:?}", family.help);
            assert!(!["_ms", "_ns", "_us", "_kib", "_mb"].iter().any(|unit| name.ends_with(unit)), "{name}");
        }
    }

    #[test]
    fn dashboard_and_alerts_ask_for_families_that_there_are() {
        for text in [include_str!("../../dashboards/ipc_metrics.json"), include_str!("../../dashboards/alerts.yml")] {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let named: BTreeSet<_> =
                words.filter(|word| word.starts_with("lapce_ipc_") || word.starts_with("process_")).collect();
            assert!(named.len() >= 10, "{named:?}");
            for name in named {
                let is_there = families::ALL.iter().any(|family| match family.kind {
                    // Only the parts of one can be asked for.
                    Kind::Histogram => {
                        ["_bucket", "_sum", "_count"].iter().any(|part| name == family.name.to_owned() + part)
                    }
                    Kind::Counter | Kind::Gauge => family.name == name,
                });
                assert!(is_there, "{name}");
            }
        }
        let dashboard: serde_json::Value =
            serde_json::from_str(include_str!("../../dashboards/ipc_metrics.json")).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        for panel in panels.iter().filter(|panel| panel["type"] != "row") {
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{panel}");
        }
    }

    #[test]
    fn histograms_are_written_with_what_is_below_each_bound_and_add_up() {
        let mut samples = Samples::default();
        let half = || Distribution { buckets: vec![(1e-7, 2), (2e-7, 0), (0.5, 1)], count: 4, sum: 3.5 };
        samples.distribute(&families::ROUND_TRIP, &["other"], half());
        samples.distribute(&families::ROUND_TRIP, &["other"], half());
        let text = samples.render().unwrap();
        let name = families::ROUND_TRIP.name;
        let samples: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(name)).collect();
        assert_eq!(
            samples,
            [
                r#"_bucket{service="other",le="0.0000001"} 4"#,
                r#"_bucket{service="other",le="0.0000002"} 4"#,
                r#"_bucket{service="other",le="0.5"} 6"#,
                r#"_bucket{service="other",le="+Inf"} 8"#,
                r#"_sum{service="other"} 7"#,
                r#"_count{service="other"} 8"#,
            ]
        );
        assert!(text.contains(&format!("# TYPE {name} histogram\n")), "{text}");
    }

    #[test]
    fn figures_are_written_once_each_and_labels_are_escaped() {
        let mut samples = Samples::default();
        samples.add(&families::SERVICE_REQUESTS, &["a\"b\\c\nd"], 2.0);
        samples.add(&families::SERVICE_REQUESTS, &["other"], 3.0);
        samples.add(&families::SERVICE_REQUESTS, &["other"], 4.0);
        samples.add(&families::CONNECTIONS, &[], 0.0);
        let text = samples.render().unwrap();
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "lapce_ipc_connections 0",
                r#"lapce_ipc_service_requests_total{service="a\"b\\c\nd"} 2"#,
                r#"lapce_ipc_service_requests_total{service="other"} 7"#,
            ]
        );
        assert!(text.contains("# TYPE lapce_ipc_connections gauge\n"), "{text}");
        assert!(text.contains("# TYPE lapce_ipc_service_requests_total counter\n"), "{text}");
        assert!(text.contains("# HELP lapce_ipc_connections "), "{text}");
    }
}

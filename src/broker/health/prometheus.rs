//! A snapshot as metrics for Prometheus: counters of the router and the supervisors, data of the kernel.

use super::probe::LastReply;
use super::process::Usage;
use crate::broker::router::{ECHO, RouterMetrics, ServiceMetrics, breaker_state};
use crate::broker::telemetry::counters::CounterValues;
use crate::broker::telemetry::holdings::listed;
use crate::logic::breaker::GateState;
use crate::logic::histogram::Histogram;
use crate::logic::quotas::Quotas;
use crate::logic::readiness::Snapshot;
use crate::logic::services::CallTimes;
use crate::metrics::families::*;
use crate::metrics::memory::Memory;
use crate::metrics::{Distribution, Family, Samples};
use crate::wire::control::{ActorState, BreakerState, HoldingStatus, StatusReport};
use crate::wire::record::Outcome;
use std::collections::BTreeSet;

/// Services with labels of their own; the others share one.
const SERVICES_MAX: usize = 100;
const OTHER: &str = "other";
/// Nanoseconds of a second.
const NANOS: f64 = 1e9;

/// The router's counters, by their names in the status.
const COUNTERS: &[(&str, &Family)] = &[
    ("connections", &CONNECTIONS_OPENED),
    ("records", &RECORDS),
    ("fragments", &FRAGMENTS),
    ("bytes", &BYTES),
    ("published", &PUBLISHED),
    ("delivered", &DELIVERED),
    ("unmatched", &UNMATCHED),
    ("aborted", &ABORTED),
    ("evicted", &EVICTED),
    ("requests", &REQUESTS),
    ("replies", &REPLIES),
    ("chunks", &CHUNKS),
    ("cancels", &CANCELS),
    ("late", &REPLIES_LATE),
    ("parked", &PARKED),
    ("violations", &VIOLATIONS),
    ("poison_messages", &POISON_MESSAGES),
    ("rings", &RUNG),
    ("looks", &LOOKS),
    ("sleeps", &SLEEPS),
    ("leases_refused", &LEASES_REFUSED),
];

const BREAKER_STATES: [BreakerState; 5] = [
    BreakerState::Closed,
    BreakerState::Open,
    BreakerState::HalfOpen,
    BreakerState::ForcedOpen,
    BreakerState::ForcedClosed,
];

/// The delivery policies, in the order of their codes.
const POLICIES: [&str; 3] = ["block", "drop_newest", "drop_oldest"];

/// The restarts of an actor, by reason.
type Restarts = (String, Vec<(&'static str, u64)>);

/// All samples. Those of the router are from its last reply, if there is one.
pub(super) fn samples(
    snapshot: &Snapshot,
    (restarts, counts): (&[Restarts], &CounterValues),
    seen: Option<&LastReply>,
    usage: Option<Usage>,
    started: f64,
) -> Samples {
    let mut samples = Samples::default();
    let flag = |is: bool| f64::from(u8::from(is));
    samples.add(&BUILD_INFO, &[snapshot.version], 1.0);
    samples.add(&UPTIME, &[], snapshot.uptime_ms as f64 / 1000.0);
    samples.add(&READY, &[], flag(snapshot.unready().is_empty()));
    samples.add(&THREADS_LATE, &[], snapshot.late as f64);
    samples.add(&CONNECTIONS, &[], snapshot.connections as f64);
    samples.add(&CONNECTIONS_LIMIT, &[], snapshot.max_connections as f64);
    // Connections are in no quota.
    let connections = snapshot.users.iter().copied();
    listed(&Quotas::default(), "connections", None, connections).for_each(|holding| held(&mut samples, &holding));
    for actor in &snapshot.actors {
        let labels = [actor.name.as_str()];
        samples.add(&ACTOR_UP, &labels, flag(actor.state == ActorState::Running));
        samples.add(&ACTOR_FAILURES, &labels, actor.failures as f64);
    }
    for upstream in &snapshot.upstreams {
        samples.add(&UPSTREAM_CONNECTED, &[upstream.name.as_str()], flag(upstream.connection.is_some()));
    }
    for (actor, causes) in restarts {
        causes.iter().for_each(|(cause, times)| samples.add(&ACTOR_RESTARTS, &[actor, cause], *times as f64));
    }
    counts.refused.iter().for_each(|(reason, times)| samples.add(&REFUSED, &[reason], *times as f64));
    samples.add(&RESUMED, &[], counts.resumed as f64);
    counts.lost.iter().for_each(|(reason, times)| samples.add(&LOST, &[reason], *times as f64));
    samples.add(&LOG_LINES_DROPPED, &[], counts.log_lines_dropped as f64);
    if let Some(seen) = seen {
        samples.add(&HEARTBEAT_AGE, &[], seen.at.elapsed().as_secs_f64());
        routed(&mut samples, &seen.router_snapshot.report);
        timed(&mut samples, &seen.router_snapshot.metrics);
        services(&mut samples, seen);
    }
    if let Some(usage) = usage {
        samples.add(&PROCESS_CPU, &[], usage.cpu_seconds);
        samples.add(&PROCESS_VIRTUAL, &[], usage.virtual_bytes);
        samples.add(&PROCESS_THREADS, &[], usage.threads);
        samples.add(&PROCESS_FDS, &[], usage.descriptors);
        samples.add(&PROCESS_FDS_LIMIT, &[], usage.descriptors_limit);
        samples.add(&PROCESS_STARTED, &[], started);
        if let Some(Memory { rss, page_tables }) = usage.memory {
            samples.add(&PROCESS_MEMORY, &[], rss as f64);
            samples.add(&MEMORY, &["resident"], rss as f64);
            samples.add(&MEMORY, &["page_tables"], page_tables as f64);
        }
    }
    samples
}

fn held(samples: &mut Samples, holding: &HoldingStatus) {
    // An empty label is none to Prometheus.
    let labels = [&*holding.uid.to_string(), holding.quota.as_deref().unwrap_or_default(), &holding.resource];
    samples.add(&USER_HELD, &labels, holding.held as f64);
    samples.add(&USER_LIMIT, &labels, holding.limit as f64);
}

fn routed(samples: &mut Samples, report: &StatusReport) {
    for (name, value) in &report.counters {
        let outcome = name.strip_prefix("failed_");
        if let Some(outcome) = outcome.filter(|outcome| Outcome::ALL.iter().any(|known| known.as_str() == *outcome)) {
            samples.add(&REQUESTS_FAILED, &[outcome], *value as f64);
        } else if let Some((_, family)) = COUNTERS.iter().find(|(known, _)| known == name) {
            samples.add(family, &[], *value as f64);
        }
    }
    samples.add(&SLOTS_USED, &[], report.slots_used.into());
    samples.add(&SLOTS_LIMIT, &[], report.slots_total.into());
    report.holdings.iter().for_each(|holding| held(samples, holding));
    samples.add(&TOPICS, &[], report.topics.into());
    samples.add(&SUBSCRIPTIONS, &[], report.subscriptions.into());
}

fn timed(samples: &mut Samples, router: &RouterMetrics) {
    samples.distribute(&IN_BROKER, &[], distribution(&router.in_broker, NANOS));
    samples.distribute(&BATCHES, &[], distribution(&router.batches, 1.0));
    POLICIES.iter().zip(router.dropped).for_each(|(policy, times)| samples.add(&DROPPED, &[policy], times as f64));
    let (probes, cpu) = router.probes;
    samples.add(&PROBES, &[], probes as f64);
    samples.add(&PROBE_CPU, &[], cpu as f64 / NANOS);
}

/// A histogram whose unit is `per` times smaller than that of the metric.
fn distribution<const BASE: u64, const BUCKETS: usize>(histogram: &Histogram<BASE, BUCKETS>, per: f64) -> Distribution {
    let bounds = Histogram::<BASE, BUCKETS>::bounds().map(|bound| bound as f64 / per);
    Distribution {
        buckets: bounds.zip(histogram.counts().iter().copied()).collect(),
        count: histogram.count(),
        sum: histogram.sum() as f64 / per,
    }
}

fn services(samples: &mut Samples, seen: &LastReply) {
    let router = &seen.router_snapshot.metrics;
    let (services, breakers) = (&seen.router_snapshot.report.services, &seen.router_snapshot.breakers);
    let names = services.iter().map(|service| &service.name).chain(breakers.iter().map(|breaker| &breaker.service));
    let mut labelled = BTreeSet::new();
    for name in names {
        if labelled.len() < SERVICES_MAX {
            labelled.insert(name.as_str());
        }
    }
    let label = |name| if labelled.contains(name) { name } else { OTHER };
    for service in services {
        let labels = [label(service.name.as_str())];
        // The broker's own service has no responders.
        if service.name.as_str() != ECHO {
            samples.add(&SERVICE_RESPONDERS, &labels, service.responders.into());
        }
        samples.add(&SERVICE_OUTSTANDING, &labels, service.outstanding.into());
        samples.add(&SERVICE_REQUESTS, &labels, service.requests as f64);
        samples.add(&SERVICE_FAILURES, &labels, service.failures as f64);
    }
    for breaker in breakers {
        let service = label(breaker.service.as_str());
        for state in BREAKER_STATES {
            let is_in = f64::from(u8::from(state == breaker.state));
            samples.add(&BREAKER_STATE, &[service, state.as_str()], is_in);
        }
        samples.add(&BREAKER_OPENED, &[service], breaker.opened as f64);
        samples.add(&BREAKER_REJECTED, &[service], breaker.rejected as f64);
    }
    for ServiceMetrics { name, times, transitions } in &router.services {
        let service = label(name.as_str());
        for (state, times) in GateState::ALL.into_iter().zip(transitions) {
            samples.add(&BREAKER_TRANSITIONS, &[service, breaker_state(state).as_str()], *times as f64);
        }
        durations(samples, service, times);
    }
    durations(samples, OTHER, &router.forgotten);
}

/// Services without calls are left out: there may be many.
fn durations(samples: &mut Samples, service: &str, times: &CallTimes) {
    for (family, histogram) in [(&ROUND_TRIP, &times.round_trip), (&FIRST_CHUNK, &times.first_chunk)] {
        if histogram.count() > 0 {
            samples.distribute(family, &[service], distribution(histogram, NANOS));
        }
    }
}

/// Whether a counter is no sign of traffic, or is 0.
fn is_quiet((name, value): &(String, u64)) -> bool {
    *value == 0 || ["looks", "sleeps", "rings"].contains(&name.as_str())
}

/// The summary for the log; `None` without traffic since `before`.
pub(super) fn summary(report: &StatusReport, connections: u64, restarts: u64, before: &mut String) -> Option<String> {
    let mut line = format!("connections={connections}");
    for name in ["published", "delivered", "requests", "replies", "dropped", "evicted"] {
        let value = report.counters.iter().find(|(known, _)| known == name).map_or(0, |(_, value)| *value);
        line += &format!(" {name}={value}");
    }
    let failed: u64 = report.counters.iter().filter(|(n, _)| n.starts_with("failed_")).map(|(_, value)| value).sum();
    line += &format!(" failed={failed} restarts={restarts} slots_used={}", report.slots_used);
    // The first summary has no predecessor: any counter that moved since the start is traffic.
    let is_idle = if before.is_empty() { report.counters.iter().all(is_quiet) } else { line == *before };
    before.clone_from(&line);
    (!is_idle).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::health::probe::tests::router_snapshot;

    #[test]
    fn the_log_is_told_only_when_something_has_happened() {
        let (mut report, mut before) = (router_snapshot().report, String::new());
        report.counters = vec![("published".to_owned(), 0), ("looks".to_owned(), 7)];
        assert_eq!(summary(&report, 0, 0, &mut before), None, "nothing since the start");
        report.counters[0].1 = 5;
        let line = summary(&report, 2, 0, &mut before).unwrap();
        assert!(line.starts_with("connections=2 published=5 delivered=0 "), "{line}");
        report.counters[1].1 = 900;
        assert_eq!(summary(&report, 2, 0, &mut before), None, "only what moves by itself has moved");
        assert!(summary(&report, 2, 1, &mut before).unwrap().contains(" restarts=1 "));
    }

    #[test]
    fn services_beyond_the_cap_share_a_label_and_nothing_is_lost() {
        let mut router_snapshot = router_snapshot();
        for n in 0..SERVICES_MAX as u64 + 5 {
            router_snapshot.report.services.push(crate::wire::control::ServiceStatus {
                name: format!("service-{n}").parse().unwrap(),
                responders: 1,
                outstanding: 0,
                pending: 0,
                requests: n,
                failures: 0,
            });
            let mut times = CallTimes::default();
            times.round_trip.observe(150, n);
            let (name, transitions) = (format!("service-{n}").parse().unwrap(), [0, n, 0, 0, 0]);
            router_snapshot.metrics.services.push(ServiceMetrics { name, times, transitions });
        }
        router_snapshot.metrics.forgotten.round_trip.observe(150, 7);
        let mut samples = Samples::default();
        services(
            &mut samples,
            &LastReply { at: std::time::Instant::now(), router_snapshot: std::sync::Arc::new(router_snapshot) },
        );
        let text = samples.render().unwrap();
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("lapce_ipc_service_requests_total{")).collect();
        assert_eq!(lines.len(), SERVICES_MAX + 1);
        let rest = format!("lapce_ipc_service_requests_total{{service=\"other\"}} {}", (100..105).sum::<u64>());
        assert!(lines.contains(&rest.as_str()), "{text}");
        let rest: u64 = (100..105).sum();
        for (name, labels, value) in [
            ("request_duration_seconds_count", r#"service="other""#, rest + 7),
            ("request_duration_seconds_bucket", r#"service="other",le="0.0000002""#, rest + 7),
            ("request_duration_seconds_bucket", r#"service="other",le="0.0000001""#, 0),
            ("breaker_transitions_total", r#"service="other",state="open""#, rest),
            ("request_duration_seconds_count", r#"service="service-99""#, 99),
        ] {
            let line = format!("lapce_ipc_{name}{{{labels}}} {value}");
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
        assert!(!text.contains(r#"request_duration_seconds_count{service="service-0"}"#), "nobody has asked it");
    }
}

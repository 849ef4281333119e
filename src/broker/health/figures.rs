//! The broker's figures, as metrics: what the router counts, what the supervisors count, what the kernel knows.

use super::judge::Facts;
use super::process::Usage;
use super::survey::Seen;
use crate::broker::router::{ECHO, RouterFigures, ServiceFigures, breaker_state};
use crate::metrics::families::*;
use crate::metrics::memory::Memory;
use crate::metrics::{Distribution, Family, Figures};
use crate::routing::breaker::Stand;
use crate::routing::histogram::Histogram;
use crate::routing::services::CallTimes;
use crate::wire::control::{ActorState, BreakerState, StatusReport};
use crate::wire::record::Outcome;
use std::collections::BTreeSet;

/// Services that have labels of their own; the others share one.
const SERVICES_MAX: usize = 100;
const OTHER: &str = "other";
/// Nanoseconds of a second.
const NANOS: f64 = 1e9;

/// The router's counters, by the names that they have in the status.
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
    ("set_aside", &POISON_MESSAGES),
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

/// The policies of subscriptions, in their order.
const POLICIES: [&str; 3] = ["block", "drop_newest", "drop_oldest"];

/// Everything that is told. What the router knows is as of its last answer, if there was one.
pub(super) fn figures(facts: &Facts, seen: Option<&Seen>, usage: Option<Usage>, started: f64) -> Figures {
    let mut figures = Figures::default();
    let flag = |is: bool| f64::from(u8::from(is));
    figures.add(&BUILD_INFO, &[facts.version], 1.0);
    figures.add(&UPTIME, &[], facts.uptime_ms as f64 / 1000.0);
    figures.add(&READY, &[], flag(facts.unready().is_empty()));
    figures.add(&THREADS_LATE, &[], facts.late as f64);
    figures.add(&CONNECTIONS, &[], facts.connections as f64);
    figures.add(&CONNECTIONS_LIMIT, &[], facts.max_connections as f64);
    for actor in &facts.actors {
        let labels = [actor.name.as_str()];
        figures.add(&ACTOR_UP, &labels, flag(actor.state == ActorState::Running));
        figures.add(&ACTOR_FAILURES, &labels, actor.failures as f64);
    }
    for upstream in &facts.upstreams {
        figures.add(&UPSTREAM_CONNECTED, &[upstream.name.as_str()], flag(upstream.connection.is_some()));
    }
    for (actor, causes) in &facts.restarts {
        causes.iter().for_each(|(cause, times)| figures.add(&ACTOR_RESTARTS, &[actor, cause], *times as f64));
    }
    facts.counts.refused.iter().for_each(|(reason, times)| figures.add(&REFUSED, &[reason], *times as f64));
    figures.add(&RESUMED, &[], facts.counts.resumed as f64);
    facts.counts.lost.iter().for_each(|(reason, times)| figures.add(&LOST, &[reason], *times as f64));
    figures.add(&LOG_LINES_DROPPED, &[], facts.counts.log_lines_dropped as f64);
    if let Some(seen) = seen {
        figures.add(&HEARTBEAT_AGE, &[], seen.at.elapsed().as_secs_f64());
        routed(&mut figures, &seen.surveyed.report);
        timed(&mut figures, &seen.surveyed.figures);
        services(&mut figures, seen);
    }
    if let Some(usage) = usage {
        figures.add(&PROCESS_CPU, &[], usage.cpu_seconds);
        figures.add(&PROCESS_VIRTUAL, &[], usage.virtual_bytes);
        figures.add(&PROCESS_THREADS, &[], usage.threads);
        figures.add(&PROCESS_FDS, &[], usage.descriptors);
        figures.add(&PROCESS_FDS_LIMIT, &[], usage.descriptors_limit);
        figures.add(&PROCESS_STARTED, &[], started);
        if let Some(Memory { rss, page_tables }) = usage.memory {
            figures.add(&PROCESS_MEMORY, &[], rss as f64);
            figures.add(&MEMORY, &["resident"], rss as f64);
            figures.add(&MEMORY, &["page_tables"], page_tables as f64);
        }
    }
    figures
}

fn routed(figures: &mut Figures, report: &StatusReport) {
    for (name, value) in &report.counters {
        let outcome = name.strip_prefix("failed_");
        if let Some(outcome) = outcome.filter(|outcome| Outcome::ALL.iter().any(|known| known.as_str() == *outcome)) {
            figures.add(&REQUESTS_FAILED, &[outcome], *value as f64);
        } else if let Some((_, family)) = COUNTERS.iter().find(|(known, _)| known == name) {
            figures.add(family, &[], *value as f64);
        }
    }
    figures.add(&SLOTS_USED, &[], report.slots_used.into());
    figures.add(&SLOTS_LIMIT, &[], report.slots_total.into());
    figures.add(&TOPICS, &[], report.topics.into());
    figures.add(&SUBSCRIPTIONS, &[], report.subscriptions.into());
}

fn timed(figures: &mut Figures, router: &RouterFigures) {
    figures.distribute(&IN_BROKER, &[], distribution(&router.in_broker, NANOS));
    figures.distribute(&BATCHES, &[], distribution(&router.batches, 1.0));
    POLICIES.iter().zip(router.dropped).for_each(|(policy, times)| figures.add(&DROPPED, &[policy], times as f64));
    let (surveys, cpu) = router.surveys;
    figures.add(&PROBES, &[], surveys as f64);
    figures.add(&PROBE_CPU, &[], cpu as f64 / NANOS);
}

/// A histogram in units of which there are `per` to one of ours.
fn distribution<const BASE: u64, const BUCKETS: usize>(histogram: &Histogram<BASE, BUCKETS>, per: f64) -> Distribution {
    let bounds = Histogram::<BASE, BUCKETS>::bounds().map(|bound| bound as f64 / per);
    Distribution {
        buckets: bounds.zip(histogram.counts().iter().copied()).collect(),
        count: histogram.count(),
        sum: histogram.sum() as f64 / per,
    }
}

fn services(figures: &mut Figures, seen: &Seen) {
    let router = &seen.surveyed.figures;
    let (services, breakers) = (&seen.surveyed.report.services, &seen.surveyed.breakers);
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
        // The broker's own has none, and misses none.
        if service.name.as_str() != ECHO {
            figures.add(&SERVICE_RESPONDERS, &labels, service.responders.into());
        }
        figures.add(&SERVICE_OUTSTANDING, &labels, service.outstanding.into());
        figures.add(&SERVICE_REQUESTS, &labels, service.requests as f64);
        figures.add(&SERVICE_FAILURES, &labels, service.failures as f64);
    }
    for breaker in breakers {
        let service = label(breaker.service.as_str());
        for state in BREAKER_STATES {
            let is_in = f64::from(u8::from(state == breaker.state));
            figures.add(&BREAKER_STATE, &[service, state.as_str()], is_in);
        }
        figures.add(&BREAKER_OPENED, &[service], breaker.opened as f64);
        figures.add(&BREAKER_REJECTED, &[service], breaker.rejected as f64);
    }
    for ServiceFigures { name, times, transitions } in &router.services {
        let service = label(name.as_str());
        for (stand, times) in Stand::ALL.into_iter().zip(transitions) {
            figures.add(&BREAKER_TRANSITIONS, &[service, breaker_state(stand).as_str()], *times as f64);
        }
        durations(figures, service, times);
    }
    durations(figures, OTHER, &router.forgotten);
}

/// What nobody has asked for has no lines: they are many.
fn durations(figures: &mut Figures, service: &str, times: &CallTimes) {
    for (family, histogram) in [(&ROUND_TRIP, &times.round_trip), (&FIRST_CHUNK, &times.first_chunk)] {
        if histogram.count() > 0 {
            figures.distribute(family, &[service], distribution(histogram, NANOS));
        }
    }
}

/// Whether the counter moves by itself, or has not moved.
fn is_quiet((name, value): &(String, u64)) -> bool {
    *value == 0 || ["looks", "sleeps", "rings"].contains(&name.as_str())
}

/// What the log says of the figures now and then: `None` if nothing that people wait for has happened since `before`.
pub(super) fn summary(report: &StatusReport, connections: u64, restarts: u64, before: &mut String) -> Option<String> {
    let mut line = format!("connections={connections}");
    for name in ["published", "delivered", "requests", "replies", "dropped", "evicted"] {
        let value = report.counters.iter().find(|(known, _)| known == name).map_or(0, |(_, value)| *value);
        line += &format!(" {name}={value}");
    }
    let failed: u64 = report.counters.iter().filter(|(n, _)| n.starts_with("failed_")).map(|(_, value)| value).sum();
    line += &format!(" failed={failed} restarts={restarts} slots_used={}", report.slots_used);
    // Of the first one nothing is known but that all of it has happened since the start.
    let is_idle = if before.is_empty() { report.counters.iter().all(is_quiet) } else { line == *before };
    before.clone_from(&line);
    (!is_idle).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::health::survey::tests::surveyed;

    #[test]
    fn the_log_is_told_only_when_something_has_happened() {
        let (mut report, mut before) = (surveyed().report, String::new());
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
        let mut surveyed = surveyed();
        for n in 0..SERVICES_MAX as u64 + 5 {
            surveyed.report.services.push(crate::wire::control::ServiceStatus {
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
            surveyed.figures.services.push(ServiceFigures { name, times, transitions });
        }
        surveyed.figures.forgotten.round_trip.observe(150, 7);
        let mut figures = Figures::default();
        services(&mut figures, &Seen { at: std::time::Instant::now(), surveyed: std::sync::Arc::new(surveyed) });
        let text = figures.render().unwrap();
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
            assert!(text.lines().any(|told| told == line), "no {line} in {text}");
        }
        assert!(!text.contains(r#"request_duration_seconds_count{service="service-0"}"#), "nobody has asked it");
    }
}

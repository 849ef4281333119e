//! Snapshots of the router: the status report, breakers, metrics for Prometheus.

use super::calls::status;
use super::state::RouterState;
use super::timings::{RouterMetrics, ServiceMetrics};
use crate::logic::histogram::Durations;
use crate::logic::services::Service;
use crate::shm::layout::CELL_BYTES;
use crate::wire::control::{
    BreakerStatus, ConnectionStatus, LatencyStatus, QuantileStatus, ServiceStatus, SessionState, StatusReport,
};
use crate::wire::name::Name;

/// Bytes of the names of services in the entry of a connection: each connection may offer all services, with names of
/// any length, and an entry is to fit a page.
const LISTED_BYTES: usize = 2048;

/// The first services of a connection.
fn first_names<'a>(services: impl Iterator<Item = &'a Service>) -> Vec<Name> {
    let mut left = LISTED_BYTES;
    let fits = |name: &&Name| {
        let rest = left.checked_sub(name.as_str().len());
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    services.map(|service| &service.name).take_while(fits).cloned().collect()
}

impl RouterState {
    /// The router's part of the status. The list of connections, the only part that grows with them, is optional. The
    /// caller fills in the rest.
    pub(super) fn report(&self, with_connections: bool) -> StatusReport {
        let mut connections = Vec::new();
        let listed = if with_connections { self.ports.ingresses.as_slice() } else { &[] };
        for (key, ingress) in listed.iter().enumerate() {
            let (Some(ingress), Some(egress)) = (ingress.as_deref(), self.ports.egresses.get(key as u32)) else {
                continue;
            };
            let services = ingress.serving.iter().filter_map(|(_, service)| self.calls.services().get(*service));
            let subscriptions = egress.subscriptions.iter().filter_map(|s| self.pubsub.topics().subscriptions.get(*s));
            let (used, credit) = subscriptions.fold((0, 0), |(used, all), s| {
                (used + u64::from(s.capacity.saturating_sub(s.credit)), all + u64::from(s.capacity))
            });
            connections.push(ConnectionStatus {
                id: ingress.info.id,
                name: ingress.info.name.clone(),
                pid: ingress.info.peer.pid,
                uid: ingress.info.peer.uid,
                quota: self.ports.settings.quotas.name(ingress.info.principal).map(str::to_owned),
                age_ms: (self.ports.now - ingress.opened) / 1_000_000,
                subscriptions: egress.subscriptions.len() as u32,
                services: first_names(services),
                services_offered: ingress.serving.len() as u32,
                messages_in: ingress.messages,
                messages_out: egress.messages,
                bytes_in: ingress.bytes,
                bytes_out: egress.bytes,
                dropped: egress.dropped,
                backlog_bytes: egress.backlog_bytes() as u64,
                requests_outstanding: u64::from(ingress.outstanding),
                state: match (ingress.ended, ingress.parked.is_some()) {
                    (true, _) => SessionState::Ending,
                    (false, true) => SessionState::Waiting,
                    // Whether the session is attached is not known here.
                    (false, false) => SessionState::Connected,
                },
                credit_used_bytes: used * CELL_BYTES as u64,
                credit_bytes: credit * CELL_BYTES as u64,
            });
        }
        let services = self.calls.services().iter().filter(|s| s.responders() > 0 || s.requests > 0);
        let slot_cells = u64::from(self.ports.settings.geometry.slot_size()) / CELL_BYTES as u64;
        let slots = |cells: u64| u32::try_from(cells / slot_cells.max(1)).unwrap_or(u32::MAX);
        let mut counters = self.ports.counters.by_name();
        let elsewhere = [("rings", self.ports.egresses.rung), ("leases_refused", self.ports.egresses.memory.refused())];
        counters.extend(elsewhere.map(|(name, value)| (name.to_owned(), value)));
        StatusReport {
            connections,
            services: services
                .map(|service| ServiceStatus {
                    name: service.name.clone(),
                    responders: service.responders() as u32,
                    outstanding: self.calls.services().outstanding(service),
                    pending: 0,
                    requests: service.requests,
                    failures: service.failures,
                })
                .collect(),
            counters,
            slots_used: slots(self.ports.egresses.memory.used()),
            slots_total: slots(self.ports.egresses.memory.total()),
            topics: self.pubsub.topics().len() as u32,
            subscriptions: self.pubsub.topics().subscriptions.len() as u32,
            latency: Box::new(self.latency()),
            holdings: self.holdings(),
            ..StatusReport::default()
        }
    }

    /// The breakers of all services that have or had a responder.
    pub(super) fn breakers(&self) -> Vec<BreakerStatus> {
        let served = self.calls.services().iter().filter(|service| service.gate.was_served());
        served.map(|service| status(&service.name, &service.gate, self.ports.now)).collect()
    }

    /// The metrics that are not part of the status.
    pub(super) fn metrics(&self) -> RouterMetrics {
        let services = self.calls.services().iter().filter_map(|service| {
            let times = (**service.times.as_ref()?).clone();
            Some(ServiceMetrics { name: service.name.clone(), times, transitions: service.gate.transitions() })
        });
        RouterMetrics {
            in_broker: self.timings.in_broker.clone(),
            batches: self.timings.batches.clone(),
            dropped: self.ports.counters.dropped,
            services: services.collect(),
            forgotten: self.calls.services().forgotten.clone(),
            probes: self.timings.probes,
        }
    }

    /// Latencies, of all services together.
    pub(super) fn latency(&self) -> LatencyStatus {
        let mut times = self.calls.services().forgotten.clone();
        self.calls.services().iter().filter_map(|service| service.times.as_deref()).for_each(|more| times.merge(more));
        LatencyStatus {
            in_broker: quantiles(&self.timings.in_broker),
            round_trip: quantiles(&times.round_trip),
            first_chunk: quantiles(&times.first_chunk),
        }
    }
}

fn quantiles(histogram: &Durations) -> QuantileStatus {
    QuantileStatus {
        count: histogram.count(),
        p50_ns: histogram.quantile(0.5),
        p95_ns: histogram.quantile(0.95),
        p99_ns: histogram.quantile(0.99),
    }
}

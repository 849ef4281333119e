//! The circuit breakers' gates: a service's gate admits or rejects each request, and records the outcome. The breaker
//! actor gets each change of state through a queue; requests do not pass through it.

use super::Calls;
use crate::broker::router::ports::Ports;
use crate::broker::telemetry::events::{BreakerChange, BreakerEvent};
use crate::logic::breaker::{Admission, BreakerOutcome, Gate, GateState, Permit, Rejected, RuleBook, Transition};
use crate::logic::routing::arena::Key;
use crate::logic::services::{Probe, ServiceId};
use crate::logic::shares::Principal;
use crate::wire::control::{BreakerState, BreakerStatus};
use crate::wire::name::Name;
use std::sync::Arc;

impl Calls {
    /// Admits or rejects a request to the service.
    #[inline]
    pub(super) fn admit(&mut self, ports: &mut Ports, id: ServiceId, user: Principal) -> Result<Permit, Rejected> {
        let Some(service) = self.services.get(id) else { return Err(Rejected { retry_after: None }) };
        match service.gate.admit_if_closed() {
            Some(permit) => Ok(permit),
            None => self.admit_unless_closed(ports, id, user),
        }
    }

    #[cold]
    fn admit_unless_closed(&mut self, ports: &mut Ports, id: ServiceId, user: Principal) -> Result<Permit, Rejected> {
        let Some(service) = self.services.get(id) else { return Err(Rejected { retry_after: None }) };
        let (permit, transition) = match service.gate.state() {
            GateState::HalfOpen => self.admit_probe(ports, id, user),
            _ => service.gate.admit(ports.now),
        };
        if let Some(transition) = transition {
            self.tell_breaker(ports, id, transition);
        }
        permit
    }

    /// Admits a request as a probe, or rejects it.
    fn admit_probe(&mut self, ports: &Ports, id: ServiceId, user: Principal) -> Admission {
        let Calls { services, table, .. } = self;
        let (now, cells) = (ports.now, ports.settings.geometry.base_cells());
        let is_out =
            |probe: &Probe| table.get(probe.call).is_some_and(|call| call.permit.is_some_and(|p| p == probe.permit));
        let longest = ports.settings.default_request_timeout;
        let is_late = |probe: &Probe, time| {
            let is_old = |began: u64| probe.user != user && now.saturating_sub(began) >= longest;
            table.get(probe.call).is_some_and(|call| call.is_held_up(now, time, cells) || is_old(call.began))
        };
        let (admission, given_back) = services.admit_probe(id, user, now, is_out, is_late);
        if let Some(call) = given_back.and_then(|call| table.get_mut(call)) {
            call.permit = None;
        }
        admission
    }

    /// Records the outcome of an admitted call. `None`: it needed no permit.
    #[inline]
    pub(super) fn record_outcome(
        &mut self,
        ports: &mut Ports,
        id: ServiceId,
        permit: Option<Permit>,
        breaker_outcome: BreakerOutcome,
    ) {
        let (Some(permit), Some(service)) = (permit, self.services.get(id)) else { return };
        if let Some(transition) = service.gate.record(permit, breaker_outcome, ports.now) {
            self.tell_breaker(ports, id, transition);
        }
    }

    /// The first chunk of a stream is the success of a probe; how the rest ends changes nothing.
    pub(super) fn record_first_chunk(&mut self, ports: &mut Ports, id: ServiceId, call: Key) {
        if self.services.get(id).is_some_and(|service| service.gate.state() == GateState::HalfOpen) {
            let permit = self.table.get_mut(call).and_then(|found| found.permit.take());
            self.record_outcome(ports, id, permit, BreakerOutcome::Success);
        }
    }

    fn tell_breaker(&mut self, ports: &mut Ports, id: ServiceId, transition: Transition) {
        let Some(service) = self.services.get(id) else { return };
        let service = service.name.clone();
        ports.events.breaker(BreakerEvent::Changed(BreakerChange { service, transition, by: None }));
    }

    /// Hands new gates to the breaker actor.
    pub(super) fn tell_new_gates(&mut self, ports: &mut Ports) {
        for (service, gate) in self.services.take_new_gates() {
            ports.events.breaker(BreakerEvent::Gate(service, gate));
        }
    }

    /// Returns the gates of all services; new ones begin with these rules from now on.
    pub(in crate::broker::router) fn gates(&mut self, rules: Arc<RuleBook>) -> Vec<(Name, Arc<Gate>)> {
        self.services.set_rules(rules);
        self.services.gates()
    }
}

/// The status of a service's breaker.
pub(in crate::broker) fn status(service: &Name, gate: &Gate, now: u64) -> BreakerStatus {
    let (rules, (probes, successes)) = (gate.rules(), gate.trial());
    BreakerStatus {
        service: service.clone(),
        state: state(gate.state()),
        failures: gate.failures(),
        failed_trials: gate.failed_trials(),
        probes,
        successes,
        ends_in_ms: gate.lasts(now).map(|nanos| nanos.div_ceil(1_000_000)),
        opened: gate.opened(),
        rejected: gate.rejected(),
        failure_threshold: rules.failure_threshold,
        success_threshold: rules.success_threshold,
        half_open_max_requests: rules.half_open_max_requests,
    }
}

/// A state as it is named on the wire, in logs and in events.
pub(in crate::broker) fn state(state: GateState) -> BreakerState {
    match state {
        GateState::Closed => BreakerState::Closed,
        GateState::Open => BreakerState::Open,
        GateState::HalfOpen => BreakerState::HalfOpen,
        GateState::ForcedOpen => BreakerState::ForcedOpen,
        GateState::ForcedClosed => BreakerState::ForcedClosed,
    }
}

//! The breakers where the router meets them: it asks a service's gate before each call, and records how the call ended.
//! What it changes by that is told through a queue, by which the actor of the breakers learns of it; requests are not
//! told.

use super::state::RouterState;
use crate::broker::events::{BreakerChange, BreakerNews};
use crate::routing::arena::Key;
use crate::routing::breaker::{Gate, Permit, Rejected, RuleBook, Stand, Transition, Verdict};
use crate::routing::services::ServiceId;
use crate::wire::control::{BreakerState, BreakerStatus};
use crate::wire::name::Name;
use std::sync::Arc;

impl RouterState {
    /// Asks the service's breaker for leave.
    #[inline]
    pub(super) fn admit(&mut self, id: ServiceId) -> Result<Permit, Rejected> {
        let Some(service) = self.services.get(id) else { return Err(Rejected { retry_after: None }) };
        let (permit, transition) = service.gate.admit(self.now);
        if let Some(transition) = transition {
            self.tell_breaker(id, transition);
        }
        permit
    }

    /// Says how a call ended that was let through. `None`: it needed no leave.
    #[inline]
    pub(super) fn record_outcome(&mut self, id: ServiceId, permit: Option<Permit>, verdict: Verdict) {
        let (Some(permit), Some(service)) = (permit, self.services.get(id)) else { return };
        if let Some(transition) = service.gate.record(permit, verdict, self.now) {
            self.tell_breaker(id, transition);
        }
    }

    /// The first chunk of a stream is the success of a probe; how the rest ends changes nothing.
    pub(super) fn record_first_chunk(&mut self, id: ServiceId, call: Key) {
        if self.services.get(id).is_some_and(|service| service.gate.stand() == Stand::HalfOpen) {
            let permit = self.calls.get_mut(call).and_then(|found| found.permit.take());
            self.record_outcome(id, permit, Verdict::Success);
        }
    }

    fn tell_breaker(&mut self, id: ServiceId, transition: Transition) {
        let Some(service) = self.services.get(id) else { return };
        let service = service.name.clone();
        self.events.breaker(BreakerNews::Changed(BreakerChange { service, transition, by: None }));
    }

    /// Tells the actor of the breakers of gates that were just made.
    pub(super) fn tell_new_gates(&mut self) {
        for (service, gate) in self.services.take_new_gates() {
            self.events.breaker(BreakerNews::Gate(service, gate));
        }
    }

    /// Answers the gates of all services; new ones begin with these rules from now on.
    pub(super) fn gates(&mut self, rules: Arc<RuleBook>) -> Vec<(Name, Arc<Gate>)> {
        self.services.set_rules(rules);
        self.services.gates()
    }
}

/// How the breaker of a service stands.
pub(crate) fn status(service: &Name, gate: &Gate, now: u64) -> BreakerStatus {
    let (rules, (probes, successes)) = (gate.rules(), gate.trial());
    BreakerStatus {
        service: service.clone(),
        state: state(gate.stand()),
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
pub(crate) fn state(stand: Stand) -> BreakerState {
    match stand {
        Stand::Closed => BreakerState::Closed,
        Stand::Open => BreakerState::Open,
        Stand::HalfOpen => BreakerState::HalfOpen,
        Stand::ForcedOpen => BreakerState::ForcedOpen,
        Stand::ForcedClosed => BreakerState::ForcedClosed,
    }
}

//! The breakers where the router meets them: it asks before each call, says how the call ended, and tells of changes.
//! Changes are told through a queue, by which the actor of the breakers learns of them; requests are not told.

use super::SetBreaker;
use super::state::{ECHO, RouterState};
use crate::broker::events::BreakerChange;
use crate::routing::arena::Key;
use crate::routing::breaker::{Permit, Rejected, Stand, Transition, Verdict};
use crate::routing::services::{Service, ServiceId};
use crate::wire::control::{BreakerOrder, BreakerState, BreakerStatus};
use std::time::Duration;

impl RouterState {
    /// Asks the service's breaker for leave.
    #[inline]
    pub(super) fn let_through(&mut self, id: ServiceId) -> Result<Permit, Rejected> {
        let Some(service) = self.services.get_mut(id) else { return Err(Rejected { retry_after: None }) };
        let (permit, transition) = service.breaker.admit(self.now);
        if let Some(transition) = transition {
            self.tell_breaker(id, transition, None);
        }
        permit
    }

    /// Says how a call ended that was let through. `None`: it needed no leave.
    #[inline]
    pub(super) fn judge(&mut self, id: ServiceId, permit: Option<Permit>, verdict: Verdict) {
        let (Some(permit), Some(service)) = (permit, self.services.get_mut(id)) else { return };
        if let Some(transition) = service.breaker.record(permit, verdict, self.now) {
            self.tell_breaker(id, transition, None);
        }
    }

    /// The first chunk of a stream is the success of a probe; how the rest ends changes nothing.
    pub(super) fn judge_first_chunk(&mut self, id: ServiceId, call: Key) {
        if self.services.get(id).is_some_and(|service| service.breaker.stand() == Stand::HalfOpen) {
            let permit = self.calls.get_mut(call).and_then(|found| found.permit.take());
            self.judge(id, permit, Verdict::Success);
        }
    }

    fn tell_breaker(&mut self, id: ServiceId, transition: Transition, by: Option<u32>) {
        let Some(service) = self.services.get(id) else { return };
        self.events.breaker_changed(BreakerChange { service: service.name.clone(), transition, by });
    }

    /// Sets a breaker by hand.
    pub(super) fn set_breaker(&mut self, message: &SetBreaker) -> Result<BreakerStatus, String> {
        let SetBreaker { service: name, order, time, by } = message;
        if name.as_str() == ECHO {
            return Err(format!("the broker itself serves {ECHO}, which has no breaker"));
        }
        let known = self.services.find(name).and_then(|id| Some((id, self.services.get_mut(id)?)));
        let Some((id, service)) = known.filter(|(_, service)| service.was_served) else {
            return Err(format!("no service is called {name}: nobody serves it, nor has"));
        };
        let time = time.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        let before = service.breaker.tick(self.now);
        let transition = match order {
            BreakerOrder::Open => Some(service.breaker.force(true, time, self.now)),
            BreakerOrder::Close => Some(service.breaker.force(false, time, self.now)),
            BreakerOrder::Auto => service.breaker.release(self.now),
        };
        let status = status(service, self.now);
        if let Some(before) = before {
            self.tell_breaker(id, before, None);
        }
        if let Some(transition) = transition {
            self.tell_breaker(id, transition, Some(*by));
        }
        self.services.forget_if_unused(id);
        Ok(status)
    }

    /// Notices whose time is over. Answers after how long to look again.
    pub(super) fn tick_breakers(&mut self) -> Option<Duration> {
        let mut next = None;
        for id in self.services.ids() {
            let Some(service) = self.services.get_mut(id) else { continue };
            let transition = service.breaker.tick(self.now);
            let lasts = service.breaker.lasts(self.now);
            next = next.into_iter().chain(lasts).min();
            if let Some(transition) = transition {
                self.tell_breaker(id, transition, None);
                self.services.forget_if_unused(id);
            }
        }
        next.map(Duration::from_nanos)
    }

    /// How the breakers stand of all services that have or had a responder.
    pub(super) fn breakers(&self) -> Vec<BreakerStatus> {
        let served = self.services.iter().filter(|service| service.was_served);
        served.map(|service| status(service, self.now)).collect()
    }
}

fn status(service: &Service, now: u64) -> BreakerStatus {
    let (breaker, rules) = (&service.breaker, service.breaker.rules());
    let (probes, successes) = breaker.trial();
    BreakerStatus {
        service: service.name.clone(),
        state: state(breaker.stand()),
        failures: breaker.failures(),
        failed_trials: breaker.failed_trials(),
        probes,
        successes,
        ends_in_ms: breaker.lasts(now).map(|nanos| nanos.div_ceil(1_000_000)),
        opened: breaker.opened,
        rejected: breaker.rejected,
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

//! How calls end.
//!
//! Each request has exactly one outcome: its call is removed from the `table` in the same step that sends the outcome,
//! and later records find no call.

use super::Call;
use super::Calls;
use crate::broker::router::ports::Ports;
use crate::logic::breaker::{BreakerOutcome, Failure};
use crate::logic::routing::arena::Key;
use crate::logic::services::ServiceId;
use crate::shm::ring::Payload;
use crate::wire::record::{Flags, Header, Kind, Outcome};

impl Calls {
    /// The deadline of the call in a place of the table may have passed. Of a stream, this may be the time since its
    /// last progress, and of a request that is not whole, the time since the last part of its body: noted with each
    /// part and looked at here, so that a part costs no change of a timer.
    pub(in crate::broker::router) fn deadline(&mut self, ports: &mut Ports, place: u32) {
        let Some(call) = self.due_in(ports, place) else { return };
        let Some(found) = self.table.get_mut(call) else { return };
        let (now, body_idle) = (ports.now, ports.settings.request_body_idle);
        // While its responder gives no credit, the requester is not late.
        if !found.owes_body(ports.settings.geometry.base_cells()) {
            found.body_at = now;
        }
        let at = found.look_at(body_idle);
        if at > now {
            return self.timers.look_by(&mut ports.wheel, call, at);
        }
        self.end_call(ports, call, Outcome::DeadlineExceeded);
    }

    /// The timer of a place is due. Returns the call that is in the place now.
    fn due_in(&mut self, ports: &mut Ports, place: u32) -> Option<Key> {
        self.timers.forget(&mut ports.wheel, place as usize);
        self.table.key_at(place as usize)
    }

    /// The breaker's outcome of a call that ended without a reply.
    fn breaker_outcome(&self, ports: &Ports, call: &Call, outcome: Outcome) -> BreakerOutcome {
        // A requester that stops in its request, does not take the reply, or gives too little time, must not open the
        // breaker for others.
        let could_answer = call.may_be_answered(ports.settings.geometry.base_cells());
        match outcome {
            Outcome::DeadlineExceeded if could_answer && self.is_fair(call) => {
                BreakerOutcome::Failure(Failure::Deadline)
            }
            Outcome::ResponderLost => BreakerOutcome::Failure(Failure::ResponderLost),
            _ => BreakerOutcome::Ignored,
        }
    }

    /// Whether the deadline of a call gave its service as long as it usually takes (B2).
    fn is_fair(&self, call: &Call) -> bool {
        self.services.get(call.service).is_none_or(|service| service.pace.is_fair(call.time_given()))
    }

    /// Ends a call without a reply: notifies both sides.
    pub(super) fn end_call(&mut self, ports: &mut Ports, call: Key, outcome: Outcome) {
        let Some(found) = self.finish(ports, call, Call::clone) else { return };
        let breaker_outcome = self.breaker_outcome(ports, &found, outcome);
        if let (BreakerOutcome::Failure(Failure::Deadline), Some(offer)) = (breaker_outcome, found.offer) {
            self.services.missed(offer, ports.now);
        }
        let is_by_requester = matches!(outcome, Outcome::Cancelled | Outcome::DeadlineExceeded | Outcome::Disconnected);
        if is_by_requester && found.owes_body(ports.settings.geometry.base_cells()) {
            self.services.users.abandoned(found.user, ports.now);
        }
        self.record_outcome(ports, found.service, found.permit, breaker_outcome);
        if outcome != Outcome::ResponderLost
            && let Some(responder) = found.responder
        {
            let ended = Header { seq: call.to_u64(), code: outcome as u16, ..Header::new(Kind::CallEnded) };
            ports.egresses.send(responder, &ended, Payload::EMPTY);
        }
        if outcome != Outcome::Disconnected {
            self.fail(ports, found.requester, found.slot, found.generation, found.service, outcome);
        }
    }

    /// Sends a request's outcome, if it is not a reply.
    pub(super) fn fail(
        &mut self,
        ports: &mut Ports,
        requester: u32,
        slot: u32,
        generation: u32,
        service: ServiceId,
        outcome: Outcome,
    ) {
        self.fail_until(ports, requester, (slot, generation), service, outcome, 0);
    }

    /// The same, with the time after which to try again, or 0.
    pub(super) fn fail_until(
        &mut self,
        ports: &mut Ports,
        requester: u32,
        (slot, generation): (u32, u32),
        service: ServiceId,
        outcome: Outcome,
        nanos: u64,
    ) {
        ports.counters.failed[outcome as usize - 1] += 1;
        if let Some(service) = self.services.get_mut(service).filter(|_| outcome != Outcome::Cancelled) {
            service.failures += 1;
        }
        let failed = Header { id: slot, id2: generation, code: outcome as u16, nanos, ..Header::new(Kind::Failed) };
        ports.egresses.send(requester, &failed, Payload::EMPTY);
    }

    /// Removes a call, wherever it is known. Returns what `keep` does of it: a call is large, and few ends need all.
    #[inline]
    pub(super) fn finish<T>(&mut self, ports: &mut Ports, call: Key, keep: impl FnOnce(&Call) -> T) -> Option<T> {
        let found = self.table.get(call)?;
        let kept = keep(found);
        let &Call { requester, slot, user, principal, offer, .. } = found;
        self.table.discard(call);
        if let Some(offer) = offer {
            self.services.end(offer, principal);
        }
        self.services.users.end_call(user);
        if let Some(ingress) = ports.ingress_mut(requester) {
            ingress.outstanding -= 1;
            ingress.requests[slot as usize].call = None;
        }
        Some(kept)
    }

    /// A connection ends: its requests end, and the calls that it was to reply to are lost.
    pub(in crate::broker::router) fn end_calls_of(&mut self, ports: &mut Ports, key: u32) {
        let Some(ingress) = ports.ingress(key) else { return };
        let mut calls: Vec<_> =
            ingress.requests.iter().filter_map(|slot| slot.call).map(|call| (call, Outcome::Disconnected)).collect();
        if !ingress.serving.is_empty() {
            let answered_here = self.table.iter().filter(|(_, call)| call.responder == Some(key));
            calls.extend(answered_here.map(|(call, _)| (call, Outcome::ResponderLost)));
        }
        // The loss of a responder is one failure of each service, however many calls it had outstanding.
        let mut counted: Vec<ServiceId> = Vec::new();
        for (call, outcome) in calls {
            if outcome == Outcome::ResponderLost {
                self.count_loss_once(ports, call, &mut counted);
            }
            self.end_call(ports, call, outcome);
        }
    }

    /// A call of a lost responder counts for its service's breaker, unless one of `counted` did before it.
    fn count_loss_once(&mut self, ports: &mut Ports, call: Key, counted: &mut Vec<ServiceId>) {
        let Some(found) = self.table.get_mut(call) else { return };
        let service = found.service;
        if counted.contains(&service) {
            let permit = found.permit.take();
            self.record_outcome(ports, service, permit, BreakerOutcome::Ignored);
        } else if let (Some(permit), Some(service_found)) = (found.permit, self.services.get(service))
            && service_found.gate.is_current(permit)
        {
            counted.push(service);
        }
    }

    /// The timer of a place has killed two routers: the call in it is lost.
    pub(in crate::broker::router) fn lose_call_in(&mut self, ports: &mut Ports, place: u32) {
        if let Some(call) = self.due_in(ports, place) {
            self.lose_call(ports, call);
        }
    }

    /// Ends a call that the broker itself cannot complete: both sides are notified.
    fn lose_call(&mut self, ports: &mut Ports, call: Key) {
        let Some(found) = self.table.get_mut(call) else { return };
        // The circuit breaker ignores it: the responder is not at fault.
        let (service, permit, responder) = (found.service, found.permit.take(), found.responder);
        self.record_outcome(ports, service, permit, BreakerOutcome::Ignored);
        if let Some(responder) = responder {
            let code = Outcome::ResponderLost as u16;
            let ended = Header { seq: call.to_u64(), code, ..Header::new(Kind::CallEnded) };
            ports.egresses.send(responder, &ended, Payload::EMPTY);
        }
        self.end_call(ports, call, Outcome::ResponderLost);
    }

    /// A record of the express lane was half carried out when the router died, or has killed two: its call is over, and
    /// both sides are notified. So it has exactly one outcome.
    pub(in crate::broker::router) fn give_up_express(&mut self, ports: &mut Ports, key: u32, header: &Header) {
        let call = match header.kind {
            Kind::Request | Kind::Cancel | Kind::ResponseCredit => self.call_in(ports, key, header),
            Kind::Response | Kind::BodyCredit => self.call_of(key, header),
            _ => None,
        };
        match call {
            Some(call) => self.lose_call(ports, call),
            None if header.kind == Kind::Request && header.flags.has(Flags::FIRST) => {
                let service = ports.ingress(key).and_then(|ingress| ingress.services.get(header.arg).copied());
                self.fail(ports, key, header.id, header.id2, service.unwrap_or(self.echo), Outcome::ResponderLost);
            }
            None => {}
        }
    }
}

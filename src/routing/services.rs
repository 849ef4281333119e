//! Services: queue groups of responders, of which the one with the fewest calls outstanding gets the next.
//!
//! A responder that lets a deadline pass is *suspect*: it is chosen only when no other responder can take the call.
//! After a backoff it gets one call as a probe, among the others; each further deadline doubles the backoff, and any
//! reply clears the suspicion. So a responder that is stopped costs its service one call for each probe.

use super::breaker::{Gate, RuleBook, Stand};
use super::histogram::Durations;
use crate::wire::name::Name;
use std::collections::HashMap;
use std::sync::Arc;

/// A service's place in the table.
pub(crate) type ServiceId = u32;

/// How long a responder that lets deadlines pass is left alone before it is probed, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProbeDelays {
    /// After the first deadline; each further one doubles it.
    pub(crate) first: u64,
    /// The longest.
    pub(crate) max: u64,
}

impl Default for ProbeDelays {
    fn default() -> ProbeDelays {
        ProbeDelays { first: 1_000_000_000, max: 60_000_000_000 }
    }
}

/// A connection that serves a service.
#[derive(Debug)]
pub(crate) struct Responder {
    /// The connection.
    pub(crate) connection: u32,
    /// Its outstanding calls.
    pub(crate) outstanding: u32,
    /// The most that it takes at a time.
    pub(crate) max_in_flight: u32,
    /// Still serves; otherwise it only finishes what it has.
    pub(crate) accepts: bool,
    /// Deadlines that passed since its last reply.
    missed: u32,
    /// When it may be probed, if it has missed any.
    probe_at: u64,
}

impl Responder {
    fn is_suspect(&self, now: u64) -> bool {
        self.missed > 0 && now < self.probe_at
    }

    /// The next probe is a backoff away.
    fn back_off(&mut self, now: u64, delays: ProbeDelays) {
        let doubled = delays.first.saturating_mul(1 << self.missed.saturating_sub(1).min(16));
        self.probe_at = now.saturating_add(doubled.min(delays.max));
    }
}

/// A service, known while it has responders or a client has asked for its number; and after that while its breaker is
/// not at rest, or a responder that dies of each request would come back with a clean sheet each time. When there are
/// as many services as there may be, those without users go first.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: Name,
    pub(crate) responders: Vec<Responder>,
    /// The router's handle of its breaker.
    pub(crate) gate: Arc<Gate>,
    /// Requests that came for it.
    pub(crate) requests: u64,
    /// Those that ended otherwise than by a reply.
    pub(crate) failures: u64,
    /// How long its responders took; kept since its first responder.
    pub(crate) times: Option<Box<CallTimes>>,
    users: u32,
    next: usize,
}

impl Service {
    /// No connection has a number for it, and none has a call of it to answer.
    fn is_unused(&self) -> bool {
        self.users == 0 && self.responders.is_empty()
    }
}

/// The durations of calls, from the time at which the router accepted the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CallTimes {
    /// Until the whole reply was on its way to the requester.
    pub(crate) round_trip: Durations,
    /// Until the first chunk of a streamed reply was.
    pub(crate) first_chunk: Durations,
}

impl CallTimes {
    /// Adds those of another service.
    pub(crate) fn merge(&mut self, other: &CallTimes) {
        self.round_trip.merge(&other.round_trip);
        self.first_chunk.merge(&other.first_chunk);
    }
}

/// Why a request finds no responder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoResponder {
    /// No responders.
    None,
    /// All responders are at capacity.
    AllBusy,
}

/// All services.
#[derive(Debug)]
pub(crate) struct Services {
    by_name: HashMap<Name, ServiceId>,
    table: Vec<Option<Service>>,
    free: Vec<ServiceId>,
    most: usize,
    /// What new gates begin with.
    rules: Arc<RuleBook>,
    /// Gates that were made since they were last taken, for the actor of the breakers.
    new_gates: Vec<(Name, Arc<Gate>)>,
    probe_delays: ProbeDelays,
    /// Of services that were forgotten.
    pub(crate) forgotten: CallTimes,
}

impl Services {
    pub(crate) fn new(most: usize, rules: Arc<RuleBook>) -> Services {
        Services {
            by_name: HashMap::new(),
            table: Vec::new(),
            free: Vec::new(),
            most,
            rules,
            new_gates: Vec::new(),
            probe_delays: ProbeDelays::default(),
            forgotten: CallTimes::default(),
        }
    }

    /// At most so many from now on.
    pub(crate) fn adopt(&mut self, most: usize) {
        self.most = most;
    }

    /// Other delays, for the next deadline that passes.
    pub(crate) fn set_probe_delays(&mut self, delays: ProbeDelays) {
        self.probe_delays = delays;
    }

    /// New gates begin with these rules from now on.
    pub(crate) fn set_rules(&mut self, rules: Arc<RuleBook>) {
        self.rules = rules;
    }

    /// Gates that were made since this was last asked.
    pub(crate) fn take_new_gates(&mut self) -> std::vec::Drain<'_, (Name, Arc<Gate>)> {
        self.new_gates.drain(..)
    }

    /// The gates of all services that have users, or a breaker with something to remember; the others are forgotten.
    pub(crate) fn gates(&mut self) -> Vec<(Name, Arc<Gate>)> {
        self.ids().for_each(|id| self.forget_if_unused(id));
        self.new_gates.clear();
        self.iter().map(|service| (service.name.clone(), service.gate.clone())).collect()
    }

    /// Adds a user of the service `name`; `None` at the limit of services.
    pub(crate) fn intern(&mut self, name: &Name) -> Option<ServiceId> {
        let id = match self.find(name) {
            Some(id) => id,
            None if self.by_name.len() >= self.most && !self.forget_one() => return None,
            None => {
                let gate = Arc::new(Gate::new(self.rules.of(name.as_str())));
                self.new_gates.push((name.clone(), gate.clone()));
                let service = Service {
                    name: name.clone(),
                    responders: Vec::new(),
                    gate,
                    requests: 0,
                    failures: 0,
                    times: None,
                    users: 0,
                    next: 0,
                };
                let id = self.free.pop().unwrap_or_else(|| {
                    self.table.push(None);
                    (self.table.len() - 1) as ServiceId
                });
                self.table[id as usize] = Some(service);
                self.by_name.insert(name.clone(), id);
                id
            }
        };
        self.get_mut(id).expect("just found or made").users += 1;
        Some(id)
    }

    /// Removes a user.
    pub(crate) fn release(&mut self, id: ServiceId) {
        let Some(service) = self.get_mut(id) else { return };
        service.users -= 1;
        self.forget_if_unused(id);
    }

    /// Forgets a service that has neither users nor a breaker with something to remember.
    pub(crate) fn forget_if_unused(&mut self, id: ServiceId) {
        if self.get(id).is_some_and(|service| service.is_unused() && service.gate.retire(true)) {
            self.forget(id);
        }
    }

    /// Makes room: forgets the service without users whose breaker has the least to say. `false`: all have users.
    fn forget_one(&mut self) -> bool {
        let weight = |service: &Service| match service.gate.stand() {
            Stand::Closed => 0,
            Stand::HalfOpen => 1,
            Stand::Open => 2,
            // It was ordered.
            Stand::ForcedOpen | Stand::ForcedClosed => 3,
        };
        loop {
            let unused = self.ids().filter_map(|id| Some((id, self.get(id).filter(|service| service.is_unused())?)));
            let Some((id, service)) = unused.min_by_key(|(_, service)| weight(service)) else { return false };
            // Unless an order comes at this very moment, which makes it weigh more.
            if service.gate.retire(false) {
                self.forget(id);
                return true;
            }
        }
    }

    fn forget(&mut self, id: ServiceId) {
        if let Some(service) = self.table.get_mut(id as usize).and_then(Option::take) {
            self.by_name.remove(&service.name);
            self.free.push(id);
            if let Some(times) = service.times {
                self.forgotten.merge(&times);
            }
        }
    }

    /// The service `name`, if it is known.
    pub(crate) fn find(&self, name: &Name) -> Option<ServiceId> {
        self.by_name.get(name).copied()
    }

    /// The places of the table, those that are free included.
    pub(crate) fn ids(&self) -> std::ops::Range<ServiceId> {
        0..self.table.len() as ServiceId
    }

    pub(crate) fn get(&self, id: ServiceId) -> Option<&Service> {
        self.table.get(id as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: ServiceId) -> Option<&mut Service> {
        self.table.get_mut(id as usize)?.as_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Service> {
        self.table.iter().flatten()
    }

    /// `connection` serves from now on. `false` if it does already.
    pub(crate) fn serve(&mut self, id: ServiceId, connection: u32, max_in_flight: u32) -> bool {
        let Some(service) = self.get_mut(id) else { return false };
        service.gate.serve();
        service.times.get_or_insert_default();
        match service.responders.iter_mut().find(|r| r.connection == connection) {
            Some(responder) if responder.accepts => false,
            Some(responder) => {
                (responder.accepts, responder.max_in_flight, responder.missed) = (true, max_in_flight, 0);
                true
            }
            None => {
                let new =
                    Responder { connection, outstanding: 0, max_in_flight, accepts: true, missed: 0, probe_at: 0 };
                service.responders.push(new);
                true
            }
        }
    }

    /// `connection` takes no more calls; it is forgotten once it has none outstanding.
    pub(crate) fn unserve(&mut self, id: ServiceId, connection: u32) -> bool {
        let Some(service) = self.get_mut(id) else { return false };
        let Some(at) = service.responders.iter().position(|r| r.connection == connection && r.accepts) else {
            return false;
        };
        service.responders[at].accepts = false;
        if service.responders[at].outstanding == 0 {
            service.responders.swap_remove(at);
        }
        true
    }

    /// The responder that gets the next call: of those that may have one more and are `able`, one that is not suspect
    /// if there is one, with the fewest outstanding; among equals in turn. It is not counted yet.
    pub(crate) fn choose(
        &mut self,
        id: ServiceId,
        now: u64,
        mut able: impl FnMut(u32) -> bool,
    ) -> Result<u32, NoResponder> {
        let delays = self.probe_delays;
        let service = self.get_mut(id).ok_or(NoResponder::None)?;
        let (len, mut best, mut any) = (service.responders.len(), None::<((bool, u32), usize)>, false);
        for step in 0..len {
            let at = (service.next + step) % len;
            let responder = &service.responders[at];
            any |= responder.accepts;
            let rank = (responder.is_suspect(now), responder.outstanding);
            if responder.accepts
                && responder.outstanding < responder.max_in_flight
                && best.is_none_or(|(least, _)| rank < least)
                && able(responder.connection)
            {
                best = Some((rank, at));
            }
        }
        match best {
            Some((_, at)) => {
                service.next = at + 1;
                let responder = &mut service.responders[at];
                if responder.missed > 0 && !responder.is_suspect(now) {
                    // This call is the probe; the others do not wait for its end.
                    responder.back_off(now, delays);
                }
                Ok(responder.connection)
            }
            None if any => Err(NoResponder::AllBusy),
            None => Err(NoResponder::None),
        }
    }

    /// `connection` has one call more.
    pub(crate) fn begin(&mut self, id: ServiceId, connection: u32) {
        if let Some(responder) = self.responder(id, connection) {
            responder.outstanding += 1;
        }
    }

    /// `connection` has one call less.
    pub(crate) fn end(&mut self, id: ServiceId, connection: u32) {
        let Some(responder) = self.responder(id, connection) else { return };
        responder.outstanding -= 1;
        if responder.outstanding == 0 && !responder.accepts {
            let service = self.get_mut(id).expect("its responder was just found");
            service.responders.retain(|r| r.connection != connection);
        }
    }

    /// `connection` let the deadline of a call pass that it could have replied to.
    pub(crate) fn missed(&mut self, id: ServiceId, connection: u32, now: u64) {
        let delays = self.probe_delays;
        if let Some(responder) = self.responder(id, connection) {
            responder.missed = responder.missed.saturating_add(1);
            responder.back_off(now, delays);
        }
    }

    /// `connection` has replied, or has begun to.
    #[inline]
    pub(crate) fn replied(&mut self, id: ServiceId, connection: u32) {
        if let Some(responder) = self.responder(id, connection) {
            responder.missed = 0;
        }
    }

    fn responder(&mut self, id: ServiceId, connection: u32) -> Option<&mut Responder> {
        self.get_mut(id)?.responders.iter_mut().find(|r| r.connection == connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::breaker::{Failure, Rules, Verdict};

    fn name(name: &str) -> Name {
        name.parse().unwrap()
    }

    fn services(most: usize) -> Services {
        let general = Rules {
            failure_threshold: 2,
            success_threshold: 1,
            half_open_max_requests: 1,
            timeout: 100,
            max_timeout: 100,
        };
        Services::new(most, Arc::new(RuleBook { general, of_services: HashMap::new() }))
    }

    fn fail(services: &mut Services, id: ServiceId) {
        let gate = &services.get(id).unwrap().gate;
        let permit = gate.admit(0).0.unwrap();
        gate.record(permit, Verdict::Failure(Failure::ResponderLost), 0);
    }

    #[test]
    fn the_least_busy_responder_is_chosen_and_equals_take_turns() {
        let mut services = services(10);
        let id = services.intern(&name("chat")).unwrap();
        assert_eq!(services.choose(id, 0, |_| true), Err(NoResponder::None));
        for connection in 0..3 {
            assert!(services.serve(id, connection, 2));
            assert!(!services.serve(id, connection, 2), "twice");
        }
        let mut seen = [0; 3];
        for _ in 0..6 {
            let connection = services.choose(id, 0, |_| true).unwrap();
            services.begin(id, connection);
            seen[connection as usize] += 1;
        }
        assert_eq!(seen, [2, 2, 2]);
        assert_eq!(services.choose(id, 0, |_| true), Err(NoResponder::AllBusy));
        services.end(id, 1);
        assert_eq!(services.choose(id, 0, |_| true), Ok(1));
        assert_eq!(services.choose(id, 0, |c| c != 1), Err(NoResponder::AllBusy));
    }

    #[test]
    fn a_responder_that_misses_deadlines_gets_a_probe_after_each_backoff() {
        const SUSPECT_MIN: u64 = 5;
        const SUSPECT_MAX: u64 = 1000;
        let mut services = services(10);
        services.set_probe_delays(ProbeDelays { first: SUSPECT_MIN, max: SUSPECT_MAX });
        let id = services.intern(&name("chat")).unwrap();
        for connection in [7, 8] {
            services.serve(id, connection, 2);
        }
        let chosen = |services: &mut Services, now: u64| -> Vec<u32> {
            (0..6).map(|_| services.choose(id, now, |_| true).unwrap()).collect()
        };
        services.missed(id, 7, 0);
        assert_eq!(chosen(&mut services, SUSPECT_MIN - 1), [8; 6]);
        let probed = chosen(&mut services, SUSPECT_MIN);
        assert_eq!(probed.iter().filter(|connection| **connection == 7).count(), 1, "{probed:?}");
        services.missed(id, 7, SUSPECT_MIN);
        assert_eq!(chosen(&mut services, 3 * SUSPECT_MIN - 1), [8; 6], "twice the backoff");
        // Without another responder that can take the call, it is chosen all the same.
        assert_eq!(services.choose(id, SUSPECT_MIN, |connection| connection != 8), Ok(7));
        services.replied(id, 7);
        assert_eq!(chosen(&mut services, SUSPECT_MIN).iter().filter(|connection| **connection == 7).count(), 3);
        for _ in 0..100 {
            services.missed(id, 7, 0);
        }
        assert!(chosen(&mut services, SUSPECT_MAX).contains(&7), "the backoff has a limit");
    }

    #[test]
    fn who_stops_serving_finishes_what_it_has() {
        let mut services = services(10);
        let id = services.intern(&name("chat")).unwrap();
        services.serve(id, 7, 2);
        services.begin(id, 7);
        assert!(services.unserve(id, 7));
        assert_eq!(services.choose(id, 0, |_| true), Err(NoResponder::None));
        assert_eq!(services.get(id).unwrap().responders.len(), 1);
        services.end(id, 7);
        assert_eq!(services.get(id).unwrap().responders.len(), 0);
    }

    #[test]
    fn names_are_bounded_and_freed_with_their_last_user() {
        let mut services = services(1);
        let id = services.intern(&name("a")).unwrap();
        assert_eq!(services.intern(&name("a")), Some(id));
        assert_eq!(services.intern(&name("b")), None);
        services.release(id);
        assert_eq!(services.intern(&name("b")), None);
        services.release(id);
        assert!(services.intern(&name("b")).is_some());
    }

    #[test]
    fn a_breaker_that_is_not_at_rest_outlives_the_users_of_its_service() {
        let mut services = services(10);
        let id = services.intern(&name("a")).unwrap();
        for _ in 0..2 {
            fail(&mut services, id);
            services.release(id);
            assert_eq!(services.intern(&name("a")), Some(id), "still known");
        }
        assert_eq!(services.get(id).unwrap().gate.stand(), Stand::Open);
        services.release(id);
        let gate = services.get(id).unwrap().gate.clone();
        gate.force(false, None, 0);
        gate.release(0);
        assert_eq!(services.gates().len(), 0, "whoever asks for the gates has those at rest forgotten");
        assert_eq!(services.find(&name("a")), None);
        assert!(gate.is_retired());
        assert_eq!(gate.force(true, None, 0), None, "no order changes what is forgotten");
    }

    #[test]
    fn services_without_users_make_room_and_those_with_users_do_not() {
        let mut services = services(3);
        let ids: Vec<_> = ["open", "failed", "used"].iter().map(|n| services.intern(&name(n)).unwrap()).collect();
        fail(&mut services, ids[0]);
        for id in &ids {
            fail(&mut services, *id);
        }
        services.release(ids[0]);
        services.release(ids[1]);
        assert!(services.intern(&name("new")).is_some());
        assert_eq!((services.find(&name("failed")), services.find(&name("open"))), (None, Some(ids[0])));
        assert!(services.intern(&name("newer")).is_some());
        assert_eq!((services.find(&name("open")), services.find(&name("used"))), (None, Some(ids[2])));
        assert_eq!(services.intern(&name("newest")), None);
    }
}

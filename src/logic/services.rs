//! Services: queue groups of responders, of which the one with the fewest calls outstanding gets the next.
//!
//! A responder that lets a deadline pass is *suspect*: it is chosen only when no other responder can take the call.
//! After a backoff it gets one call as a probe, among the others; each further deadline doubles the backoff, and any
//! reply clears the suspicion. So a responder that is stopped costs its service one call for each probe.
//!
//! There is no queue of requests: a responder states how many calls it takes at a time, and beyond that a request is
//! rejected as overloaded. A second queue here would only hide that.

#[cfg(test)]
mod tests;

use super::breaker::{Gate, RuleBook, Stand};
use super::histogram::Durations;
use super::pace::Pace;
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
    /// How long they take of late.
    pub(crate) pace: Pace,
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
                    pace: Pace::default(),
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

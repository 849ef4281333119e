//! Services: queue groups of responders; the one with the fewest outstanding calls gets the next call.
//!
//! A responder that lets a deadline pass is *suspect*: it is chosen only when no other responder can take the call.
//! After a backoff it gets one call as a probe, among the others; each further deadline doubles the backoff, and any
//! reply clears the suspicion. So a responder that is stopped costs its service one call for each probe.
//!
//! There is no queue of requests: a responder states how many calls it takes at a time, and beyond that a request is
//! rejected as overloaded. A second queue here would only hide that.

#[cfg(test)]
mod tests;

use super::breaker::{Gate, GateState, RuleBook};
use super::histogram::Durations;
use super::pace::Pace;
use super::shares::{ShareLimits, ShareReached, Shares, Uid};
use crate::wire::name::Name;
use std::collections::HashMap;
use std::sync::Arc;

/// A service's index in the table.
pub(crate) type ServiceId = u32;

/// The backoff before a suspect responder is probed, in nanoseconds.
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
    /// Whether it takes new calls; otherwise it only finishes outstanding ones.
    pub(crate) accepts: bool,
    /// Deadlines that passed since its last reply.
    missed: u32,
    /// The time of the next probe, if it is suspect.
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

/// A service. It exists while it has responders or a client has its number; and after that while its breaker is not at
/// rest, or a responder that dies of each request would start with a closed breaker each time. At the limit of services
/// those without users are removed first.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: Name,
    pub(crate) responders: Vec<Responder>,
    /// The router's handle of its breaker.
    pub(crate) gate: Arc<Gate>,
    /// Requests to it.
    pub(crate) requests: u64,
    /// Requests that ended without a reply.
    pub(crate) failures: u64,
    /// The durations of its calls, since its first responder.
    pub(crate) times: Option<Box<CallTimes>>,
    /// Its usual reply time.
    pub(crate) pace: Pace,
    users: u32,
    /// The user that it is charged to, which asked for it first; `None`: the broker.
    owner: Option<Uid>,
    next: usize,
}

impl Service {
    /// Whether no connection has a number for it or an outstanding call to it.
    pub(crate) fn is_unused(&self) -> bool {
        self.users == 0 && self.responders.is_empty()
    }
}

/// The durations of calls, from the time at which the router accepted the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CallTimes {
    /// Until the whole reply was forwarded to the requester.
    pub(crate) round_trip: Durations,
    /// Until the first chunk of a streamed reply was forwarded.
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
    shares: Shares,
    /// The rules of new gates.
    rules: Arc<RuleBook>,
    /// New gates, for `BreakerActor`.
    new_gates: Vec<(Name, Arc<Gate>)>,
    probe_delays: ProbeDelays,
    /// Of removed services.
    pub(crate) forgotten: CallTimes,
}

impl Services {
    pub(crate) fn new(shares: Shares, rules: Arc<RuleBook>) -> Services {
        Services {
            by_name: HashMap::new(),
            table: Vec::new(),
            free: Vec::new(),
            shares,
            rules,
            new_gates: Vec::new(),
            probe_delays: ProbeDelays::default(),
            forgotten: CallTimes::default(),
        }
    }

    /// Sets other limits.
    pub(crate) fn adopt(&mut self, limits: ShareLimits) {
        self.shares.adopt(limits);
    }

    /// Sets other probe delays, from the next missed deadline on.
    pub(crate) fn set_probe_delays(&mut self, delays: ProbeDelays) {
        self.probe_delays = delays;
    }

    /// New gates begin with these rules from now on.
    pub(crate) fn set_rules(&mut self, rules: Arc<RuleBook>) {
        self.rules = rules;
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn shares(&self) -> &Shares {
        &self.shares
    }

    /// The new gates since the last call.
    pub(crate) fn take_new_gates(&mut self) -> std::vec::Drain<'_, (Name, Arc<Gate>)> {
        self.new_gates.drain(..)
    }

    /// The gates of all services with users, or with a breaker that is not at rest; the others are removed.
    pub(crate) fn gates(&mut self) -> Vec<(Name, Arc<Gate>)> {
        self.ids().for_each(|id| self.forget_if_unused(id));
        self.new_gates.clear();
        self.iter().map(|service| (service.name.clone(), service.gate.clone())).collect()
    }

    /// Adds a user of the service `name`. One that is new is charged to `owner`; the broker's own (`None`) is exempt.
    ///
    /// # Errors
    ///
    /// At the owner's share of services, if none without users makes room: of its own, or of all if there are too many.
    pub(crate) fn intern(&mut self, name: &Name, owner: Option<Uid>) -> Result<ServiceId, ShareReached> {
        let id = match self.find(name) {
            Some(id) => id,
            None => {
                if let Some(owner) = owner {
                    self.charge(owner)?;
                }
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
                    owner,
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
        Ok(id)
    }

    fn charge(&mut self, owner: Uid) -> Result<(), ShareReached> {
        let Err(reached) = self.shares.take(owner) else { return Ok(()) };
        let is_full = self.shares.is_full();
        if !self.forget_one(|service| is_full || service.owner == Some(owner)) {
            return Err(reached);
        }
        self.shares.take(owner)
    }

    /// Removes a user.
    pub(crate) fn release(&mut self, id: ServiceId) {
        let Some(service) = self.get_mut(id) else { return };
        service.users -= 1;
        self.forget_if_unused(id);
    }

    /// Removes a service without users whose breaker is at rest.
    pub(crate) fn forget_if_unused(&mut self, id: ServiceId) {
        if self.get(id).is_some_and(|service| service.is_unused() && service.gate.retire(true)) {
            self.forget(id);
        }
    }

    /// Makes room: removes the service without users whose breaker has the least state, of those that may go. `false`:
    /// all have users.
    fn forget_one(&mut self, may_go: impl Fn(&Service) -> bool) -> bool {
        let weight = |service: &Service| match service.gate.state() {
            GateState::Closed => 0,
            GateState::HalfOpen => 1,
            GateState::Open => 2,
            // It was ordered.
            GateState::ForcedOpen | GateState::ForcedClosed => 3,
        };
        loop {
            let is_unused = |service: &&Service| service.is_unused() && service.owner.is_some() && may_go(service);
            let unused = self.ids().filter_map(|id| Some((id, self.get(id).filter(is_unused)?)));
            let Some((id, service)) = unused.min_by_key(|(_, service)| weight(service)) else { return false };
            // Unless an order arrives meanwhile, which gives it more weight.
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
            if let Some(owner) = service.owner {
                self.shares.give_back(owner);
            }
            if let Some(times) = service.times {
                self.forgotten.merge(&times);
            }
        }
    }

    /// The service `name`, if it is known.
    pub(crate) fn find(&self, name: &Name) -> Option<ServiceId> {
        self.by_name.get(name).copied()
    }

    /// The size of the table, free entries included.
    pub(crate) fn ids(&self) -> std::ops::Range<ServiceId> {
        0..self.table.len() as ServiceId
    }

    pub(crate) fn get(&self, id: ServiceId) -> Option<&Service> {
        self.table.get(id as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: ServiceId) -> Option<&mut Service> {
        self.table.get_mut(id as usize)?.as_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Service> + Clone {
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

    /// Chooses the responder of the next call among those below their limit that are `able`: one that is not suspect,
    /// if any, with the fewest outstanding calls; equals take turns. The call is not counted yet.
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

    /// `connection` missed a deadline although it could have replied.
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

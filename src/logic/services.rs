//! Services: queue groups of responders; the one with the fewest outstanding calls gets the next call.
//!
//! A responder that lets a deadline pass is *suspect*: it is chosen only when no other responder can take the call.
//! After a backoff it gets one call as a probe, among the others; each further deadline doubles the backoff, and any
//! reply clears the suspicion. So a responder that is stopped costs its service one call for each probe.
//!
//! There is no queue of requests: a responder states how many calls it takes at a time, and beyond that a request is
//! rejected as overloaded. A second queue here would only hide that.
//!
//! # What users take from each other
//!
//! A call takes a *place* of its responder, of the user of its requester. While the clients of one user alone are
//! connected, or with `user_share_percent` = 100, that user may take all places and all probes. Otherwise:
//!
//! 1. **Share.** A user begins a call at a responder only while it holds less than its part of the places that the
//!    other users leave: the percentage, rounded up. No call is begun beyond the maximum that the responder states.
//! 2. **Claim.** Few places cannot be shared by percentage: of nine or fewer, the part is all. A user that is refused
//!    while it holds no place claims one of the responder's for a second, and the others leave one until it has it. The
//!    only place of a responder cannot be claimed: there the first whole request has it.
//! 3. **Incomplete requests yield.** If a request of a user within its share finds no place, an incomplete request of
//!    another user that is *late* yields its place, and ends as `Overloaded`.
//! 4. **Late.** The body of a request is late when its next [`PART`] is not there after 100 ms although its requester
//!    may send it. A user whose requests end by their bodies (cancelled, timed out, yielded, its client gone) has half
//!    that time after each, and none after seven; ten seconds without one double it again. So a client that begins
//!    incomplete requests anew before they are late holds no place, either.
//! 5. **Probes.** Of the probes that a half-open breaker has left, a user leaves one for others, unless it is the last
//!    one; and that one, too, while another user claims it (as in rule 2). If a request finds no probe, a late request
//!    of any user gives its probe back without an outcome for the breaker, and goes on; so does one that holds its
//!    reply up by missing credit for as long, and one of another user that is older than the default deadline.
//! 6. **All calls.** A user's outstanding calls are limited by [`Users`] as everything else is by `logic::shares`.

mod admission;
mod claim;
mod places;
mod probes;
mod responder;
#[cfg(test)]
mod tests;
mod users;

pub(crate) use places::Body;
pub(crate) use probes::Probe;
pub(crate) use responder::{ProbeDelays, Responder};
pub(crate) use users::{UserIndex, Users};

use super::breaker::{Gate, GateState, RuleBook};
use super::histogram::Durations;
use super::pace::Pace;
use super::routing::arena::{Arena, Key};
use super::shares::{Principal, ShareLimits, ShareReached, Shares};
use crate::wire::name::Name;
use probes::Probes;
use std::collections::HashMap;
use std::sync::Arc;

/// A service's index in the table.
pub(crate) type ServiceId = u32;
/// The key of a responder of a service.
pub(crate) type OfferId = Key;

/// Bytes of a body that are to come within the time for a part.
pub(crate) const PART: u32 = 16_384;
/// Incomplete requests that a request without a place looks at.
const MAX_LOOKS: u32 = 16;

/// A service. It exists while it has responders or a client has its number; and after that while its breaker is not at
/// rest, or a responder that dies of each request would start with a closed breaker each time. At the limit of services
/// those without users are removed first.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: Name,
    responders: Vec<OfferId>,
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
    /// The outstanding probes of its breaker, while that is half-open.
    probes: Probes,
    users: u32,
    /// The user that it is charged to, which asked for it first; `None`: the broker.
    owner: Option<Principal>,
    next: usize,
}

impl Service {
    /// The number of its responders.
    pub(crate) fn responders(&self) -> usize {
        self.responders.len()
    }

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
    offers: Arena<Responder>,
    shares: Shares,
    pub(crate) users: Users,
    /// The rules of new gates.
    rules: Arc<RuleBook>,
    /// New gates, for `BreakerActor`.
    new_gates: Vec<(Name, Arc<Gate>)>,
    probe_delays: ProbeDelays,
    /// Of removed services.
    pub(crate) forgotten: CallTimes,
}

impl Services {
    pub(crate) fn new(shares: Shares, users: Users, rules: Arc<RuleBook>) -> Services {
        Services {
            by_name: HashMap::new(),
            table: Vec::new(),
            free: Vec::new(),
            // Connections, and what each may offer, are limited.
            offers: Arena::new(u32::MAX as usize),
            shares,
            users,
            rules,
            new_gates: Vec::new(),
            probe_delays: ProbeDelays::default(),
            forgotten: CallTimes::default(),
        }
    }

    /// Sets other limits, of services and of calls.
    pub(crate) fn adopt(&mut self, services: ShareLimits, calls: ShareLimits) {
        self.shares.adopt(services);
        self.users.adopt(calls);
    }

    /// Sets other probe delays, from the next missed deadline on.
    pub(crate) fn set_probe_delays(&mut self, delays: ProbeDelays) {
        self.probe_delays = delays;
    }

    /// New gates begin with these rules from now on.
    pub(crate) fn set_rules(&mut self, rules: Arc<RuleBook>) {
        self.rules = rules;
    }

    /// What users hold of the services.
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
    pub(crate) fn intern(&mut self, name: &Name, owner: Option<Principal>) -> Result<ServiceId, ShareReached> {
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
                    probes: Probes::default(),
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

    fn charge(&mut self, owner: Principal) -> Result<(), ShareReached> {
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

    pub(crate) fn offer(&self, offer: OfferId) -> Option<&Responder> {
        self.offers.get(offer)
    }

    fn offer_of(&self, service: &Service, connection: u32) -> Option<OfferId> {
        let is_it = |offer: &OfferId| self.offers.get(*offer).is_some_and(|found| found.connection == connection);
        service.responders.iter().copied().find(is_it)
    }

    /// Outstanding calls of a service.
    pub(crate) fn outstanding(&self, service: &Service) -> u32 {
        service.responders.iter().filter_map(|offer| self.offers.get(*offer)).map(|found| found.places.taken()).sum()
    }

    /// `connection` serves from now on, under its own `number`. `false` if it does already.
    pub(crate) fn serve(&mut self, id: ServiceId, connection: u32, number: u32, max_in_flight: u32) -> bool {
        let Some(service) = self.get(id) else { return false };
        let known = self.offer_of(service, connection);
        let Some(service) = self.table.get_mut(id as usize).and_then(Option::as_mut) else { return false };
        service.gate.serve();
        service.times.get_or_insert_default();
        match known.and_then(|known| self.offers.get_mut(known)) {
            Some(responder) if responder.accepts => false,
            Some(responder) => {
                responder.resume(number, max_in_flight);
                true
            }
            None => {
                let at = service.responders.len();
                let new = self.offers.insert(Responder::new(id, at, connection, number, max_in_flight));
                service.responders.extend(new);
                new.is_some()
            }
        }
    }

    /// `connection` takes no more calls; it is forgotten once it has none outstanding.
    pub(crate) fn unserve(&mut self, id: ServiceId, connection: u32) -> bool {
        let Some(offer) = self.get(id).and_then(|service| self.offer_of(service, connection)) else { return false };
        let Some(responder) = self.offers.get_mut(offer).filter(|responder| responder.accepts) else { return false };
        responder.accepts = false;
        self.remove_if_done(offer);
        true
    }

    fn remove_if_done(&mut self, offer: OfferId) {
        let is_done = |responder: &&Responder| !responder.accepts && responder.places.taken() == 0;
        let Some(&Responder { service, at, .. }) = self.offers.get(offer).filter(is_done) else { return };
        self.offers.remove(offer);
        let Some(service) = self.table.get_mut(service as usize).and_then(Option::as_mut) else { return };
        service.responders.swap_remove(at);
        if let Some(moved) = service.responders.get(at).and_then(|moved| self.offers.get_mut(*moved)) {
            moved.at = at;
        }
    }

    /// Chooses the responder of the next call among those with a place for `user` that are `able`: one that is not
    /// suspect, if any, with the fewest outstanding calls; equals take turns. The call is not counted yet.
    pub(crate) fn choose(
        &mut self,
        id: ServiceId,
        user: Principal,
        now: u64,
        mut able: impl FnMut(u32) -> bool,
    ) -> Result<OfferId, NoResponder> {
        let (delays, sharing) = (self.probe_delays, self.users.sharing());
        let Services { table, offers, .. } = self;
        let service = table.get_mut(id as usize).and_then(Option::as_mut).ok_or(NoResponder::None)?;
        let (len, mut best, mut any) = (service.responders.len(), None::<((bool, u32), usize)>, false);
        let mut next = service.next;
        for _ in 0..len {
            let at = if next < len { next } else { 0 };
            next = at + 1;
            let Some(responder) = offers.get(service.responders[at]) else { continue };
            any |= responder.accepts;
            let rank = (responder.is_suspect(now), responder.places.taken());
            if responder.accepts
                && best.is_none_or(|(least, _)| rank < least)
                && responder.places.has_place(user, sharing, now)
                && able(responder.connection)
            {
                best = Some((rank, at));
            }
        }
        match best {
            Some((_, at)) => {
                service.next = at + 1;
                let offer = service.responders[at];
                if let Some(responder) = offers.get_mut(offer) {
                    responder.chosen(now, delays);
                }
                Ok(offer)
            }
            None if any => Err(NoResponder::AllBusy),
            None => Err(NoResponder::None),
        }
    }

    /// The incomplete request that yields its place to a request of `user`, and its responder. `look` tells of a call
    /// whether the next part of its body is late after the given time.
    pub(crate) fn yields(
        &mut self,
        id: ServiceId,
        user: Principal,
        now: u64,
        able: impl Fn(u32) -> bool,
        look: impl Fn(Key, u64) -> Body,
    ) -> Option<(OfferId, Key)> {
        let (sharing, mut looks) = (self.users.sharing(), MAX_LOOKS);
        let Services { table, offers, users, .. } = self;
        let service = table.get(id as usize)?.as_ref()?;
        service.responders.iter().find_map(|offer| {
            let responder = offers.get_mut(*offer).filter(|found| found.accepts && able(found.connection))?;
            let look = |of, call| look(call, users.body_time(of, now));
            Some((*offer, responder.places.yields(user, sharing, &mut looks, look)?))
        })
    }

    /// A request of `user` was refused: all responders are at capacity.
    pub(crate) fn refuse(&mut self, id: ServiceId, user: Principal, now: u64) {
        let sharing = self.users.sharing();
        let Some(service) = self.table.get(id as usize).and_then(Option::as_ref) else { return };
        for offer in &service.responders {
            if let Some(responder) = self.offers.get_mut(*offer) {
                responder.places.refuse(user, sharing, now);
            }
        }
    }

    /// A responder has one call more, of `user`.
    #[inline]
    pub(crate) fn begin(&mut self, offer: OfferId, user: Principal) {
        if let Some(responder) = self.offers.get_mut(offer) {
            responder.places.take(user);
        }
    }

    /// The request of a call that has begun is incomplete.
    pub(crate) fn note_incomplete(
        &mut self,
        offer: OfferId,
        user: Principal,
        call: Key,
        is_incomplete: impl FnMut(Key) -> bool,
    ) {
        if let Some(responder) = self.offers.get_mut(offer) {
            responder.places.note_incomplete(user, call, is_incomplete);
        }
    }

    /// A responder has one call less, of `user`.
    #[inline]
    pub(crate) fn end(&mut self, offer: OfferId, user: Principal) {
        let Some(responder) = self.offers.get_mut(offer) else { return };
        responder.places.give_back(user);
        if !responder.accepts {
            self.remove_if_done(offer);
        }
    }

    /// A responder missed a deadline although it could have replied.
    pub(crate) fn missed(&mut self, offer: OfferId, now: u64) {
        let delays = self.probe_delays;
        if let Some(responder) = self.offers.get_mut(offer) {
            responder.missed(now, delays);
        }
    }

    /// A responder has replied, or has begun to.
    #[inline]
    pub(crate) fn replied(&mut self, offer: OfferId) {
        if let Some(responder) = self.offers.get_mut(offer) {
            responder.replied();
        }
    }
}

//! Places of responders, and what a call takes when it begins. `logic::services` has the rules.

use super::{Call, Calls};
use crate::broker::router::ports::Ports;
use crate::logic::routing::arena::Key;
use crate::logic::services::{Body, NoResponder, OfferId, Probe, ServiceId};
use crate::logic::shares::Principal;
use crate::wire::record::Outcome;

impl Calls {
    /// A responder with a place for a request of `user`.
    #[inline]
    pub(super) fn place_for(&mut self, ports: &mut Ports, id: ServiceId, user: Principal) -> Result<OfferId, Outcome> {
        let egresses = &ports.egresses;
        match self.services.choose(id, user, ports.now, |responder| egresses.takes_calls(responder)) {
            Ok(offer) => Ok(offer),
            Err(NoResponder::None) => Err(Outcome::NoResponders),
            Err(NoResponder::AllBusy) => self.make_room(ports, id, user),
        }
    }

    /// An incomplete request of another user yields its place to one of `user`.
    #[cold]
    fn make_room(&mut self, ports: &mut Ports, id: ServiceId, user: Principal) -> Result<OfferId, Outcome> {
        let Calls { services, table, .. } = self;
        let (now, cells, egresses) = (ports.now, ports.settings.geometry.base_cells(), &ports.egresses);
        let able = |responder| egresses.takes_calls(responder);
        let body = |call, time| table.get(call).map_or(Body::Whole, |call| call.body(now, time, cells));
        let Some((offer, call)) = services.yields(id, user, now, able, body) else {
            services.refuse(id, user, now);
            return Err(Outcome::Overloaded);
        };
        if let Some(call) = table.get(call) {
            services.users.abandoned(call.user, now);
        }
        self.end_call(ports, call, Outcome::Overloaded);
        Ok(offer)
    }

    /// A call begins: it takes its place, and counts for its user. `None` if the user has its share of all calls.
    pub(super) fn insert(&mut self, call: Call) -> Option<Key> {
        let Call { user, principal, offer, service, permit, body_left, .. } = call;
        self.services.users.begin_call(user).ok()?;
        let Some(key) = self.table.insert(call) else {
            self.services.users.end_call(user);
            return None;
        };
        if let Some(offer) = offer {
            self.services.begin(offer, principal);
            if body_left > 0 {
                let is_incomplete = |call| self.table.get(call).is_some_and(|call| call.body_left > 0);
                self.services.note_incomplete(offer, principal, key, is_incomplete);
            }
        }
        if let Some(permit) = permit.filter(|permit| permit.is_probe()) {
            self.services.begin_probe(service, Probe { call: key, user: principal, permit });
        }
        Some(key)
    }
}

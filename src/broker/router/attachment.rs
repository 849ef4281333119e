//! Attaching and ending connections.

use super::connection::{CloseReason, Info};
use super::egress::Egress;
use super::ingress::Ingress;
use super::state::RouterState;
use crate::broker::supervision::fault;
use crate::logic::routing::numbers::Numbers;
use crate::logic::session::publisher::connection_id;
use crate::logic::shares::Principal;
use crate::shm::doorbell::BrokerBells;
use crate::shm::layout::RingName;
use crate::shm::peer::Credentials;
use crate::shm::segment::Segment;
use crate::wire::name::Name;
use std::io;
use std::sync::Arc;

/// Ids that are not given again so soon.
const MAX_RECENT: usize = 1024;

impl RouterState {
    /// Adds a connection. Returns its key and id. (Called twice, because the router died before it had returned, it
    /// adds the connection once.)
    ///
    /// # Errors
    ///
    /// If the system refuses to watch its bell.
    pub(super) fn attach(
        &mut self,
        name: Name,
        publisher: u64,
        (peer, principal): (Credentials, Principal),
        segment: Arc<Segment>,
        bells: Arc<BrokerBells>,
    ) -> io::Result<(u32, u32)> {
        if let Some(key) = self.ports.egresses.find(&segment)
            && let Some(ingress) = self.ports.ingress(key)
        {
            return Ok((key, ingress.info.id));
        }
        let (key, is_new) = match self.free_keys.last() {
            Some(key) => (*key, false),
            None => (self.ports.ingresses.len() as u32, true),
        };
        self.board.watch(&bells, key)?;
        if is_new {
            self.ports.ingresses.push(None);
        } else {
            self.free_keys.pop();
        }
        let id = self.free_id(publisher);
        let (bulk, express, egress) = segment.broker_ends();
        let info = Info { id, publisher, name, peer, principal };
        let data = segment.data_signal(RingName::Bulk);
        data.arm();
        let user = self.calls.connect(principal, self.ports.now);
        self.ports.ingresses[key as usize] = Some(Box::new(Ingress {
            info: info.clone(),
            user,
            opened: self.ports.now,
            bulk,
            express,
            data,
            topics: Numbers::new(),
            services: Numbers::new(),
            serving: Vec::new(),
            next_offer: 0,
            requests: Vec::new(),
            outstanding: 0,
            partial: None,
            partial_targets: Vec::new(),
            parked: None,
            waiting_on: None,
            ended: false,
            since_space: 0,
            rings: 0,
            rings_since: self.ports.now,
            active_at: self.ports.now,
            is_watched: false,
            owes: 0,
            replied: None,
            messages: 0,
            bytes: 0,
        }));
        self.ports.egresses.insert(key, Egress::new(segment, egress, bells, principal));
        self.ports.schedule.add(key, principal);
        self.ports.counters.connections += 1;
        self.pubsub.tell_connection(&mut self.ports, "opened", &info, None);
        Ok((key, id))
    }

    /// An id by the key of the client's publisher, so that it is mostly the same at the next broker (P4).
    fn free_id(&self, publisher: u64) -> u32 {
        let mut id = connection_id(publisher);
        loop {
            id &= 0x7fff_ffff;
            // Nor one that was given back a moment ago: what is still said about that connection is not about this one.
            let is_taken =
                self.recent.contains(&id) || self.ports.ingresses.iter().flatten().any(|ingress| ingress.info.id == id);
            if id != 0 && !is_taken {
                return id;
            }
            id += 1;
        }
    }

    /// The client of `key` has ended. Its services and subscriptions end now; the records in its lanes are routed.
    pub(super) fn client_ended(&mut self, key: u32, id: u32) {
        let Some(ingress) = self.ports.ingress_of(key, id) else { return };
        ingress.ended = true;
        self.calls.unserve_all(&self.ports, key);
        self.pubsub.unsubscribe_all(&mut self.ports, key);
        self.ports.retry_waiters(key);
        self.ports.schedule.wake(key);
    }

    /// The connection `key` broke the protocol over its control socket.
    pub(super) fn close(&mut self, key: u32, id: u32, close: CloseReason) {
        if self.ports.ingress_of(key, id).is_some() {
            self.ports.egresses.pending_close.push((key, close));
        }
    }

    /// Closes the connections that are to be closed: they broke the protocol, or their client left.
    pub(super) fn close_pending(&mut self) {
        // Each stays until it is done: a router that dies leaves it to the next.
        while let Some((key, close)) = self.ports.egresses.pending_close.first().cloned() {
            self.end(key, close);
            self.ports.egresses.pending_close.remove(0);
        }
    }

    /// Closes a connection now: its calls get their outcome, its subscriptions and topics end, its memory is given
    /// back.
    pub(super) fn end(&mut self, key: u32, close: CloseReason) {
        if self.ports.ingress(key).is_none() {
            return;
        }
        fault::point("router.ending", 0);
        self.calls.end_calls_of(&mut self.ports, key);
        fault::point("router.ending", 1);
        self.pubsub.abort_partial(&mut self.ports, key);
        fault::point("router.ending", 2);
        self.ports.unpark(key);
        self.ports.schedule.mark_cold(key);
        self.ports.retry_waiters(key);
        self.pubsub.unsubscribe_all(&mut self.ports, key);
        // What is given up is off its list first: a router that dies here gives nothing up twice.
        self.calls.release_all(&mut self.ports, key);
        while let Some(published) = self.ports.ingress_mut(key).and_then(|ingress| ingress.topics.take_any()) {
            self.pubsub.release_topic(&mut self.ports, published.topic);
        }
        self.pubsub.forget_known(&mut self.ports, key);
        if let Some(egress) = self.ports.egresses.remove(key) {
            self.board.unwatch(egress.bells());
            self.ports.egresses.memory.forget(egress.leases.user, egress.ring.window());
        }
        let Some(ingress) = self.ports.ingresses[key as usize].take() else { return };
        self.ports.schedule.remove(key);
        self.ports.egresses.memory.forget(ingress.info.principal, ingress.windows());
        self.calls.disconnect(ingress.user);
        self.free_keys.push(key);
        self.recent.push_back(ingress.info.id);
        if self.recent.len() > MAX_RECENT {
            self.recent.pop_front();
        }
        self.ports.counters.violations += u64::from(close.code != crate::wire::control::ClosingCode::Shutdown);
        self.ended.push((ingress.info.clone(), close.clone()));
        self.pubsub.tell_connection(&mut self.ports, "closed", &ingress.info, Some(&close.reason));
        fault::point("router.ending", 3);
    }
}

//! Connections come and go.

use super::connection::{CloseReason, Info};
use super::egress::Egress;
use super::ingress::Ingress;
use super::state::RouterState;
use crate::broker::fault;
use crate::routing::numbers::Numbers;
use crate::routing::roster::instance;
use crate::shm::doorbell::BrokerBells;
use crate::shm::layout::RingName;
use crate::shm::segment::Segment;
use crate::wire::name::Name;
use std::io;
use std::sync::Arc;

/// Ids that are not given again so soon.
const MOST_RECENT: usize = 1024;

impl RouterState {
    /// Takes a new connection in. Answers its key and id. (Asked twice, because the router died before it had
    /// answered, it takes it in once.)
    ///
    /// # Errors
    ///
    /// If the system refuses to watch its bell.
    pub(super) fn attach(
        &mut self,
        name: Name,
        nonce: u64,
        peer: crate::shm::peer::Credentials,
        segment: Arc<Segment>,
        bells: Arc<BrokerBells>,
    ) -> io::Result<(u32, u32)> {
        if let Some(key) = self.egresses.find(&segment)
            && let Some(ingress) = self.ingress(key)
        {
            return Ok((key, ingress.info.id));
        }
        let (key, is_new) = match self.free_keys.last() {
            Some(key) => (*key, false),
            None => (self.ingresses.len() as u32, true),
        };
        self.board.watch(&bells, key)?;
        if is_new {
            self.ingresses.push(None);
        } else {
            self.free_keys.pop();
        }
        let id = self.free_id(nonce);
        let (bulk, express, egress) = segment.broker_ends();
        let info = Info { id, name, peer };
        let data = segment.data_signal(RingName::Bulk);
        data.arm();
        self.ingresses[key as usize] = Some(Box::new(Ingress {
            info: info.clone(),
            opened: self.now,
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
            waits: None,
            ended: false,
            since_space: 0,
            rings: 0,
            rings_since: self.now,
            active_at: self.now,
            is_watched: false,
            answered: None,
            messages: 0,
            bytes: 0,
        }));
        self.egresses.insert(key, Egress::new(segment, egress, bells));
        self.schedule.add(key);
        self.counters.connections += 1;
        self.tell_connection("opened", &info, None);
        Ok((key, id))
    }

    /// An id by the client's nonce, so that it has the same one at the next broker: what it sends again there is known
    /// by that. (Ids are positive as `i32`, for people and other languages.)
    fn free_id(&self, nonce: u64) -> u32 {
        let mut id = instance(nonce);
        loop {
            id &= 0x7fff_ffff;
            // Nor one that was given back a moment ago: what is still said about that connection is not about this one.
            let is_taken =
                self.recent.contains(&id) || self.ingresses.iter().flatten().any(|ingress| ingress.info.id == id);
            if id != 0 && !is_taken {
                return id;
            }
            id += 1;
        }
    }

    /// The client of `key` is gone. What it has published is routed still; whoever waits for it is told now.
    pub(super) fn client_gone(&mut self, key: u32, id: u32) {
        let Some(ingress) = self.ingress_of(key, id) else { return };
        ingress.ended = true;
        let serving: Vec<_> = ingress.serving.iter().map(|(_, service)| *service).collect();
        for service in serving {
            self.services.unserve(service, key);
        }
        self.unsubscribe_all(key);
        self.retry_waiters(key);
        self.schedule.wake(key);
    }

    fn unsubscribe_all(&mut self, key: u32) {
        let mut at = 0;
        while let Some(subscription) = self.egresses.get(key).and_then(|egress| egress.subscriptions.get(at)).copied() {
            at += 1;
            self.forget_kept(key, subscription);
        }
        let Some(egress) = self.egresses.get_mut(key) else { return };
        // Off the list when they are gone, so that none is left if the router dies between.
        self.topics.unsubscribe_all(&egress.subscriptions);
        egress.subscriptions = Vec::new();
    }

    /// The connection `key` broke the protocol over its control socket.
    pub(super) fn close(&mut self, key: u32, id: u32, close: CloseReason) {
        if self.ingress_of(key, id).is_some() {
            self.egresses.pending_close.push((key, close));
        }
    }

    /// Ends the connections that must end: those that broke the protocol, and those whose client left.
    pub(super) fn close_pending(&mut self) {
        // Each stays until it is done: a router that dies leaves it to the next.
        while let Some((key, close)) = self.egresses.pending_close.first().cloned() {
            self.end(key, close);
            self.egresses.pending_close.remove(0);
        }
    }

    /// Ends a connection now: its calls get their outcome, its subscriptions and topics go, its memory is given back.
    pub(super) fn end(&mut self, key: u32, close: CloseReason) {
        if self.ingress(key).is_none() {
            return;
        }
        fault::point("router.ending", 0);
        self.end_calls_of(key);
        fault::point("router.ending", 1);
        self.abort_partial(key);
        fault::point("router.ending", 2);
        self.unpark(key);
        self.schedule.remove(key);
        self.retry_waiters(key);
        self.unsubscribe_all(key);
        // What is given up is off its list first: a router that dies here gives nothing up twice.
        let RouterState { ingresses, services, .. } = self;
        let Some(ingress) = ingresses[key as usize].as_deref_mut() else { return };
        while let Some((_, service)) = ingress.serving.pop() {
            services.unserve(service, key);
            services.release(service);
        }
        while let Some(service) = ingress.services.take_any() {
            services.release(service);
        }
        while let Some(published) = self.ingress_mut(key).and_then(|ingress| ingress.topics.take_any()) {
            self.release_topic(published.topic);
        }
        if let Some(egress) = self.egresses.remove(key) {
            self.board.unwatch(egress.bells());
            self.egresses.memory.forget(egress.ring.window());
        }
        let Some(ingress) = self.ingresses[key as usize].take() else { return };
        self.egresses.memory.forget(ingress.windows());
        self.free_keys.push(key);
        self.recent.push_back(ingress.info.id);
        if self.recent.len() > MOST_RECENT {
            self.recent.pop_front();
        }
        self.counters.violations += u64::from(close.code != crate::wire::control::ClosingCode::Shutdown);
        self.ended.push((ingress.info.clone(), close.clone()));
        self.tell_connection("closed", &ingress.info, Some(&close.reason));
        fault::point("router.ending", 3);
    }
}

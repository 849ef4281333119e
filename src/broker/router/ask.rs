//! What clients ask for over the control socket, and what is said about the broker. An answer means: it is in force.

use super::inlet::Published;
use super::state::{ECHO, RouterState};
use crate::routing::arena::{Key, MOST_SHORT};
use crate::routing::topics::Full;
use crate::shm::layout::CELL_BYTES;
use crate::wire::control::{
    BrokerFrame, ClientFrame, ConnectionStatus, DeliveryPolicy, FailedCode, InternKind, ServiceStatus, SessionState,
    StatusReport,
};
use crate::wire::name::{Name, Topic};
use crate::wire::pattern::Pattern;
use crate::wire::record::Outcome;

type Answer = Result<BrokerFrame, (FailedCode, String)>;

impl RouterState {
    /// Carries out what the connection asks for. `None`: the connection is gone, or the frame is no question.
    ///
    /// Asked again with the same `number`, because the router died before it had answered, it answers again and carries
    /// out nothing. A connection has one question under way, so one answer is enough to remember.
    pub(super) fn ask(&mut self, key: u32, id: u32, number: u64, frame: ClientFrame) -> Option<BrokerFrame> {
        self.inlet_of(key, id)?;
        let serial = frame.serial()?;
        if let Some((_, answer)) = self.inlet(key)?.answered.as_deref().filter(|(answered, _)| *answered == number) {
            return Some(answer.clone());
        }
        let answer = match frame {
            ClientFrame::Intern { kind: InternKind::Topic, name, .. } => self.intern_topic(key, serial, &name),
            ClientFrame::Intern { kind: InternKind::Service, name, .. } => self.intern_service(key, serial, &name),
            ClientFrame::Subscribe { pattern, policy, credit, .. } => {
                self.subscribe(key, serial, pattern, policy, credit)
            }
            ClientFrame::Unsubscribe { subscription, .. } => self.unsubscribe(key, serial, subscription),
            ClientFrame::Serve { service, max_in_flight, .. } => {
                self.serve_service(key, serial, &service, max_in_flight)
            }
            ClientFrame::Unserve { service, .. } => self.unserve(key, serial, service),
            // Nothing changes by these, so they may as well be carried out twice.
            ClientFrame::Status { serial } => return Some(BrokerFrame::Status { serial, report: self.report(true) }),
            ClientFrame::Breakers { serial } => {
                return Some(BrokerFrame::Breakers { serial, breakers: self.breakers() });
            }
            // All but the first three are for other actors.
            ClientFrame::Hello { .. }
            | ClientFrame::Bye
            | ClientFrame::Resumed
            | ClientFrame::SetBreaker { .. }
            | ClientFrame::Upstreams { .. }
            | ClientFrame::DialUpstream { .. }
            | ClientFrame::Reload { .. }
            | ClientFrame::Restored => return None,
        };
        let answer = answer.unwrap_or_else(|(code, message)| BrokerFrame::Failed { serial, code, message });
        self.inlet_mut(key)?.answered = Some(Box::new((number, answer.clone())));
        Some(answer)
    }

    fn intern_topic(&mut self, key: u32, serial: u32, topic: &Topic) -> Answer {
        if topic.is_system() {
            return Err((FailedCode::NotAllowed, format!("only the broker publishes on {topic}")));
        }
        let most = self.settings.max_topics_per_connection;
        if self.inlet(key).is_some_and(|inlet| inlet.topics.len() >= most) {
            return Err((FailedCode::Limit, format!("this connection has {most} topics, which is the limit")));
        }
        let id = self.topics.intern(topic).map_err(|full| self.too_many(full))?;
        let Some(inlet) = self.inlet_mut(key) else { return Err(gone()) };
        Ok(BrokerFrame::Interned { serial, id: inlet.topics.give(Published { topic: id, sent: 0 }) })
    }

    fn intern_service(&mut self, key: u32, serial: u32, name: &Topic) -> Answer {
        let name = Name::try_from(name).map_err(|error| (FailedCode::Invalid, error.to_string()))?;
        let most = self.settings.max_topics_per_connection;
        if self.inlet(key).is_some_and(|inlet| inlet.services.len() >= most) {
            return Err((FailedCode::Limit, format!("this connection has {most} services, which is the limit")));
        }
        let service = self.services.intern(&name).ok_or_else(too_many_services)?;
        self.tell_new_gates();
        let Some(inlet) = self.inlet_mut(key) else { return Err(gone()) };
        Ok(BrokerFrame::Interned { serial, id: inlet.services.give(service) })
    }

    fn subscribe(&mut self, key: u32, serial: u32, pattern: Pattern, policy: DeliveryPolicy, credit: u32) -> Answer {
        let most = self.settings.max_subscriptions_per_connection;
        let Some(outlet) = self.outlets.get(key) else { return Err(gone()) };
        if outlet.subscriptions.len() >= most {
            return Err((FailedCode::Limit, format!("this connection has {most} subscriptions, which is the limit")));
        }
        let capacity = match credit {
            0 => self.settings.subscription_credit,
            // One record of the largest size at least, so that nothing is too large for it.
            credit => credit.clamp(self.settings.geometry.base_cells(), self.settings.subscription_credit),
        };
        let subscribed = self.topics.subscribe(key, pattern, policy, capacity);
        let subscription = subscribed.map_err(|full| self.too_many(full))?;
        if let Some(outlet) = self.outlets.get_mut(key) {
            outlet.subscriptions.push(subscription);
        }
        Ok(BrokerFrame::Subscribed { serial, subscription: subscription.to_u32() })
    }

    fn unsubscribe(&mut self, key: u32, serial: u32, subscription: u32) -> Answer {
        let found = self.topics.subscriptions.find(subscription);
        let Some(outlet) = self.outlets.get_mut(key) else { return Err(gone()) };
        let position = |subscription: Key| outlet.subscriptions.iter().position(|s| *s == subscription);
        let Some((subscription, at)) = found.and_then(|found| Some((found, position(found)?))) else {
            return Err((FailedCode::Unknown, "no such subscription".to_owned()));
        };
        outlet.subscriptions.swap_remove(at);
        self.forget_kept(key, subscription);
        self.topics.unsubscribe(subscription);
        self.retry_waiters(key);
        Ok(BrokerFrame::Done { serial })
    }

    fn too_many(&self, full: Full) -> (FailedCode, String) {
        let what = match full {
            Full::Topics => format!("the broker knows {} topics, which is the limit", self.settings.max_topics),
            Full::Subscriptions => format!("the broker has {MOST_SHORT} subscriptions, which is the limit"),
            Full::Routes => {
                let most = self.settings.max_routes;
                format!("with this the broker would have more than {most} pairs of a topic and a subscription to it")
            }
        };
        (FailedCode::Limit, what)
    }

    fn serve_service(&mut self, key: u32, serial: u32, name: &Name, max_in_flight: u32) -> Answer {
        if name.as_str() == ECHO {
            return Err((FailedCode::NotAllowed, format!("the broker itself serves {ECHO}")));
        }
        let most = self.settings.max_subscriptions_per_connection;
        if self.inlet(key).is_some_and(|inlet| inlet.serving.len() >= most) {
            return Err((FailedCode::Limit, format!("this connection offers {most} services, which is the limit")));
        }
        let service = self.services.intern(name).ok_or_else(too_many_services)?;
        self.tell_new_gates();
        let most = self.settings.max_requests_per_responder;
        let max_in_flight = if max_in_flight == 0 { most } else { max_in_flight.min(most) };
        if !self.services.serve(service, key, max_in_flight) {
            self.services.release(service);
            return Err((FailedCode::Invalid, format!("this connection serves {name} already")));
        }
        let Some(inlet) = self.inlet_mut(key) else { return Err(gone()) };
        let number = inlet.next_offer;
        inlet.next_offer = number.wrapping_add(1);
        inlet.serving.push((number, service));
        Ok(BrokerFrame::Serving { serial, service: number })
    }

    fn unserve(&mut self, key: u32, serial: u32, number: u32) -> Answer {
        let Some(inlet) = self.inlet_mut(key) else { return Err(gone()) };
        let Some(at) = inlet.serving.iter().position(|(given, _)| *given == number) else {
            return Err((FailedCode::Unknown, format!("no service has the number {number}")));
        };
        let (_, service) = inlet.serving.remove(at);
        self.services.unserve(service, key);
        self.services.release(service);
        Ok(BrokerFrame::Done { serial })
    }

    /// What the router knows of the broker, without the list of connections if that is not wanted: it is the one part
    /// that grows with them. Whoever tells it fills in the rest.
    pub(super) fn report(&self, with_connections: bool) -> StatusReport {
        let mut connections = Vec::new();
        let listed = if with_connections { self.inlets.as_slice() } else { &[] };
        for (key, inlet) in listed.iter().enumerate() {
            let (Some(inlet), Some(outlet)) = (inlet.as_deref(), self.outlets.get(key as u32)) else { continue };
            let services = inlet.serving.iter().filter_map(|(_, service)| self.services.get(*service));
            let subscriptions = outlet.subscriptions.iter().filter_map(|s| self.topics.subscriptions.get(*s));
            let (used, credit) = subscriptions.fold((0, 0), |(used, all), s| {
                (used + u64::from(s.capacity.saturating_sub(s.credit)), all + u64::from(s.capacity))
            });
            connections.push(ConnectionStatus {
                id: inlet.info.id,
                name: inlet.info.name.clone(),
                pid: inlet.info.peer.pid,
                uid: inlet.info.peer.uid,
                age_ms: (self.now - inlet.opened) / 1_000_000,
                subscriptions: outlet.subscriptions.len() as u32,
                services: services.map(|service| service.name.clone()).collect(),
                messages_in: inlet.messages,
                messages_out: outlet.messages,
                bytes_in: inlet.bytes,
                bytes_out: outlet.bytes,
                dropped: outlet.dropped,
                backlog_bytes: outlet.backlog_bytes as u64,
                requests_outstanding: u64::from(inlet.outstanding),
                state: match (inlet.ended, inlet.parked.is_some()) {
                    (true, _) => SessionState::Ending,
                    (false, true) => SessionState::Waiting,
                    // Whether somebody holds the session is not known here.
                    (false, false) => SessionState::Connected,
                },
                credit_used_bytes: used * CELL_BYTES as u64,
                credit_bytes: credit * CELL_BYTES as u64,
            });
        }
        let services = self.services.iter().filter(|s| !s.responders.is_empty() || s.requests > 0);
        let slot_cells = u64::from(self.settings.geometry.slot_size()) / CELL_BYTES as u64;
        let slots = |cells: u64| u32::try_from(cells / slot_cells.max(1)).unwrap_or(u32::MAX);
        StatusReport {
            connections,
            services: services
                .map(|service| ServiceStatus {
                    name: service.name.clone(),
                    responders: service.responders.len() as u32,
                    outstanding: service.responders.iter().map(|r| r.outstanding).sum(),
                    pending: 0,
                    requests: service.requests,
                    failures: service.failures,
                })
                .collect(),
            counters: self.counters_by_name(),
            slots_used: slots(self.outlets.memory.used()),
            slots_total: slots(self.outlets.memory.total()),
            topics: self.topics.len() as u32,
            subscriptions: self.topics.subscriptions.len() as u32,
            latency: Box::new(self.latency()),
            ..StatusReport::default()
        }
    }

    fn counters_by_name(&self) -> Vec<(String, u64)> {
        let c = &self.counters;
        let mut named = vec![
            ("connections", c.connections),
            ("records", c.records),
            ("fragments", c.fragments),
            ("bytes", c.bytes),
            ("published", c.published),
            ("delivered", c.delivered),
            ("unmatched", c.unmatched),
            ("dropped", c.dropped.iter().sum()),
            ("aborted", c.aborted),
            ("evicted", c.evicted),
            ("requests", c.requests),
            ("replies", c.replies),
            ("chunks", c.chunks),
            ("cancels", c.cancels),
            ("late", c.late),
            ("parked", c.parked),
            ("violations", c.violations),
            ("set_aside", c.set_aside),
            ("rings", self.outlets.rung),
            ("looks", c.looks),
            ("sleeps", c.sleeps),
            ("leases_refused", self.outlets.memory.refused()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect::<Vec<_>>();
        named.extend(Outcome::ALL.iter().map(|o| (format!("failed_{}", o.as_str()), c.failed[*o as usize - 1])));
        named
    }
}

fn gone() -> (FailedCode, String) {
    (FailedCode::Unknown, "the connection has ended".to_owned())
}

fn too_many_services() -> (FailedCode, String) {
    (FailedCode::Limit, "the broker knows as many services as it may".to_owned())
}

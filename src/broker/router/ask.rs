//! What clients ask for over the control socket, and what is said about the broker. An answer means: it is in force.

use super::ingress::Published;
use super::state::{ECHO, RouterState};
use crate::routing::arena::{Key, MOST_SHORT};
use crate::routing::topics::Full;
use crate::wire::control::{BrokerFrame, ClientFrame, DeliveryPolicy, FailedCode, InternKind};
use crate::wire::name::{Name, Topic};
use crate::wire::pattern::Pattern;

type Answer = Result<BrokerFrame, (FailedCode, String)>;

impl RouterState {
    /// Carries out what the connection asks for. `None`: the connection is gone, or the frame is no question.
    ///
    /// Asked again with the same `number`, because the router died before it had answered, it answers again and carries
    /// out nothing. A connection has one question under way, so one answer is enough to remember.
    pub(super) fn ask(&mut self, key: u32, id: u32, number: u64, frame: ClientFrame) -> Option<BrokerFrame> {
        self.ingress_of(key, id)?;
        let serial = frame.serial()?;
        if let Some((_, answer)) = self.ingress(key)?.answered.as_deref().filter(|(answered, _)| *answered == number) {
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
        self.ingress_mut(key)?.answered = Some(Box::new((number, answer.clone())));
        Some(answer)
    }

    fn intern_topic(&mut self, key: u32, serial: u32, topic: &Topic) -> Answer {
        if topic.is_system() {
            return Err((FailedCode::NotAllowed, format!("only the broker publishes on {topic}")));
        }
        let most = self.settings.max_topics_per_connection;
        if self.ingress(key).is_some_and(|ingress| ingress.topics.len() >= most) {
            return Err((FailedCode::Limit, format!("this connection has {most} topics, which is the limit")));
        }
        let id = self.topics.intern(topic).map_err(|full| self.too_many(full))?;
        let Some(ingress) = self.ingress_mut(key) else { return Err(gone()) };
        Ok(BrokerFrame::Interned { serial, id: ingress.topics.give(Published { topic: id, sent: 0 }) })
    }

    fn intern_service(&mut self, key: u32, serial: u32, name: &Topic) -> Answer {
        let name = Name::try_from(name).map_err(|error| (FailedCode::Invalid, error.to_string()))?;
        let most = self.settings.max_topics_per_connection;
        if self.ingress(key).is_some_and(|ingress| ingress.services.len() >= most) {
            return Err((FailedCode::Limit, format!("this connection has {most} services, which is the limit")));
        }
        let service = self.services.intern(&name).ok_or_else(too_many_services)?;
        self.tell_new_gates();
        let Some(ingress) = self.ingress_mut(key) else { return Err(gone()) };
        Ok(BrokerFrame::Interned { serial, id: ingress.services.give(service) })
    }

    fn subscribe(&mut self, key: u32, serial: u32, pattern: Pattern, policy: DeliveryPolicy, credit: u32) -> Answer {
        let most = self.settings.max_subscriptions_per_connection;
        let Some(egress) = self.egresses.get(key) else { return Err(gone()) };
        if egress.subscriptions.len() >= most {
            return Err((FailedCode::Limit, format!("this connection has {most} subscriptions, which is the limit")));
        }
        let capacity = match credit {
            0 => self.settings.subscription_credit,
            // One record of the largest size at least, so that nothing is too large for it.
            credit => credit.clamp(self.settings.geometry.base_cells(), self.settings.subscription_credit),
        };
        let subscribed = self.topics.subscribe(key, pattern, policy, capacity);
        let subscription = subscribed.map_err(|full| self.too_many(full))?;
        if let Some(egress) = self.egresses.get_mut(key) {
            egress.subscriptions.push(subscription);
        }
        Ok(BrokerFrame::Subscribed { serial, subscription: subscription.to_u32() })
    }

    fn unsubscribe(&mut self, key: u32, serial: u32, subscription: u32) -> Answer {
        let found = self.topics.subscriptions.find(subscription);
        let Some(egress) = self.egresses.get_mut(key) else { return Err(gone()) };
        let position = |subscription: Key| egress.subscriptions.iter().position(|s| *s == subscription);
        let Some((subscription, at)) = found.and_then(|found| Some((found, position(found)?))) else {
            return Err((FailedCode::Unknown, "no such subscription".to_owned()));
        };
        egress.subscriptions.swap_remove(at);
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
        if self.ingress(key).is_some_and(|ingress| ingress.serving.len() >= most) {
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
        let Some(ingress) = self.ingress_mut(key) else { return Err(gone()) };
        let number = ingress.next_offer;
        ingress.next_offer = number.wrapping_add(1);
        ingress.serving.push((number, service));
        Ok(BrokerFrame::Serving { serial, service: number })
    }

    fn unserve(&mut self, key: u32, serial: u32, number: u32) -> Answer {
        let Some(ingress) = self.ingress_mut(key) else { return Err(gone()) };
        let Some(at) = ingress.serving.iter().position(|(given, _)| *given == number) else {
            return Err((FailedCode::Unknown, format!("no service has the number {number}")));
        };
        let (_, service) = ingress.serving.remove(at);
        self.services.unserve(service, key);
        self.services.release(service);
        Ok(BrokerFrame::Done { serial })
    }
}

fn gone() -> (FailedCode, String) {
    (FailedCode::Unknown, "the connection has ended".to_owned())
}

fn too_many_services() -> (FailedCode, String) {
    (FailedCode::Limit, "the broker knows as many services as it may".to_owned())
}

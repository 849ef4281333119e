//! Control requests. A reply means: it is in force.

use super::state::RouterState;
use crate::wire::control::{BrokerFrame, ClientFrame, InternKind};

impl RouterState {
    /// Carries out a control request. `None`: the connection is gone, or the frame is no request for the router.
    ///
    /// Called again with the same `number`, because the router died before it had replied, it returns the same reply
    /// and carries out nothing. A connection has one control request at a time, so one reply is enough to remember.
    pub(super) fn ask(&mut self, key: u32, id: u32, number: u64, frame: ClientFrame) -> Option<BrokerFrame> {
        self.ports.ingress_of(key, id)?;
        let serial = frame.serial()?;
        if let Some((_, answer)) =
            self.ports.ingress(key)?.answered.as_deref().filter(|(answered, _)| *answered == number)
        {
            return Some(answer.clone());
        }
        let answer = match frame {
            ClientFrame::Intern { kind: InternKind::Topic, name, .. } => {
                self.pubsub.intern_topic(&mut self.ports, key, serial, &name)
            }
            ClientFrame::Intern { kind: InternKind::Service, name, .. } => {
                self.calls.intern_service(&mut self.ports, key, serial, &name)
            }
            ClientFrame::Subscribe { pattern, policy, credit, .. } => {
                self.pubsub.subscribe(&mut self.ports, key, serial, pattern, policy, credit)
            }
            ClientFrame::Unsubscribe { subscription, .. } => {
                self.pubsub.unsubscribe(&mut self.ports, key, serial, subscription)
            }
            ClientFrame::Serve { service, max_in_flight, .. } => {
                self.calls.serve_service(&mut self.ports, key, serial, &service, max_in_flight)
            }
            ClientFrame::Unserve { service, .. } => self.calls.unserve(&mut self.ports, key, serial, service),
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
        self.ports.ingress_mut(key)?.answered = Some(Box::new((number, answer.clone())));
        Some(answer)
    }
}

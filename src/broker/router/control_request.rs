//! Control requests. A reply means that the request is in force.

use super::state::RouterState;
use crate::wire::codec;
use crate::wire::control::{BrokerFrame, ClientFrame, InternKind};

impl RouterState {
    /// What the client `key` owes for its evictions, in nanoseconds of control time; its request pays that.
    pub(super) fn take_debt(&mut self, key: u32) -> u64 {
        self.ports.ingress_mut(key).map_or(0, |ingress| std::mem::take(&mut ingress.owes))
    }

    /// Executes a control request. `None`: the connection has ended, or the frame is not a request for the router.
    ///
    /// A repeated `number` returns the recorded reply without executing the request: the router died before the reply
    /// was sent. A connection has one outstanding control request, so one reply is recorded.
    pub(super) fn handle_request(&mut self, key: u32, id: u32, number: u64, frame: ClientFrame) -> Option<BrokerFrame> {
        self.ports.ingress_of(key, id)?;
        let serial = frame.serial()?;
        if let Some((_, reply)) = self.ports.ingress(key)?.replied.as_ref().filter(|(replied, _)| *replied == number) {
            return codec::decode(reply).ok();
        }
        let reply = match frame {
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
            // The first four are no requests. The others are for other actors, or for a snapshot.
            ClientFrame::Hello { .. }
            | ClientFrame::Bye
            | ClientFrame::Resumed
            | ClientFrame::Restored
            | ClientFrame::Status { .. }
            | ClientFrame::Breakers { .. }
            | ClientFrame::NextPage { .. }
            | ClientFrame::SetBreaker { .. }
            | ClientFrame::Upstreams { .. }
            | ClientFrame::DialUpstream { .. }
            | ClientFrame::Reload { .. } => return None,
        };
        let reply = reply.unwrap_or_else(|(code, message)| BrokerFrame::Failed { serial, code, message });
        // If it is too long, sending it fails in the same way.
        self.ports.ingress_mut(key)?.replied = codec::encode(&reply).ok().map(|reply| (number, reply.into()));
        Some(reply)
    }
}

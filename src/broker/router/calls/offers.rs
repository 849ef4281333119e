//! Control requests about services.

use super::{Calls, ECHO};
use crate::broker::router::connection::{ControlReply, gone, share_reached};
use crate::broker::router::ports::Ports;
use crate::logic::shares::ShareReached;
use crate::wire::control::{BrokerFrame, FailedCode};
use crate::wire::name::{Name, Topic};

impl Calls {
    pub(in crate::broker::router) fn intern_service(
        &mut self,
        ports: &mut Ports,
        key: u32,
        serial: u32,
        name: &Topic,
    ) -> ControlReply {
        let name = Name::try_from(name).map_err(|error| (FailedCode::Invalid, error.to_string()))?;
        let most = ports.settings.max_topics_per_connection;
        let Some(ingress) = ports.ingress(key) else { return Err(gone()) };
        if ingress.services.len() >= most {
            return Err((FailedCode::Limit, format!("this connection has reached its limit of {most} services")));
        }
        let owner = Some(ingress.info.principal);
        let service = self.services.intern(&name, owner).map_err(|reached| too_many_services(ports, reached))?;
        self.tell_new_gates(ports);
        let Some(ingress) = ports.ingress_mut(key) else { return Err(gone()) };
        Ok(BrokerFrame::Interned { serial, id: ingress.services.assign(service) })
    }

    pub(in crate::broker::router) fn serve_service(
        &mut self,
        ports: &mut Ports,
        key: u32,
        serial: u32,
        name: &Name,
        max_in_flight: u32,
    ) -> ControlReply {
        if name.as_str() == ECHO {
            return Err((FailedCode::NotAllowed, format!("service {ECHO} is reserved for the broker")));
        }
        let most = ports.settings.max_subscriptions_per_connection;
        let Some(ingress) = ports.ingress(key) else { return Err(gone()) };
        if ingress.serving.len() >= most {
            return Err((
                FailedCode::Limit,
                format!("this connection has reached its limit of {most} offered services"),
            ));
        }
        let owner = Some(ingress.info.principal);
        let service = self.services.intern(name, owner).map_err(|reached| too_many_services(ports, reached))?;
        self.tell_new_gates(ports);
        let most = ports.settings.max_requests_per_responder;
        let max_in_flight = if max_in_flight == 0 { most } else { max_in_flight.min(most) };
        let Some(number) = ports.ingress(key).map(|ingress| ingress.next_offer) else { return Err(gone()) };
        if !self.services.serve(service, key, number, max_in_flight) {
            self.services.release(service);
            return Err((FailedCode::Invalid, format!("this connection serves {name} already")));
        }
        let Some(ingress) = ports.ingress_mut(key) else { return Err(gone()) };
        ingress.next_offer = number.wrapping_add(1);
        ingress.serving.push((number, service));
        Ok(BrokerFrame::Serving { serial, service: number })
    }

    pub(in crate::broker::router) fn unserve(
        &mut self,
        ports: &mut Ports,
        key: u32,
        serial: u32,
        number: u32,
    ) -> ControlReply {
        let Some(ingress) = ports.ingress_mut(key) else { return Err(gone()) };
        let Some(at) = ingress.serving.iter().position(|(given, _)| *given == number) else {
            return Err((FailedCode::Unknown, format!("unknown service number {number}")));
        };
        let (_, service) = ingress.serving.remove(at);
        self.services.unserve(service, key);
        self.services.release(service);
        Ok(BrokerFrame::Done { serial })
    }

    /// The client of `key` is gone: its services get no calls any more.
    pub(in crate::broker::router) fn unserve_all(&mut self, ports: &Ports, key: u32) {
        let Some(ingress) = ports.ingress(key) else { return };
        for (_, service) in &ingress.serving {
            self.services.unserve(*service, key);
        }
    }

    /// The connection `key` ends: its offers and its numbers of services are released. Each is off its list first, so a
    /// router that dies within this releases none twice.
    pub(in crate::broker::router) fn release_all(&mut self, ports: &mut Ports, key: u32) {
        let Some(ingress) = ports.ingress_mut(key) else { return };
        while let Some((_, service)) = ingress.serving.pop() {
            self.services.unserve(service, key);
            self.services.release(service);
        }
        while let Some(service) = ingress.services.take_any() {
            self.services.release(service);
        }
    }
}

fn too_many_services(ports: &Ports, reached: ShareReached) -> (FailedCode, String) {
    share_reached(&ports.settings.quotas, reached, "services", "limits.max_services")
}

//! The gates of all services, and the operations of `BreakerActor` on them. Pure: time is an argument.

use crate::broker::router::{ECHO, breaker_status};
use crate::broker::telemetry::events::BreakerChange;
use crate::logic::breaker::{Gate, RuleBook};
use crate::wire::control::{BreakerOrder, BreakerStatus};
use crate::wire::name::Name;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Gates beyond twice the number in use at which those of forgotten services are dropped.
const SLACK: usize = 64;

/// A manual order.
pub(in crate::broker) struct Order<'a> {
    pub(in crate::broker) service: &'a Name,
    pub(in crate::broker) order: BreakerOrder,
    /// The duration; `None`: without end.
    pub(in crate::broker) time: Option<Duration>,
    /// The connection that gave it.
    pub(in crate::broker) by: u32,
}

/// The breakers of all services.
pub(in crate::broker) struct Breakers {
    gates: HashMap<Name, Arc<Gate>>,
    rules: Arc<RuleBook>,
    /// The number of gates at which those of forgotten services are dropped.
    many: usize,
}

impl Breakers {
    /// No gates yet.
    pub(in crate::broker) fn new(rules: Arc<RuleBook>) -> Breakers {
        Breakers { gates: HashMap::new(), rules, many: SLACK }
    }

    /// Adds the gate of a service.
    pub(in crate::broker) fn insert(&mut self, service: Name, gate: Arc<Gate>) {
        gate.set_rules(self.rules.of(service.as_str()));
        self.gates.insert(service, gate);
        if self.gates.len() >= self.many {
            self.gates.retain(|_, gate| !gate.is_retired());
            self.many = 2 * self.gates.len() + SLACK;
        }
    }

    /// Replaces all gates.
    pub(super) fn replace_all(&mut self, gates: Vec<(Name, Arc<Gate>)>) {
        self.gates.clear();
        gates.into_iter().for_each(|(service, gate)| self.insert(service, gate));
    }

    /// Sets other rules.
    pub(super) fn adopt(&mut self, rules: Arc<RuleBook>) {
        self.rules = rules;
        for (service, gate) in &self.gates {
            gate.set_rules(self.rules.of(service.as_str()));
        }
    }

    /// Ends expired states. Returns the changes, and the time until the next check.
    pub(in crate::broker) fn tick(&self, now: u64) -> (Vec<BreakerChange>, Option<Duration>) {
        let (mut changes, mut next) = (Vec::new(), None);
        for (service, gate) in &self.gates {
            if let Some(transition) = gate.tick(now) {
                changes.push(BreakerChange { service: service.clone(), transition, by: None });
            }
            next = next.into_iter().chain(gate.lasts(now)).min();
        }
        (changes, next.map(Duration::from_nanos))
    }

    /// Executes an order. Returns the new status and the changes; `None` if the service never had a responder.
    pub(in crate::broker) fn execute(
        &self,
        order: &Order<'_>,
        now: u64,
    ) -> Option<(BreakerStatus, Vec<BreakerChange>)> {
        let gate = self.gates.get(order.service).filter(|gate| gate.was_served() && !gate.is_retired())?;
        let time = order.time.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        let before = gate.tick(now);
        let by_order = match order.order {
            BreakerOrder::Open => Some(gate.force(true, time, now)?),
            BreakerOrder::Close => Some(gate.force(false, time, now)?),
            BreakerOrder::Auto => gate.release(now),
        };
        let change = |transition, by| BreakerChange { service: order.service.clone(), transition, by };
        let before = before.map(|transition| change(transition, None));
        let by_order = by_order.map(|transition| change(transition, Some(order.by)));
        Some((breaker_status(order.service, gate, now), before.into_iter().chain(by_order).collect()))
    }
}

/// The reason why a service cannot have orders, if any.
pub(in crate::broker) fn refusal(service: &Name) -> Option<String> {
    (service.as_str() == ECHO).then(|| format!("service {ECHO} is the broker's own and has no breaker"))
}

/// The refusal of an order for an unknown service.
pub(in crate::broker) fn unknown(service: &Name) -> String {
    format!("unknown service: {service}")
}

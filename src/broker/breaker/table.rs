//! The gates that the actor of the breakers knows, and what it does to them: told the time, and no actor itself.

use crate::broker::router::{ECHO, breaker_status};
use crate::broker::telemetry::events::BreakerChange;
use crate::logic::breaker::{Gate, RuleBook};
use crate::wire::control::{BreakerOrder, BreakerStatus};
use crate::wire::name::Name;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// So many gates more than twice those that were in use, and those of forgotten services are dropped.
const SLACK: usize = 64;

/// What a person wants of a breaker.
pub(in crate::broker) struct Order<'a> {
    pub(in crate::broker) service: &'a Name,
    pub(in crate::broker) order: BreakerOrder,
    /// For how long; `None`: without end.
    pub(in crate::broker) time: Option<Duration>,
    /// The connection that wants it.
    pub(in crate::broker) by: u32,
}

/// The breakers of all services.
pub(in crate::broker) struct Breakers {
    gates: HashMap<Name, Arc<Gate>>,
    rules: Arc<RuleBook>,
    /// So many gates are the occasion to drop those of forgotten services.
    many: usize,
}

impl Breakers {
    /// None yet.
    pub(in crate::broker) fn new(rules: Arc<RuleBook>) -> Breakers {
        Breakers { gates: HashMap::new(), rules, many: SLACK }
    }

    /// A service has a new gate.
    pub(in crate::broker) fn know(&mut self, service: Name, gate: Arc<Gate>) {
        gate.set_rules(self.rules.of(service.as_str()));
        self.gates.insert(service, gate);
        if self.gates.len() >= self.many {
            self.gates.retain(|_, gate| !gate.is_retired());
            self.many = 2 * self.gates.len() + SLACK;
        }
    }

    /// These gates are all that there are.
    pub(super) fn know_all(&mut self, gates: Vec<(Name, Arc<Gate>)>) {
        self.gates.clear();
        gates.into_iter().for_each(|(service, gate)| self.know(service, gate));
    }

    /// Other rules from now on.
    pub(super) fn adopt(&mut self, rules: Arc<RuleBook>) {
        self.rules = rules;
        for (service, gate) in &self.gates {
            gate.set_rules(self.rules.of(service.as_str()));
        }
    }

    /// Ends the states whose time is over. Returns what has changed, and after how long to look again.
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

    /// Carries an order out. Returns how the breaker stands then, and what has changed; `None` if no such service has
    /// or had a responder.
    pub(in crate::broker) fn obey(&self, order: &Order<'_>, now: u64) -> Option<(BreakerStatus, Vec<BreakerChange>)> {
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

/// Why a service can have no orders, if that is so.
pub(in crate::broker) fn refusal(service: &Name) -> Option<String> {
    (service.as_str() == ECHO).then(|| format!("the broker itself serves {ECHO}, which has no breaker"))
}

/// Why an order is refused whose service is not known.
pub(in crate::broker) fn unknown(service: &Name) -> String {
    format!("unknown service: {service}")
}

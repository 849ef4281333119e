//! Control requests about topics and subscriptions.

use super::PubSub;
use crate::broker::router::connection::{ControlReply, gone, share_reached};
use crate::broker::router::ingress::Published;
use crate::broker::router::ports::Ports;
use crate::logic::routing::arena::Key;
use crate::wire::control::{BrokerFrame, DeliveryPolicy, FailedCode};
use crate::wire::name::Topic;
use crate::wire::pattern::Pattern;

impl PubSub {
    pub(in crate::broker::router) fn intern_topic(
        &mut self,
        ports: &mut Ports,
        key: u32,
        serial: u32,
        topic: &Topic,
    ) -> ControlReply {
        if topic.is_system() {
            return Err((FailedCode::NotAllowed, format!("only the broker publishes on {topic}")));
        }
        let most = ports.settings.max_topics_per_connection;
        let Some(ingress) = ports.ingress(key) else { return Err(gone()) };
        if ingress.topics.len() >= most {
            return Err((FailedCode::Limit, format!("this connection has reached its limit of {most} topics")));
        }
        let owner = ingress.info.principal;
        let id = self.topics.intern(topic, Some(owner));
        let id = id.map_err(|reached| share_reached(&ports.settings.quotas, reached, "topics", "limits.max_topics"))?;
        let Some(ingress) = ports.ingress_mut(key) else { return Err(gone()) };
        Ok(BrokerFrame::Interned { serial, id: ingress.topics.assign(Published { topic: id, sent: 0 }) })
    }

    pub(in crate::broker::router) fn subscribe(
        &mut self,
        ports: &mut Ports,
        key: u32,
        serial: u32,
        pattern: Pattern,
        policy: DeliveryPolicy,
        credit: u32,
    ) -> ControlReply {
        let most = ports.settings.max_subscriptions_per_connection;
        let (Some(egress), Some(ingress)) = (ports.egresses.get(key), ports.ingress(key)) else { return Err(gone()) };
        if egress.subscriptions.len() >= most {
            return Err((FailedCode::Limit, format!("this connection has reached its limit of {most} subscriptions")));
        }
        let capacity = match credit {
            0 => ports.settings.subscription_credit,
            // At least one record of the largest size, so that no message is too large.
            credit => credit.clamp(ports.settings.geometry.base_cells(), ports.settings.subscription_credit),
        };
        let owner = (key, ingress.info.principal);
        let subscribed = self.topics.subscribe(owner, pattern, policy, capacity, ports.now);
        let subscription = subscribed.map_err(|reached| {
            share_reached(&ports.settings.quotas, reached, "subscriptions", "limits.max_subscriptions")
        })?;
        if let Some(egress) = ports.egresses.get_mut(key) {
            egress.subscriptions.push(subscription);
        }
        Ok(BrokerFrame::Subscribed { serial, subscription: subscription.to_u32() })
    }

    pub(in crate::broker::router) fn unsubscribe(
        &mut self,
        ports: &mut Ports,
        key: u32,
        serial: u32,
        subscription: u32,
    ) -> ControlReply {
        let found = self.topics.subscriptions.find(subscription);
        let Some(egress) = ports.egresses.get_mut(key) else { return Err(gone()) };
        let position = |subscription: Key| egress.subscriptions.iter().position(|s| *s == subscription);
        let Some((subscription, at)) = found.and_then(|found| Some((found, position(found)?))) else {
            return Err((FailedCode::Unknown, "no such subscription".to_owned()));
        };
        egress.subscriptions.swap_remove(at);
        self.forget_overflow(ports, key, subscription);
        self.topics.unsubscribe(subscription);
        ports.retry_waiters(key);
        Ok(BrokerFrame::Done { serial })
    }

    pub(in crate::broker::router) fn unsubscribe_all(&mut self, ports: &mut Ports, key: u32) {
        let mut at = 0;
        while let Some(subscription) = ports.egresses.get(key).and_then(|egress| egress.subscriptions.get(at)).copied()
        {
            at += 1;
            self.forget_overflow(ports, key, subscription);
        }
        let Some(egress) = ports.egresses.get_mut(key) else { return };
        // Each stays on the list until it has ended, so none is left if the router dies in between.
        for subscription in &egress.subscriptions {
            self.topics.unsubscribe(*subscription);
        }
        egress.subscriptions = Vec::new();
    }
}

//! Where everything that arrives belongs: subscriptions, services, outstanding requests, control requests.

use crate::client::data::connection_state::{ConnectionState, Down, States};
use crate::client::data::id_hash::ById;
use crate::client::data::incoming_call::{Arrived, Inbox, Incoming};
use crate::client::data::names::Names;
use crate::client::data::request_slots::RequestSlots;
use crate::client::data::subscription_queue::{Early, Queue};
use crate::client::error::{Error, Kind, Result};
use crate::wire::control::BrokerFrame;
use crate::wire::record::Outcome;
use std::collections::HashMap;
use std::sync::Arc;

/// What the new broker is asked for.
#[derive(Debug)]
pub(crate) enum Restoring {
    /// The number of the topic with this id.
    Topic(u64),
    Subscription(Arc<Queue>),
    Offer(Arc<Inbox>),
}

/// What it has given.
#[derive(Debug)]
pub(crate) enum Restored {
    Subscription(Arc<Queue>, u32),
    Offer(Arc<Inbox>, u32),
}

/// Who waits for what arrives.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) subscriptions: HashMap<u32, Arc<Queue>, ById>,
    /// Subscriptions and services that were asked for, by the question's serial. The rings and the socket are not in
    /// step: messages may come before the answer that tells their number, and wait as `orphans`.
    pub(crate) subscribing: HashMap<u32, Arc<Queue>>,
    pub(crate) serving: HashMap<u32, Arc<Inbox>>,
    pub(crate) orphans: Vec<(u32, Early)>,
    pub(crate) orphan_calls: Vec<(u32, Arrived)>,
    pub(crate) requests: RequestSlots,
    pub(crate) inboxes: HashMap<u32, Arc<Inbox>>,
    pub(crate) calls: HashMap<u64, Arc<Incoming>>,
    pub(crate) answers: HashMap<u32, Option<BrokerFrame>>,
    pub(crate) flushed: u64,
    /// Messages of ours that the broker took out.
    pub(crate) set_aside: u64,
    pub(crate) topics: Names,
    pub(crate) services: Names,
    /// How many brokers, or sessions of one, there were before the present.
    pub(crate) session: u64,
    /// What the next broker was asked for, and what it has given.
    pub(crate) restoring: HashMap<u32, Restoring>,
    pub(crate) restored: Vec<Restored>,
    pub(crate) closed: Option<Error>,
    pub(crate) down: Arc<Down>,
    pub(crate) states: States,
    /// Why the broker is about to close the connection.
    pub(crate) closing: Option<Error>,
    pub(crate) wakers: Vec<std::task::Waker>,
}

impl Table {
    /// The connection is in another state: who waits for that looks.
    pub(crate) fn set_state(&mut self, state: ConnectionState) {
        self.states.set(state);
        self.wakers.drain(..).for_each(std::task::Waker::wake);
    }

    /// Something came for a subscription. If its number is not known yet, it waits.
    pub(crate) fn tell_subscription(&mut self, subscription: u32, what: Early, slot_size: u32) {
        match self.subscriptions.get(&subscription) {
            Some(queue) => queue.receive(what, slot_size),
            None if !self.subscribing.is_empty() => {
                if let Early::Dropped(_) = what {
                    // Each says how many there were so far.
                    self.orphans.retain(|(id, early)| *id != subscription || !matches!(early, Early::Dropped(_)));
                }
                self.orphans.push((subscription, what));
            }
            // It crossed our `unsubscribe`.
            None => {}
        }
    }

    /// The connection has ended, for the first reason that is told.
    pub(crate) fn close(&mut self, error: Error) {
        if self.closed.is_none() {
            self.set_state(ConnectionState::Closed { reason: error.clone() });
            self.down.end(error.clone());
            self.closed = Some(error);
        }
    }

    /// A call is over for this client. Returns whether it was still to be answered.
    pub(crate) fn take_call(&mut self, call: &Arc<Incoming>) -> bool {
        // By its number there may be another, in another session.
        let is_here = self.calls.get(&call.call).is_some_and(|here| Arc::ptr_eq(here, call));
        is_here && self.calls.remove(&call.call).is_some()
    }

    /// Another session begins, in which at most `max_requests` may be outstanding: each outstanding request has its
    /// one outcome, and nobody waits for replies of this client any more.
    pub(crate) fn end_calls(&mut self, max_requests: u32) {
        self.requests.restart(max_requests);
        for (_, call) in self.calls.drain() {
            call.end(Outcome::Cancelled);
        }
        self.orphans.clear();
        self.orphan_calls.clear();
    }

    /// The new broker has answered one of those questions.
    ///
    /// # Errors
    ///
    /// If it does not give what the last one gave.
    pub(crate) fn restored(&mut self, what: Restoring, answer: &BrokerFrame) -> Result<()> {
        match (what, answer) {
            (Restoring::Topic(topic), BrokerFrame::Interned { id, .. }) => self.topics.restored(topic, Ok(*id)),
            // It has smaller limits: what is published on the topic is refused, its client goes on.
            (Restoring::Topic(topic), BrokerFrame::Failed { code, message, .. }) => {
                let refused = Kind::Failed { code: *code, message: message.clone() };
                self.topics.restored(topic, Err(refused.into()));
            }
            (Restoring::Subscription(queue), BrokerFrame::Subscribed { subscription, .. }) => {
                self.restored.push(Restored::Subscription(queue, *subscription));
            }
            (Restoring::Offer(inbox), BrokerFrame::Serving { service, .. }) => {
                self.restored.push(Restored::Offer(inbox, *service));
            }
            // It has smaller limits: the subscription ends, its client goes on.
            (Restoring::Subscription(queue), BrokerFrame::Failed { code, message, .. }) => {
                queue.refuse(Kind::Failed { code: *code, message: message.clone() }.into());
            }
            (Restoring::Offer(inbox), BrokerFrame::Failed { code, message, .. }) => {
                inbox.refuse(Kind::Failed { code: *code, message: message.clone() }.into());
            }
            (what, answer) => {
                let reason = format!("the broker that is there now answers {answer:?} where {what:?} was asked for");
                return Err(Kind::Protocol(reason).into());
            }
        }
        Ok(())
    }
}

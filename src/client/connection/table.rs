//! Where everything that arrives belongs: subscriptions, services, outstanding requests, control requests.

use crate::client::data::batch_calls::BatchCall;
use crate::client::data::connection_state::{ConnectionState, LinkStatus, StateWatchers};
use crate::client::data::incoming_call::{Inbox, InboxItem, IncomingCall};
use crate::client::data::names::Names;
use crate::client::data::request_slots::RequestSlots;
use crate::client::data::spares::Spares;
use crate::client::data::subscription_queue::{SubscriptionEvent, SubscriptionQueue};
use crate::client::error::{Error, Kind, Result};
use crate::wire::control::BrokerFrame;
use crate::wire::record::Outcome;
use rustc_hash::FxHashMap;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Requests to the new broker.
#[derive(Debug)]
pub(crate) enum Restoring {
    /// The number of the topic with this id.
    Topic(u64),
    Subscription(Arc<SubscriptionQueue>),
    Offer(Arc<Inbox>),
}

/// Grants of the new broker.
#[derive(Debug)]
pub(crate) enum Restored {
    Subscription(Arc<SubscriptionQueue>, u32),
    Offer(Arc<Inbox>, u32),
}

/// The receivers of everything that arrives.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) subscriptions: FxHashMap<u32, Arc<SubscriptionQueue>>,
    /// Subscriptions and services that were requested, by the serial of the request. The rings and the socket are not
    /// in step: messages may come before the reply with their number, and wait as `orphans`.
    pub(crate) subscribing: HashMap<u32, Arc<SubscriptionQueue>>,
    pub(crate) serving: HashMap<u32, Arc<Inbox>>,
    pub(crate) orphans: Vec<(u32, SubscriptionEvent)>,
    /// A message may have begun whose subscription has ended, so that its rest may not come.
    pub(crate) has_strays: bool,
    pub(crate) orphan_calls: Vec<(u32, InboxItem)>,
    pub(crate) requests: RequestSlots,
    /// The memory of a batch of requests that is over.
    pub(crate) spare_batch: Vec<BatchCall>,
    pub(crate) inboxes: HashMap<u32, Arc<Inbox>>,
    pub(crate) calls: HashMap<u64, Arc<IncomingCall>>,
    pub(crate) spare_calls: Spares<IncomingCall>,
    pub(crate) replies: HashMap<u32, Option<BrokerFrame>>,
    pub(crate) flushed: u64,
    /// Messages of this client that the broker quarantined, or that another broker did not take.
    pub(crate) quarantined: u64,
    pub(crate) topics: Names,
    pub(crate) services: Names,
    /// How many brokers, or sessions of one, there were before the present.
    pub(crate) session: u64,
    /// Requests to the next broker, and its grants.
    pub(crate) restoring: HashMap<u32, Restoring>,
    pub(crate) restored: Vec<Restored>,
    pub(crate) closed: Option<Error>,
    pub(crate) link_status: Arc<LinkStatus>,
    pub(crate) states: StateWatchers,
    /// The reason with which the broker is about to close the connection.
    pub(crate) closing: Option<Error>,
    pub(crate) wakers: Vec<std::task::Waker>,
}

impl Table {
    /// The connection is in another state: tasks that wait for that are woken.
    pub(crate) fn set_state(&mut self, state: ConnectionState) {
        self.states.set(state);
        self.wakers.drain(..).for_each(std::task::Waker::wake);
    }

    /// A subscription has ended. The rest of a message to it may not come.
    pub(crate) fn end_subscription(&mut self, subscription: u32) {
        self.subscriptions.remove(&subscription);
        self.has_strays = true;
    }

    /// Passes an event to its subscription. If its number is not known yet, the event waits.
    pub(crate) fn pass_to_subscription(&mut self, subscription: u32, event: SubscriptionEvent, slot_size: u32) {
        match self.subscriptions.get(&subscription) {
            Some(queue) => queue.receive(event, slot_size),
            None if !self.subscribing.is_empty() => {
                if let SubscriptionEvent::Dropped(_) = event {
                    // Each says how many there were so far.
                    self.orphans
                        .retain(|(id, early)| *id != subscription || !matches!(early, SubscriptionEvent::Dropped(_)));
                }
                self.orphans.push((subscription, event));
            }
            // It crossed our `unsubscribe`.
            None => {}
        }
    }

    /// The connection has ended; the first reason counts.
    pub(crate) fn close(&mut self, error: Error) {
        if self.closed.is_none() {
            self.set_state(ConnectionState::Closed { reason: error.clone() });
            self.link_status.end(error.clone());
            self.closed = Some(error);
        }
    }

    /// A call is over for this client. Returns whether it was still to be replied to.
    pub(crate) fn take_call(&mut self, call: &Arc<IncomingCall>) -> bool {
        // By its number there may be another, in another session.
        let Entry::Occupied(entry) = self.calls.entry(call.call) else { return false };
        if !Arc::ptr_eq(entry.get(), call) {
            return false;
        }
        let call = entry.remove();
        drop(call.take_body());
        self.spare_calls.release(call);
        true
    }

    /// Another session begins, in which at most `max_requests` may be outstanding: each outstanding request has its
    /// one outcome, and no requester waits for replies of this client any more.
    pub(crate) fn end_calls(&mut self, max_requests: u32) {
        self.requests.restart(max_requests);
        for (_, call) in self.calls.drain() {
            call.end(Outcome::Cancelled);
        }
        self.orphans.clear();
        self.orphan_calls.clear();
    }

    /// Applies a reply of the new broker to one of these requests.
    ///
    /// # Errors
    ///
    /// If the reply does not fit the request.
    pub(crate) fn restored(&mut self, what: Restoring, answer: &BrokerFrame) -> Result<()> {
        match (what, answer) {
            (Restoring::Topic(topic), BrokerFrame::Interned { id, .. }) => self.topics.restored(topic, Ok(*id)),
            // The new broker has smaller limits: publishes on the topic are refused, the client goes on.
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
            // The new broker has smaller limits: the subscription ends, the client goes on.
            (Restoring::Subscription(queue), BrokerFrame::Failed { code, message, .. }) => {
                queue.refuse(Kind::Failed { code: *code, message: message.clone() }.into());
            }
            (Restoring::Offer(inbox), BrokerFrame::Failed { code, message, .. }) => {
                inbox.refuse(Kind::Failed { code: *code, message: message.clone() }.into());
            }
            (what, answer) => {
                let reason = format!("the present broker replies {answer:?} to the request for {what:?}");
                return Err(Kind::Protocol(reason).into());
            }
        }
        Ok(())
    }
}

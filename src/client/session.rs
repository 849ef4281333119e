//! Going on at another broker, when the last one has died or has ended the session.
//!
//! Three steps. *Restoring*: the new broker is asked for the numbers of all topics, also of those that were released
//! and whose messages the last one may not have consumed; then for all subscriptions and offers. (Services are asked
//! for by the next request to each.) Meanwhile everybody else still uses the lanes of the last session, which nobody
//! reads. *Going on*: in one step, under the locks of the table and of both lanes, requests under way end as
//! disconnected, calls to be answered are over, topics, subscriptions and offers get their new numbers, and what the
//! last broker has not consumed is taken out of the bulk lane to be sent again. What the new broker refuses ends with
//! the reason. *Sending again*: whoever publishes or waits places it in the new lane, before anything else.

use super::error::{Error, Kind};
use super::inner::{Inner, Table, lock};
use super::lane::broken;
use super::link::Step;
use super::pending::Failure;
use super::queue::Queue;
use super::reader::Reader;
use super::serve::Inbox;
use super::state::ConnectionState;
use super::unsent::Unsent;
use crate::shm::doorbell::ClientBells;
use crate::sync::Ordering;
use crate::wire::control::{BrokerFrame, ClientFrame, InternKind, Limits};
use crate::wire::record::Outcome;
use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long to wait when a thread has lent itself space in the bulk lane.
const LENT: Duration = Duration::from_millis(2);

/// What the new broker is asked for.
#[derive(Debug)]
pub(super) enum Restoring {
    /// The number of the topic with this id.
    Topic(u64),
    Subscription(Arc<Queue>),
    Offer(Arc<Inbox>),
}

/// What it has given.
#[derive(Debug)]
pub(super) enum Restored {
    Subscription(Arc<Queue>, u32),
    Offer(Arc<Inbox>, u32),
}

/// Asks the new broker, behind `socket`, for what the session had at the last one.
pub(super) fn restore(inner: &Inner, socket: Arc<UnixStream>, limits: &Limits) {
    let mut questions = VecDeque::new();
    let mut table = lock(&inner.table);
    let table = &mut *table;
    table.restoring.clear();
    table.restored.clear();
    let mut ask = |what: Restoring, question: &dyn Fn(u32) -> ClientFrame| {
        let serial = inner.next_number() as u32;
        table.restoring.insert(serial, what);
        questions.push_back((serial, question(serial)));
    };
    table.topics.ask_anew();
    for (id, name) in table.topics.all() {
        let kind = InternKind::Topic;
        ask(Restoring::Topic(id), &|serial| ClientFrame::Intern { serial, kind, name: name.clone() });
    }
    for queue in table.subscriptions.values() {
        let (policy, credit) = (queue.policy, queue.granted(limits));
        ask(Restoring::Subscription(queue.clone()), &|serial| ClientFrame::Subscribe {
            serial,
            pattern: queue.pattern.clone(),
            policy,
            credit,
        });
    }
    for inbox in table.inboxes.values() {
        let max_in_flight = inbox.offer.max_in_flight;
        ask(Restoring::Offer(inbox.clone()), &|serial| ClientFrame::Serve {
            serial,
            service: inbox.offer.service.clone(),
            max_in_flight,
        });
    }
    lock(&inner.outgoing).begin_anew(socket, questions);
}

/// The new broker has answered one of those questions.
///
/// # Errors
///
/// If it does not give what the last one gave.
pub(super) fn restored(table: &mut Table, what: Restoring, answer: &BrokerFrame) -> Result<(), Error> {
    match (what, answer) {
        (Restoring::Topic(topic), BrokerFrame::Interned { id, .. }) => table.topics.restored(topic, Ok(*id)),
        // It has smaller limits: what is published on the topic is refused, its client goes on.
        (Restoring::Topic(topic), BrokerFrame::Failed { code, message, .. }) => {
            let refused = Kind::Failed { code: *code, message: message.clone() };
            table.topics.restored(topic, Err(refused.into()));
        }
        (Restoring::Subscription(queue), BrokerFrame::Subscribed { subscription, .. }) => {
            table.restored.push(Restored::Subscription(queue, *subscription));
        }
        (Restoring::Offer(inbox), BrokerFrame::Serving { service, .. }) => {
            table.restored.push(Restored::Offer(inbox, *service));
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

/// Goes on at the new broker, now that all is there again.
pub(super) fn go_on(reader: &mut Reader, inner: &Inner) -> Step {
    // What the last broker has delivered comes before anything of the new one.
    while reader.sort(inner) > 0 {}
    let Some(mut bulk) = inner.bulk().try_claim() else { return Step::At(Instant::now() + LENT) };
    let last = reader.bells.clone();
    let Some((segment, limits, greeted)) = reader.link.go_on(&|bells: ClientBells| bells.into()) else {
        return Step::Rest;
    };
    reader.bells = reader.link.bells();
    let mut table = lock(&inner.table);
    let table = &mut *table;
    table.session += 1;
    end_calls(table);
    inner.limits.adopt(&limits);
    table.subscribing.values().for_each(|queue| queue.adopt(&limits));
    // Places of requests beyond the limit rest until a broker has more.
    let places = table.requests.len().min(limits.max_requests as usize) as u32;
    table.free_requests = (0..places).collect();
    let mut ends = Vec::new();
    table.subscriptions.clear();
    table.inboxes.clear();
    for restored in std::mem::take(&mut table.restored) {
        match restored {
            // Dropped meanwhile.
            Restored::Subscription(queue, subscription) if queue.is_dropped.load(Ordering::Relaxed) != 0 => {
                let serial = inner.next_number() as u32;
                ends.push((serial, ClientFrame::Unsubscribe { serial, subscription }));
            }
            Restored::Offer(inbox, service) if inbox.is_dropped.load(Ordering::Relaxed) != 0 => {
                let serial = inner.next_number() as u32;
                ends.push((serial, ClientFrame::Unserve { serial, service }));
            }
            Restored::Subscription(queue, id) => {
                queue.renew(id, &limits);
                table.subscriptions.insert(id, queue);
            }
            Restored::Offer(inbox, number) => {
                inbox.number.store(u64::from(number), Ordering::Relaxed);
                table.inboxes.insert(number, inbox);
            }
        }
    }
    let (new_bulk, new_express, egress) = Inner::ends(&segment, &reader.bells, &limits);
    let (left_out, taken) = bulk.renew(new_bulk, table.session, &mut table.topics);
    table.services.clear();
    inner.has_leaving.store(1, Ordering::Relaxed);
    // Its user is told as of messages that a broker takes out.
    table.set_aside += left_out as u64;
    if bulk.flush > table.flushed {
        // Its answer may have died with the broker.
        let flush = bulk.flush;
        bulk.unsents.push(Unsent::flush(flush));
    }
    drop(bulk);
    inner.express().replace(new_express, table.session);
    if let Err(violation) = taken {
        table.close(broken(violation).into());
    }
    inner.behind.renew(segment.newer());
    reader.renew(segment, egress);
    inner.set_connection(greeted.connection);
    inner.nest.take(&last);
    // Without it an event loop of the user's own is not woken; everybody else is.
    let _ = inner.nest.put(&reader.bells);
    {
        let mut outgoing = lock(&inner.outgoing);
        outgoing.go_on();
        // Publishes may wait for this at the new broker.
        outgoing.say(&ClientFrame::Restored.encode().unwrap_or_default());
        ends.into_iter().for_each(|(serial, end)| outgoing.ask(serial, end));
    }
    table.set_state(ConnectionState::Connected);
    Step::Changed
}

/// Each request under way has its one outcome; nobody waits for our answers any more.
fn end_calls(table: &mut Table) {
    for (number, slot) in table.requests.iter_mut().enumerate() {
        if let Some(pending) = slot.pending.take() {
            pending.end(Err(Failure::Outcome(Outcome::Disconnected, None)));
            table.free_requests.push(number as u32);
        }
    }
    table.free_requests.append(&mut table.owed_cancels);
    for (_, call) in table.calls.drain() {
        call.end(Outcome::Cancelled);
    }
    table.orphans.clear();
    table.orphan_calls.clear();
}

//! Going on at another broker, when the last one has died or has ended the session.
//!
//! Three steps. *Restoring*: the client requests from the new broker the numbers of all topics, also of those that were
//! released and whose messages the last one may not have consumed; then for all subscriptions and offers. (Services are
//! requested by the next request to each.) Meanwhile all other threads still use the lanes of the last session, which
//! no broker reads. *Going on*: in one step, under the locks of the table and of both lanes, outstanding requests end
//! as disconnected, calls to be replied to are over, topics, subscriptions and offers get their new numbers, and what
//! the last broker has not consumed is taken out of the bulk lane to be sent again. What the new broker refuses ends
//! with the reason. *Sending again*: the next publish or wait places it in the new lane, before anything else.

use crate::client::connection::dispatch;
use crate::client::connection::link::NextAction;
use crate::client::connection::reader::Reader;
use crate::client::connection::shared::Connection;
use crate::client::connection::table::{Restored, Restoring};
use crate::client::data::connection_state::ConnectionState;
use crate::client::data::lane::broken;
use crate::client::data::lock::lock;
use crate::client::data::resend_queue::Resend;
use crate::shm::doorbell::ClientBells;
use crate::sync::Ordering;
use crate::wire::control::{ClientFrame, InternKind, Limits};
use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long to wait when a thread has lent itself space in the bulk lane.
const LENT: Duration = Duration::from_millis(2);

/// Requests from the new broker, behind `socket`, what the session had at the last one.
pub(crate) fn restore(connection: &Connection, socket: Arc<UnixStream>, limits: &Limits) {
    let mut requests = VecDeque::new();
    let mut table = lock(&connection.table);
    let table = &mut *table;
    table.restoring.clear();
    table.restored.clear();
    let mut send = |what: Restoring, request: &dyn Fn(u32) -> ClientFrame| {
        let serial = connection.next_number() as u32;
        table.restoring.insert(serial, what);
        requests.push_back((serial, request(serial)));
    };
    table.topics.begin_restore();
    for (id, name) in table.topics.all() {
        let kind = InternKind::Topic;
        send(Restoring::Topic(id), &|serial| ClientFrame::Intern { serial, kind, name: name.clone() });
    }
    for queue in table.subscriptions.values() {
        let (policy, credit) = (queue.policy, queue.granted(limits));
        send(Restoring::Subscription(queue.clone()), &|serial| ClientFrame::Subscribe {
            serial,
            pattern: queue.pattern.clone(),
            policy,
            credit,
        });
    }
    for inbox in table.inboxes.values() {
        let max_in_flight = inbox.offer.max_in_flight;
        send(Restoring::Offer(inbox.clone()), &|serial| ClientFrame::Serve {
            serial,
            service: inbox.offer.service.clone(),
            max_in_flight,
        });
    }
    lock(&connection.control).restart(socket, requests);
}

/// Resumes the session at the new broker when everything is restored.
pub(crate) fn complete(reader: &mut Reader, connection: &Connection) -> NextAction {
    // What the last broker has delivered comes before anything of the new one.
    while dispatch::sort(reader, connection) > 0 {}
    let Some(mut bulk) = connection.bulk().try_claim() else { return NextAction::At(Instant::now() + LENT) };
    let last = reader.bells.clone();
    let Some((segment, limits, greeted)) = reader.link.resume(&|bells: ClientBells| bells.into()) else {
        return NextAction::Rest;
    };
    reader.bells = reader.link.bells();
    let mut table = lock(&connection.table);
    let table = &mut *table;
    table.session += 1;
    table.end_calls(limits.max_requests);
    connection.limits.adopt(&limits);
    table.subscribing.values().for_each(|queue| queue.adopt(&limits));
    let mut ends = Vec::new();
    table.subscriptions.clear();
    table.inboxes.clear();
    for restored in std::mem::take(&mut table.restored) {
        match restored {
            // Dropped meanwhile.
            Restored::Subscription(queue, subscription) if queue.is_dropped.load(Ordering::Relaxed) != 0 => {
                let serial = connection.next_number() as u32;
                ends.push((serial, ClientFrame::Unsubscribe { serial, subscription }));
            }
            Restored::Offer(inbox, service) if inbox.is_dropped.load(Ordering::Relaxed) != 0 => {
                let serial = connection.next_number() as u32;
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
    let (new_bulk, new_express, egress) = Connection::ends(&segment, &reader.bells, &limits);
    let (left_out, taken) = bulk.renew(new_bulk, table.session, &mut table.topics);
    table.services.forget_numbers();
    connection.has_unused_names.store(1, Ordering::Relaxed);
    // They count as quarantined.
    table.quarantined += left_out as u64;
    if bulk.flush > table.flushed {
        // Its reply may have died with the broker.
        let flush = bulk.flush;
        bulk.resends.push(Resend::flush(flush));
    }
    drop(bulk);
    connection.express().replace(new_express, table.session);
    if let Err(violation) = taken {
        table.close(broken(violation).into());
    }
    connection.backlog.renew(segment.newer());
    reader.renew(segment, egress);
    connection.set_id(greeted.connection);
    connection.epoll.take(&last);
    // Without it an event loop of the user's own is not woken; all other waits are.
    let _ = connection.epoll.put(&reader.bells);
    {
        let mut control = lock(&connection.control);
        control.resume_deferred();
        // Publishes may wait for this at the new broker.
        control.send_frame(&ClientFrame::Restored.encode().unwrap_or_default());
        ends.into_iter().for_each(|(serial, end)| control.send(serial, end));
    }
    table.set_state(ConnectionState::Connected);
    NextAction::Changed
}

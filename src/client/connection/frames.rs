//! Handling the frames of the control socket.

use super::calls;
use super::shared::Connection;
use super::table::Table;
use crate::client::data::incoming_call::InboxItem;
use crate::client::data::lock::lock;
use crate::client::error::Kind;
use crate::sync::{AtomicU64, Ordering};
use crate::wire::control::{BrokerFrame, ClientFrame, InternKind};

/// Handles a frame: completes its control request, and ends subscriptions and services that were dropped meanwhile.
pub(crate) fn handle_frame(connection: &Connection, frame: BrokerFrame) {
    let mut table = lock(&connection.table);
    let table = &mut *table;
    let Some(serial) = apply(table, connection.limits.slot_size(), &frame) else { return };
    let request = lock(&connection.control).complete(serial);
    if let Some(what) = table.restoring.remove(&serial) {
        if let Err(error) = table.restored(what, &frame) {
            table.close(error);
        }
        return;
    }
    if let (&BrokerFrame::Interned { id, .. }, Some(ClientFrame::Intern { kind, name, .. })) = (&frame, request) {
        match kind {
            InternKind::Topic => table.topics.granted(name, id),
            InternKind::Service => table.services.granted(name, id),
        }
        // It may have been requested twice at a time.
        connection.has_unused_names.store(1, Ordering::Relaxed);
    }
    let number = connection.next_number() as u32;
    if let Some(end) = end_of_dropped(table, number, &frame) {
        lock(&connection.control).send(number, end);
    }
    for (_, item) in unclaimed_calls(table) {
        calls::reject(connection, table, item.call());
    }
    if let Some(reply) = table.replies.get_mut(&serial) {
        *reply = Some(frame);
    }
    table.wakers.drain(..).for_each(std::task::Waker::wake);
}

/// Calls that wait for a service's number belong to no service once every number is known.
fn unclaimed_calls(table: &mut Table) -> Vec<(u32, InboxItem)> {
    if table.serving.is_empty() { std::mem::take(&mut table.orphan_calls) } else { Vec::new() }
}

/// If the handle of the subscription or service that `frame` grants was dropped meanwhile: the request that ends it.
fn end_of_dropped(table: &mut Table, serial: u32, frame: &BrokerFrame) -> Option<ClientFrame> {
    let is_dropped = |mark: &AtomicU64| mark.load(Ordering::Relaxed) != 0;
    match *frame {
        BrokerFrame::Subscribed { subscription, .. } => {
            table.subscriptions.get(&subscription).filter(|queue| is_dropped(&queue.is_dropped))?;
            table.end_subscription(subscription);
            Some(ClientFrame::Unsubscribe { serial, subscription })
        }
        BrokerFrame::Serving { service, .. } => {
            table.inboxes.get(&service).filter(|inbox| is_dropped(&inbox.is_dropped))?;
            let inbox = table.inboxes.remove(&service)?;
            table.orphan_calls.extend(inbox.take_all().into_iter().map(|item| (service, item)));
            Some(ClientFrame::Unserve { serial, service })
        }
        _ => None,
    }
}

/// Applies a frame to the table. Returns the serial of the request that it replies to.
fn apply(table: &mut Table, slot_size: u32, frame: &BrokerFrame) -> Option<u32> {
    let serial = match frame {
        BrokerFrame::Subscribed { serial, subscription } => {
            if let Some(queue) = table.subscribing.remove(serial) {
                for (_, early) in table.orphans.extract_if(.., |(id, _)| id == subscription) {
                    queue.receive(early, slot_size);
                }
                queue.id.store(u64::from(*subscription), Ordering::Relaxed);
                if queue.end().is_none() {
                    table.subscriptions.insert(*subscription, queue);
                }
            }
            *serial
        }
        BrokerFrame::Serving { serial, service } => {
            if let Some(inbox) = table.serving.remove(serial) {
                for (_, item) in table.orphan_calls.extract_if(.., |(id, _)| id == service) {
                    inbox.push(item);
                }
                inbox.number.store(u64::from(*service), Ordering::Relaxed);
                table.inboxes.insert(*service, inbox);
            }
            *serial
        }
        BrokerFrame::Failed { serial, .. } => {
            table.subscribing.remove(serial);
            table.serving.remove(serial);
            *serial
        }
        BrokerFrame::Interned { serial, .. }
        | BrokerFrame::Done { serial }
        | BrokerFrame::Status { serial, .. }
        | BrokerFrame::Breakers { serial, .. }
        | BrokerFrame::Upstreams { serial, .. }
        | BrokerFrame::Reloaded { serial, .. } => *serial,
        BrokerFrame::Closing { code, message } => {
            // In force at the end of file, when what was delivered before is sorted.
            table.closing = Some(Kind::Closed { code: *code, message: message.clone() }.into());
            return None;
        }
        // A broker that drains needs nothing of its clients: it completes what is outstanding, and then closes.
        BrokerFrame::Draining { .. } | BrokerFrame::Welcome { .. } | BrokerFrame::Refused { .. } => return None,
    };
    // Messages that still wait for a number belong to no subscription once every number is known.
    if table.subscribing.is_empty() {
        table.orphans.clear();
    }
    Some(serial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::data::incoming_call::{Inbox, IncomingCall, Offer};
    use crate::wire::control::FailedCode;
    use crate::wire::record::{Header, Kind as RecordKind};
    use std::sync::Arc;

    const SLOT_SIZE: u32 = 1024;

    fn inbox() -> Arc<Inbox> {
        Arc::new(Inbox::new(Offer { service: "s".parse().unwrap(), max_in_flight: 0 }))
    }

    fn grant() -> InboxItem {
        InboxItem::Grant(Arc::new(IncomingCall::new(&Header::new(RecordKind::RoutedRequest), 0, 1)), 1)
    }

    fn serving(serials: &[u32]) -> Table {
        let mut table = Table::default();
        table.serving.extend(serials.iter().map(|serial| (*serial, inbox())));
        table
    }

    fn orphans(table: &Table) -> Vec<u32> {
        table.orphan_calls.iter().map(|(service, _)| *service).collect()
    }

    #[test]
    fn calls_that_wait_for_a_service_number_go_once_every_number_is_told() {
        let mut table = serving(&[1, 2]);
        let inboxes = [table.serving[&1].clone(), table.serving[&2].clone()];
        table.orphan_calls.extend([7, 8, 9].map(|service| (service, grant())));
        apply(&mut table, SLOT_SIZE, &BrokerFrame::Serving { serial: 1, service: 7 });
        assert!(unclaimed_calls(&mut table).is_empty());
        // The other's number is not known yet: it may be either of these.
        assert_eq!((inboxes[0].len(), orphans(&table)), (1, vec![8, 9]));
        apply(&mut table, SLOT_SIZE, &BrokerFrame::Serving { serial: 2, service: 9 });
        assert_eq!((inboxes[1].len(), unclaimed_calls(&mut table).len(), orphans(&table)), (1, 1, Vec::new()));
    }

    #[test]
    fn calls_that_wait_for_a_service_number_go_when_the_broker_gives_none() {
        let mut table = serving(&[1]);
        table.orphan_calls.push((7, grant()));
        let (code, message) = (FailedCode::Limit, String::new());
        apply(&mut table, SLOT_SIZE, &BrokerFrame::Failed { serial: 1, code, message });
        assert_eq!((unclaimed_calls(&mut table).len(), orphans(&table)), (1, Vec::new()));
    }
}

//! Sorting what arrives: each record of the egress ring goes to its subscription, request or service.

use super::calls;
use super::reader::Reader;
use super::shared::Connection;
use super::table::Table;
use crate::client::data::incoming_call::{InboxItem, IncomingCall};
use crate::client::data::lock::lock;
use crate::client::data::message::Message;
use crate::client::data::pending_call::Failure;
use crate::client::data::subscription_queue::SubscriptionEvent;
use crate::client::error::{Kind, Result};
use crate::shm::layout::cells_for;
use crate::shm::ring::Record;
use crate::wire::name::Topic;
use crate::wire::record::{Flags, Header, Kind as RecordKind, Outcome};
use std::time::Duration;

/// Records that are sorted before the followers are woken.
const BATCH: usize = 256;

/// Sorts what is in the ring, up to a batch. Returns how many records; at least one if the client was behind and is
/// no longer.
pub(crate) fn sort(reader: &mut Reader, connection: &Connection) -> usize {
    let (mut sorted, mut caught_up) = (0, false);
    let mut table = None;
    // Before the ring: the last of what was held lies in it when this says that no more is.
    let newer = reader.newer.get();
    while sorted < BATCH {
        let record = match reader.egress.peek() {
            Ok(Some(record)) => record,
            Ok(None) => {
                caught_up = connection.backlog.mark_read(newer);
                break;
            }
            Err(violation) => {
                drop(table.take());
                connection.close(Kind::Protocol(violation.to_string()).into());
                break;
            }
        };
        if reader.append_fragment(&record) {
            // The copies of large messages delay no other thread.
            drop(table.take());
            reader.consume(&record);
            sorted += 1;
            continue;
        }
        let table = table.get_or_insert_with(|| lock(&connection.table));
        if let Err(error) = dispatch(reader, connection, table, &record) {
            table.close(error);
            break;
        }
        reader.consume(&record);
        sorted += 1;
    }
    connection.backlog.note_records(sorted);
    if sorted > 0 || caught_up {
        let mut table = table.unwrap_or_else(|| lock(&connection.table));
        table.wakers.drain(..).for_each(std::task::Waker::wake);
        if table.has_strays && table.subscribing.is_empty() {
            table.has_strays = false;
            reader.partials.keep(|subscription| table.subscriptions.contains_key(&subscription));
        }
        drop(table);
        reader.sorts += 1;
        reader.publish_rest();
    }
    sorted.max(usize::from(caught_up))
}

fn dispatch(reader: &mut Reader, connection: &Connection, table: &mut Table, record: &Record) -> Result<()> {
    let header = Header::from_words(&record.header).map_err(|error| Kind::Protocol(error.to_string()))?;
    let notify = |table: &mut Table, event| {
        table.pass_to_subscription(header.id, event, connection.limits.slot_size());
    };
    match header.kind {
        RecordKind::Deliver => deliver(reader, connection, table, record, &header)?,
        RecordKind::RoutedResponse | RecordKind::Failed | RecordKind::RoutedBodyCredit => {
            receive_reply(reader, table, record, &header);
        }
        RecordKind::RoutedRequest => call(reader, connection, table, record, &header),
        RecordKind::CallEnded => {
            if let Some(call) = table.calls.remove(&header.seq) {
                // That the requester is gone is to us as if it had cancelled: our own connection has not ended.
                let outcome = Outcome::from_u16(header.code).filter(|outcome| *outcome != Outcome::Disconnected);
                call.end(outcome.unwrap_or(Outcome::Cancelled));
            }
        }
        RecordKind::RoutedResponseCredit => {
            if let Some(call) = table.calls.get(&header.seq) {
                call.add_credit(header.arg);
            }
        }
        RecordKind::TopicName => {
            let name = String::from_utf8_lossy(&reader.bytes(record)).into_owned();
            let topic = Topic::parse_system(&name).map_err(|error| Kind::Protocol(error.to_string()))?;
            reader.topics.assign(header.id, topic);
        }
        RecordKind::TopicGone => reader.topics.release(header.id),
        RecordKind::Aborted => {
            drop(reader.partials.take((header.id, header.origin)));
            if let Some(queue) = table.subscriptions.get(&header.id) {
                queue.abort(header.origin);
            }
            notify(table, SubscriptionEvent::Dropped(header.dropped));
        }
        RecordKind::Dropped => notify(table, SubscriptionEvent::Dropped(header.dropped)),
        RecordKind::Evicted => {
            notify(table, SubscriptionEvent::Evicted(header.dropped));
            table.end_subscription(header.id);
        }
        RecordKind::Quarantined => table.quarantined += 1,
        RecordKind::Flushed => table.flushed = table.flushed.max(header.seq),
        kind => return Err(Kind::Protocol(format!("unexpected record of kind {kind:?}")).into()),
    }
    Ok(())
}

fn deliver(
    reader: &mut Reader,
    connection: &Connection,
    table: &mut Table,
    record: &Record,
    header: &Header,
) -> Result<()> {
    let queue = table.subscriptions.get(&header.id);
    if queue.is_none() && table.subscribing.is_empty() {
        // It crossed our `unsubscribe`.
        drop(reader.partials.take((header.id, header.origin)));
        return Ok(());
    }
    let payload = if header.flags.has(Flags::WHOLE) {
        reader.bytes(record)
    } else {
        let place = (header.id, header.origin);
        let partial = if header.flags.has(Flags::FIRST) {
            match queue {
                Some(queue) => queue.begin(header.origin, header.total, connection.limits.slot_size()),
                None => table.has_strays = true,
            }
            Some(reader.partials.begin(place))
        } else {
            reader.partials.get(place)
        };
        // Otherwise it is the rest of a message for a subscription that has ended.
        let Some(partial) = partial else { return Ok(()) };
        reader.egress.append_payload(record, partial);
        if !header.flags.has(Flags::LAST) {
            return Ok(());
        }
        reader.partials.take(place).unwrap_or_default()
    };
    let Some(named) = reader.topics.get_mut(header.id2) else {
        return Err(Kind::Protocol(format!("message on the unknown topic number {}", header.id2)).into());
    };
    let is_resent = header.flags.has(Flags::RESENT);
    if let Some(queue) = queue
        && named.seen.note(queue.own, header.publisher, header.seq, is_resent)
    {
        queue.skip_duplicate(header.origin, payload.len() as u32, connection.limits.slot_size());
        return Ok(());
    }
    let message = Message::new(named.topic.clone(), payload, header);
    let slot_size = connection.limits.slot_size();
    if header.dropped > 0 {
        table.pass_to_subscription(header.id, SubscriptionEvent::Dropped(header.dropped), slot_size);
    }
    table.pass_to_subscription(header.id, SubscriptionEvent::Message(message), slot_size);
    Ok(())
}

fn receive_reply(reader: &mut Reader, table: &mut Table, record: &Record, header: &Header) {
    let Some(pending) = table.requests.get(header.id, header.id2) else { return };
    let over = match header.kind {
        RecordKind::RoutedResponse => pending.receive(header, cells_for(record.len), |to| {
            reader.egress.append_payload(record, to);
        }),
        RecordKind::Failed => {
            let outcome = Outcome::from_u16(header.code).unwrap_or(Outcome::Disconnected);
            let retry_after = (header.nanos > 0).then(|| Duration::from_nanos(header.nanos));
            pending.end(Err(Failure::Outcome(outcome, retry_after)));
            true
        }
        _ => {
            pending.add_body_credit(header.arg);
            false
        }
    };
    if over {
        table.requests.release(header.id, header.id2);
    }
}

fn call(reader: &mut Reader, connection: &Connection, table: &mut Table, record: &Record, header: &Header) {
    let (first, last) = (header.flags.has(Flags::FIRST), header.flags.has(Flags::LAST));
    if first {
        let credit = connection.limits.stream_credit_cells();
        let call = table.spare_calls.share(IncomingCall::new(header, table.session, credit));
        table.calls.insert(header.seq, call);
    }
    let Some(call) = table.calls.get(&header.seq).cloned() else { return };
    let grant = call.append(cells_for(record.len), last, connection.stream_step(), |to| {
        reader.egress.append_payload(record, to);
    });
    let inbox = table.inboxes.get(&header.id);
    if inbox.is_none() && table.serving.is_empty() {
        // The service was dropped: this call crossed its `unserve`.
        return calls::reject(connection, table, &call);
    }
    let item = if last { InboxItem::Request(call) } else { InboxItem::Grant(call, grant) };
    match inbox {
        _ if matches!(item, InboxItem::Grant(_, 0)) => {}
        Some(inbox) => inbox.push(item),
        None => table.orphan_calls.push((header.id, item)),
    }
}

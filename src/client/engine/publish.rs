//! Publishing and flushing: at once where there is space, else waiting for it.

use super::wait;
use crate::client::connection::shared::Connection;
use crate::client::data::lock::lock;
use crate::client::data::message_parts::MessageParts;
use crate::client::data::names::NameRef;
use crate::client::error::{Kind, Result};
use std::time::Instant;

#[inline]
pub(crate) fn publish(connection: &Connection, topic: &NameRef, payload: &[u8]) -> Result<()> {
    let total = connection.check_size(payload.len())?;
    let is_lost = connection.check_open()?;
    if total <= connection.limits.slot_size() {
        let mut lane = connection.bulk().claim()?;
        if lane.is_one_record(payload.len()) && lane.try_publish(topic, total, payload)? {
            if lane.should_check_link() || is_lost {
                drop(lane);
                wait::check_link(connection);
            }
            return Ok(());
        }
    }
    publish_waiting(connection, topic, total, payload)
}

/// Publishes messages in order: as many at a time as there is space for.
pub(crate) fn publish_batch<P: AsRef<[u8]>>(connection: &Connection, topic: &NameRef, payloads: &[P]) -> Result<()> {
    for payload in payloads {
        connection.check_size(payload.as_ref().len())?;
    }
    let mut rest = payloads;
    while let Some(next) = rest.first() {
        let is_lost = connection.check_open()?;
        let mut lane = connection.bulk().claim()?;
        let placed = lane.try_publish_batch(topic, rest)?;
        let should_check_link = lane.should_check_link() || is_lost;
        drop(lane);
        if should_check_link {
            wait::check_link(connection);
        }
        rest = &rest[placed..];
        if placed == 0 {
            // There is no space, or it is a message of several records.
            publish(connection, topic, next.as_ref())?;
            rest = &rest[1..];
        }
    }
    Ok(())
}

pub(crate) fn try_publish(connection: &Connection, topic: &NameRef, payload: &[u8]) -> Result<bool> {
    let (len, max) = (payload.len(), connection.limits.slot_size());
    let total = u32::try_from(len).ok().filter(|len| *len <= max).ok_or(Kind::TooLarge { len, max })?;
    let is_lost = connection.check_open()?;
    let mut lane = connection.bulk().claim_within()?;
    if !lane.is_one_record(len) {
        return Err(Kind::TooLarge { len, max: connection.limits.slot_size() }.into());
    }
    let is_published = lane.is_free() && lane.try_publish(topic, total, payload)?;
    // There may be no other thread that checks the connection: this one never waits.
    let should_check_link = !is_published || lane.should_check_link() || is_lost;
    drop(lane);
    if should_check_link {
        wait::check_link(connection);
    }
    Ok(is_published)
}

pub(crate) fn flush(connection: &Connection, deadline: Option<Instant>) -> Result<()> {
    let number = start_flush(connection, deadline)?;
    wait::for_record(connection, deadline, || is_flushed(connection, number).then_some(()))
}

fn start_flush(connection: &Connection, deadline: Option<Instant>) -> Result<u64> {
    connection.check_open()?;
    loop {
        // Numbers follow the order in the lane, so that one reply also completes all flushes before it.
        let placed = connection.bulk().claim_until(deadline)?.try_flush(connection.next_number());
        if let Some(number) = placed {
            return number;
        }
        let placed = wait::for_bell(connection, deadline, || match connection.bulk().claim_within() {
            Ok(mut lane) if lane.is_free() => lane.try_flush(connection.next_number()).map(|placed| placed.map(Some)),
            // Within another's message: wait for its end, not for space.
            Ok(_) => Some(Ok(None)),
            Err(error) => Some(Err(error)),
        })??;
        if let Some(number) = placed {
            return Ok(number);
        }
    }
}

pub(crate) fn is_flushed(connection: &Connection, number: u64) -> bool {
    lock(&connection.table).flushed >= number
}

/// Publishes a message of any size, waiting for space if need be.
#[cold]
fn publish_waiting(connection: &Connection, topic: &NameRef, total: u32, payload: &[u8]) -> Result<()> {
    let (mut message, keep) = (MessageParts::new(*topic, total), connection.endpoint.reconnect.is_some());
    loop {
        let mut lane = connection.bulk().claim()?;
        if message.place(&mut lane, payload, keep)? {
            return Ok(());
        }
        lane.is_taken = message.begun.is_some();
        drop(lane);
        let placed = wait::for_bell(connection, None, || {
            let mut lane = match connection.bulk().claim_within() {
                Ok(lane) => lane,
                Err(error) => return Some(Err(error)),
            };
            if lane.is_taken && message.begun.is_none() {
                // Within another's message: wait for its end, not for space.
                return Some(Ok(false));
            }
            match message.place(&mut lane, payload, keep) {
                Ok(false) => {
                    lane.is_taken = message.begun.is_some();
                    None
                }
                placed => Some(placed),
            }
        });
        if message.begun.is_some() {
            connection.bulk().end_message();
        }
        if placed?? {
            return Ok(());
        }
    }
}

/// Places parts of a message as far as there is space; `None`: it is not whole yet. The caller sees to it that no
/// other message comes in between.
#[cfg(feature = "tokio")]
pub(crate) fn try_parts(connection: &Connection, message: &mut MessageParts, payload: &[u8]) -> Option<Result<()>> {
    let keep = connection.endpoint.reconnect.is_some();
    let lane = connection.check_open().and_then(|_| connection.bulk().claim());
    let placed = lane.and_then(|mut lane| message.place(&mut lane, payload, keep));
    match placed {
        Ok(false) => None,
        placed => Some(placed.map(|_| ())),
    }
}

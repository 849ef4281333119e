//! Control requests that wait for their reply; and the numbers of topics and services, which come by them.

use super::wait;
use crate::client::connection::control_request::start;
use crate::client::connection::hold::{self, Hold};
use crate::client::connection::shared::Connection;
use crate::client::error::Result;
use crate::wire::control::{BrokerFrame, ClientFrame, InternKind};
use std::sync::Arc;
use std::time::Instant;

/// Sends a control request and waits for the reply.
pub(crate) fn ask(connection: &Connection, question: impl FnOnce(u32) -> ClientFrame) -> Result<BrokerFrame> {
    ask_until(connection, None, question)
}

fn ask_until(
    connection: &Connection,
    deadline: Option<Instant>,
    question: impl FnOnce(u32) -> ClientFrame,
) -> Result<BrokerFrame> {
    let asked = start(connection, question)?;
    wait::for_bell(connection, deadline, || asked.answer())
}

/// A use of a topic. `keep`: its number stays for a while when nobody uses it.
pub(crate) fn topic(connection: &Arc<Connection>, name: &str, keep: bool) -> Result<Hold> {
    hold(connection, InternKind::Topic, name, keep, || None)
}

/// A use of a service.
pub(crate) fn service(
    connection: &Arc<Connection>,
    name: &str,
    deadline: impl FnOnce() -> Option<Instant>,
) -> Result<Hold> {
    hold(connection, InternKind::Service, name, true, deadline)
}

#[inline]
fn hold(
    connection: &Arc<Connection>,
    kind: InternKind,
    name: &str,
    keep: bool,
    deadline: impl FnOnce() -> Option<Instant>,
) -> Result<Hold> {
    match hold::held(connection, kind, name, keep)? {
        Some(held) => Ok(held),
        None => hold_new(connection, kind, name, keep, deadline()),
    }
}

#[cold]
fn hold_new(
    connection: &Arc<Connection>,
    kind: InternKind,
    name: &str,
    keep: bool,
    deadline: Option<Instant>,
) -> Result<Hold> {
    let mut is_last = false;
    loop {
        let answer = ask_until(connection, deadline, hold::to_hold(connection, kind, name)?)?;
        if !hold::took_hold(connection, kind, &answer, is_last)? {
            is_last = true;
            for _ in 0..hold::LOOKS {
                if hold::has_heard(connection, kind) {
                    break;
                }
                let until = Instant::now() + hold::LOOK;
                let until = deadline.map_or(until, |deadline| deadline.min(until));
                match wait::for_bell(connection, Some(until), || None::<()>) {
                    Err(error) if !error.is_timeout() => return Err(error),
                    _ => {}
                }
            }
        } else if let Some(held) = hold::held(connection, kind, name, keep)? {
            return Ok(held);
        }
    }
}

//! Control requests that wait for their reply; and the numbers of topics and services, which come by them.

use super::wait;
use crate::client::connection::control_request::start;
use crate::client::connection::interning::{self, InternedName};
use crate::client::connection::shared::Connection;
use crate::client::error::Result;
use crate::wire::control::{BrokerFrame, ClientFrame, InternKind};
use std::sync::Arc;
use std::time::Instant;

/// Sends a control request and waits for the reply.
pub(crate) fn ask(connection: &Connection, request: impl FnOnce(u32) -> ClientFrame) -> Result<BrokerFrame> {
    ask_until(connection, None, request)
}

fn ask_until(
    connection: &Connection,
    deadline: Option<Instant>,
    request: impl FnOnce(u32) -> ClientFrame,
) -> Result<BrokerFrame> {
    let control_request = start(connection, request)?;
    wait::for_bell(connection, deadline, || control_request.reply())
}

/// A use of a topic. `keep`: its number stays for a while when it has no users.
pub(crate) fn topic(connection: &Arc<Connection>, name: &str, keep: bool) -> Result<InternedName> {
    intern(connection, InternKind::Topic, name, keep, || None)
}

/// A use of a service.
pub(crate) fn service(
    connection: &Arc<Connection>,
    name: &str,
    deadline: impl FnOnce() -> Option<Instant>,
) -> Result<InternedName> {
    intern(connection, InternKind::Service, name, true, deadline)
}

#[inline]
fn intern(
    connection: &Arc<Connection>,
    kind: InternKind,
    name: &str,
    keep: bool,
    deadline: impl FnOnce() -> Option<Instant>,
) -> Result<InternedName> {
    match interning::existing(connection, kind, name, keep)? {
        Some(interned) => Ok(interned),
        None => intern_new(connection, kind, name, keep, deadline()),
    }
}

#[cold]
fn intern_new(
    connection: &Arc<Connection>,
    kind: InternKind,
    name: &str,
    keep: bool,
    deadline: Option<Instant>,
) -> Result<InternedName> {
    let mut is_last = false;
    loop {
        let reply = ask_until(connection, deadline, interning::intern_request(connection, kind, name)?)?;
        if !interning::is_interned(connection, kind, &reply, is_last)? {
            is_last = true;
            for _ in 0..interning::RELEASE_POLLS {
                if interning::are_releases_consumed(connection, kind) {
                    break;
                }
                let until = Instant::now() + interning::RELEASE_POLL;
                let until = deadline.map_or(until, |deadline| deadline.min(until));
                match wait::for_bell(connection, Some(until), || None::<()>) {
                    Err(error) if !error.is_timeout() => return Err(error),
                    _ => {}
                }
            }
        } else if let Some(interned) = interning::existing(connection, kind, name, keep)? {
            return Ok(interned);
        }
    }
}

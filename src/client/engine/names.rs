//! Control requests that wait for their reply; and the numbers of topics and services, which come by them.

use super::wait;
use crate::client::connection::control_request::start;
use crate::client::connection::interning::{self, Interned};
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
#[inline]
pub(crate) fn topic(connection: &Arc<Connection>, name: &str, keep: bool) -> Result<Interned> {
    intern(connection, InternKind::Topic, name, keep)
}

/// A use of a service. Its number stays for a while when it has no users, because requests may still name it.
pub(crate) fn service(connection: &Arc<Connection>, name: &str) -> Result<Interned> {
    intern(connection, InternKind::Service, name, true)
}

#[inline]
fn intern(connection: &Arc<Connection>, kind: InternKind, name: &str, keep: bool) -> Result<Interned> {
    loop {
        if let Some(interned) = interning::existing(connection, kind, name, keep)? {
            return Ok(interned);
        }
        request_number(connection, kind, name, None)?;
    }
}

/// Requests the number of a name that has none.
#[cold]
pub(crate) fn request_number(
    connection: &Connection,
    kind: InternKind,
    name: &str,
    deadline: Option<Instant>,
) -> Result<()> {
    let mut is_last = false;
    loop {
        let reply = ask_until(connection, deadline, interning::intern_request(connection, kind, name)?)?;
        if interning::is_interned(connection, kind, &reply, is_last)? {
            return Ok(());
        }
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
    }
}

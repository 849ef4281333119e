//! Interning of topics and services: the number of a name is requested once and shared by all its users; a name without
//! users is released.

use super::control_request::unexpected_reply;
use super::shared::Connection;
use super::table::Table;
use crate::client::data::lane::Lane;
use crate::client::data::lock::lock;
use crate::client::data::names::{NONE, NameRef, Names};
use crate::client::error::Result;
use crate::sync::Ordering;
use crate::wire::control::{BrokerFrame, ClientFrame, FailedCode, InternKind};
use crate::wire::name::{Name, Topic};
use crate::wire::record::{Header, Kind as RecordKind};
use std::sync::Arc;
use std::time::Duration;

/// Names without users that keep their numbers, those that were used last.
const KEPT_TOPICS: usize = 256;
const KEPT_SERVICES: usize = 64;

/// How often, and how long each time, a name waits for releases to be consumed when a limit is reached.
pub(crate) const RELEASE_POLLS: usize = 400;
pub(crate) const RELEASE_POLL: Duration = Duration::from_millis(5);

/// A user of a name: the name keeps its number until the last user is dropped.
#[derive(Debug)]
pub(crate) struct Interned {
    connection: Arc<Connection>,
    kind: InternKind,
    pub(crate) name: NameRef,
    /// Whether the name keeps its number for a while without users.
    keep: bool,
}

impl Drop for Interned {
    fn drop(&mut self) {
        if !self.connection.is_ours() {
            return;
        }
        names(&mut lock(&self.connection.table), self.kind).remove_user(self.name, self.keep);
        if !self.keep {
            release(&self.connection, self.kind, usize::MAX);
        }
    }
}

fn names(table: &mut Table, kind: InternKind) -> &mut Names {
    match kind {
        InternKind::Topic => &mut table.topics,
        InternKind::Service => &mut table.services,
    }
}

fn lane_of(connection: &Connection, kind: InternKind) -> &Lane {
    match kind {
        InternKind::Topic => connection.bulk(),
        InternKind::Service => connection.express(),
    }
}

/// Adds a user of a name that already has a number.
pub(crate) fn existing(
    connection: &Arc<Connection>,
    kind: InternKind,
    name: &str,
    keep: bool,
) -> Result<Option<Interned>> {
    connection.check_fork()?;
    let mut table = lock(&connection.table);
    let session = table.session;
    let found = names(&mut table, kind).add_user(name, session);
    Ok(found.map(|name| Interned { connection: connection.clone(), kind, name, keep }))
}

/// The control request for the number of a name. Room for it is made first.
pub(crate) fn intern_request(
    connection: &Connection,
    kind: InternKind,
    name: &str,
) -> Result<impl FnOnce(u32) -> ClientFrame + use<>> {
    let name = match kind {
        InternKind::Topic => Topic::parse(name)?,
        InternKind::Service => Topic::from(&Name::parse(name)?),
    };
    let kept = if kind == InternKind::Topic { KEPT_TOPICS } else { KEPT_SERVICES };
    release(connection, kind, kept - 1);
    Ok(move |serial| ClientFrame::Intern { serial, kind, name })
}

/// Whether the reply grants the number. `false`: a limit is reached, but names without users were released, and the
/// request may be repeated when the broker has consumed the releases.
pub(crate) fn is_interned(
    connection: &Connection,
    kind: InternKind,
    reply: &BrokerFrame,
    is_last: bool,
) -> Result<bool> {
    if matches!(reply, BrokerFrame::Interned { .. }) {
        return Ok(true);
    }
    let is_limit = matches!(reply, BrokerFrame::Failed { code: FailedCode::Limit, .. });
    // A release may be consumed at once, so that none is retired: there is room for all that.
    if is_limit && !is_last && (release(connection, kind, 0) || names(&mut lock(&connection.table), kind).has_retired())
    {
        return Ok(false);
    }
    Err(unexpected_reply(reply))
}

/// Whether the broker has consumed all releases.
pub(crate) fn are_releases_consumed(connection: &Connection, kind: InternKind) -> bool {
    let mut table = lock(&connection.table);
    let names = names(&mut table, kind);
    if let Some(consumed) = lane_of(connection, kind).try_claim().and_then(|mut lane| lane.producer.look().ok()) {
        names.consumed(consumed);
    }
    !names.has_retired()
}

/// Releases unused names as far as there is space in the lanes. Never waits.
pub(crate) fn release_unused(connection: &Connection) {
    if connection.has_unused_names.load(Ordering::Relaxed) != 0 {
        connection.has_unused_names.store(0, Ordering::Relaxed);
        release(connection, InternKind::Topic, KEPT_TOPICS);
        release(connection, InternKind::Service, KEPT_SERVICES);
    }
}

/// Releases names without users, but the `kept` ones that were used last. What cannot be released now, because
/// another thread has the lane, or there is no space, is released by the next wait or the next request for a name.
/// Returns whether there was any to release.
fn release(connection: &Connection, kind: InternKind, kept: usize) -> bool {
    let table = &mut *lock(&connection.table);
    let session = table.session;
    let (names, requests) = match kind {
        InternKind::Topic => (&mut table.topics, None),
        // A request is no user of its service: requests are known.
        InternKind::Service => (&mut table.services, Some(&table.requests)),
    };
    let in_use = |at| requests.is_some_and(|requests| requests.sends_to(at));
    let mut is_any = false;
    while let Some((at, id, number)) = names.next_to_release(kept, in_use) {
        is_any = true;
        let Some(mut lane) =
            lane_of(connection, kind).try_claim().filter(|lane| lane.is_free() && lane.session == session)
        else {
            connection.has_unused_names.store(1, Ordering::Relaxed);
            break;
        };
        let seq = lane.last_sequence(at, id);
        if number == NONE {
            names.released(at, seq, 0, 0);
            continue;
        }
        let header = match kind {
            InternKind::Topic => Header { id: number, ..Header::new(RecordKind::Release) },
            InternKind::Service => Header { arg: number, ..Header::new(RecordKind::ReleaseService) },
        };
        // Noted before the lane asks to be woken.
        connection.has_unused_names.store(1, Ordering::Relaxed);
        let Ok(true) = lane.try_push(&header, &[]) else { break };
        connection.has_unused_names.store(0, Ordering::Relaxed);
        let (end, consumed) = (lane.producer.claimed(), lane.producer.look().unwrap_or(0));
        names.released(at, seq, end, consumed);
    }
    is_any
}

//! Blocking waits. One waiter leads: it drains the egress ring into the queues of all, spins and sleeps; the others
//! sleep on a condition variable.
//!
//! A thread that waits looks for its own thing; if that is not there it tries to take the reader role. A leader that
//! has found its own thing wakes the followers, and one of them leads next. The roles are guards: dropping one, even
//! while unwinding, hands the role on.

use super::turn::{self, What};
use crate::client::connection::dispatch;
#[cfg(feature = "tokio")]
use crate::client::connection::link::Step;
use crate::client::connection::reader::Reader;
use crate::client::connection::shared::Connection;
use crate::client::data::lock::{lock, thread, try_lock};
use crate::client::error::{Kind, Result};
use crate::sync::{AtomicU64, Ordering, Site, fence};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// It has the reader role. When it leaves, another one is told.
pub(crate) struct Lead<'a> {
    // In this order: the role is free before anybody is told.
    pub(crate) reader: MutexGuard<'a, Reader>,
    _passes_on: PassesOn<'a>,
}

impl<'a> Lead<'a> {
    pub(crate) fn new(reader: MutexGuard<'a, Reader>, connection: &'a Connection) -> Lead<'a> {
        Lead { reader, _passes_on: PassesOn(connection) }
    }
}

struct PassesOn<'a>(&'a Connection);

impl Drop for PassesOn<'_> {
    fn drop(&mut self) {
        pass_on(self.0);
    }
}

/// Another one has the role, and it may sleep until it is told something.
pub(crate) struct Following<'a>(&'a AtomicU64);

impl Following<'_> {
    pub(crate) fn new(followers: &AtomicU64) -> Following<'_> {
        followers.fetch_add(1, Ordering::SeqCst);
        Following(followers)
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// It has the reader role, and the user looks at a record in the ring. What the user does meanwhile must not wait: it
/// would wait for itself.
pub(crate) struct Viewing<'a>(&'a AtomicU64);

impl Viewing<'_> {
    pub(crate) fn new(viewer: &AtomicU64) -> Viewing<'_> {
        viewer.store(thread(), Ordering::Relaxed);
        Viewing(viewer)
    }
}

impl Drop for Viewing<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// The reader role, if nobody has it.
fn try_lead(connection: &Connection) -> Option<Lead<'_>> {
    Some(Lead::new(try_lock(&connection.reader)?, connection))
}

/// Notes, until the guard is dropped, that this thread looks at a record in the ring: what the user does meanwhile
/// must not wait, for it would wait for itconnection.
pub(crate) fn view(connection: &Connection) -> Viewing<'_> {
    Viewing::new(&connection.viewer)
}

/// Waits until `ready` returns something, the connection ends, or `deadline` is past. `ready` is called often, with no
/// lock held but perhaps the reader role; it may place records, and must not wait.
pub(crate) fn for_record<T>(
    connection: &Connection,
    deadline: Option<Instant>,
    mut ready: impl FnMut() -> Option<T>,
) -> Result<T> {
    wait_for(connection, What::Record, deadline, |_| ready())
}

/// As [`for_record`], for what no record brings but a bell: space in a lane, or a reply over the socket. To spin for
/// that would be in vain.
pub(crate) fn for_bell<T>(
    connection: &Connection,
    deadline: Option<Instant>,
    mut ready: impl FnMut() -> Option<T>,
) -> Result<T> {
    wait_for(connection, What::Bell, deadline, |_| ready())
}

/// As [`for_record`]; when the caller has the reader role, `ready` gets it, to take a record out of the ring
/// itconnection.
pub(crate) fn reading<T>(connection: &Connection, ready: impl FnMut(Option<&mut Reader>) -> Option<T>) -> Result<T> {
    wait_for(connection, What::Record, None, ready)
}

fn wait_for<T>(
    connection: &Connection,
    what: What,
    deadline: Option<Instant>,
    mut ready: impl FnMut(Option<&mut Reader>) -> Option<T>,
) -> Result<T> {
    connection.check_fork()?;
    loop {
        if let Some(mut lead) = try_lead(connection) {
            return read(connection, &mut lead.reader, what, deadline, &mut ready);
        }
        // Counted before anything is looked at, so that a reader that finds nobody is seen to have left.
        let _following = Following::new(&connection.followers);
        fence(Site::Sleep);
        let seen = *lock(&connection.turns);
        if let Some(mut lead) = try_lead(connection) {
            return read(connection, &mut lead.reader, what, deadline, &mut ready);
        }
        if let Some(found) = ready(None) {
            return Ok(found);
        }
        if let Some(closed) = connection.closed() {
            // What arrived before the end was sorted before the end was told: it may be ours.
            return ready(None).ok_or(closed);
        }
        if deadline.is_none_or(|deadline| Instant::now() < deadline) {
            connection.may_wait()?;
        }
        if let Some(result) = follow(connection, seen, deadline) {
            return result;
        }
    }
}

fn read<T>(
    connection: &Connection,
    reader: &mut Reader,
    what: What,
    deadline: Option<Instant>,
    ready: &mut impl FnMut(Option<&mut Reader>) -> Option<T>,
) -> Result<T> {
    let mut last_look = false;
    loop {
        // Its own thing may be in the ring: taken there, it need not pass through a queue.
        if let Some(found) = ready(Some(reader)) {
            return Ok(found);
        }
        if dispatch::sort(reader, connection) > 0 {
            if let Some(found) = ready(Some(reader)) {
                return Ok(found);
            }
            pass_on(connection);
            continue;
        }
        if let Some(closed) = connection.closed() {
            return Err(closed);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            if std::mem::replace(&mut last_look, true) {
                return Err(Kind::Timeout.into());
            }
            // Who never waits long enough to sleep must learn of the socket, too.
            turn::look_at_bells(reader, connection, Some(Duration::ZERO));
            turn::step(reader, connection);
            continue;
        }
        if turn::wait(reader, connection, what, deadline) {
            // Whom the bell was for is not known: a lane may have space.
            pass_on(connection);
        }
    }
}

/// Sleeps until the reader has sorted something or left. `None`: look again.
fn follow<T>(connection: &Connection, seen: u64, deadline: Option<Instant>) -> Option<Result<T>> {
    let mut turns = lock(&connection.turns);
    while *turns == seen {
        turns = match deadline {
            None => connection.turn.wait(turns).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Some(Err(Kind::Timeout.into()));
                }
                connection.turn.wait_timeout(turns, left).unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
    None
}

/// The reader has sorted something, or leaves: the others look.
pub(crate) fn pass_on(connection: &Connection) {
    fence(Site::Wake);
    if connection.followers.load(Ordering::SeqCst) > 0 {
        *lock(&connection.turns) += 1;
        connection.turn.notify_all();
    }
}

/// Sorts what has arrived, without waiting.
pub(crate) fn sort_now(connection: &Connection) {
    if !connection.is_ours() {
        return;
    }
    if let Some(mut lead) = try_lead(connection) {
        while dispatch::sort(&mut lead.reader, connection) > 0 {}
    }
}

/// For an event loop that found the descriptor readable: sorts what has arrived, asks to be woken and looks once
/// more.
#[cfg(feature = "tokio")]
pub(crate) fn drive(connection: &Connection) -> Step {
    if !connection.is_ours() {
        return Step::Rest;
    }
    let Some(mut lead) = try_lead(connection) else { return Step::Changed };
    let reader = &mut lead.reader;
    turn::look_at_bells(reader, connection, Some(Duration::ZERO));
    let mut step = turn::step(reader, connection);
    while dispatch::sort(reader, connection) > 0 {}
    if !reader.arm(&connection.behind) {
        step = Step::Changed;
    }
    drop(lead);
    // Whom the bell was for is not known: a lane may have space.
    let wakers = std::mem::take(&mut lock(&connection.table).wakers);
    wakers.into_iter().for_each(std::task::Waker::wake);
    step
}

/// For who does not wait: notices that the broker has gone, and goes on looking for it. Another thread that waits
/// does so anyway.
#[cold]
pub(crate) fn look_after_link(connection: &Connection) {
    let Some(mut lead) = try_lead(connection) else { return };
    let reader = &mut lead.reader;
    turn::look_at_bells(reader, connection, Some(Duration::ZERO));
    let _ = turn::step(reader, connection);
    let table = lock(&connection.table);
    if table.closed.is_none() {
        connection.down.set_away(reader.link.is_away());
    }
}

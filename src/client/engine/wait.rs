//! Blocking waits. One waiter leads: it drains the egress ring into the queues of all, spins and sleeps; the others
//! sleep on a condition variable.
//!
//! A thread that waits looks for its own thing; if that is not there it tries to take the reader role. A leader that
//! has found its own thing wakes the followers, and one of them leads next. The roles are guards: dropping one, even
//! while unwinding, hands the role on.

use super::turn::{self, WaitFor};
use crate::client::connection::dispatch;
#[cfg(feature = "tokio")]
use crate::client::connection::link::NextAction;
use crate::client::connection::reader::Reader;
use crate::client::connection::shared::Connection;
use crate::client::data::lock::{lock, thread, try_lock};
use crate::client::error::{Kind, Result};
use crate::sync::{AtomicU64, Ordering, Site, fence};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The leader: it has the reader role. Dropped, it wakes the followers.
pub(crate) struct Leader<'a> {
    // In this order: the role is free before the followers are woken.
    pub(crate) reader: MutexGuard<'a, Reader>,
    _wakes_followers: WakesFollowers<'a>,
}

impl<'a> Leader<'a> {
    pub(crate) fn new(reader: MutexGuard<'a, Reader>, connection: &'a Connection) -> Leader<'a> {
        Leader { reader, _wakes_followers: WakesFollowers(connection) }
    }
}

struct WakesFollowers<'a>(&'a Connection);

impl Drop for WakesFollowers<'_> {
    fn drop(&mut self) {
        wake_followers(self.0);
    }
}

/// A follower: another thread leads, and this one may sleep until it is woken.
pub(crate) struct Follower<'a>(&'a AtomicU64);

impl Follower<'_> {
    pub(crate) fn new(followers: &AtomicU64) -> Follower<'_> {
        followers.fetch_add(1, Ordering::SeqCst);
        Follower(followers)
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The leader's user reads a record in place. The user must not wait meanwhile: it would wait for itself.
pub(crate) struct ViewGuard<'a>(&'a AtomicU64);

impl ViewGuard<'_> {
    pub(crate) fn new(viewer: &AtomicU64) -> ViewGuard<'_> {
        viewer.store(thread(), Ordering::Relaxed);
        ViewGuard(viewer)
    }
}

impl Drop for ViewGuard<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// The reader role, if it is free.
#[inline]
pub(crate) fn try_lead(connection: &Connection) -> Option<Leader<'_>> {
    Some(Leader::new(try_lock(&connection.reader)?, connection))
}

/// Marks this thread, until the guard is dropped, as reading a record in place: calls of the user that block would
/// deadlock.
pub(crate) fn view(connection: &Connection) -> ViewGuard<'_> {
    ViewGuard::new(&connection.viewer)
}

/// Waits until `ready` returns a value, the connection ends, or `deadline` passes. `ready` is called often, without
/// locks except perhaps the reader role; it may place records, and must not block.
pub(crate) fn for_record<T>(
    connection: &Connection,
    deadline: Option<Instant>,
    mut ready: impl FnMut() -> Option<T>,
) -> Result<T> {
    wait_for(connection, WaitFor::Record, deadline, |_| ready())
}

/// As [`for_record`], for events that only a bell signals: space in a lane, or a reply over the socket. Spinning would
/// not notice them.
pub(crate) fn for_bell<T>(
    connection: &Connection,
    deadline: Option<Instant>,
    mut ready: impl FnMut() -> Option<T>,
) -> Result<T> {
    wait_for(connection, WaitFor::Bell, deadline, |_| ready())
}

/// As [`for_record`]; when the caller has the reader role, `ready` gets it, to take a record out of the
/// ring by itself.
pub(crate) fn reading<T>(
    connection: &Connection,
    deadline: Option<Instant>,
    ready: impl FnMut(Option<&mut Reader>) -> Option<T>,
) -> Result<T> {
    wait_for(connection, WaitFor::Record, deadline, ready)
}

/// As [`reading`], for a thread that has the reader role.
pub(crate) fn leading<T>(
    connection: &Connection,
    mut lead: Leader<'_>,
    deadline: Option<Instant>,
    mut ready: impl FnMut(&mut Reader) -> Option<T>,
) -> Result<T> {
    read(connection, &mut lead.reader, WaitFor::Record, deadline, &mut |reader| ready(reader?))
}

/// As [`leading`], for a thread that keeps the role: the followers look at what it has sorted meanwhile.
pub(crate) fn leading_on<T>(
    connection: &Connection,
    lead: &mut Leader<'_>,
    deadline: Option<Instant>,
    mut ready: impl FnMut(&mut Reader) -> Option<T>,
) -> Result<T> {
    let found = read(connection, &mut lead.reader, WaitFor::Record, deadline, &mut |reader| ready(reader?));
    wake_followers(connection);
    found
}

fn wait_for<T>(
    connection: &Connection,
    target: WaitFor,
    deadline: Option<Instant>,
    mut ready: impl FnMut(Option<&mut Reader>) -> Option<T>,
) -> Result<T> {
    connection.check_fork()?;
    loop {
        if let Some(mut lead) = try_lead(connection) {
            return read(connection, &mut lead.reader, target, deadline, &mut ready);
        }
        // Counted before anything is looked at, so that a leader that finds no follower is seen to have left.
        let _following = Follower::new(&connection.followers);
        fence(Site::Sleep);
        let seen = *lock(&connection.turns);
        if let Some(mut lead) = try_lead(connection) {
            return read(connection, &mut lead.reader, target, deadline, &mut ready);
        }
        if let Some(found) = ready(None) {
            return Ok(found);
        }
        if let Some(closed) = connection.closed() {
            // What arrived before the end was sorted before the end was noted: it may be what this thread waits for.
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
    target: WaitFor,
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
            wake_followers(connection);
            continue;
        }
        if let Some(closed) = connection.closed() {
            return Err(closed);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            if last_look {
                // The next record rings: the caller may sleep on the descriptor.
                if reader.arm(&connection.backlog) {
                    return Err(Kind::Timeout.into());
                }
                continue;
            }
            last_look = true;
            // A thread that never sleeps must notice the socket, too.
            turn::poll_bells(reader, connection, Some(Duration::ZERO));
            turn::step(reader, connection);
            continue;
        }
        if turn::wait(reader, connection, target, deadline) {
            // The bell may be another thread's: a lane may have space.
            wake_followers(connection);
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
#[inline]
pub(crate) fn wake_followers(connection: &Connection) {
    fence(Site::Wake);
    if connection.followers.load(Ordering::SeqCst) > 0 {
        wake_all(connection);
    }
}

#[cold]
fn wake_all(connection: &Connection) {
    *lock(&connection.turns) += 1;
    connection.turn.notify_all();
}

/// Sorts what has arrived, without waiting.
pub(crate) fn sort_pending(connection: &Connection) {
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
pub(crate) fn drive(connection: &Connection) -> NextAction {
    if !connection.is_ours() {
        return NextAction::Rest;
    }
    let Some(mut lead) = try_lead(connection) else { return NextAction::Changed };
    let reader = &mut lead.reader;
    turn::poll_bells(reader, connection, Some(Duration::ZERO));
    let mut step = turn::step(reader, connection);
    while dispatch::sort(reader, connection) > 0 {}
    if !reader.arm(&connection.backlog) {
        step = NextAction::Changed;
    }
    drop(lead);
    // The bell may be another thread's: a lane may have space.
    let wakers = std::mem::take(&mut lock(&connection.table).wakers);
    wakers.into_iter().for_each(std::task::Waker::wake);
    step
}

/// For callers that do not wait: notices a lost socket, and carries out due attempts to reconnect. A thread that waits
/// does so anyway.
#[cold]
pub(crate) fn check_link(connection: &Connection) {
    let Some(mut lead) = try_lead(connection) else { return };
    let reader = &mut lead.reader;
    turn::look_at_link(reader, connection);
    let _ = turn::step(reader, connection);
    let table = lock(&connection.table);
    if table.closed.is_none() {
        connection.link_status.set_lost(reader.link.is_lost());
    }
}

//! Records of calls in the express lane, none of which waits: placed now, deferred, or owed as cancels.

use super::shared::Connection;
use super::table::Table;
use crate::client::data::batch_calls::BatchCalls;
use crate::client::data::incoming_call::IncomingCall;
use crate::client::data::lock::lock;
use crate::client::data::names::{Callee, NameRef};
use crate::client::data::request_slots::{ClaimedSlot, RequestSlots};
use crate::client::error::{Kind, Result};
use crate::shm::layout::cells_for;
use crate::sync::Ordering;
use crate::wire::record::{Flags, Header, Kind as RecordKind, Outcome};
use std::sync::{Arc, MutexGuard};

/// The end of a reply that is an error of the responder's own.
pub(crate) const FAILED: Flags = Flags::END.with(Flags::ERROR).with(Flags::FAILURE);
/// The error reply to a request that is dropped. One cell.
const DROPPED: &[u8] = b"the responder dropped the request without a reply";
/// The error reply to a request whose reply was kept for its requester, and given up. One cell.
const NOT_TAKEN: &[u8] = b"the requester did not take the reply in time";
const _: () = assert!(cells_for(DROPPED.len() as u32) == 1 && cells_for(NOT_TAKEN.len() as u32) == 1);

/// Places a record of a call, if there is space. Never waits.
///
/// # Errors
///
/// If the call was of another session, or the connection has ended.
pub(crate) fn place(connection: &Connection, session: u64, header: &Header, payload: &[u8]) -> Result<bool> {
    connection.check_open()?;
    let mut lane = connection.express().claim()?;
    if lane.session != session {
        return Err(Kind::Outcome { outcome: Outcome::Disconnected, retry_after: None }.into());
    }
    lane.try_push(header, payload)
}

/// Places a record that belongs to no call. Never waits.
pub(crate) fn place_in_any_session(connection: &Connection, header: &Header, payload: &[u8]) -> Result<bool> {
    connection.check_open()?;
    connection.express().claim()?.try_push(header, payload)
}

/// A slot for a request, with the service in the session in which the slot holds. `None`: the number of the service is
/// to be requested first.
pub(crate) fn claim_slot(connection: &Connection, callee: Callee<'_>) -> Result<Option<(NameRef, ClaimedSlot)>> {
    connection.check_fork()?;
    let mut table = lock(&connection.table);
    if let Some(closed) = &table.closed {
        return Err(closed.clone());
    }
    let session = table.session;
    let Some(service) = table.services.find(callee, session) else { return Ok(None) };
    release_kept(connection, &mut table.requests);
    let limits = &connection.limits;
    let claimed = table.requests.claim(limits.stream_credit_cells(), service.at, limits.max_requests());
    let overloaded = Kind::Outcome { outcome: Outcome::Overloaded, retry_after: None };
    claimed.map(|claimed| Some((service, claimed))).ok_or_else(|| overloaded.into())
}

/// Releases the slot that the last single call has kept.
#[inline]
fn release_kept(connection: &Connection, requests: &mut RequestSlots) {
    let kept = connection.kept_slot.load(Ordering::Relaxed);
    if kept != 0 {
        requests.release(kept as u32, (kept >> 32) as u32);
        connection.kept_slot.store(0, Ordering::Relaxed);
    }
}

/// The number of the batch whose only request is that of a single call, by the thread with the reader role.
const SINGLE: u64 = 0;

/// A request of one record, whose reply the thread with the reader role takes out of the ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SingleCall {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) session: u64,
}

impl SingleCall {
    /// Places it, as [`BatchPlace::place`] does. `None`: that is not possible now, or never; the other path finds out.
    pub(crate) fn place(
        connection: &Connection,
        callee: Callee<'_>,
        header: &Header,
        payload: &[u8],
    ) -> Option<SingleCall> {
        let mut table = lock(&connection.table);
        let Table { requests, services, session, closed, .. } = &mut *table;
        if closed.is_some() {
            return None;
        }
        release_kept(connection, requests);
        let service = services.find(callee, *session)?;
        let (slot, generation) = requests.claim_for_batch(SINGLE, service.at, connection.limits.max_requests())?;
        let header = Header { arg: service.number, ..*header };
        let claim = || Some((slot, generation));
        let lane = connection.express().claim();
        if lane
            .and_then(|mut lane| lane.try_requests(&header, &[payload], false, claim))
            .is_ok_and(|placed| placed == 1)
        {
            return Some(SingleCall { slot, generation, session: *session });
        }
        requests.release(slot, generation);
        None
    }

    /// Its reply was taken. Its slot is released with the next claim.
    #[inline]
    pub(crate) fn finish(self, connection: &Connection) {
        let kept = u64::from(self.generation) << 32 | u64::from(self.slot);
        // Each value but 0 is a slot: the first generation of each is 1.
        if kept != 0 && connection.kept_slot.load(Ordering::Relaxed) == 0 {
            connection.kept_slot.store(kept, Ordering::Relaxed);
        } else {
            lock(&connection.table).requests.release(self.slot, self.generation);
        }
    }

    /// The request, if it was diverted: something of its reply was sorted, or it has ended here.
    pub(crate) fn diverted(self, connection: &Connection) -> Option<ClaimedSlot> {
        let mut found = None;
        lock(&connection.table).requests.take_diverted(SINGLE, |claimed| {
            // Others are over: a kept slot, or one whose deadline has passed.
            if (claimed.slot, claimed.generation) == (self.slot, self.generation) {
                found = Some(claimed);
            }
        });
        found
    }
}

/// The requests of a batch, and those of it that were diverted, by their payloads.
pub(crate) struct BatchPlace<'a> {
    pub(crate) calls: &'a mut BatchCalls,
    pub(crate) diverted: &'a mut Vec<(usize, u64, ClaimedSlot)>,
}

impl BatchPlace<'_> {
    fn settle(&mut self, requests: &mut RequestSlots) {
        // They were diverted in the session in which they were placed, or by its end.
        let session = self.calls.session;
        self.calls.settle(requests, |index, claimed| self.diverted.push((index, session, claimed)));
    }

    /// Finds those that were diverted.
    pub(crate) fn look(&mut self, connection: &Connection) {
        if self.calls.is_begun() {
            self.settle(&mut lock(&connection.table).requests);
        }
    }

    /// Places requests of one record each, in order: the first is that of the payload `first`. In one step, under the
    /// lock of the table, so none ends between the claim of its slot and its record, and its cancel comes behind it.
    /// Never waits; if `arms`, it asks to be woken when there is more space. Returns how many, and whether the next one
    /// lacks space. None are placed if the number of the service is to be requested first.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub(crate) fn place<P: AsRef<[u8]>>(
        &mut self,
        connection: &Connection,
        callee: Callee<'_>,
        header: &Header,
        first: usize,
        payloads: &[P],
        arms: bool,
    ) -> Result<(usize, bool)> {
        connection.check_fork()?;
        let mut table = lock(&connection.table);
        let Table { requests, services, session, closed, spare_batch, .. } = &mut *table;
        if let Some(closed) = closed {
            return Err(closed.clone());
        }
        self.calls.begin(requests, spare_batch);
        self.settle(requests);
        release_kept(connection, requests);
        self.calls.session = *session;
        let Some(service) = services.find(callee, *session) else { return Ok((0, false)) };
        let (mut claimed, mut last) = (0, None);
        let (max, calls) = (connection.limits.max_requests(), &mut *self.calls);
        let header = Header { arg: service.number, ..*header };
        let placed = connection.express().claim()?.try_requests(&header, payloads, arms, || {
            last = calls.claim(requests, service.at, max, first + claimed);
            claimed += usize::from(last.is_some());
            last
        })?;
        let is_short = claimed > placed;
        if is_short && let Some((slot, generation)) = last {
            calls.take_back(requests, slot, generation);
        }
        Ok((placed, is_short))
    }

    /// No reply is waited for any more: what was diverted before stays, the others end here with this outcome. Returns
    /// their payloads.
    pub(crate) fn end(&mut self, connection: &Connection, outcome: Outcome) -> Vec<usize> {
        self.cancel(connection, outcome);
        self.calls.end()
    }

    /// Ends those here that were not diverted. Returns the lock of the table, if the batch has begun.
    fn cancel<'c>(&mut self, connection: &'c Connection, outcome: Outcome) -> Option<MutexGuard<'c, Table>> {
        if !connection.is_ours() || !self.calls.is_begun() {
            return None;
        }
        let mut table = lock(&connection.table);
        self.settle(&mut table.requests);
        if self.calls.cancel(&mut table.requests, outcome) {
            place_owed(connection, &mut table);
        }
        Some(table)
    }

    /// The batch is over. Nothing waits: no slot stays claimed.
    pub(crate) fn finish(&mut self, connection: &Connection) {
        if let Some(mut table) = self.cancel(connection, Outcome::Cancelled) {
            self.calls.give_back(&mut table.spare_batch);
        }
    }
}

/// No process listens at the socket, so no reply is to be expected: outstanding requests end as disconnected now, not
/// when a broker appears. The one that has them may live all the same.
pub(crate) fn end_requests(connection: &Connection) {
    let mut table = lock(&connection.table);
    table.requests.cancel_all();
    place_owed(connection, &mut table);
}

/// Ends a request whose owner does not wait for its outcome any more, with this one.
pub(crate) fn cancel(connection: &Connection, slot: u32, generation: u32, outcome: Outcome) {
    let mut table = lock(&connection.table);
    if table.requests.cancel(slot, generation, outcome) {
        place_owed(connection, &mut table);
    }
}

/// Places cancels that have been waiting for space.
#[inline]
pub(crate) fn place_cancels(connection: &Connection) {
    if connection.owes_cancels.load(Ordering::Relaxed) != 0 {
        place_owed(connection, &mut lock(&connection.table));
    }
}

/// Places as many cancels as there is space for; a bell announces more.
fn place_owed(connection: &Connection, table: &mut Table) {
    let Table { requests, session, .. } = table;
    // An error says that the session is over, and every call with it.
    let is_done = requests.place_cancels(|cancel| !matches!(place(connection, *session, cancel, &[]), Ok(false)));
    connection.owes_cancels.store(u64::from(!is_done), Ordering::Relaxed);
}

/// Ends a call that has no responder, or whose responder does not complete its reply, with an error. Never waits.
pub(crate) fn reject(connection: &Connection, table: &mut Table, call: &Arc<IncomingCall>) {
    end(connection, table, call, FAILED, DROPPED);
}

/// Ends a call whose requester does not take the reply. Never waits. The broker may have credit of the requester that
/// this client has not: an error that is a failure could count against the service.
pub(crate) fn end_untaken(connection: &Connection, table: &mut Table, call: &Arc<IncomingCall>) {
    end(connection, table, call, Flags::END.with(Flags::ERROR), NOT_TAKEN);
}

fn end(connection: &Connection, table: &mut Table, call: &Arc<IncomingCall>, flags: Flags, text: &[u8]) {
    if !table.take_call(call) {
        return;
    }
    // An error of one cell needs no credit, and may come in the middle of a message (see `wire::record`).
    let (flags, total) = (flags.with(Flags::WHOLE), text.len() as u32);
    let header = Header { flags, total, seq: call.call, ..Header::new(RecordKind::Response) };
    connection.express().place_or_defer(call.session, &header, text);
}

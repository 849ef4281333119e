//! Records that wait for space in a ring, and the bounds of the memory that they and the overflow queues take.
//!
//! | bound | of a connection | of a user |
//! |---|---|---|
//! | half of it: calls get no more records, and end as `Overloaded` | `max_backlog_bytes` | `max_user_backlog_bytes` |
//! | all of it: a record that must not be lost closes a connection | this one | the one with the largest backlog |
//! | an overflow queue grows no more, and drops its oldest messages | `max_backlog_bytes` | `max_user_backlog_bytes` |
//!
//! A connection without a backlog reads, and gets more records of calls whatever its user holds.

use super::held::HeldBytes;
use super::{Egress, Egresses};
use crate::broker::router::connection::CloseReason;
use crate::logic::shares::{Principal, Shares};
use crate::shm::ring::{Payload, Violation};
use crate::shm::words::read_bytes;
use crate::wire::control::ClosingCode;
use crate::wire::record::HEADER_WORDS;
#[cfg(any(test, fuzzing))]
use std::collections::BTreeMap;

/// What a user holds of the memory for what its clients do not read.
#[cfg(any(test, fuzzing))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::broker::router) struct UserMemory {
    /// Cells of shared memory.
    pub(in crate::broker::router) leased_cells: u64,
    pub(in crate::broker::router) backlog_bytes: u64,
    pub(in crate::broker::router) overflow_bytes: u64,
}

impl Egress {
    /// Bytes that wait for space in the ring.
    pub(in crate::broker::router) fn backlog_bytes(&self) -> usize {
        self.backlog.bytes()
    }

    /// Adds a record to the backlog.
    pub(super) fn hold(&mut self, header: &[u64; HEADER_WORDS], payload: Payload<'_>, held: &mut HeldBytes) {
        let before = self.backlog.bytes();
        self.backlog.push(header, payload.len(), |to| match payload {
            Payload::Bytes(from) => to.copy_from_slice(from),
            Payload::Words(_, words) => read_bytes(words, to),
        });
        self.backlogged += 1;
        held.records.change(self.leases.user, before, self.backlog.bytes());
    }

    /// Moves the backlog into the ring, as far as it fits.
    fn place_backlog(&mut self) -> Result<(), Violation> {
        while let Some((header, payload)) = self.backlog.front() {
            if !self.ring.push(&header, Payload::Bytes(payload))? {
                break;
            }
            self.backlog.pop_front();
        }
        Ok(())
    }
}

impl Egresses {
    /// Whether a connection may be given more work: it reads what it has got.
    #[inline]
    pub(in crate::broker::router) fn takes_calls(&self, key: u32) -> bool {
        let Some(egress) = self.get(key) else { return false };
        egress.backlog.is_empty() || (egress.backlog.bytes() <= self.max_backlog / 2 && self.user_takes_calls(egress))
    }

    fn user_takes_calls(&self, egress: &Egress) -> bool {
        let (user, records) = (egress.leases.user, &self.held.records);
        records.held_by(user) <= records.most_of(user) / 2
    }

    /// A record was added to the backlog of `key`: it waits for space, unless a bound is reached.
    pub(super) fn wait_or_close(&mut self, key: u32) {
        let Some(egress) = self.get(key) else { return };
        let (user, bytes) = (egress.leases.user, egress.backlog.bytes());
        if bytes > self.max_backlog {
            let reason = format!("{bytes} bytes in the backlog of a client that does not read");
            self.pending_close.push((key, CloseReason { code: ClosingCode::SlowConsumer, reason }));
            return;
        }
        if !egress.waits_for_space {
            self.wait_for_space(key);
            self.pump(key);
        }
        if self.held.records.is_beyond(user) {
            self.close_largest(user);
        }
    }

    /// Closes the connection of a user with the largest backlog.
    #[cold]
    fn close_largest(&mut self, user: Principal) {
        let of_user = self.table.iter().enumerate().filter_map(|(key, egress)| Some((key, egress.as_deref()?)));
        let sizes = of_user.filter(|(_, egress)| egress.leases.user == user);
        let Some((bytes, key)) = sizes.map(|(key, egress)| (egress.backlog.bytes(), key as u32)).max() else { return };
        let (held, most) = (self.held.records.held_by(user), self.held.records.most_of(user));
        let user = self.quotas.subject(user);
        let reason = format!(
            "{held} bytes in the backlogs of clients of {user} that do not read, of at most {most} \
             (limits.max_user_backlog_bytes, limits.user_share_percent), {bytes} of them of this client"
        );
        self.pending_close.push((key, CloseReason { code: ClosingCode::SlowConsumer, reason }));
    }

    /// The client of `key` has rung: there may be space. The backlog goes first; returns whether
    /// publishers that wait should try again.
    #[inline]
    pub(in crate::broker::router) fn pump(&mut self, key: u32) -> bool {
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return false };
        if !egress.waits_for_space {
            return false;
        }
        let (records, bytes) = (egress.backlog.len(), egress.backlog.bytes());
        let mut placed = egress.place_backlog();
        if placed.is_ok() && !egress.backlog.is_empty() {
            egress.space.arm();
            placed = egress.place_backlog();
        }
        self.held.records.change(egress.leases.user, bytes, egress.backlog.bytes());
        if let Err(violation) = placed {
            self.pending_close.push((key, violation.into()));
            return false;
        }
        if egress.backlog.len() < records {
            egress.placed(key, &mut self.dirty);
        }
        if !egress.backlog.is_empty() {
            return false;
        }
        if !egress.overflow.has_messages() {
            egress.end_wait();
        }
        !egress.waiters.is_empty()
    }

    /// The overflow queues of a connection have changed from `before` to `after` bytes.
    pub(in crate::broker::router) fn overflow_changed(&mut self, key: u32, before: usize, after: usize) {
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return };
        egress.overflow.bytes = egress.overflow.bytes - before + after;
        self.held.overflow.change(egress.leases.user, before, after);
    }

    /// What users hold of the memory for what waits: records, and messages of overflow queues.
    pub(in crate::broker::router) fn waiting(&self) -> [&Shares; 2] {
        [&self.held.records, &self.held.overflow]
    }

    /// What each user holds of shared memory, and of the memory for what its clients do not read.
    #[cfg(any(test, fuzzing))]
    pub(in crate::broker::router) fn user_memory(&mut self) -> BTreeMap<Principal, UserMemory> {
        let mut users = BTreeMap::<Principal, UserMemory>::new();
        for (user, cells) in self.memory.settled_shares().users() {
            users.entry(user).or_default().leased_cells = cells as u64;
        }
        for (user, bytes) in self.held.records.users() {
            users.entry(user).or_default().backlog_bytes = bytes as u64;
        }
        for (user, bytes) in self.held.overflow.users() {
            users.entry(user).or_default().overflow_bytes = bytes as u64;
        }
        users
    }
}

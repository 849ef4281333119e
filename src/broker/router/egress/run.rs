//! Pushing the records of a run, which were decided at once (`pubsub::run`, `pubsub::fragments`, `calls::run`).

use super::Egresses;
use crate::broker::router::connection::CloseReason;
use crate::broker::router::journal::Receiver;
use crate::shm::ring::{Payload, Producer};
use crate::wire::record::HEADER_WORDS;

/// The ring of a receiver of a run.
pub(in crate::broker::router) struct RunRing<'a> {
    key: u32,
    ring: &'a mut Producer,
    pending_close: &'a mut Vec<(u32, CloseReason)>,
}

impl RunRing<'_> {
    /// Pushes a record, if it fits. What else it brings about is settled by [`Egresses::received`].
    #[inline(always)]
    pub(in crate::broker::router) fn push(&mut self, header: &[u64; HEADER_WORDS], payload: Payload<'_>) -> bool {
        self.ring.push(header, payload).unwrap_or_else(|violation| {
            self.pending_close.push((self.key, violation.into()));
            false
        })
    }
}

impl Egresses {
    /// The receiver `key` takes part in a run: returns its position, if it has no backlog and is no receiver yet.
    #[inline]
    pub(in crate::broker::router) fn join_run(&mut self, key: u32) -> Option<u64> {
        let epoch = self.epoch;
        let egress = self.get_mut(key).filter(|egress| egress.backlog.is_empty() && egress.plan_epoch != epoch)?;
        egress.plan_epoch = epoch;
        egress.plan = egress.ring.start_plan();
        Some(egress.position())
    }

    /// Whether a record of `len` bytes fits into the ring of each of these receivers of a run.
    #[inline]
    pub(in crate::broker::router) fn fit(&mut self, receivers: &[Receiver], len: u32) -> bool {
        receivers.iter().all(|receiver| {
            let Some(egress) = self.table.get_mut(receiver.owner as usize).and_then(Option::as_deref_mut) else {
                return false;
            };
            egress.ring.fits(len).unwrap_or_else(|violation| {
                self.pending_close.push((receiver.owner, violation.into()));
                false
            })
        })
    }

    /// The ring of `key`, for the records of a run.
    #[inline]
    pub(in crate::broker::router) fn ring_of(&mut self, key: u32) -> Option<RunRing<'_>> {
        let Egresses { table, pending_close, .. } = self;
        let egress = table.get_mut(key as usize).and_then(Option::as_deref_mut)?;
        Some(RunRing { key, ring: &mut egress.ring, pending_close })
    }

    /// The client of `key` has got records of a run, that many messages and bytes; `more_comes`: further ones are
    /// expected soon.
    #[inline]
    pub(in crate::broker::router) fn received(&mut self, key: u32, (messages, bytes): (u64, u64), more_comes: bool) {
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return };
        egress.messages += messages;
        egress.bytes += bytes;
        egress.placed(key, &mut self.dirty);
        egress.more_comes = more_comes;
    }
}

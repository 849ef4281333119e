//! Pushing the messages of a run, which were decided at once (`pubsub::run`, `calls::run`).

use super::Egresses;
use crate::broker::router::journal::Receiver;
use crate::shm::ring::Payload;
use crate::wire::record::HEADER_WORDS;

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

    /// Pushes a record of a run, if it fits. What else it brings about is settled by `received`.
    #[inline(always)]
    pub(in crate::broker::router) fn push_in_run(
        &mut self,
        key: u32,
        header: &[u64; HEADER_WORDS],
        payload: Payload<'_>,
    ) -> bool {
        let Some(egress) = self.get_mut(key) else { return false };
        egress.ring.push(header, payload).unwrap_or_else(|violation| {
            self.pending_close.push((key, violation.into()));
            false
        })
    }

    /// The client of `key` has got so many messages of a run, and bytes.
    #[inline]
    pub(in crate::broker::router) fn received(&mut self, key: u32, messages: u64, bytes: u64) {
        let Some(egress) = self.table.get_mut(key as usize).and_then(Option::as_deref_mut) else { return };
        egress.messages += messages;
        egress.bytes += bytes;
        egress.placed(key, &mut self.dirty);
    }
}

//! The loop of a run: records of one lane that are alike and follow each other, handled with one decision.
//!
//! `pubsub::run`, `pubsub::fragments` and `calls::run` decide at the first record, and settle at the end what was done.
//! In between, each record is placed for all of its receivers, or for none, and then the lane advances.

use super::journal::Work;
use crate::broker::supervision::fault;
use crate::shm::ring::{Consumer, Payload, Record};
use crate::wire::record::Kind;

/// Deliveries of a run that count as one record of the batch, for they take a quarter of the time. A record of a run
/// with as many receivers or more counts as one.
pub(super) const RUN_RECORDS: u32 = 4;

/// The deliveries that a record of a run with so many receivers counts for.
#[inline]
pub(super) fn deliveries(receivers: usize) -> u32 {
    receivers.clamp(1, RUN_RECORDS as usize) as u32
}

/// The lane of a run, and where its progress is noted. The header's word `WORD` may differ from record to record.
pub(super) struct Source<'a, const WORD: usize> {
    pub(super) lane: &'a mut Consumer,
    pub(super) work: &'a mut Work,
    pub(super) kind: Kind,
}

impl<const WORD: usize> Source<'_, WORD> {
    /// Passes `first`, and the records behind it as long as each `follows` the one before, at most `most`, to
    /// `deliver`, until that returns `false`: the word that may differ, and the payload. `done` gets the word of each
    /// that is delivered and consumed. Returns how many, and whether none is behind them.
    #[inline(always)]
    pub(super) fn each(
        self,
        first: &Record,
        most: u32,
        follows: impl Fn(&Record, u64) -> bool,
        mut deliver: impl FnMut(u64, Payload<'_>) -> bool,
        mut done: impl FnMut(u64),
    ) -> (u32, bool) {
        let Source { lane, work, kind } = self;
        let (mut extent, mut word, mut routed) = (first.extent(), first.header[WORD], 0);
        loop {
            *work = Work::Run(extent, word);
            fault::point("router.decided", u64::from(extent.len));
            if !deliver(word, Payload::Words(extent.len, lane.payload_of(extent))) {
                return (routed, false);
            }
            fault::point("router.committed", kind as u64);
            lane.advance_behind(extent);
            done(word);
            routed += 1;
            fault::point("router.advanced", kind as u64);
            if routed == most {
                return (routed, false);
            }
            let next = match lane.peek() {
                Ok(Some(next)) => next,
                Ok(None) => return (routed, true),
                // What is wrong with it is for others to say.
                Err(_) => return (routed, false),
            };
            if !follows(&next, word) {
                return (routed, false);
            }
            (extent, word) = (next.extent(), next.header[WORD]);
            fault::point("router.found", u64::from(extent.len));
        }
    }
}

//! The outstanding requests of a batch: where each lies among the payloads, until its reply is taken out of the ring.

use super::request_slots::{ClaimedSlot, RequestSlots};
use crate::wire::record::Outcome;

/// Requests of a batch that may be outstanding.
pub(crate) const WINDOW: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Waiting,
    /// Its reply was taken; its slot is to be released.
    Replied,
}

/// A request, or the place for one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchCall {
    index: usize,
    slot: u32,
    generation: u32,
    state: State,
}

/// The outstanding requests of a batch.
#[derive(Debug, Default)]
pub(crate) struct BatchCalls {
    /// The number of the batch; 0: it has none yet.
    number: u64,
    /// The session in which its last request was placed.
    pub(crate) session: u64,
    entries: Vec<BatchCall>,
    /// Entries that wait.
    waiting: usize,
    /// Entries whose slots are to be released.
    replied: usize,
    /// Where a free entry is looked for first, and where the next reply.
    free_at: usize,
    reply_at: usize,
}

impl BatchCalls {
    /// Requests that wait for their reply.
    #[inline]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Claims a slot for the request of the payload `index`.
    #[inline]
    pub(crate) fn claim(
        &mut self,
        requests: &mut RequestSlots,
        service: u32,
        max: u32,
        index: usize,
    ) -> Option<(u32, u32)> {
        let (slot, generation) = requests.claim_for_batch(self.number, service, max)?;
        let entry = BatchCall { index, slot, generation, state: State::Waiting };
        if self.waiting + self.replied == self.entries.len() {
            self.entries.push(entry);
        } else {
            let is_free = |entry: &BatchCall| entry.state == State::Free;
            let at = self.search(self.free_at, is_free).unwrap_or_default();
            self.entries[at] = entry;
            self.free_at = at + 1;
        }
        self.waiting += 1;
        Some((slot, generation))
    }

    /// The payload of the request in this slot, if it waits: its reply is taken.
    #[inline]
    pub(crate) fn reply(&mut self, slot: u32, generation: u32) -> Option<usize> {
        // Mostly replies come in the order of the requests.
        let at = self.find(self.reply_at, slot, generation)?;
        self.reply_at = at + 1;
        self.entries[at].state = State::Replied;
        self.waiting -= 1;
        self.replied += 1;
        Some(self.entries[at].index)
    }

    #[inline]
    fn find(&self, from: usize, slot: u32, generation: u32) -> Option<usize> {
        self.search(from, |entry| (entry.slot, entry.generation) == (slot, generation) && entry.state == State::Waiting)
    }

    /// The first such entry from `from` on, and then from the first.
    #[inline]
    fn search(&self, from: usize, is_it: impl Fn(&BatchCall) -> bool) -> Option<usize> {
        let from = if from < self.entries.len() { from } else { 0 };
        let (first, last) = self.entries.split_at(from);
        last.iter().position(&is_it).map(|at| from + at).or_else(|| first.iter().position(&is_it))
    }

    /// Releases the slots of all whose replies were taken, and passes those to `divert` that were diverted, with the
    /// payloads that they are about.
    pub(crate) fn settle(&mut self, requests: &mut RequestSlots, mut divert: impl FnMut(usize, ClaimedSlot)) {
        if self.replied > 0 {
            for entry in self.entries.iter_mut().filter(|entry| entry.state == State::Replied) {
                requests.release(entry.slot, entry.generation);
                entry.state = State::Free;
            }
            self.replied = 0;
        }
        requests.take_diverted(self.number, |claimed| {
            // None waits if its reply was taken before.
            if let Some(at) = self.find(self.reply_at, claimed.slot, claimed.generation) {
                self.entries[at].state = State::Free;
                self.waiting -= 1;
                divert(self.entries[at].index, claimed);
            }
        });
    }

    /// The request that was claimed last is not placed.
    pub(crate) fn take_back(&mut self, requests: &mut RequestSlots, slot: u32, generation: u32) {
        requests.release(slot, generation);
        if let Some(at) = self.find(self.free_at.saturating_sub(1), slot, generation) {
            self.entries[at].state = State::Free;
            self.waiting -= 1;
        }
    }

    /// Ends all that wait here with this outcome. Returns whether cancels are to be placed.
    pub(crate) fn cancel(&mut self, requests: &mut RequestSlots, outcome: Outcome) -> bool {
        let mut is_any = false;
        for entry in self.entries.iter().filter(|entry| entry.state == State::Waiting) {
            is_any |= requests.cancel(entry.slot, entry.generation, outcome);
        }
        is_any
    }

    /// No reply is waited for any more. Returns the payloads whose replies were.
    pub(crate) fn end(&mut self) -> Vec<usize> {
        let waiting = self.entries.iter_mut().filter(|entry| entry.state == State::Waiting);
        let ended = waiting.map(|entry| {
            entry.state = State::Free;
            entry.index
        });
        let mut ended: Vec<_> = ended.collect();
        ended.sort_unstable();
        self.waiting = 0;
        ended
    }

    /// Whether it has a number, and so perhaps requests.
    pub(crate) fn is_begun(&self) -> bool {
        self.number != 0
    }

    /// The batch begins: it gets a number, and the memory of one that is over.
    pub(crate) fn begin(&mut self, requests: &mut RequestSlots, spare: &mut Vec<BatchCall>) {
        if self.number == 0 {
            self.number = requests.begin_batch();
            self.entries = std::mem::take(spare);
        }
    }

    /// The batch is over, and every request of it.
    pub(crate) fn give_back(&mut self, spare: &mut Vec<BatchCall>) {
        self.entries.clear();
        *spare = std::mem::take(&mut self.entries);
        *self = BatchCalls::default();
    }
}

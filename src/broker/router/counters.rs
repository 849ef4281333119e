//! The router's counters, as plain numbers of its own thread.

use crate::wire::record::Outcome;

/// Numbers of events since the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) published: u64,
    pub(crate) delivered: u64,
    pub(crate) unmatched: u64,
    /// By the subscription's policy, in the order of `DeliveryPolicy`.
    pub(crate) dropped: [u64; 3],
    pub(crate) aborted: u64,
    pub(crate) evicted: u64,
    pub(crate) requests: u64,
    pub(crate) replies: u64,
    pub(crate) chunks: u64,
    pub(crate) cancels: u64,
    pub(crate) late: u64,
    /// By outcome, in the order of `Outcome::ALL`.
    pub(crate) failed: [u64; 8],
    pub(crate) records: u64,
    /// Those that are a part of a message of several.
    pub(crate) fragments: u64,
    pub(crate) bytes: u64,
    pub(crate) looks: u64,
    pub(crate) sleeps: u64,
    pub(crate) parked: u64,
    pub(crate) violations: u64,
    /// Poison messages: records and timers that killed two routers.
    pub(crate) poisoned: u64,
    pub(crate) connections: u64,
}

impl Counters {
    /// The counters by their names in the status report.
    pub(super) fn by_name(&self) -> Vec<(String, u64)> {
        let named = [
            ("connections", self.connections),
            ("records", self.records),
            ("fragments", self.fragments),
            ("bytes", self.bytes),
            ("published", self.published),
            ("delivered", self.delivered),
            ("unmatched", self.unmatched),
            ("dropped", self.dropped.iter().sum()),
            ("aborted", self.aborted),
            ("evicted", self.evicted),
            ("requests", self.requests),
            ("replies", self.replies),
            ("chunks", self.chunks),
            ("cancels", self.cancels),
            ("late", self.late),
            ("parked", self.parked),
            ("violations", self.violations),
            ("poison_messages", self.poisoned),
            ("looks", self.looks),
            ("sleeps", self.sleeps),
        ];
        let failed = Outcome::ALL.iter().map(|o| (format!("failed_{}", o.as_str()), self.failed[*o as usize - 1]));
        named.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(failed).collect()
    }
}

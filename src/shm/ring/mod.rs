//! The ring: records of 1..k contiguous cells from one producer role to one consumer, across processes.
//!
//! ```text
//!            base window                     extension (window: what is leased of it)
//!          ┌────┬────┬────┬─ ─┬────┐        ┌────┬────┬────┬────┬────┬─ ─ ─ ─ ─ ─ ─ ─┐
//!          │tag │tag │ .. │   │    │        │tag │ .. │ .. │tag │    │ (no pages)     │
//!          └────┴────┴────┴─ ─┴────┘        └────┴────┴────┴────┴────┴─ ─ ─ ─ ─ ─ ─ ─┘
//!          ^ a lap may start here           ^ or here                ^ or goes on behind the record before
//! ```
//!
//! The producer counts all cells that it has *claimed*, the consumer all that it has *consumed*; both counts are
//! private. The first word of a record is its tag, `nonce + claimed`, which never occurs twice. So the tag alone
//! identifies the next record, and the consumer looks for it at three positions: behind the last record, at the start
//! of the base window, and at the start of the extension. The producer may therefore start a new *lap* at either start
//! without a notice: wrapping, restarting at cell 0 of a drained ring, growing into the extension and coming back are
//! the same step, and unused cells at the end of a lap cost nothing. `position` decides where a record goes, `producer`
//! and `consumer` read and write it, `signal` is how a side waits. The rules R1–R9 are in `actors.md`; comments name
//! the rule that a line keeps.

mod consumer;
#[cfg(all(any(test, fuzzing), not(lapce_ipc_loom)))]
pub(crate) mod hostile;
#[cfg(all(test, lapce_ipc_loom))]
mod loom_tests;
mod position;
mod producer;
#[cfg(all(test, not(lapce_ipc_loom)))]
mod property_tests;
mod signal;
#[cfg(all(test, not(lapce_ipc_loom)))]
mod stress_tests;

pub(crate) use consumer::{Consumer, Extent, Record};
pub(crate) use position::Plan;
pub(crate) use producer::{Payload, Producer};
pub(crate) use signal::{Signal, publication_fence};

use super::layout::{Geometry, RingName, control};
use super::words::Words;

/// A peer broke the protocol of a ring: its connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// The length in a header is larger than a record may be.
    #[error("record of {len} bytes exceeds the limit of {max}")]
    Length {
        /// The announced payload bytes.
        len: u32,
        /// The largest allowed.
        max: u32,
    },
    /// A record reaches beyond the usable part of the ring.
    #[error("record of {cells} cells at cell {at} exceeds the window of {window} cells")]
    Outside {
        /// First cell of the record.
        at: u32,
        /// Cells of the record.
        cells: u32,
        /// Usable cells of its bank.
        window: u32,
    },
    /// `consumed` is less than before, or more than what was claimed.
    #[error("consumed count {consumed} is not within {last}..={claimed}")]
    Consumed {
        /// The count that the peer published.
        consumed: u64,
        /// The value before.
        last: u64,
        /// The largest claimed count.
        claimed: u64,
    },
}

/// The shared words of one ring, as either side sees them.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    base: Words,
    extension: Words,
    control: Words,
    ids: Ids,
    nonce: u64,
    max_payload: u32,
}

/// Which control words belong to a ring.
#[derive(Clone, Copy, Debug)]
struct Ids {
    consumed: usize,
    window: usize,
    busy: usize,
}

impl Channel {
    /// The ring `name` of a mapped segment. The nonce comes from Welcome.
    pub(crate) fn new(segment: &Words, geometry: &Geometry, name: RingName, nonce: u64) -> Channel {
        let ids = match name {
            RingName::Bulk => {
                Ids { consumed: control::BULK_CONSUMED, window: control::BULK_WINDOW, busy: control::BULK_BUSY }
            }
            RingName::Express => Ids {
                consumed: control::EXPRESS_CONSUMED,
                window: control::EXPRESS_WINDOW,
                busy: control::EXPRESS_BUSY,
            },
            // `busy` is not used in the egress ring: its producer owns the windows and trims between two records.
            RingName::Egress => {
                Ids { consumed: control::EGRESS_CONSUMED, window: control::EGRESS_WINDOW, busy: control::BULK_BUSY }
            }
        };
        Channel {
            base: geometry.base_part(segment, name),
            extension: geometry.extension_part(segment, name),
            control: geometry.control_part(segment),
            ids,
            nonce,
            max_payload: geometry.slot_size(),
        }
    }

    /// A ring on the heap with few cells, for the model checker.
    #[cfg(all(test, lapce_ipc_loom))]
    fn tiny(base_cells: usize, extension_cells: usize) -> Channel {
        use super::layout::CELL_WORDS;
        Channel {
            base: Words::on_heap(base_cells * CELL_WORDS),
            extension: Words::on_heap(extension_cells * CELL_WORDS),
            control: Words::on_heap(3),
            ids: Ids { consumed: 0, window: 1, busy: 2 },
            nonce: 1000,
            max_payload: base_cells as u32 * 128 - 64,
        }
    }

    /// The tag of the record whose first cell is the `claimed`-th (R3).
    #[inline(always)]
    fn tag(&self, claimed: u64) -> u64 {
        self.nonce.wrapping_add(claimed)
    }

    #[inline(always)]
    fn bank(&self, bank: position::Bank) -> &Words {
        match bank {
            position::Bank::Base => &self.base,
            position::Bank::Extension => &self.extension,
        }
    }
}

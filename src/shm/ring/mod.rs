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
//! The producer counts the cells that it ever *claimed*, the consumer those that it ever *consumed*; both counts are
//! private. A record's first word is its tag, `nonce + claimed`, which never comes twice, so a consumer knows its next
//! record by the tag alone and looks for it in three places: behind the last record, at the start of the base window,
//! at the start of the extension. Therefore the producer may start a new *lap* at either start without a message:
//! wrapping round, starting again at cell 0 when the ring is drained, growing into the extension and coming back from
//! it are all the same step, and unused cells at the end of a lap cost nothing. `position` decides where a record goes,
//! `producer` and `consumer` carry it out, `signal` is how either side waits. The rules R1–R9 are in `actors.md`;
//! comments name the rule that a line keeps.

mod consumer;
#[cfg(all(test, lapce_ipc_loom))]
mod loom_tests;
mod position;
mod producer;
#[cfg(all(test, not(lapce_ipc_loom)))]
mod property_tests;
mod signal;
#[cfg(all(test, not(lapce_ipc_loom)))]
mod stress_tests;

pub(crate) use consumer::{Consumer, Record};
pub(crate) use position::Plan;
pub(crate) use producer::{Payload, Producer};
pub(crate) use signal::{Signal, publication_fence};

use super::layout::{Geometry, RingName, control};
use super::words::Words;

/// Why a peer's ring can no longer be used. A peer that causes one has broken the protocol: its connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// A record announces more payload than a record may have.
    #[error("record of {len} bytes exceeds the limit of {max}")]
    Length {
        /// The announced payload bytes.
        len: u32,
        /// The largest allowed.
        max: u32,
    },
    /// A record would reach behind the part of the ring that may be used.
    #[error("record of {cells} cells at cell {at} exceeds the window of {window} cells")]
    Outside {
        /// First cell of the record.
        at: u32,
        /// Cells of the record.
        cells: u32,
        /// Cells that may be used there.
        window: u32,
    },
    /// `consumed` went backwards, or ahead of what was claimed.
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

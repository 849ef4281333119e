//! The layout of a segment.
//!
//! ```text
//!  cell 0        5            5+b          5+2b         5+3b            page-aligned
//!  ┌─────────────┬────────────┬────────────┬────────────┬───────────────┬─────────┬─────────┬────────┐
//!  │ control     │ bulk       │ express    │ egress     │ (padding to a │ bulk    │ express │ egress │
//!  │ words       │ base       │ base       │ base       │  page)        │ extens. │ extens. │ extens.│
//!  └─────────────┴────────────┴────────────┴────────────┴───────────────┴─────────┴─────────┴────────┘
//!     640 bytes     b cells      b cells      b cells                     e cells   e cells   e cells
//! ```
//!
//! A cell has 128 bytes. `b` cells hold one record of `slot_size` payload bytes: with the default of 1024 it is 9, and
//! control words and the three base windows fill exactly one page. Extensions are address space; pages appear in them
//! only as far as the broker has leased them (the *window*).
//!
//! ```text
//!  record: 1..k contiguous cells
//!  ┌─────────┬────────────────┬────────────────────────────────────┐
//!  │ tag     │ 7 header words │ payload, up to slot_size bytes     │
//!  │ 8 bytes │ 56 bytes       │ 64 bytes of it fit into cell 1     │
//!  └─────────┴────────────────┴────────────────────────────────────┘
//! ```
//!
//! A base window holds one record of the largest size. So the router never splits a record, and a connection without a
//! lease can send and receive everything.
//!
//! Words that different sides write never share a cache line. Each side keeps its positions in private memory and only
//! publishes them here; it does not read back its own words.

use super::words::{WORD, Words};

/// Bytes in a cell.
pub(crate) const CELL_BYTES: usize = 128;
/// Bytes of a record's header, the tag included.
pub(crate) const HEADER_BYTES: usize = 64;
/// Words of a record's header after the tag.
pub(crate) const HEADER_WORDS: usize = HEADER_BYTES / WORD - 1;
/// Words in a cell.
pub(crate) const CELL_WORDS: usize = CELL_BYTES / WORD;
/// Bytes in a page, the unit in which memory is leased and given back.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Cells in a page.
pub(crate) const PAGE_CELLS: u32 = (PAGE_BYTES / CELL_BYTES) as u32;
/// Cells of control words.
const CONTROL_CELLS: usize = 5;
/// The largest payload of one record that a configuration may set, in bytes.
pub(crate) const MAX_SLOT_SIZE: u32 = 65536;
/// The limit of an extension in cells: 64 MiB of address space for each ring.
pub(crate) const MAX_EXTENSION_CELLS: u32 = 1 << 19;

/// The indices of the control words, and the side that writes each of them.
pub(crate) mod control {
    /// Cells of the egress ring that the client has consumed (client).
    pub(crate) const EGRESS_CONSUMED: usize = 0;
    /// CPU on which the client's reader waits, plus one (client).
    pub(crate) const CLIENT_CPU: usize = 1;
    /// Cells of the bulk lane that the broker has consumed (broker).
    pub(crate) const BULK_CONSUMED: usize = 8;
    /// Cells of the express lane that the broker has consumed (broker).
    pub(crate) const EXPRESS_CONSUMED: usize = 9;
    /// Set by the broker when it does not poll this connection; swapped to 0 by the client, which then rings.
    pub(crate) const INGRESS_DATA: usize = 16;
    /// Set by the client when its reader sleeps; swapped to 0 by the broker, which then rings.
    pub(crate) const EGRESS_DATA: usize = 24;
    /// Set by a client's thread that waits for space in the bulk lane; swapped to 0 by the broker.
    pub(crate) const BULK_SPACE: usize = 32;
    /// The same for the express lane.
    pub(crate) const EXPRESS_SPACE: usize = 33;
    /// Set by the broker when it waits for space in the egress ring; swapped to 0 by the client.
    pub(crate) const EGRESS_SPACE: usize = 34;
    /// Not 0 while a thread of the client places a record in the express lane (client).
    pub(crate) const EXPRESS_BUSY: usize = 40;
    /// The same for the bulk lane.
    pub(crate) const BULK_BUSY: usize = 48;
    /// Cells of the bulk lane's extension that may be used (broker).
    pub(crate) const BULK_WINDOW: usize = 56;
    /// The same for the express lane.
    pub(crate) const EXPRESS_WINDOW: usize = 57;
    /// The same for the egress ring, where it only tells the client where to look.
    pub(crate) const EGRESS_WINDOW: usize = 58;
    /// CPU on which the router waits, plus one (broker).
    pub(crate) const BROKER_CPU: usize = 59;
    /// A count, odd while the broker holds messages for the client that are newer than those in the egress ring
    /// (broker).
    pub(crate) const EGRESS_NEWER: usize = 60;
    /// The first word that is free.
    pub(crate) const END: usize = 64;
}

const _: () = {
    assert!(control::END <= CONTROL_CELLS * CELL_WORDS);
    assert!(CELL_BYTES.is_multiple_of(64) && HEADER_BYTES + 64 == CELL_BYTES, "64 bytes of payload fill one cell");
    assert!(PAGE_BYTES.is_multiple_of(CELL_BYTES));
    // Light traffic touches one page only.
    assert!(CONTROL_CELLS + 3 * cells_for(1024) as usize == PAGE_CELLS as usize);
};

/// The cells of a record with `payload` bytes.
#[inline(always)]
#[must_use]
pub(crate) const fn cells_for(payload: u32) -> u32 {
    (HEADER_BYTES as u32 + payload).div_ceil(CELL_BYTES as u32)
}

/// Cells that all records of a message of `total` bytes take. At least 1.
#[inline]
#[must_use]
pub(crate) const fn message_cells(total: u32, slot_size: u32) -> u32 {
    if total <= slot_size {
        // Mostly; the division is dearer than the rest.
        return cells_for(total);
    }
    let (whole, rest) = (total / slot_size, total % slot_size);
    let of_rest = if rest > 0 { cells_for(rest) } else { 0 };
    (whole * cells_for(slot_size)).saturating_add(of_rest)
}

/// The credit that a receiver may owe before it must give it back: a quarter of its capacity, but no more than leaves
/// room for one more record.
#[inline]
#[must_use]
pub(crate) const fn credit_step(capacity: u32, slot_size: u32) -> u32 {
    let quarter = capacity / 4;
    let spare = capacity.saturating_sub(cells_for(slot_size)) + 1;
    let step = if quarter < spare { quarter } else { spare };
    if step == 0 { 1 } else { step }
}

/// The credit that a message costs a subscription: its cells, but no more than the credit of a subscription whose owner
/// has returned all that it must. So a message larger than the capacity passes, too, once all before it are taken.
#[inline]
#[must_use]
pub(crate) const fn message_cost(total: u32, slot_size: u32, capacity: u32) -> u32 {
    let cells = message_cells(total, slot_size);
    let most = capacity - (credit_step(capacity, slot_size) - 1);
    if cells < most { cells } else { most }
}

/// One of the three rings of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RingName {
    /// Client to broker: publishes.
    Bulk,
    /// Client to broker: requests, replies, chunks, cancels, credit.
    Express,
    /// Broker to client.
    Egress,
}

impl RingName {
    /// All rings, in their order in a segment.
    #[cfg(test)]
    pub(crate) const ALL: [RingName; 3] = [RingName::Bulk, RingName::Express, RingName::Egress];

    fn place(self) -> usize {
        match self {
            RingName::Bulk => 0,
            RingName::Express => 1,
            RingName::Egress => 2,
        }
    }
}

/// The sizes of a segment. The Welcome carries them; from then on each side has a private copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    slot_size: u32,
    extension_cells: u32,
}

/// Why a geometry is not usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GeometryError {
    /// The slot size is no multiple of 8 or out of range.
    #[error("slot size {0} is not a multiple of 8 in 64..={MAX_SLOT_SIZE}")]
    SlotSize(u32),
    /// The extension is no whole number of pages or too large.
    #[error("extension of {0} cells is not a multiple of {PAGE_CELLS} up to {MAX_EXTENSION_CELLS}")]
    Extension(u32),
}

impl Geometry {
    /// Checks the sizes: `slot_size` in bytes, `extension_cells` for each ring.
    ///
    /// # Errors
    ///
    /// If a size is out of its range.
    pub(crate) fn new(slot_size: u32, extension_cells: u32) -> Result<Geometry, GeometryError> {
        if !(64..=MAX_SLOT_SIZE).contains(&slot_size) || !slot_size.is_multiple_of(WORD as u32) {
            return Err(GeometryError::SlotSize(slot_size));
        }
        if extension_cells > MAX_EXTENSION_CELLS || !extension_cells.is_multiple_of(PAGE_CELLS) {
            return Err(GeometryError::Extension(extension_cells));
        }
        Ok(Geometry { slot_size, extension_cells })
    }

    /// The largest payload of one record, in bytes.
    #[must_use]
    pub(crate) fn slot_size(&self) -> u32 {
        self.slot_size
    }

    /// Cells of each ring's extension.
    #[must_use]
    pub(crate) fn extension_cells(&self) -> u32 {
        self.extension_cells
    }

    /// Cells of each ring's base window: one record of the largest size.
    #[must_use]
    pub(crate) fn base_cells(&self) -> u32 {
        cells_for(self.slot_size)
    }

    /// Bytes of control words and base windows, in whole pages. Their memory is always allocated.
    #[must_use]
    pub(crate) fn base_bytes(&self) -> usize {
        ((CONTROL_CELLS + 3 * self.base_cells() as usize) * CELL_BYTES).next_multiple_of(PAGE_BYTES)
    }

    /// Bytes of the whole segment.
    #[must_use]
    pub(crate) fn segment_bytes(&self) -> usize {
        self.base_bytes() + 3 * self.extension_cells as usize * CELL_BYTES
    }

    /// The offset of `ring`'s extension in the segment, in bytes.
    #[must_use]
    pub(crate) fn extension_offset(&self, ring: RingName) -> usize {
        self.base_bytes() + ring.place() * self.extension_cells as usize * CELL_BYTES
    }

    pub(crate) fn base_part(&self, segment: &Words, ring: RingName) -> Words {
        let cells = self.base_cells() as usize;
        segment.part((CONTROL_CELLS + ring.place() * cells) * CELL_WORDS, cells * CELL_WORDS)
    }

    pub(crate) fn extension_part(&self, segment: &Words, ring: RingName) -> Words {
        segment.part(self.extension_offset(ring) / WORD, self.extension_cells as usize * CELL_WORDS)
    }

    pub(crate) fn control_part(&self, segment: &Words) -> Words {
        segment.part(0, control::END)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_geometry_keeps_light_traffic_on_one_page() {
        let geometry = Geometry::new(1024, 4096).unwrap();
        assert_eq!(geometry.base_bytes(), PAGE_BYTES);
        assert_eq!(geometry.base_cells(), 9);
        assert_eq!(geometry.segment_bytes(), PAGE_BYTES + 3 * 4096 * CELL_BYTES);
    }

    #[test]
    fn sizes_out_of_range_are_named() {
        assert_eq!(Geometry::new(60, 0).unwrap_err().to_string(), "slot size 60 is not a multiple of 8 in 64..=65536");
        assert_eq!(Geometry::new(1028, 0).unwrap_err(), GeometryError::SlotSize(1028));
        assert_eq!(Geometry::new(65544, 0).unwrap_err(), GeometryError::SlotSize(65544));
        assert_eq!(Geometry::new(1024, 33).unwrap_err(), GeometryError::Extension(33));
        assert_eq!(Geometry::new(1024, u32::MAX).unwrap_err(), GeometryError::Extension(u32::MAX));
    }

    #[test]
    fn what_a_receiver_may_owe_never_stops_the_next_message() {
        for capacity in [9, 10, 11, 40, 512, 8192] {
            for total in [0, 64, 1024, 5000, 100_000, 10 << 20] {
                let (cost, step) = (message_cost(total, 1024, capacity), credit_step(capacity, 1024));
                assert!(cost >= 1 && step >= 1);
                assert!(capacity - (step - 1) >= cost, "{capacity} {total}");
                assert!(capacity - (step - 1) >= cells_for(1024).min(capacity), "{capacity}");
            }
        }
        assert_eq!((message_cells(0, 1024), message_cells(64, 1024), message_cells(2049, 1024)), (1, 1, 19));
    }

    #[test]
    fn parts_do_not_overlap() {
        for (slot, extension) in [(64, 0), (1024, 4096), (65536, 32)] {
            let geometry = Geometry::new(slot, extension).unwrap();
            let mut last = CONTROL_CELLS * CELL_BYTES + 3 * geometry.base_cells() as usize * CELL_BYTES;
            assert!(last <= geometry.base_bytes());
            for ring in RingName::ALL {
                assert!(geometry.extension_offset(ring) >= last);
                last = geometry.extension_offset(ring) + geometry.extension_cells() as usize * CELL_BYTES;
            }
            assert_eq!(last.max(geometry.base_bytes()), geometry.segment_bytes());
        }
    }
}

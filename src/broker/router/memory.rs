//! Memory follows what is in flight: leases of the rings' extensions out of the one budget, and taking them back.
//!
//! A lease is made before it is announced: the pages are there, or the window stays as it was.

use super::inlet::Inlet;
use super::outlet::{Doom, Outlet};
use crate::routing::budget::Budget;
use crate::shm::layout::{PAGE_BYTES, PAGE_CELLS, RingName};
use crate::shm::ring::{Producer, Violation};
use crate::shm::segment::Segment;
use crate::wire::control::ClosingCode;

/// Pages beyond its leases that a segment may hold before its client is held to have taken them: a reader that looks
/// for its next record while the window is taken back may touch one page of each extension.
const SLACK_PAGES: u64 = 3;

#[derive(Debug)]
pub(super) struct Memory {
    budget: Budget,
    /// Leases that the system refused.
    pub(super) refused: u64,
}

impl Memory {
    pub(super) fn new(total: u64, most: u32) -> Memory {
        Memory { budget: Budget::new(total, most, PAGE_CELLS), refused: 0 }
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Leases more for an egress ring. `false`: it stays as it is.
    pub(super) fn grow_egress(&mut self, segment: &Segment, egress: &mut Producer) -> bool {
        let Some(next) = self.lease(segment, RingName::Egress, egress.window()) else { return false };
        egress.set_window(next);
        true
    }

    /// Leases more for a lane whose client finds no space.
    pub(super) fn grow_lane(&mut self, segment: &Segment, inlet: &mut Inlet, lane: RingName) {
        let consumer = if lane == RingName::Bulk { &mut inlet.bulk } else { &mut inlet.express };
        if let Some(next) = self.lease(segment, lane, consumer.window()) {
            consumer.grow(next);
        }
    }

    fn lease(&mut self, segment: &Segment, ring: RingName, window: u32) -> Option<u32> {
        let next = self.budget.next_window(window)?;
        if segment.lease(ring, next).is_err() {
            self.refused += 1;
            return None;
        }
        self.budget.change(window, next);
        Some(next)
    }

    /// Takes back what a connection does not use now. Each ring keeps what is in use.
    pub(super) fn trim(&mut self, inlet: &mut Inlet, outlet: &mut Outlet) -> Result<(), Violation> {
        for lane in [RingName::Bulk, RingName::Express] {
            let consumer = if lane == RingName::Bulk { &mut inlet.bulk } else { &mut inlet.express };
            let window = consumer.window();
            if window > 0 && consumer.try_trim()? {
                self.give_back(&outlet.segment, lane, window);
            }
        }
        let window = outlet.egress.window();
        if window > 0 && outlet.egress.is_drained()? {
            outlet.egress.set_window(0);
            self.give_back(&outlet.segment, RingName::Egress, window);
        }
        Ok(())
    }

    fn give_back(&mut self, segment: &Segment, ring: RingName, window: u32) {
        if segment.give_back(ring, window).is_err() {
            self.refused += 1;
        }
        self.budget.change(window, 0);
    }

    /// A connection is gone, and its segment with it.
    pub(super) fn forget(&mut self, windows: u32) {
        self.budget.change(windows, 0);
    }
}

/// Whether a client uses more of its segment than it was given.
pub(super) fn audit(inlet: &Inlet, outlet: &Outlet) -> Result<(), Doom> {
    let geometry = outlet.segment.geometry();
    let leased = u64::from((inlet.windows() + outlet.egress.window()) / PAGE_CELLS);
    let allowed = (geometry.base_bytes() / PAGE_BYTES) as u64 + leased + SLACK_PAGES;
    match outlet.segment.pages() {
        Ok(pages) if pages > allowed => Err(Doom {
            code: ClosingCode::Overuse,
            reason: format!("its segment holds {pages} pages where {allowed} are allowed"),
        }),
        _ => Ok(()),
    }
}

//! Memory follows what is in flight: leases of the rings' extensions out of the one budget, and taking them back.
//!
//! A lease is made before it is announced: the pages are there, or the window stays as it was. What is taken back
//! counts as leased until it is with the system again.

use super::inlet::Inlet;
use super::outlet::{Doom, Outlet};
use super::reclaim::Reclaimer;
use crate::routing::budget::Budget;
use crate::shm::layout::{PAGE_BYTES, PAGE_CELLS, RingName};
use crate::shm::ring::{Consumer, Violation};
use crate::shm::segment::Segment;
use crate::wire::control::ClosingCode;

/// Pages beyond its leases that a segment may hold before its client is held to have taken them: a reader that looks
/// for its next record while the window is taken back may touch one page of each extension.
const SLACK_PAGES: u64 = 3;

#[derive(Debug)]
pub(super) struct Memory {
    budget: Budget,
    reclaimer: Reclaimer,
    refused: u64,
}

impl Memory {
    pub(super) fn new(total: u64, most: u32) -> Memory {
        Memory { budget: Budget::new(total, most, PAGE_CELLS), reclaimer: Reclaimer::default(), refused: 0 }
    }

    /// Cells leased.
    pub(super) fn used(&self) -> u64 {
        self.budget.used() - self.reclaimer.freed()
    }

    /// Cells there are.
    pub(super) fn total(&self) -> u64 {
        self.budget.total()
    }

    /// How often the system refused to lease or to take back.
    pub(super) fn refused(&self) -> u64 {
        self.refused + self.reclaimer.refused()
    }

    /// Leases more for an egress ring. `false`: it stays as it is.
    pub(super) fn grow_egress(&mut self, outlet: &mut Outlet) -> bool {
        if !outlet.may_lease() {
            return false;
        }
        let next = self.lease(&outlet.segment, RingName::Egress, outlet.egress.window());
        if let Some(next) = next {
            outlet.egress.set_window(next);
        }
        next.is_some()
    }

    /// Leases more for a lane whose client finds no space. `false`: it stays as it is.
    pub(super) fn grow_lane(&mut self, outlet: &mut Outlet, lane: RingName, consumer: &mut Consumer) -> bool {
        if !outlet.may_lease() {
            return false;
        }
        let next = self.lease(&outlet.segment, lane, consumer.window());
        if let Some(next) = next {
            consumer.grow(next);
        }
        next.is_some()
    }

    fn lease(&mut self, segment: &Segment, ring: RingName, window: u32) -> Option<u32> {
        self.budget.give_back(self.reclaimer.take_freed());
        let next = self.budget.next_window(window)?;
        if segment.lease(ring, window, next).is_err() {
            self.refused += 1;
            return None;
        }
        self.budget.change(window, next);
        Some(next)
    }

    /// Takes back what a connection does not use now. Each ring keeps what is in use.
    pub(super) fn trim(&mut self, inlet: &mut Inlet, outlet: &mut Outlet) -> Result<(), Violation> {
        if !outlet.may_lease() || !self.reclaimer.has_room() {
            return Ok(());
        }
        let mut rings = Vec::new();
        let mut trimmed = Ok(());
        for (ring, lane) in [(RingName::Bulk, &mut inlet.bulk), (RingName::Express, &mut inlet.express)] {
            let window = lane.window();
            match if window > 0 { lane.try_trim() } else { Ok(false) } {
                Ok(true) => rings.push((ring, window)),
                Ok(false) => {}
                Err(violation) => trimmed = Err(violation),
            }
        }
        let window = outlet.egress.window();
        match if window > 0 { outlet.egress.is_drained() } else { Ok(false) } {
            Ok(true) => {
                outlet.egress.set_window(0);
                rings.push((RingName::Egress, window));
            }
            Ok(false) => {}
            Err(violation) => trimmed = Err(violation),
        }
        if !rings.is_empty() {
            outlet.reclaim = Some(self.reclaimer.start(&outlet.segment, rings));
        }
        trimmed
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

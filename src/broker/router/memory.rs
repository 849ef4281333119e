//! Leases of the rings' extensions out of the shared budget, and their reclaim: memory follows the bytes in flight.
//!
//! Pages are allocated before a lease is announced; if that fails, the window stays as it was. Reclaimed pages count as
//! leased, by the user of their connection, until the system has them back.
//!
//! A window doubles each time, by at most half of what its user may still lease of the budget. The extensions of a
//! connection that has been idle for half a second are taken back; those in use then are looked at again with the
//! audits. An audit compares the pages of each segment with its leases.

use super::connection::CloseReason;
use super::reclaim::{Reclaim, Reclaimers};
use crate::logic::routing::budget::Budget;
use crate::logic::shares::{Principal, ShareLimits, Shares};
use crate::shm::layout::{PAGE_BYTES, PAGE_CELLS, RingName};
use crate::shm::ring::{Consumer, Producer, Violation};
use crate::shm::segment::Segment;
use crate::wire::control::ClosingCode;
use std::sync::Arc;

/// Slack: pages that a segment may exceed its leases by before the client is disconnected for overuse. A reader that
/// looks for its next record while the window is taken back may touch one page of each extension.
const SLACK_PAGES: u64 = 3;

/// The leases of one connection.
#[derive(Debug)]
pub(super) struct Leases {
    pub(super) segment: Arc<Segment>,
    /// The user that they are charged to.
    pub(super) user: Principal,
    /// Pages on their way back to the system.
    reclaim: Option<Reclaim>,
}

impl Leases {
    pub(super) fn new(segment: Arc<Segment>, user: Principal) -> Leases {
        Leases { segment, user, reclaim: None }
    }

    /// Whether extensions may be leased: not while pages of theirs are on their way back to the system.
    fn may_grow(&mut self) -> bool {
        if self.reclaim.as_ref().is_some_and(Reclaim::is_done) {
            self.reclaim = None;
        }
        self.reclaim.is_none()
    }

    /// Cells whose pages are on their way back.
    pub(super) fn pending(&self) -> u64 {
        self.reclaim.as_ref().map_or(0, Reclaim::pending)
    }
}

/// The memory budget of all connections.
#[derive(Debug)]
pub(super) struct Memory {
    budget: Budget,
    reclaimers: Reclaimers,
    refused: u64,
    /// Connections that have got a lease, and are to be looked at when they are idle.
    pub(super) grown: Vec<u32>,
}

impl Memory {
    /// With the cells that users may lease, and the most cells of one ring.
    pub(super) fn new(limits: ShareLimits, most: u32) -> Memory {
        let budget = Budget::new(limits, most, PAGE_CELLS);
        Memory { budget, reclaimers: Reclaimers::default(), refused: 0, grown: Vec::new() }
    }

    /// Cells leased.
    pub(super) fn used(&self) -> u64 {
        self.budget.used() - self.reclaimers.freed()
    }

    /// The cells that users have leased. Some may be given back already, and not be off the books.
    pub(super) fn shares(&self) -> &Shares {
        self.budget.shares()
    }

    /// The same, when what is given back is off the books.
    #[cfg(any(test, fuzzing))]
    pub(super) fn settled_shares(&mut self) -> &Shares {
        self.settle();
        self.budget.shares()
    }

    /// Cells that all users may lease together.
    pub(super) fn total(&self) -> u64 {
        self.budget.total()
    }

    /// Times that a lease was refused, because no slot was free or by the system, or a reclaim by the system.
    pub(super) fn refused(&self) -> u64 {
        self.refused + self.reclaimers.refused()
    }

    /// Whether a user's ring with this window cannot grow for want of free slots.
    pub(super) fn lacks_slots(&self, user: Principal, window: u32) -> bool {
        self.budget.is_short(user, window)
    }

    /// Takes off the books what the system has back.
    fn settle(&mut self) {
        let Memory { budget, reclaimers, .. } = self;
        reclaimers.take_freed(|user, cells| budget.give_back(user, cells));
    }

    /// Leases more for an egress ring. `false`: it stays as it is.
    pub(super) fn grow_egress(&mut self, key: u32, leases: &mut Leases, ring: &mut Producer) -> bool {
        let next = self.lease(key, leases, RingName::Egress, ring.window());
        if let Some(next) = next {
            ring.set_window(next);
        }
        next.is_some()
    }

    /// Leases more for a lane whose client finds no space.
    pub(super) fn grow_lane(&mut self, key: u32, leases: &mut Leases, lane: RingName, consumer: &mut Consumer) {
        if let Some(next) = self.lease(key, leases, lane, consumer.window()) {
            consumer.grow(next);
        }
    }

    fn lease(&mut self, key: u32, leases: &mut Leases, ring: RingName, window: u32) -> Option<u32> {
        if !leases.may_grow() {
            return None;
        }
        self.settle();
        let Some(next) = self.budget.next_window(leases.user, window) else {
            self.refused += u64::from(self.budget.is_short(leases.user, window));
            return None;
        };
        if leases.segment.lease(ring, window, next).is_err() {
            self.refused += 1;
            return None;
        }
        self.budget.lease(leases.user, next - window);
        self.grown.push(key);
        Some(next)
    }

    /// Takes back what a connection does not use now. Each ring keeps what is in use.
    pub(super) fn trim(
        &mut self,
        leases: &mut Leases,
        bulk: &mut Consumer,
        express: &mut Consumer,
        egress: &mut Producer,
    ) -> Result<(), Violation> {
        if !leases.may_grow() || !self.reclaimers.has_room(leases.user) {
            return Ok(());
        }
        let mut closed = Vec::new();
        let trimmed = close_unused(bulk, express, egress, &mut closed);
        // Also if a ring behind them breaks the rules: their windows are gone, and count until their pages are back.
        if !closed.is_empty() {
            leases.reclaim = Some(self.reclaimers.start(leases.user, &leases.segment, closed));
        }
        trimmed
    }

    /// A connection is gone, and its segment with it.
    pub(super) fn forget(&mut self, user: Principal, windows: u32) {
        self.budget.give_back(user, windows.into());
    }
}

/// Closes the windows of rings that do not use them, and lists these with their cells.
fn close_unused(
    bulk: &mut Consumer,
    express: &mut Consumer,
    egress: &mut Producer,
    closed: &mut Vec<(RingName, u32)>,
) -> Result<(), Violation> {
    for (ring, lane) in [(RingName::Bulk, bulk), (RingName::Express, express)] {
        let window = lane.window();
        if window > 0 && lane.try_trim()? {
            closed.push((ring, window));
        }
    }
    let window = egress.window();
    if window > 0 && egress.is_drained()? {
        egress.set_window(0);
        closed.push((RingName::Egress, window));
    }
    Ok(())
}

/// Checks whether a client uses more of its segment than its leases; `lanes` are the cells of its lanes' extensions.
///
/// Pages on their way back count as given until they are gone. What is allowed is settled before the pages are counted:
/// a reclaim that ends in between makes them fewer, and no other thread makes them more.
pub(super) fn audit(lanes: u32, egress: &Producer, leases: &Leases) -> Result<(), CloseReason> {
    let geometry = leases.segment.geometry();
    let leased = (u64::from(lanes + egress.window()) + leases.pending()) / u64::from(PAGE_CELLS);
    let allowed = (geometry.base_bytes() / PAGE_BYTES) as u64 + leased + SLACK_PAGES;
    match leases.segment.pages() {
        Ok(pages) if pages > allowed => Err(CloseReason {
            code: ClosingCode::Overuse,
            reason: format!("segment has {pages} resident pages, {allowed} are allowed"),
        }),
        _ => Ok(()),
    }
}

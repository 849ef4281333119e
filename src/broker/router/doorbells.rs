//! The clients' doorbells: connections that are not polled ring.

use super::connection::CloseReason;
use super::state::RouterState;
use crate::broker::fault;
use crate::wire::control::ClosingCode;
use std::time::Duration;

impl RouterState {
    /// Reads the doorbells that were rung. Returns their number.
    pub(super) fn look(&mut self) -> usize {
        self.look_for(Some(Duration::ZERO))
    }

    /// The same, and waits up to `time` for one (`None`: without end).
    pub(super) fn look_for(&mut self, time: Option<Duration>) -> usize {
        self.ports.counters.looks += 1;
        let (rang, board, has_mail) = (&mut self.rang, &self.board, &mut self.has_mail);
        rang.clear();
        let looked = board.look(time, |key| match key {
            Some(key) => rang.push(key),
            None => *has_mail = true,
        });
        for at in 0..self.rang.len() {
            let key = self.rang[at];
            fault::point("router.bell", u64::from(key));
            self.rang_by(key);
        }
        looked.unwrap_or(0)
    }

    fn rang_by(&mut self, key: u32) {
        let (now, base) = (self.ports.now, self.ports.settings.geometry.base_cells());
        let most = self.ports.settings.max_rings_without_progress;
        // A ring that the router asked for, waiting for space, brings no record and is no fault, if there is space now.
        let asked = self.ports.egresses.has_made_space(key);
        let Some(ingress) = self.ports.ingress_mut(key) else { return };
        ingress.rings += u32::from(!asked);
        // Nor is one for a record that lies behind one that must wait: there are no more of them than cells.
        let behind = if ingress.parked.is_some() { base + ingress.bulk.window() } else { 0 };
        let most = most.saturating_add(behind);
        if ingress.rings > most {
            if now - ingress.rings_since < 1_000_000_000 {
                let reason = format!("{} doorbell rings in a second without a record", ingress.rings);
                self.ports.egresses.pending_close.push((key, CloseReason { code: ClosingCode::Overuse, reason }));
            } else {
                (ingress.rings, ingress.rings_since) = (0, now);
            }
        }
        self.ports.schedule.wake(key);
        if self.pubsub.pump(&mut self.ports, key) {
            self.ports.retry_waiters(key);
        }
        self.pubsub.tell_late_drops(&mut self.ports, key);
    }
}

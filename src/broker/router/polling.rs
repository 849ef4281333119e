//! Who is polled, who rings, and whether waiting awake can pay.
//!
//! A *quiet* connection is polled in memory; a *cold* one has its flag armed and rings. Going from one to the other:
//! arm the flag, fence, look once more (R8).

use super::connection::CloseReason;
use super::egress::MOST_WOKEN;
use super::state::RouterState;
use crate::broker::fault;
use crate::wire::control::ClosingCode;
use std::time::Duration;

/// What spinning for the next record would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spinning {
    /// Nobody is awake who could send one soon.
    IsVain,
    /// A client that we have woken needs the CPU.
    IsInTheWay,
    /// It may come sooner than we could sleep and wake.
    CanPay,
}

impl RouterState {
    /// Looks who has rung. Answers how many.
    pub(super) fn look(&mut self) -> usize {
        self.look_for(Some(Duration::ZERO))
    }

    /// The same, and waits up to `time` if nobody has (`None`: no end).
    pub(super) fn look_for(&mut self, time: Option<Duration>) -> usize {
        self.counters.looks += 1;
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
        let (now, base) = (self.now, self.settings.geometry.base_cells());
        let most = self.settings.max_rings_without_progress;
        // One that we asked for, when we wait for space, brings no record and is no fault, if there is space now.
        let asked = self.egresses.has_made_space(key);
        let Some(ingress) = self.ingress_mut(key) else { return };
        ingress.rings += u32::from(!asked);
        // Nor is one for a record that lies behind one that must wait: there are no more of them than cells.
        let behind = if ingress.parked.is_some() { base + ingress.bulk.window() } else { 0 };
        let most = most.saturating_add(behind);
        if ingress.rings > most {
            if now - ingress.rings_since < 1_000_000_000 {
                let reason = format!("it rang {} times in a second without sending anything", ingress.rings);
                self.egresses.pending_close.push((key, CloseReason { code: ClosingCode::Overuse, reason }));
            } else {
                (ingress.rings, ingress.rings_since) = (0, now);
            }
        }
        self.schedule.wake(key);
        if self.pump(key) {
            self.retry_waiters(key);
        }
        self.tell_late_drops(key);
    }

    /// Polls the quiet connections. Answers whether one has something.
    pub(super) fn poll_quiet(&mut self) -> bool {
        let mut any = false;
        let mut at = 0;
        while let Some(&key) = self.schedule.quiet().get(at) {
            let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else {
                self.schedule.mark_cold(key);
                continue;
            };
            if ingress.has_something() {
                any = true;
                self.schedule.wake(key);
            } else {
                at += 1;
            }
        }
        any
    }

    /// Stops polling `key`: arms its flag, then looks once more (R8).
    pub(super) fn cool(&mut self, key: u32) {
        self.schedule.mark_cold(key);
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else { return };
        ingress.data.arm();
        if ingress.has_something() {
            ingress.data.disarm();
            self.schedule.wake(key);
        }
    }

    /// Before the router sleeps: nobody is polled any more. Answers whether it may sleep.
    pub(super) fn cool_all(&mut self) -> bool {
        self.egresses.woken.clear();
        while let Some(&key) = self.schedule.quiet().first() {
            self.cool(key);
        }
        self.schedule.is_idle()
    }

    /// Whether spinning on `own_cpu` can pay: some client that is polled is awake on another CPU, and nobody whom we
    /// have woken needs our CPU, or that of one who spins, to run on.
    pub(super) fn spinning_can_pay(&self, own_cpu: usize) -> Spinning {
        let egresses = || self.schedule.quiet().iter().filter_map(|key| Some((*key, self.egresses.get(*key)?)));
        let mut awake = egresses().filter(|(_, egress)| egress.client_is_awake());
        if !awake.any(|(_, egress)| egress.cpu.client() != Some(own_cpu)) {
            return Spinning::IsVain;
        }
        let is_crowded = |key: u32| {
            let Some(egress) = self.egresses.get(key).filter(|egress| egress.client_is_awake()) else { return false };
            let cpu = egress.cpu.client();
            cpu == Some(own_cpu)
                || egresses().any(|(other, o)| other != key && o.client_is_awake() && o.cpu.client() == cpu)
        };
        let crowded = self.egresses.woken.len() == MOST_WOKEN || self.egresses.woken.iter().any(|key| is_crowded(*key));
        if crowded { Spinning::IsInTheWay } else { Spinning::CanPay }
    }

    /// Publishes to the quiet clients on which CPU the router waits.
    pub(super) fn publish_cpu(&self, cpu: usize) {
        for key in self.schedule.quiet() {
            if let Some(egress) = self.egresses.get(*key) {
                egress.cpu.set_broker(cpu);
            }
        }
    }
}

//! Polled and sleeping connections, and whether spinning can pay.
//!
//! A *quiet* connection is polled in memory; a *cold* one has its flag armed and rings. Going from one to the other:
//! arm the flag, fence, look once more (R8).

use super::egress::MAX_WOKEN;
use super::ports::Ports;

/// How long a connection is polled after its last record while others have work, in nanoseconds. Each poll of all costs
/// the others time; a ring after so long a silence costs little.
const POLLED_FOR: u64 = 2_000_000;

/// What spinning for the next record would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spinning {
    /// No client that could send one soon is awake.
    IsVain,
    /// A client that we have woken needs the CPU.
    IsInTheWay,
    /// It may come sooner than we could sleep and wake.
    CanPay,
}

impl Ports {
    /// Polls the quiet connections. Returns whether one has a record.
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

    /// While others have work: stops polling the connection that has been quiet longest, if it has been so for long.
    pub(super) fn cool_longest_quiet(&mut self) {
        let Some(&key) = self.schedule.quiet().first() else { return };
        let active_at = self.ingress(key).map_or(0, |ingress| ingress.active_at);
        if self.now.saturating_sub(active_at) > POLLED_FOR {
            self.cool(key);
        }
    }

    /// Before the router sleeps: stops polling. Returns whether it may sleep.
    pub(super) fn cool_all(&mut self) -> bool {
        self.egresses.woken.clear();
        while let Some(&key) = self.schedule.quiet().first() {
            self.cool(key);
        }
        self.schedule.is_idle()
    }

    /// Whether spinning on `own_cpu` can pay: a polled client is awake on another CPU, and no client that the router
    /// has woken needs this CPU, or the CPU of a spinning client.
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
        let crowded = self.egresses.woken.len() == MAX_WOKEN || self.egresses.woken.iter().any(|key| is_crowded(*key));
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

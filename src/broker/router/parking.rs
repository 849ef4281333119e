//! Parked bulk lanes: a publisher waits for credit or space of one connection, or until all bulk lanes are open.
//!
//! A restarted broker holds publishes back until the sessions of the last one are back (`session::roster`). The end of
//! the grace opens the lanes also without an order to open them.

use super::ingress::{NO_CONNECTION, Parked};
use super::journal::Timer;
use super::message::{Message, Wait};
use super::ports::{LaneState, Ports};

impl Ports {
    /// Closes the bulk lanes until `until`, or until the order to open them.
    pub(super) fn close_lanes(&mut self, until: u64) {
        self.lanes_open_at = Some(until);
    }

    /// Opens them.
    pub(super) fn open_lanes(&mut self) {
        if self.lanes_open_at.take().is_none() {
            return;
        }
        for key in 0..self.ingresses.len() as u32 {
            let parked = self.ingress(key).and_then(|ingress| ingress.parked);
            if parked.is_some_and(|parked| parked.on == NO_CONNECTION) {
                self.unpark(key);
            }
        }
    }

    /// The state of the bulk lane of `key` while lanes are closed: it is parked if it has a record. `None`: it is to be
    /// drained, because lanes are open, or for its violation to be found.
    #[inline]
    pub(super) fn closed_lane(&mut self, key: u32) -> Option<LaneState> {
        match self.lanes_open_at {
            None => None,
            Some(until) => self.park_until_open(key, until),
        }
    }

    #[cold]
    fn park_until_open(&mut self, key: u32, until: u64) -> Option<LaneState> {
        if self.now >= until {
            self.open_lanes();
            return None;
        }
        let ingress = self.ingresses[key as usize].as_deref_mut()?;
        match ingress.bulk.peek() {
            Ok(Some(_)) => {
                let timer = self.wheel.set(until, Timer::Parked(key));
                ingress.parked = Some(Parked { timer, on: NO_CONNECTION, message: None, is_grace: false });
                self.counters.parked += 1;
                Some(LaneState::Parked)
            }
            // Not to be looked at again: a record that comes meanwhile would be routed.
            Ok(None) => Some(LaneState::Dry),
            Err(_) => None,
        }
    }

    /// Publishers that were parked on `key` try again, the longest waiting first: the space may suffice for one only.
    pub(super) fn retry_waiters(&mut self, key: u32) {
        let Some(egress) = self.egresses.get_mut(key) else { return };
        let mut waiters = std::mem::take(&mut egress.waiters);
        if waiters.len() > 1 {
            waiters.sort_by_key(|waiter| {
                self.ingress(*waiter).and_then(|ingress| ingress.waiting_on).map(|(_, since)| since)
            });
        }
        for waiter in waiters.drain(..) {
            self.unpark(waiter);
        }
        if let Some(egress) = self.egresses.get_mut(key) {
            egress.waiters = waiters;
        }
    }

    pub(super) fn unpark(&mut self, key: u32) {
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else { return };
        if let Some(parked) = ingress.parked.take() {
            self.wheel.cancel(parked.timer);
            self.schedule.wake(key);
        }
    }

    /// The bulk lane of `key` waits for a connection, to begin `message` or to go on within one.
    pub(super) fn park(&mut self, key: u32, wait: Wait, message: Option<Message>) {
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else { return };
        let on = wait.on;
        let until = wait.until.unwrap_or_else(|| {
            let since = ingress.waiting_on.filter(|(whom, _)| *whom == on).map_or(self.now, |(_, since)| since);
            ingress.waiting_on = Some((on, since));
            since + self.settings.slow_consumer_timeout
        });
        let timer = self.wheel.set(until, Timer::Parked(key));
        ingress.parked = Some(Parked { timer, on, message, is_grace: wait.until.is_some() });
        self.counters.parked += 1;
        if let Some(egress) = self.egresses.get_mut(on) {
            egress.waiters.push(key);
        }
    }
}

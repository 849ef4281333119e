//! Parked bulk lanes: a publisher waits for credit or space of one connection, or until all bulk lanes are open.
//!
//! A restarted broker holds publishes back until the sessions of the last one are back (`session::roster`). The end of
//! the grace opens the lanes also without an order to open them.

use super::ingress::{NO_CONNECTION, Parked};
use super::journal::Timer;
use super::message::{Message, Wait};
use super::ports::{LaneState, Ports};
use crate::logic::patience::{Account, Process};
use crate::logic::shares::Principal;

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
                ingress.parked = Some(Parked {
                    timer,
                    on: NO_CONNECTION,
                    message: None,
                    until,
                    is_grace: false,
                    accounts: [None; 2],
                });
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
        if let Some(parked) = self.take_parked(key) {
            self.wheel.cancel(parked.timer);
            self.schedule.wake(key);
        }
    }

    /// The bulk lane of `key` waits no more.
    pub(super) fn take_parked(&mut self, key: u32) -> Option<Parked> {
        let parked = self.ingresses[key as usize].as_deref_mut()?.parked.take()?;
        for account in parked.accounts.into_iter().flatten() {
            self.patience.end(account, self.now);
        }
        Some(parked)
    }

    /// Whether a publisher of `user` may wait for `on` without a timeout of its own: for a grace, or for time.
    pub(super) fn may_wait(&mut self, user: Principal, on: u32) -> bool {
        let Some(process) = self.process(on) else { return false };
        let of_others = (user != process.user).then_some(Account::User(process.user));
        let mut accounts = [Some(Account::Graces(process)), of_others].into_iter().flatten();
        accounts.all(|account| self.patience.left(account, self.now) > 0)
    }

    /// Whether the timeouts of the connection `on` are used up for a publisher of `user`.
    pub(super) fn is_impatient(&mut self, user: Principal, on: u32) -> bool {
        let Some(process) = self.process(on) else { return false };
        let is_others = user != process.user;
        self.patience.timeout(process, self.settings.slow_consumer_timeout, self.now) == 0
            || (is_others && self.patience.left(Account::User(process.user), self.now) == 0)
    }

    /// The process of a connection.
    pub(super) fn process(&self, key: u32) -> Option<Process> {
        let info = &self.ingress(key)?.info;
        Some(Process { user: info.principal, number: if info.peer.pid == 0 { info.id } else { info.peer.pid } })
    }

    /// The bulk lane of `key` waits for a connection, to begin `message` or to go on within one.
    pub(super) fn park(&mut self, key: u32, wait: Wait, message: Option<Message>) {
        let on = wait.on;
        let process = self.process(on);
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else { return };
        let mut until = wait.until.unwrap_or_else(|| {
            let since = ingress.waiting_on.filter(|(whom, _)| *whom == on).map_or(self.now, |(_, since)| since);
            ingress.waiting_on = Some((on, since));
            let timeout = self.settings.slow_consumer_timeout;
            since + process.map_or(timeout, |process| self.patience.timeout(process, timeout, self.now))
        });
        let is_grace = wait.until.is_some();
        let of_others = process.map(|process| process.user).filter(|user| *user != ingress.info.principal);
        let accounts = [of_others.map(Account::User), process.filter(|_| is_grace).map(Account::Graces)];
        for account in accounts.into_iter().flatten() {
            until = until.min(self.now + self.patience.begin(account, self.now));
        }
        let timer = self.wheel.set(until, Timer::Parked(key));
        ingress.parked = Some(Parked { timer, on, message, until, is_grace, accounts });
        self.counters.parked += 1;
        if let Some(egress) = self.egresses.get_mut(on) {
            egress.waiters.push(key);
        }
    }
}

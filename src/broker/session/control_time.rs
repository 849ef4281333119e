//! The shell around `logic::control_time`: connections wait here for the account of their user.

use crate::broker::clock::elapsed;
use crate::logic::control_time::{self, ControlTime};
use crate::logic::shares::Principal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest time between two looks at an account: when the other users leave, a user need not wait any more.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The accounts of all users.
#[derive(Debug)]
pub(in crate::broker) struct ControlAccounts {
    users: Mutex<ControlTime>,
    epoch: Instant,
}

/// A connection whose socket is served.
#[derive(Debug)]
pub(super) struct Customer<'a> {
    accounts: &'a ControlAccounts,
    user: Principal,
}

impl ControlAccounts {
    pub(in crate::broker) fn new() -> ControlAccounts {
        ControlAccounts { users: Mutex::default(), epoch: Instant::now() }
    }

    /// A connection of a user, until the returned value is dropped. `percent` of the router's time is the user's.
    pub(super) fn enters(&self, user: Principal, percent: u32) -> Customer<'_> {
        self.lock().enters(user, control_time::share(percent), self.now());
        Customer { accounts: self, user }
    }

    fn now(&self) -> u64 {
        elapsed(self.epoch)
    }

    fn lock(&self) -> MutexGuard<'_, ControlTime> {
        // No change panics half way.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Customer<'_> {
    /// Waits until a request may be carried out.
    pub(super) async fn may_ask(&self, percent: u32) {
        let share = control_time::share(percent);
        loop {
            let now = self.accounts.now();
            let Some(until) = self.accounts.lock().waits_until(self.user, share, now) else { return };
            tokio::time::sleep(Duration::from_nanos(until.saturating_sub(now)).min(LOOK_EVERY)).await;
        }
    }

    /// A request was carried out, in so many nanoseconds of the router's time.
    pub(super) fn pays(&self, nanos: u64) {
        self.accounts.lock().pays(self.user, nanos);
    }
}

impl Drop for Customer<'_> {
    fn drop(&mut self) {
        self.accounts.lock().leaves(self.user);
    }
}

//! How long publishers wait for slow consumers, as far as these belong to one user or one process.
//!
//! 1. Publishers of other users wait for a user's subscriptions for a limited time in each [`PERIOD`], all waits
//!    together; waits at the same time count once. It is a token bucket, so a user that has caused no wait for a period
//!    has all of it. When it is used up, a subscription that makes a publisher wait is evicted at once.
//! 2. Publishes wait for all `drop_*` subscriptions of a process for a tenth of the time, by the same rule. (One
//!    subscription is bounded by `routing::grace`; a process may have many.)
//! 3. Publishers of the same user wait for the slow consumer timeout. Each eviction halves that for the process
//!    that was evicted, and a [`PERIOD`] without one doubles it again. So a process that subscribes anew after each
//!    eviction soon delays nothing.
//! 4. An eviction costs its user [`EVICTION`] of control time (`control_time`), and each further one of the process
//!    twice as much. So while other users are connected, coming back takes exponentially longer.

use super::halvings::{Halvings, PERIOD};
use super::shares::Principal;
use std::collections::HashMap;

/// How long publishes wait for the `drop_*` subscriptions of one process in a period.
const GRACES: u64 = PERIOD / 10;
/// The shortest wait that is begun.
const PIECE: i64 = 5_000_000;
/// Processes that are remembered. Beyond that, the one whose timeout was longest ago is forgotten.
const MAX_PROCESSES: usize = 256;
/// What the first eviction of a process costs its user.
const EVICTION: u64 = 1_000_000;
/// The most that one costs is that doubled so often: half a second.
const MAX_DOUBLINGS: u32 = 9;
/// Beyond that many halvings nothing is left of any timeout.
const MAX_HALVINGS: u32 = 63;

/// A process: its user and its number, or that of its connection where the process is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) user: Principal,
    pub(crate) number: u32,
}

/// What a wait is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Account {
    /// Of a publisher of another user.
    User(Principal),
    /// Of a publish that a subscription would drop otherwise.
    Graces(Process),
}

/// Waits by their accounts, and timeouts of each process. Times are nanoseconds.
#[derive(Debug)]
pub(crate) struct Patience {
    /// How long publishers of other users wait in a period.
    most: u64,
    accounts: HashMap<Account, Waits>,
    processes: HashMap<Process, Halvings>,
}

#[derive(Clone, Copy, Debug)]
struct Waits {
    /// Below zero: a wait ended later than it should have, and is made up for.
    left: i64,
    counted_at: u64,
    /// Publishers that wait now.
    waiting: u32,
}

impl Patience {
    /// Of so many nanoseconds in a period.
    pub(crate) fn new(most: u64) -> Patience {
        Patience { most: most.min(PERIOD), accounts: HashMap::new(), processes: HashMap::new() }
    }

    /// Sets another limit.
    pub(crate) fn adopt(&mut self, most: u64) {
        self.most = most.min(PERIOD);
    }

    fn most(&self, account: Account) -> u64 {
        match account {
            Account::User(_) => self.most,
            Account::Graces(_) => GRACES,
        }
    }

    /// A publisher begins to wait. Returns how long it may.
    pub(crate) fn begin(&mut self, account: Account, now: u64) -> u64 {
        let most = self.most(account);
        let waits =
            self.accounts.entry(account).or_insert(Waits { left: most.cast_signed(), counted_at: now, waiting: 0 });
        waits.count(most, now);
        waits.waiting += 1;
        waits.left.max(0).unsigned_abs()
    }

    /// It waits no more.
    pub(crate) fn end(&mut self, account: Account, now: u64) {
        let most = self.most(account);
        let Some(waits) = self.accounts.get_mut(&account) else { return };
        waits.count(most, now);
        waits.waiting = waits.waiting.saturating_sub(1);
        if waits.waiting == 0 && waits.left == most.cast_signed() {
            self.accounts.remove(&account);
        }
    }

    /// How long publishers may wait now.
    pub(crate) fn left(&mut self, account: Account, now: u64) -> u64 {
        let most = self.most(account);
        let Some(waits) = self.accounts.get_mut(&account) else { return most };
        waits.count(most, now);
        // A wait takes a tick of the timers at least, so what is left is used in pieces that are worth the while.
        if waits.left < PIECE.min(most.cast_signed()) { 0 } else { waits.left.unsigned_abs() }
    }

    /// A subscription of `process` was evicted. Returns what that costs its user of control time.
    pub(crate) fn evicted(&mut self, process: Process, now: u64) -> u64 {
        if self.processes.len() >= MAX_PROCESSES
            && !self.processes.contains_key(&process)
            && let Some(oldest) = self.processes.iter().min_by_key(|(_, halvings)| halvings.at()).map(|(key, _)| *key)
        {
            self.processes.remove(&oldest);
        }
        let halvings = self.processes.entry(process).or_default();
        let cost = EVICTION << halvings.count(now).min(MAX_DOUBLINGS);
        halvings.halve(MAX_HALVINGS, now);
        cost
    }

    /// What is left of the slow consumer timeout for `process`.
    pub(crate) fn timeout(&mut self, process: Process, timeout: u64, now: u64) -> u64 {
        if self.processes.is_empty() {
            return timeout;
        }
        let Some(halvings) = self.processes.get_mut(&process) else { return timeout };
        let count = halvings.count(now);
        if count == 0 {
            self.processes.remove(&process);
        }
        timeout >> count
    }
}

impl Waits {
    fn count(&mut self, most: u64, now: u64) {
        let passed = now.saturating_sub(self.counted_at);
        let used = if self.waiting > 0 { passed } else { 0 };
        let filled = u128::from(passed) * u128::from(most) / u128::from(PERIOD);
        // Otherwise small pieces of time would be rounded away.
        if filled > 0 || used > 0 {
            self.counted_at = now;
            let left = self.left.saturating_add_unsigned(filled as u64).saturating_sub_unsigned(used);
            self.left = left.clamp(-most.cast_signed(), most.cast_signed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::shares::uid;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;
    const USER: Account = Account::User(uid(7));
    const ONE: Process = Process { user: uid(7), number: 1 };

    #[test]
    fn waits_use_up_the_time_and_a_period_gives_it_back() {
        let mut patience = Patience::new(500 * MS);
        assert_eq!(patience.begin(USER, 0), 500 * MS);
        assert_eq!(patience.begin(USER, 100 * MS), 405 * MS, "a part is filled meanwhile");
        patience.end(USER, 200 * MS);
        patience.end(USER, 300 * MS);
        assert_eq!(patience.left(USER, 300 * MS), 215 * MS, "two waits at a time count once");
        assert_eq!(patience.left(Account::User(uid(8)), 300 * MS), 500 * MS, "another user is another account");
        assert_eq!(patience.begin(USER, 300 * MS), 215 * MS);
        assert_eq!(patience.left(USER, 2000 * MS), 0);
        patience.end(USER, 2000 * MS);
        assert_eq!(patience.left(USER, 2000 * MS + 2 * PERIOD), 500 * MS);
        patience.begin(USER, 2000 * MS + 2 * PERIOD);
        patience.end(USER, 2000 * MS + 2 * PERIOD);
        assert!(patience.accounts.is_empty(), "a full account is forgotten");
    }

    #[test]
    fn the_graces_of_a_process_have_an_account_of_their_own() {
        let mut patience = Patience::new(500 * MS);
        assert_eq!(patience.begin(Account::Graces(ONE), 0), GRACES);
        assert_eq!(patience.left(Account::Graces(ONE), 2 * GRACES), 0);
        assert_eq!(patience.left(Account::User(ONE.user), 2 * GRACES), 500 * MS);
    }

    #[test]
    fn each_timeout_halves_the_timeout_and_quiet_periods_restore_it() {
        let mut patience = Patience::new(0);
        assert_eq!(patience.timeout(ONE, 1000, 0), 1000);
        (0..3).for_each(|at| _ = patience.evicted(ONE, at));
        assert_eq!(patience.timeout(ONE, 1000, 3), 125);
        assert_eq!(patience.timeout(Process { number: 2, ..ONE }, 1000, 3), 1000);
        assert_eq!(patience.timeout(ONE, 1000, 2 + PERIOD), 250);
        patience.evicted(ONE, 3 + PERIOD);
        assert_eq!(patience.timeout(ONE, 1000, 3 + PERIOD), 125);
        assert_eq!(patience.timeout(ONE, 1000, 3 + 4 * PERIOD), 1000);
        assert!(patience.processes.is_empty());
        (0..1000).for_each(|_| _ = patience.evicted(ONE, 4 * PERIOD));
        assert_eq!(patience.timeout(ONE, u64::MAX, 4 * PERIOD), 1);
    }

    #[test]
    fn each_eviction_of_a_process_costs_twice_as_much_as_the_last() {
        let mut patience = Patience::new(0);
        let costs: Vec<u64> = (0..12).map(|at| patience.evicted(ONE, at) / MS).collect();
        assert_eq!(costs, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512, 512]);
        assert_eq!(patience.evicted(Process { number: 2, ..ONE }, 12), MS);
        assert_eq!(patience.evicted(ONE, 11 + 10 * PERIOD), 4 * MS, "ten quiet periods");
    }

    #[test]
    fn few_processes_are_remembered() {
        let mut patience = Patience::new(0);
        for number in 0..1000 {
            patience.evicted(Process { user: uid(7), number }, u64::from(number));
        }
        assert_eq!(patience.processes.len(), MAX_PROCESSES);
        assert_eq!(patience.timeout(Process { user: uid(7), number: 999 }, 100, 1000), 50);
        assert_eq!(patience.timeout(Process { user: uid(7), number: 1 }, 100, 1000), 100);
    }

    proptest! {
        /// Publishers wait as long as they may, whenever they may.
        #[test]
        fn waits_are_bounded(
            most in 0..PERIOD,
            pauses in prop::collection::vec((0..2 * PERIOD, any::<bool>()), 1..50),
        ) {
            let (mut patience, mut now, mut waited) = (Patience::new(most), 0, 0);
            for (pause, is_cut) in pauses {
                now += pause;
                let may = patience.begin(USER, now);
                let waits = if is_cut { may / 2 } else { may };
                now += waits;
                waited += waits;
                patience.end(USER, now);
            }
            let bound = u128::from(most) + u128::from(now) * u128::from(most) / u128::from(PERIOD);
            prop_assert!(u128::from(waited) <= bound, "{} of {}", waited, bound);
        }
    }
}

//! Control requests of users: each user pays for the router's time that its requests take.
//!
//! While clients of one user alone are connected, nothing is counted: there is no other user to protect. While there
//! are several, each has an account (`work`) for all of its connections together, and a user whose account is overdrawn
//! waits. A full account holds the share of [`WINDOW`], so that a client that names thousands of topics at its start
//! does not wait.

use super::shares::Principal;
use super::work::{WorkAccount, WorkShare};
use std::collections::HashMap;

/// An account holds the share of so much time, in nanoseconds.
const WINDOW: u64 = 2_000_000_000;
/// What each request costs beside the time that the router takes for it: three threads are woken, and a worker reads
/// the request and writes the reply, which takes the processor from the router or from clients. Measured where every
/// core is busy: up to 115 µs in a virtual machine.
const REQUEST: u64 = 50_000;
/// Bytes of a page that cost as much as a nanosecond: they are copied, and written to the client's socket.
const PAGE_BYTES: u64 = 4;

/// The part of the router's time that the control requests of one user may take, in percent.
pub(crate) fn share(percent: u32) -> WorkShare {
    WorkShare { percent, window: WINDOW }
}

/// What the page of a status costs, whose making others may have paid for.
pub(crate) fn cost_of_page(bytes: usize) -> u64 {
    bytes as u64 / PAGE_BYTES
}

/// The accounts of the users that have clients, and of those that left with an account that is not full.
#[derive(Debug, Default)]
pub(crate) struct ControlTime {
    users: HashMap<Principal, User>,
    /// Users that have clients.
    present: usize,
}

#[derive(Debug)]
struct User {
    clients: usize,
    account: WorkAccount,
}

impl ControlTime {
    /// A client of a user is connected.
    pub(crate) fn enters(&mut self, user: Principal, share: WorkShare, now: u64) {
        self.users.retain(|_, user| user.clients > 0 || !user.account.is_full(share, now));
        let found =
            self.users.entry(user).or_insert_with(|| User { clients: 0, account: WorkAccount::new(share, now) });
        found.clients += 1;
        self.present += usize::from(found.clients == 1);
    }

    /// It is not any more.
    pub(crate) fn leaves(&mut self, user: Principal) {
        if let Some(user) = self.users.get_mut(&user) {
            user.clients -= 1;
            self.present -= usize::from(user.clients == 0);
        }
    }

    /// When the next request of a user may be carried out; `None`: at once.
    pub(crate) fn waits_until(&mut self, user: Principal, share: WorkShare, now: u64) -> Option<u64> {
        if self.present < 2 {
            return None;
        }
        let account = &mut self.users.get_mut(&user)?.account;
        if account.has_time(share, now) { None } else { Some(account.next(share)) }
    }

    /// A request of a user was carried out, in so many nanoseconds of the router's time.
    pub(crate) fn pays(&mut self, user: Principal, nanos: u64) {
        if self.present < 2 {
            return;
        }
        if let Some(user) = self.users.get_mut(&user) {
            user.account.pay(nanos.saturating_add(REQUEST));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::shares::uid;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;
    const FIVE: WorkShare = WorkShare { percent: 5, window: WINDOW };

    /// Lets a user send requests without end until `until`; returns the router's time that they took.
    fn storm(time: &mut ControlTime, user: Principal, mut now: u64, until: u64, each: u64) -> u64 {
        let mut taken = 0;
        while now < until {
            match time.waits_until(user, FIVE, now) {
                Some(next) => now = next,
                None => {
                    time.pays(user, each);
                    (taken, now) = (taken + each, now + each);
                }
            }
        }
        taken
    }

    #[test]
    fn a_user_that_is_alone_does_not_wait() {
        let mut time = ControlTime::default();
        time.enters(uid(7), FIVE, 0);
        time.enters(uid(7), FIVE, 0);
        assert_eq!(storm(&mut time, uid(7), 0, 5_000 * MS, 100_000), 5_000 * MS);
        time.enters(uid(8), FIVE, 5_000 * MS);
        assert_eq!(time.waits_until(uid(7), FIVE, 5_000 * MS), None, "what it did alone was free");
        let taken = storm(&mut time, uid(7), 5_000 * MS, 6_000 * MS, 100_000);
        // 100 ms saved up, and 5 % of a second.
        let most = 150 * MS * 100_000 / (100_000 + REQUEST);
        assert!((most * 9 / 10..=most + MS).contains(&taken), "{taken} of {most}");
        assert!(time.waits_until(uid(7), FIVE, 6_000 * MS).is_some());
        assert_eq!(time.waits_until(uid(8), FIVE, 6_000 * MS), None, "another user does not");
        time.leaves(uid(8));
        assert_eq!(time.waits_until(uid(7), FIVE, 6_000 * MS), None, "alone again");
    }

    #[test]
    fn a_user_that_comes_again_has_not_paid() {
        let mut time = ControlTime::default();
        time.enters(uid(7), FIVE, 0);
        time.enters(uid(8), FIVE, 0);
        time.pays(uid(7), 150 * MS);
        time.leaves(uid(7));
        time.enters(uid(7), FIVE, MS);
        assert!(time.waits_until(uid(7), FIVE, MS).is_some());
        time.leaves(uid(7));
        time.enters(uid(8), FIVE, 10_000 * MS);
        assert_eq!(time.users.len(), 1, "a full account need not be kept");
    }

    proptest! {
        #[test]
        fn a_user_takes_its_share_and_delays_no_other(
            each in 1_000u64..3_000_000, connections in 1usize..4, seconds in 1u64..20,
        ) {
            let mut time = ControlTime::default();
            time.enters(uid(8), FIVE, 0);
            for _ in 0..connections {
                time.enters(uid(7), FIVE, 0);
            }
            let until = seconds * 1_000 * MS;
            let taken = storm(&mut time, uid(7), 0, until, each);
            prop_assert!(taken <= (WINDOW + until) / 20 + each, "{taken}");
            prop_assert_eq!(time.waits_until(uid(8), FIVE, until), None);
        }
    }
}

//! Permits of connections: how many a user holds, and how fast it takes them. Pure: time is an argument.
//!
//! 1. **Connections.** Each accepted socket takes a permit of its user before it has said anything. The session that
//!    it opens keeps it until its end, also while it is detached (S8 in `actors.md`). A user holds at most its share.
//! 2. **Resumes.** A user at its share whose client may return for a detached session takes one of a few permits for
//!    that. Such a socket can only resume. A resume by any socket gives its permit back: the session has one already.
//! 3. **Refusals.** Any other socket is refused. A few per user wait for that; further ones are closed without a
//!    reason.
//! 4. **Pace.** While clients of other users are connected, each socket costs its user [`COST`] of the broker's time,
//!    of which the user has a share (`logic::work`). When that is used up, the socket waits for its turn. It has its
//!    permit meanwhile, so the number of those that wait is bounded. A user that is alone never waits.
//!
//! A user is a uid here, and in no quota: a client tells its name, on which its quota depends, after that.
//!
//! What the broker dials is configured, so it belongs to no user but to the broker, and never waits.

use crate::logic::shares::{BROKER, Principal, ShareLimits, ShareReached, Shares};
use crate::logic::work::{WorkAccount, WorkShare};
use std::collections::HashMap;

/// What a permit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PermitKind {
    /// A connection, and the session that it opens.
    Connection,
    /// A socket beyond its user's share, which may only resume.
    Resume,
    /// A socket that is to be refused.
    Refusal,
}

/// Sockets of one user beyond its share that may resume at a time, and as many that are refused at a time.
const BEYOND: usize = 16;
/// The time of the broker's threads that a connection takes, from accept to end: 205 microseconds were measured, of a
/// client that connects, says Hello and leaves, 3,600 times in a second. A refused socket takes less.
const COST: u64 = 200_000;
/// What a user saves up is its share of this time: with 5 % it is the time of 1,250 connections.
const SAVED: u64 = 5_000_000_000;
/// Users with an account of their own; the others have one together.
const MAX_ACCOUNTS: usize = 256;

/// The permits of all users. Times are nanoseconds.
#[derive(Debug)]
pub(crate) struct Permits {
    connections: Shares,
    resumes: Shares,
    refusals: Shares,
    accounts: HashMap<Principal, WorkAccount>,
}

impl Permits {
    /// One user alone may hold `each` permits for connections.
    pub(crate) fn new(each: usize, percent: u32) -> Permits {
        let shares = |each| Shares::new(ShareLimits::of_one(each, percent));
        Permits {
            connections: shares(each),
            resumes: shares(BEYOND),
            refusals: shares(BEYOND),
            accounts: HashMap::new(),
        }
    }

    /// A socket of `user` takes a permit.
    ///
    /// # Errors
    ///
    /// If the user holds its share already.
    pub(crate) fn take(&mut self, kind: PermitKind, user: Principal) -> Result<(), ShareReached> {
        self.of(kind).take(user)
    }

    /// A permit that was taken is given back.
    pub(crate) fn give_back(&mut self, kind: PermitKind, user: Principal) {
        self.of(kind).give_back(user);
    }

    fn of(&mut self, kind: PermitKind) -> &mut Shares {
        match kind {
            PermitKind::Connection => &mut self.connections,
            PermitKind::Resume => &mut self.resumes,
            PermitKind::Refusal => &mut self.refusals,
        }
    }

    /// A socket of `user` pays for what it costs, out of `percent` of the time. Returns when its turn is.
    pub(crate) fn pay(&mut self, user: Principal, percent: u32, now: u64) -> u64 {
        let share = WorkShare { percent, window: SAVED };
        if user == BROKER || !self.has_others(user) {
            return now;
        }
        if self.accounts.len() >= MAX_ACCOUNTS && !self.accounts.contains_key(&user) {
            self.accounts.retain(|_, account| !account.is_full(share, now));
        }
        let has_own = self.accounts.len() < MAX_ACCOUNTS || self.accounts.contains_key(&user);
        let account = self.accounts.entry(if has_own { user } else { BROKER });
        let account = account.or_insert_with(|| WorkAccount::new(share, now));
        let turn = if account.has_time(share, now) { now } else { account.next(share) };
        account.pay(COST);
        turn
    }

    /// Whether other users than this one, and than the broker, have connections.
    pub(crate) fn has_others(&self, user: Principal) -> bool {
        self.connections.users().any(|(other, _)| ![user, BROKER].contains(&other))
    }

    /// The connections of all users.
    pub(crate) fn connections(&self) -> &Shares {
        &self.connections
    }
}

#[cfg(test)]
mod tests {
    use super::PermitKind::{Connection, Refusal, Resume};
    use super::*;
    use crate::logic::shares::uid;
    use proptest::prelude::*;

    const PERCENT: u32 = 5;
    const SECOND: u64 = 1_000_000_000;

    fn takes_all(permits: &mut Permits, kind: PermitKind, user: Principal) -> usize {
        (0..).take_while(|_| permits.take(kind, user).is_ok()).count()
    }

    #[test]
    fn what_one_user_takes_leaves_permits_of_each_kind_to_others() {
        let mut permits = Permits::new(900, 90);
        assert_eq!([7, 8, 9].map(|user| takes_all(&mut permits, Connection, uid(user))), [900, 90, 9]);
        assert_eq!(permits.take(Connection, uid(7)), Err(ShareReached { user: uid(7), most: 811 }));
        assert_eq!([7, 8, 9].map(|user| takes_all(&mut permits, Resume, uid(user))), [16, 2, 0]);
        assert_eq!([7, 8].map(|user| takes_all(&mut permits, Refusal, uid(user))), [16, 2]);
        permits.give_back(Connection, uid(9));
        permits.give_back(Resume, uid(8));
        assert_eq!(permits.connections().held(), 998);
        assert_eq!((permits.take(Connection, uid(9)), permits.take(Resume, uid(8))), (Ok(()), Ok(())));
    }

    #[test]
    fn a_user_waits_for_its_turn_only_beside_others() {
        let mut permits = Permits::new(1_000, 90);
        permits.take(Connection, uid(7)).unwrap();
        permits.take(Connection, BROKER).unwrap();
        assert!((0..100_000).all(|_| permits.pay(uid(7), PERCENT, 5) == 5), "it is alone");
        permits.take(Connection, uid(8)).unwrap();
        let turns: Vec<u64> = (0..1_500).map(|_| permits.pay(uid(7), PERCENT, SECOND)).collect();
        let at_once = turns.iter().filter(|turn| **turn == SECOND).count();
        assert_eq!(at_once, 1_250);
        assert!(turns.is_sorted());
        let each = COST * 100 / 5;
        assert_eq!(turns[1_499] / 1000, (SECOND + (1_500 - 1 - 1_250) * each + 1) / 1000);
        assert_eq!(permits.pay(uid(8), PERCENT, SECOND), SECOND, "another user has an account of its own");
        assert_eq!(permits.pay(BROKER, PERCENT, SECOND), SECOND);
        assert_eq!(permits.pay(uid(7), 100, SECOND), SECOND, "without a limit");
        permits.give_back(Connection, uid(8));
        assert_eq!(permits.pay(uid(7), PERCENT, SECOND), SECOND, "alone again");
    }

    #[test]
    fn few_accounts_are_kept() {
        let mut permits = Permits::new(10, 90);
        permits.take(Connection, uid(7)).unwrap();
        assert!((1_000..1_256).all(|user| permits.pay(uid(user), PERCENT, 0) == 0));
        assert!((1_256..3_000).any(|user| permits.pay(uid(user), PERCENT, 0) > 0), "these share an account");
        assert_eq!(permits.accounts.len(), MAX_ACCOUNTS + 1);
        assert_eq!(permits.pay(uid(5_000), PERCENT, 3_600 * SECOND), 3_600 * SECOND);
        assert_eq!(permits.accounts.len(), 1, "full ones are forgotten");
    }

    /// A client of the model below.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Client {
        /// Its socket was accepted, and has said nothing yet.
        Accepted(PermitKind),
        Attached,
        Detached,
        /// Another socket has come for the session.
        Resuming(PermitKind),
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Accept,
        Attach,
        Detach,
        Return,
        Resume,
        End,
    }

    proptest! {
        /// A permit is held for each socket without a session, and for each session, attached or detached.
        #[test]
        fn the_books_are_balanced(
            each in 0usize..12,
            steps in prop::collection::vec((0u32..3, 0usize..20, prop::sample::select(vec![
                Step::Accept, Step::Accept, Step::Attach, Step::Detach, Step::Return, Step::Resume, Step::End,
            ])), 0..400),
        ) {
            let mut permits = Permits::new(each, 90);
            let mut clients: [Vec<Client>; 3] = Default::default();
            let total = (each * 100).div_ceil(90);
            for (user, index, step) in steps {
                let of_user = &mut clients[user as usize];
                let is_detached = of_user.contains(&Client::Detached);
                let mut admit = || match permits.take(Connection, uid(user)) {
                    Ok(()) => Some(Connection),
                    Err(_) if is_detached && permits.take(Resume, uid(user)).is_ok() => Some(Resume),
                    Err(_) => None,
                };
                let count = of_user.len().max(1);
                match (step, of_user.get_mut(index % count)) {
                    (Step::Accept, _) => of_user.extend(admit().map(Client::Accepted)),
                    (Step::Attach, Some(client)) => match *client {
                        Client::Accepted(Connection) => *client = Client::Attached,
                        Client::Accepted(kind) => {
                            permits.give_back(kind, uid(user));
                            of_user.swap_remove(index % count);
                        }
                        _ => {}
                    },
                    (Step::Detach, Some(client @ Client::Attached)) => *client = Client::Detached,
                    (Step::Return, Some(client @ Client::Detached)) => {
                        if let Some(kind) = admit() {
                            *client = Client::Resuming(kind);
                        }
                    }
                    (Step::Resume, Some(client)) => if let Client::Resuming(kind) = *client {
                        permits.give_back(kind, uid(user));
                        *client = Client::Attached;
                    },
                    (Step::End, Some(client)) => {
                        match *client {
                            Client::Accepted(kind) => permits.give_back(kind, uid(user)),
                            Client::Attached | Client::Detached => permits.give_back(Connection, uid(user)),
                            Client::Resuming(kind) => {
                                permits.give_back(kind, uid(user));
                                permits.give_back(Connection, uid(user));
                            }
                        }
                        of_user.swap_remove(index % count);
                    }
                    _ => {}
                }
                for (user, clients) in (0..).zip(&clients) {
                    let held = |client: &Client| match client {
                        Client::Accepted(Connection) | Client::Attached | Client::Detached => 1,
                        Client::Accepted(_) => 0,
                        Client::Resuming(kind) => 1 + usize::from(*kind == Connection),
                    };
                    prop_assert_eq!(permits.connections().held_by(uid(user)), clients.iter().map(held).sum::<usize>());
                    prop_assert!(permits.connections().held_by(uid(user)) <= each);
                }
                prop_assert!(permits.connections().held() <= total);
            }
            for (user, clients) in (0..).zip(&clients) {
                for client in clients {
                    if let Client::Accepted(kind) | Client::Resuming(kind) = client {
                        permits.give_back(*kind, uid(user));
                    }
                    if !matches!(client, Client::Accepted(_)) {
                        permits.give_back(Connection, uid(user));
                    }
                }
            }
            let held = [&permits.connections, &permits.resumes, &permits.refusals].map(|shares| shares.held());
            prop_assert_eq!(held, [0, 0, 0]);
        }

        /// However sockets come, those whose turn is before a time cost no more than what was saved and the share.
        #[test]
        fn the_share_of_time_is_kept(percent in 1u32..100, pauses in prop::collection::vec(0..SECOND / 10, 1..3000)) {
            let mut permits = Permits::new(10, 90);
            permits.take(Connection, uid(8)).unwrap();
            let (mut now, mut last) = (0, 0);
            for (before, pause) in (0..).zip(pauses) {
                now += pause * u64::from(pause % 7 == 0);
                let turn = permits.pay(uid(7), percent, now);
                prop_assert!(turn >= now && turn >= last);
                last = turn;
                let most = u128::from(SAVED + turn) * u128::from(percent) / 100 + u128::from(COST);
                prop_assert!(u128::from(before * COST) <= most, "{} of {}", before * COST, most);
            }
        }
    }
}

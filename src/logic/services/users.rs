//! The users whose clients are connected: how many there are, how many calls each has outstanding, and how long its
//! incomplete requests are waited for (rule 4 of `services`).

use crate::logic::halvings::Halvings;
use crate::logic::shares::{Holding, Principal, ShareLimits, ShareReached};

/// How long the next [`PART`] of a request's body may take while another user needs its place or its probe.
///
/// [`PART`]: super::PART
const BODY_TIME: u64 = 100_000_000;
/// After as many halvings less than a millisecond is left, and it counts as nothing.
const MAX_HALVINGS: u32 = 7;

/// A user's index in the table. It is valid while the user has a connection.
pub(crate) type UserIndex = u32;

/// All users with connections, and those whose time is halved.
#[derive(Debug)]
pub(crate) struct Users {
    limits: ShareLimits,
    table: Vec<User>,
    /// Users with connections.
    connected: usize,
    /// Outstanding calls of all.
    calls: usize,
}

#[derive(Debug)]
struct User {
    principal: Principal,
    connections: usize,
    calls: usize,
    halvings: Halvings,
}

/// How a responder's places and a breaker's probes are shared now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sharing {
    /// Users with connections.
    pub(super) users: usize,
    /// The part of what the others leave that one may hold, in percent.
    pub(super) percent: u32,
}

impl Sharing {
    /// A user that is alone holds as much as it likes.
    #[inline]
    pub(super) fn is_shared(self) -> bool {
        self.users > 1 && self.percent < 100
    }
}

impl Users {
    /// No users. The limits are those of calls.
    pub(crate) fn new(limits: ShareLimits) -> Users {
        Users { limits, table: Vec::new(), connected: 0, calls: 0 }
    }

    /// Sets other limits. What is held beyond them stays.
    pub(super) fn adopt(&mut self, limits: ShareLimits) {
        self.limits = limits;
    }

    #[inline]
    pub(super) fn sharing(&self) -> Sharing {
        Sharing { users: self.connected, percent: self.limits.percent() }
    }

    /// A client of a user connects.
    pub(crate) fn connect(&mut self, principal: Principal, now: u64) -> UserIndex {
        let is_free = |user: &mut User| user.connections == 0 && user.calls == 0 && user.halvings.count(now) == 0;
        let known = self.table.iter().position(|user| user.principal == principal);
        let index = known.or_else(|| self.table.iter_mut().position(is_free)).unwrap_or(self.table.len());
        if index == self.table.len() {
            self.table.push(User { principal, connections: 0, calls: 0, halvings: Halvings::default() });
        }
        let user = &mut self.table[index];
        if user.principal != principal {
            *user = User { principal, connections: 0, calls: 0, halvings: Halvings::default() };
        }
        user.connections += 1;
        self.connected += usize::from(user.connections == 1);
        index as UserIndex
    }

    /// A connection of a user has ended, and all its calls.
    pub(crate) fn disconnect(&mut self, user: UserIndex) {
        let user = &mut self.table[user as usize];
        user.connections -= 1;
        self.connected -= usize::from(user.connections == 0);
    }

    /// A user begins a call.
    ///
    /// # Errors
    ///
    /// If it holds its share of all calls already.
    #[inline]
    pub(crate) fn begin_call(&mut self, user: UserIndex) -> Result<(), ShareReached> {
        let found = &mut self.table[user as usize];
        if !self.limits.leaves_plenty(self.calls) {
            let most = self.limits.most_of(self.calls - found.calls);
            if found.calls >= most {
                return Err(ShareReached { user: found.principal, most });
            }
        }
        found.calls += 1;
        self.calls += 1;
        Ok(())
    }

    /// A call of a user has ended.
    #[inline]
    pub(crate) fn end_call(&mut self, user: UserIndex) {
        self.table[user as usize].calls -= 1;
        self.calls -= 1;
    }

    /// A user's request ended for its body, which had not come.
    pub(crate) fn abandoned(&mut self, user: UserIndex, now: u64) {
        self.table[user as usize].halvings.halve(MAX_HALVINGS, now);
    }

    /// How long the next part of a body of this user may take.
    pub(super) fn body_time(&mut self, principal: Principal, now: u64) -> u64 {
        let user = self.table.iter_mut().find(|user| user.principal == principal);
        match user.map_or(0, |user| user.halvings.count(now)) {
            MAX_HALVINGS.. => 0,
            count => BODY_TIME >> count,
        }
    }

    /// The users with calls, how many each has, and may have now.
    pub(crate) fn calls(&self) -> impl Iterator<Item = Holding> {
        let most = |calls| self.limits.most_of(self.calls - calls);
        let holding = move |user: &User| Holding { user: user.principal, held: user.calls, most: most(user.calls) };
        self.table.iter().filter(|user| user.calls > 0).map(holding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::shares::uid;

    const MS: u64 = 1_000_000;

    #[test]
    fn calls_are_shared_by_user() {
        let mut users = Users::new(ShareLimits::of_one(900, 90));
        let (first, second) = (users.connect(uid(7), 0), users.connect(uid(8), 0));
        let begins_all = |users: &mut Users, user| (0..).take_while(|_| users.begin_call(user).is_ok()).count();
        assert_eq!((begins_all(&mut users, first), begins_all(&mut users, second)), (900, 90));
        assert_eq!(users.begin_call(second), Err(ShareReached { user: uid(8), most: 90 }));
        let calls = |users: &Users| users.calls().map(|user| (user.user, user.held, user.most)).collect::<Vec<_>>();
        assert_eq!(calls(&users), [(uid(7), 900, 819), (uid(8), 90, 90)]);
        (0..900).for_each(|_| users.end_call(first));
        users.disconnect(first);
        assert_eq!((calls(&users), users.sharing().users), (vec![(uid(8), 90, 900)], 1));
        assert_eq!(users.connect(uid(9), 0), first, "the entry is used again");
        assert_eq!(begins_all(&mut users, first), 819);
    }

    #[test]
    fn the_time_for_bodies_of_a_user_is_halved_and_restored_also_while_it_is_not_connected() {
        let mut users = Users::new(ShareLimits::of_one(1, 90));
        let user = users.connect(uid(7), 0);
        let times: Vec<u64> = (0..8)
            .map(|_| {
                users.abandoned(user, 0);
                users.body_time(uid(7), 0)
            })
            .collect();
        assert_eq!(times[..2], [50 * MS, 25 * MS]);
        assert_eq!(times[5..], [BODY_TIME >> 6, 0, 0]);
        users.disconnect(user);
        assert_ne!(users.connect(uid(8), 0), user, "it is remembered");
        assert_eq!((users.body_time(uid(7), 1), users.body_time(uid(8), 1)), (0, BODY_TIME));
        assert_eq!(users.connect(uid(9), 70_000 * MS), user);
        assert_eq!(users.body_time(uid(9), 70_000 * MS), BODY_TIME);
    }
}

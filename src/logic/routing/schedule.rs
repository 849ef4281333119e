//! Which connection the router serves next.
//!
//! ```text
//!            rings                    a quantum is used up
//!   cold ────────────► fresh ───────────────────────────► busy ─┐
//!    ▲                   │ dry                             │ ▲   │ a quantum is used up
//!    │ quiet for long    ▼                            dry  │ └───┘
//!    └───────────────── quiet ◄────────────────────────────┘
//!                        │  something came: fresh
//! ```
//!
//! This is deficit round robin (Shreedhar and Varghese, 1995) with the sparse-flow rule of FQ-CoDel (RFC 8290): a
//! connection that was idle goes ahead of those that are backlogged. The quantum is counted by the router, which
//! ends a connection's turn; fresh ones come first. *Quiet* connections are polled in memory, few at most; *cold* ones
//! ring. So the cost follows activity, not the number of connections.
//!
//! The order is that of each user's connections. While several users have connections, the users take turns by the same
//! rules: a round gives each the turn of one connection, and a user that was idle for a round goes ahead. So many
//! connections get no more turns than one.

use crate::logic::shares::Principal;
use std::collections::VecDeque;

/// How many idle connections are polled.
pub(crate) const MAX_QUIET: usize = 16;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum QueueState {
    #[default]
    Cold,
    Fresh,
    Busy,
    Quiet,
    /// Being served.
    Turn,
}

#[derive(Clone, Copy, Debug, Default)]
struct Connection {
    state: QueueState,
    /// The index of its user.
    user: u32,
}

/// The connections of one user.
#[derive(Debug)]
struct User {
    principal: Principal,
    /// All of them; none: the place is free.
    connections: usize,
    fresh: VecDeque<u32>,
    busy: VecDeque<u32>,
    /// It is in one of the lists of users.
    is_listed: bool,
}

/// The order of service. Connections are named by small numbers, which are reused.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    connections: Vec<Connection>,
    users: Vec<User>,
    /// The number of users with connections. While it is one, no user is listed.
    present: usize,
    /// Users that were idle.
    ahead: VecDeque<u32>,
    /// Users in turn. One that is idle leaves when its turn comes.
    round: VecDeque<u32>,
    /// Connections that wait to be served.
    waiting: usize,
    quiet: Vec<u32>,
}

impl Schedule {
    /// Adds connection `key` of a user. It is cold.
    pub(crate) fn add(&mut self, key: u32, principal: Principal) {
        if self.connections.len() <= key as usize {
            self.connections.resize(key as usize + 1, Connection::default());
        }
        debug_assert_eq!(self.connections[key as usize].state, QueueState::Cold);
        let is_it = |user: &User| user.connections > 0 && user.principal == principal;
        let found =
            self.users.iter().position(is_it).or_else(|| self.users.iter().position(|user| user.connections == 0));
        let at = found.unwrap_or_else(|| {
            let (fresh, busy) = (VecDeque::new(), VecDeque::new());
            self.users.push(User { principal, connections: 0, fresh, busy, is_listed: false });
            self.users.len() - 1
        });
        self.connections[key as usize].user = at as u32;
        let user = &mut self.users[at];
        user.principal = principal;
        user.connections += 1;
        if user.connections == 1 {
            self.present += 1;
            if self.present == 2 {
                (0..self.users.len() as u32).for_each(|user| self.list(user));
            }
        }
    }

    /// Removes connection `key`, in any state, for good.
    pub(crate) fn remove(&mut self, key: u32) {
        self.mark_cold(key);
        let user = &mut self.users[self.connections[key as usize].user as usize];
        user.connections -= 1;
        if user.connections == 0 {
            self.present -= 1;
            if self.present == 1 {
                let lists = [&mut self.ahead, &mut self.round];
                lists.into_iter().for_each(VecDeque::clear);
                self.users.iter_mut().for_each(|user| user.is_listed = false);
            }
        }
    }

    /// Connection `key` may have records.
    pub(crate) fn wake(&mut self, key: u32) {
        let Connection { state, user } = self.connections[key as usize];
        match state {
            QueueState::Quiet => self.quiet.retain(|k| *k != key),
            QueueState::Cold => {}
            QueueState::Fresh | QueueState::Busy | QueueState::Turn => return,
        }
        self.connections[key as usize].state = QueueState::Fresh;
        self.users[user as usize].fresh.push_back(key);
        self.waiting += 1;
        if self.present > 1 {
            self.list(user);
        }
    }

    /// Lists a user that has something to do.
    fn list(&mut self, user: u32) {
        let found = &mut self.users[user as usize];
        if !found.is_listed && !found.is_idle() {
            found.is_listed = true;
            self.ahead.push_back(user);
        }
    }

    /// The next to be served; `requeue`, `mark_idle` or `mark_cold` must follow.
    pub(crate) fn next(&mut self) -> Option<u32> {
        if self.waiting == 0 {
            return None;
        }
        let key = if self.present > 1 { self.next_of_round() } else { self.users.iter_mut().find_map(User::next) }?;
        self.waiting -= 1;
        self.connections[key as usize].state = QueueState::Turn;
        Some(key)
    }

    /// The next connection of the next user. The user goes to the end of the round, also if it is idle now: if it comes
    /// back before its turn there, it is not ahead of the others again.
    fn next_of_round(&mut self) -> Option<u32> {
        loop {
            let user = self.ahead.pop_front().or_else(|| self.round.pop_front())?;
            let found = &mut self.users[user as usize];
            let next = found.next();
            found.is_listed = next.is_some();
            if next.is_some() {
                self.round.push_back(user);
                return next;
            }
        }
    }

    /// The served connection has more records.
    pub(crate) fn requeue(&mut self, key: u32) {
        let connection = &mut self.connections[key as usize];
        if connection.state == QueueState::Turn {
            connection.state = QueueState::Busy;
            let user = connection.user;
            self.users[user as usize].busy.push_back(key);
            self.waiting += 1;
            if self.present > 1 {
                self.list(user);
            }
        }
    }

    /// The served connection has no more records, and is polled from now on. If too many are polled, returns the one
    /// for [`Schedule::mark_cold`]: of the user with most of them, the one that has been quiet longest.
    pub(crate) fn mark_idle(&mut self, key: u32) -> Option<u32> {
        if self.connections[key as usize].state == QueueState::Turn {
            self.connections[key as usize].state = QueueState::Quiet;
            self.quiet.push(key);
        }
        if self.quiet.len() <= MAX_QUIET {
            return None;
        }
        let user = |key: &u32| self.connections[*key as usize].user;
        let of_user = |key: &u32| self.quiet.iter().filter(|other| user(other) == user(key)).count();
        // The first of those that are equal.
        let evicted =
            if self.present > 1 { self.quiet.iter().rev().max_by_key(|key| of_user(key)) } else { self.quiet.first() };
        evicted.copied()
    }

    /// Connection `key` is no longer polled, and will ring.
    pub(crate) fn mark_cold(&mut self, key: u32) {
        let Connection { state, user } = self.connections[key as usize];
        let user = &mut self.users[user as usize];
        match state {
            QueueState::Fresh => user.fresh.retain(|k| *k != key),
            QueueState::Busy => user.busy.retain(|k| *k != key),
            QueueState::Quiet => self.quiet.retain(|k| *k != key),
            QueueState::Cold | QueueState::Turn => {}
        }
        self.waiting -= usize::from(matches!(state, QueueState::Fresh | QueueState::Busy));
        self.connections[key as usize].state = QueueState::Cold;
    }

    /// The connections that are polled, the longest quiet first.
    pub(crate) fn quiet(&self) -> &[u32] {
        &self.quiet
    }

    /// Whether no connection waits to be served.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting == 0
    }
}

impl User {
    /// Takes the next connection to serve.
    fn next(&mut self) -> Option<u32> {
        self.fresh.pop_front().or_else(|| self.busy.pop_front())
    }

    fn is_idle(&self) -> bool {
        self.fresh.is_empty() && self.busy.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::shares::uid;
    use proptest::prelude::*;

    const USERS: usize = 3;
    /// More than are polled.
    const KEYS: u32 = 24;

    /// Of one user.
    fn schedule(connections: u32) -> Schedule {
        let mut schedule = Schedule::default();
        (0..connections).for_each(|key| schedule.add(key, uid(1000)));
        schedule
    }

    fn serve_all(schedule: &mut Schedule, times: usize) -> Vec<u32> {
        let serve = |_| {
            let key = schedule.next().expect("it is busy");
            schedule.requeue(key);
            key
        };
        (0..times).map(serve).collect()
    }

    #[test]
    fn many_connections_get_no_more_turns_than_the_one_of_another_user() {
        let mut schedule = schedule(100);
        (0..100).for_each(|key| schedule.wake(key));
        schedule.add(100, uid(2000));
        schedule.wake(100);
        let turns = serve_all(&mut schedule, 400);
        assert_eq!(turns.iter().filter(|key| **key == 100).count(), 200);
        let others: Vec<u32> = turns.into_iter().filter(|key| *key != 100).collect();
        assert_eq!(others, (0..100).chain(0..100).collect::<Vec<u32>>(), "in turn among themselves");
        schedule.remove(100);
        assert_eq!(serve_all(&mut schedule, 3), [0, 1, 2]);
    }

    #[test]
    fn each_quota_of_a_uid_has_a_turn_in_a_round() {
        let mut schedule = schedule(3);
        schedule.add(3, Principal::new(1000, 1));
        schedule.add(4, Principal::new(1000, 2));
        schedule.add(5, Principal::new(2000, 1));
        (0..6).for_each(|key| schedule.wake(key));
        assert_eq!(serve_all(&mut schedule, 8), [0, 3, 4, 5, 1, 3, 4, 5]);
    }

    #[test]
    fn a_user_that_was_idle_goes_ahead_once_in_a_round() {
        let mut schedule = schedule(1);
        (1..4).for_each(|key| schedule.add(key, uid(key)));
        (0..3).for_each(|key| schedule.wake(key));
        assert_eq!(serve_all(&mut schedule, 6), [0, 1, 2, 0, 1, 2]);
        schedule.wake(3);
        assert_eq!(schedule.next(), Some(3), "it was idle");
        schedule.mark_idle(3);
        schedule.wake(3);
        assert_eq!(serve_all(&mut schedule, 4), [0, 1, 2, 3]);
    }

    #[test]
    fn the_polled_connections_of_one_user_do_not_evict_those_of_another() {
        let mut schedule = schedule(20);
        schedule.add(20, uid(2000));
        for key in std::iter::once(20).chain(0..20) {
            schedule.wake(key);
            assert_eq!(schedule.next(), Some(key));
            if let Some(cold) = schedule.mark_idle(key) {
                schedule.mark_cold(cold);
            }
        }
        let quiet: Vec<u32> = std::iter::once(20).chain(20 - (MAX_QUIET as u32 - 1)..20).collect();
        assert_eq!(schedule.quiet(), quiet);
    }

    proptest! {
        /// Connections come, go, wake and are served in any order. (key % USERS is the quota: a user of its own.)
        #[test]
        fn nothing_is_forgotten_and_no_user_waits_for_more_than_a_round(
            users in 1usize..=USERS,
            steps in prop::collection::vec((0u32..KEYS, 0u8..8), 0..400),
        ) {
            let user = |key: u32| key as usize % users;
            let mut schedule = Schedule::default();
            let (mut present, mut waiting) = ([false; KEYS as usize], [false; KEYS as usize]);
            // Of one user, what the order must be.
            let (mut fresh, mut busy) = (VecDeque::new(), VecDeque::new());
            // Turns of each user since another one waits.
            let mut turns = [[0; USERS]; USERS];
            for (key, action) in steps {
                let at = key as usize;
                match action {
                    0 | 1 if !present[at] => {
                        schedule.add(key, Principal::new(7, user(key) as u16));
                        (present[at], turns) = (true, [[0; USERS]; USERS]);
                    }
                    0 if present[at] => {
                        schedule.remove(key);
                        (present[at], waiting[at], turns) = (false, false, [[0; USERS]; USERS]);
                        fresh.retain(|k| *k != key);
                        busy.retain(|k| *k != key);
                    }
                    1..=3 if present[at] => {
                        schedule.wake(key);
                        if !std::mem::replace(&mut waiting[at], true) {
                            fresh.push_back(key);
                        }
                    }
                    _ => {
                        let next = schedule.next();
                        prop_assert_eq!(next.is_some(), waiting.contains(&true));
                        let first = fresh.pop_front().or_else(|| busy.pop_front());
                        let Some(key) = next else { continue };
                        if users == 1 {
                            prop_assert_eq!(next, first);
                        }
                        prop_assert!(std::mem::replace(&mut waiting[key as usize], false));
                        for (other, turns) in turns.iter_mut().enumerate().take(users) {
                            let waits = (0..KEYS).any(|key| waiting[key as usize] && user(key) == other);
                            let count = &mut turns[user(key)];
                            *count = if waits && other != user(key) { *count + 1 } else { 0 };
                            prop_assert!(*count <= 1, "user {} had two turns while {} waited", user(key), other);
                        }
                        turns[user(key)] = [0; USERS];
                        if action == 7 {
                            schedule.requeue(key);
                            waiting[key as usize] = true;
                            busy.push_back(key);
                        } else if let Some(evicted) = schedule.mark_idle(key) {
                            schedule.mark_cold(evicted);
                        }
                    }
                }
                prop_assert_eq!(schedule.is_idle(), !waiting.contains(&true));
                prop_assert!(schedule.quiet().len() <= MAX_QUIET);
            }
            (0..KEYS).filter(|key| present[*key as usize]).for_each(|key| schedule.remove(key));
            prop_assert!(schedule.is_idle() && schedule.quiet().is_empty() && schedule.present == 0);
            prop_assert!(schedule.users.iter().all(|user| user.is_idle() && user.connections == 0));
        }
    }

    #[test]
    fn the_quiet_go_ahead_of_the_busy() {
        let mut schedule = schedule(4);
        for key in [0, 1] {
            schedule.wake(key);
            assert_eq!(schedule.next(), Some(key));
            schedule.requeue(key);
        }
        schedule.wake(2);
        assert_eq!(schedule.next(), Some(2), "fresh");
        schedule.requeue(2);
        assert_eq!((schedule.next(), schedule.next(), schedule.next()), (Some(0), Some(1), Some(2)), "then in turn");
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn a_connection_is_in_one_place_only() {
        let mut schedule = schedule(2);
        schedule.wake(0);
        schedule.wake(0);
        assert_eq!((schedule.next(), schedule.next()), (Some(0), None));
        schedule.wake(0);
        assert_eq!(schedule.mark_idle(0), None);
        assert_eq!(schedule.quiet(), [0]);
        schedule.wake(0);
        assert_eq!(schedule.quiet(), [] as [u32; 0]);
        assert_eq!(schedule.next(), Some(0));
        schedule.remove(0);
        schedule.requeue(0);
        assert!(schedule.is_idle(), "a removed connection does not come back");
    }

    #[test]
    fn few_are_polled() {
        let mut schedule = schedule(20);
        for key in 0..20 {
            schedule.wake(key);
            schedule.next();
            if let Some(cold) = schedule.mark_idle(key) {
                assert_eq!(cold, key - MAX_QUIET as u32);
                schedule.mark_cold(cold);
            }
        }
        assert_eq!(schedule.quiet().len(), MAX_QUIET);
    }
}

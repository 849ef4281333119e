//! Shares of something finite among users.
//!
//! A limit is what one user may hold while it is alone. All users together may hold more: a user may hold a given part
//! of what the others leave, and so each that comes later still finds some, however much the ones before it have taken.
//! With a limit of 900 and a part of 90 %, there are 1,000: the first may hold 900, the next 90, then 9. The idea is
//! that of dbus-broker's accounting (`util/user.c`), where the divisor grows with the number of users.

use std::collections::HashMap;

/// What counts as one user: the clients of a uid that are in no quota of the configuration (`[[quota]]`), or those that
/// are in one. Where rights are concerned, the uid alone counts: a client chooses its quota by its name.
///
/// The uid and the number of the quota lie in one integer, so that a comparison is that of one integer. The order is
/// that of the uids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Principal(u64);

/// The number of no quota.
pub(crate) const NO_QUOTA: u16 = 0;

/// The broker itself, where a user is asked for: the kernel gives this uid to no user.
pub(crate) const BROKER: Principal = Principal::of_uid(u32::MAX);

impl Principal {
    /// The clients of a uid that are in this quota, or in none ([`NO_QUOTA`]).
    pub(crate) const fn new(uid: u32, quota: u16) -> Principal {
        Principal((uid as u64) << u16::BITS | quota as u64)
    }

    /// The clients of a uid that are in no quota.
    pub(crate) const fn of_uid(uid: u32) -> Principal {
        Principal::new(uid, NO_QUOTA)
    }

    pub(crate) const fn uid(self) -> u32 {
        (self.0 >> u16::BITS) as u32
    }

    /// The number of the quota ([`NO_QUOTA`]: none).
    pub(crate) const fn quota(self) -> u16 {
        (self.0 & u16::MAX as u64) as u16
    }
}

/// The clients of a uid that are in no quota.
#[cfg(test)]
pub(crate) const fn uid(uid: u32) -> Principal {
    Principal::of_uid(uid)
}

/// How much users may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShareLimits {
    /// One user, at most.
    each: usize,
    /// All users together.
    total: usize,
    /// The part of what the others leave, in percent (1 to 100).
    percent: u32,
}

impl ShareLimits {
    /// A user that is alone may hold `each`, which is the given part of all.
    pub(crate) fn of_one(each: usize, percent: u32) -> ShareLimits {
        let total = (each as u128 * 100).div_ceil(u128::from(percent.max(1)));
        ShareLimits { each, total: usize::try_from(total).unwrap_or(usize::MAX), percent }
    }

    /// All users may hold `total`, and one that is alone the given part of it.
    pub(crate) fn of_all(total: usize, percent: u32) -> ShareLimits {
        ShareLimits { each: total, total, percent }
    }

    /// The same, but all users may hold at most `total`.
    pub(crate) fn within(self, total: usize) -> ShareLimits {
        ShareLimits { each: self.each.min(total), total: self.total.min(total), ..self }
    }

    /// What all users may hold together.
    pub(crate) fn total(self) -> usize {
        self.total
    }

    /// The part of what the others leave, in percent.
    #[inline]
    pub(crate) fn percent(self) -> u32 {
        self.percent
    }

    /// The most that a user may hold while the others hold so much: at least one, if they leave any.
    pub(crate) fn most_of(self, others: usize) -> usize {
        let left = self.total.saturating_sub(others);
        let part = (left as u128 * u128::from(self.percent)).div_ceil(100) as usize;
        part.min(self.each)
    }

    /// Whether no user has reached its share while all hold `held`, whichever holds how much. Cheaper than
    /// [`ShareLimits::most_of`], and enough for most.
    #[inline]
    pub(crate) fn leaves_plenty(self, held: usize) -> bool {
        held < self.each && held.saturating_mul(100) < self.total.saturating_mul(self.percent as usize)
    }
}

/// Who holds how much.
#[derive(Debug)]
pub(crate) struct Shares {
    limits: ShareLimits,
    held: usize,
    users: HashMap<Principal, usize>,
}

/// A user may hold no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShareReached {
    pub(crate) user: Principal,
    /// The most that it may hold now.
    pub(crate) most: usize,
}

/// What a user holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) user: Principal,
    pub(crate) held: usize,
    /// The most that it may hold now.
    pub(crate) most: usize,
}

impl Holding {
    /// Whether it holds nine tenths of what it may.
    pub(crate) fn is_near_limit(self) -> bool {
        self.held.saturating_mul(10) >= self.most.saturating_mul(9)
    }
}

impl Shares {
    pub(crate) fn new(limits: ShareLimits) -> Shares {
        Shares { limits, held: 0, users: HashMap::new() }
    }

    /// Sets other limits. What is held beyond them stays.
    pub(crate) fn adopt(&mut self, limits: ShareLimits) {
        self.limits = limits;
    }

    /// How much a user holds.
    pub(crate) fn held_by(&self, user: Principal) -> usize {
        self.users.get(&user).copied().unwrap_or(0)
    }

    /// The most that a user may hold now: at least one, if the others leave any.
    pub(crate) fn most_of(&self, user: Principal) -> usize {
        self.limits.most_of(self.held - self.held_by(user))
    }

    /// What a user may take now.
    pub(crate) fn left_of(&self, user: Principal) -> usize {
        self.most_of(user).saturating_sub(self.held_by(user))
    }

    /// Whether a user holds more than its share.
    pub(crate) fn is_beyond(&self, user: Principal) -> bool {
        self.held_by(user) > self.most_of(user)
    }

    /// A user takes one.
    ///
    /// # Errors
    ///
    /// If it holds its share already.
    pub(crate) fn take(&mut self, user: Principal) -> Result<(), ShareReached> {
        self.take_many(user, 1)
    }

    /// A user takes so many, or none.
    ///
    /// # Errors
    ///
    /// If that is more than its share.
    pub(crate) fn take_many(&mut self, user: Principal, count: usize) -> Result<(), ShareReached> {
        let most = self.most_of(user);
        if count > most.saturating_sub(self.held_by(user)) {
            return Err(ShareReached { user, most });
        }
        if count > 0 {
            *self.users.entry(user).or_default() += count;
            self.held += count;
        }
        Ok(())
    }

    /// A user takes so many, beyond its share if need be.
    pub(crate) fn exceed(&mut self, user: Principal, count: usize) {
        if count > 0 {
            *self.users.entry(user).or_default() += count;
            self.held += count;
        }
    }

    /// What a user holds has changed by the difference of `before` and `after`, beyond its share if need be.
    pub(crate) fn change(&mut self, user: Principal, before: usize, after: usize) {
        if after >= before {
            self.exceed(user, after - before);
        } else {
            self.give_back_many(user, before - after);
        }
    }

    /// A user gives one back that it took.
    pub(crate) fn give_back(&mut self, user: Principal) {
        self.give_back_many(user, 1);
    }

    /// A user gives so many back that it took.
    pub(crate) fn give_back_many(&mut self, user: Principal, count: usize) {
        let Some(held) = self.users.get_mut(&user) else { return };
        *held -= count;
        if *held == 0 {
            self.users.remove(&user);
        }
        self.held -= count;
    }

    /// Whether nothing is left for any user.
    pub(crate) fn is_full(&self) -> bool {
        self.held >= self.limits.total
    }

    /// How much all users hold.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// The users that hold some, how much, and what they may hold now.
    pub(crate) fn holdings(&self) -> impl Iterator<Item = Holding> {
        self.users().map(|(user, held)| Holding { user, held, most: self.limits.most_of(self.held - held) })
    }

    /// The users that hold some, and how much.
    pub(crate) fn users(&self) -> impl Iterator<Item = (Principal, usize)> {
        self.users.iter().map(|(user, held)| (*user, *held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn takes_all(shares: &mut Shares, user: Principal) -> usize {
        (0..).take_while(|_| shares.take(user).is_ok()).count()
    }

    #[test]
    fn each_user_that_comes_later_finds_some() {
        let mut shares = Shares::new(ShareLimits::of_one(900, 90));
        let taken = [7, 8, 9, 10].map(|user| takes_all(&mut shares, uid(user)));
        assert_eq!(taken, [900, 90, 9, 1]);
        assert!(shares.is_full());
        assert_eq!(shares.take(uid(11)), Err(ShareReached { user: uid(11), most: 0 }), "all are taken");
        shares.give_back(uid(7));
        assert_eq!(shares.take(uid(11)), Ok(()));
        assert_eq!(shares.take(uid(7)), Err(ShareReached { user: uid(7), most: 810 }));
        shares.adopt(ShareLimits::of_all(10, 50));
        assert_eq!((shares.held(), shares.held_by(uid(7))), (1000, 899), "nothing is taken away");
        assert_eq!(shares.take(uid(8)), Err(ShareReached { user: uid(8), most: 0 }));
    }

    #[test]
    fn a_user_that_is_alone_has_the_limit_and_a_part_of_a_total() {
        for (each, percent) in [(1, 90), (6, 90), (6, 1), (7, 33), (1000, 90), (900, 100), (0, 90)] {
            assert_eq!(takes_all(&mut Shares::new(ShareLimits::of_one(each, percent)), uid(7)), each, "{percent} %");
        }
        assert_eq!(takes_all(&mut Shares::new(ShareLimits::of_one(900, 90).within(500)), uid(7)), 450);
        assert_eq!(takes_all(&mut Shares::new(ShareLimits::of_one(900, 90).within(5000)), uid(7)), 900);
        assert_eq!(takes_all(&mut Shares::new(ShareLimits::of_all(50, 50)), uid(7)), 25);
        assert_eq!(takes_all(&mut Shares::new(ShareLimits::of_all(1000, 100)), uid(7)), 1000);
    }

    proptest! {
        #[test]
        fn the_books_are_balanced(
            most in 0usize..60, percent in 1u32..=100, steps in prop::collection::vec((0u32..4, any::<bool>()), 0..400)
        ) {
            let mut shares = Shares::new(ShareLimits::of_all(most, percent));
            let mut held = [0usize; 4];
            for (user, takes) in steps {
                let mine = held[user as usize];
                let others: usize = held.iter().sum::<usize>() - mine;
                if takes {
                    let share = ((most - others) * percent as usize).div_ceil(100);
                    let taken = shares.take(uid(user));
                    prop_assert_eq!(taken.is_ok(), mine < share);
                    let reached = ShareReached { user: uid(user), most: share };
                    prop_assert_eq!(taken.err(), (mine >= share).then_some(reached));
                    held[user as usize] += usize::from(mine < share);
                } else {
                    shares.give_back(uid(user));
                    held[user as usize] = mine.saturating_sub(1);
                }
                prop_assert_eq!(shares.held(), held.iter().sum::<usize>());
                prop_assert!(shares.held() <= most);
                prop_assert_eq!(shares.held_by(uid(user)), held[user as usize]);
                prop_assert_eq!(shares.users().map(|(_, held)| held).sum::<usize>(), shares.held());
            }
            for (user, held) in held.iter().enumerate() {
                (0..*held).for_each(|_| shares.give_back(uid(user as u32)));
            }
            prop_assert_eq!((shares.held(), shares.users.len()), (0, 0));
        }
    }
}

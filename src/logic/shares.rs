//! Shares of something finite among users.
//!
//! A user may hold at most a given part of what the others leave. So each user that comes later still finds some,
//! however much the users before it have taken: of 1,000 with a part of 90 %, the first may hold 900, the next 90,
//! then 9. A user that is alone loses a tenth. The idea is that of dbus-broker's accounting (`util/user.c`), where the
//! divisor grows with the number of users.

use std::collections::HashMap;

/// A user of this machine.
pub(crate) type Uid = u32;

/// The broker itself, where a user is asked for: no user has this number.
pub(crate) const BROKER: Uid = Uid::MAX;

/// Who holds how much.
#[derive(Debug)]
pub(crate) struct Shares {
    most: usize,
    percent: u32,
    held: usize,
    users: HashMap<Uid, usize>,
}

/// A user may hold no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShareReached {
    pub(crate) user: Uid,
    /// The most that it may hold now.
    pub(crate) most: usize,
}

impl Shares {
    /// Of `most`, of which a user may hold `percent` (1 to 100) of what the others leave.
    pub(crate) fn new(most: usize, percent: u32) -> Shares {
        Shares { most, percent, held: 0, users: HashMap::new() }
    }

    /// Sets other limits. What is held beyond them stays.
    pub(crate) fn adopt(&mut self, most: usize, percent: u32) {
        (self.most, self.percent) = (most, percent);
    }

    /// How much a user holds.
    pub(crate) fn held_by(&self, user: Uid) -> usize {
        self.users.get(&user).copied().unwrap_or(0)
    }

    /// The most that a user may hold now: at least one, if the others leave any.
    pub(crate) fn most_of(&self, user: Uid) -> usize {
        let left = self.most.saturating_sub(self.held - self.held_by(user));
        (left as u128 * u128::from(self.percent)).div_ceil(100) as usize
    }

    /// A user takes one.
    ///
    /// # Errors
    ///
    /// If it holds its share already.
    pub(crate) fn take(&mut self, user: Uid) -> Result<(), ShareReached> {
        self.take_many(user, 1)
    }

    /// A user takes so many, or none.
    ///
    /// # Errors
    ///
    /// If that is more than its share.
    pub(crate) fn take_many(&mut self, user: Uid, count: usize) -> Result<(), ShareReached> {
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
    pub(crate) fn exceed(&mut self, user: Uid, count: usize) {
        *self.users.entry(user).or_default() += count;
        self.held += count;
    }

    /// A user gives one back that it took.
    pub(crate) fn give_back(&mut self, user: Uid) {
        self.give_back_many(user, 1);
    }

    /// A user gives so many back that it took.
    pub(crate) fn give_back_many(&mut self, user: Uid, count: usize) {
        let Some(held) = self.users.get_mut(&user) else { return };
        *held -= count;
        if *held == 0 {
            self.users.remove(&user);
        }
        self.held -= count;
    }

    /// How much there is.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// How much all users hold.
    pub(crate) fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn takes_all(shares: &mut Shares, user: Uid) -> usize {
        (0..).take_while(|_| shares.take(user).is_ok()).count()
    }

    #[test]
    fn each_user_that_comes_later_finds_some() {
        let mut shares = Shares::new(1000, 90);
        let taken = [7, 8, 9, 10].map(|user| takes_all(&mut shares, user));
        assert_eq!(taken, [900, 90, 9, 1]);
        assert_eq!(shares.take(11), Err(ShareReached { user: 11, most: 0 }), "all are taken");
        shares.give_back(7);
        assert_eq!(shares.take(11), Ok(()));
        assert_eq!(shares.take(7), Err(ShareReached { user: 7, most: 810 }));
        shares.adopt(10, 50);
        assert_eq!((shares.held(), shares.held_by(7)), (1000, 899), "nothing is taken away");
        assert_eq!(shares.take(8), Err(ShareReached { user: 8, most: 0 }));
    }

    #[test]
    fn a_part_of_a_hundred_percent_is_no_share() {
        assert_eq!(takes_all(&mut Shares::new(1000, 100), 7), 1000);
    }

    proptest! {
        #[test]
        fn the_books_are_balanced(
            most in 0usize..60, percent in 1u32..=100, steps in prop::collection::vec((0u32..4, any::<bool>()), 0..400)
        ) {
            let mut shares = Shares::new(most, percent);
            let mut held = [0usize; 4];
            for (user, takes) in steps {
                let mine = held[user as usize];
                let others: usize = held.iter().sum::<usize>() - mine;
                if takes {
                    let share = ((most - others) * percent as usize).div_ceil(100);
                    let taken = shares.take(user);
                    prop_assert_eq!(taken.is_ok(), mine < share);
                    prop_assert_eq!(taken.err(), (mine >= share).then_some(ShareReached { user, most: share }));
                    held[user as usize] += usize::from(mine < share);
                } else {
                    shares.give_back(user);
                    held[user as usize] = mine.saturating_sub(1);
                }
                prop_assert_eq!(shares.held(), held.iter().sum::<usize>());
                prop_assert!(shares.held() <= most);
                prop_assert_eq!(shares.held_by(user), held[user as usize]);
            }
            for (user, held) in held.iter().enumerate() {
                (0..*held).for_each(|_| shares.give_back(user as Uid));
            }
            prop_assert_eq!((shares.held(), shares.users.len()), (0, 0));
        }
    }
}

//! Log lines of one kind that users can cause: a number per period, of which each user has a share.
//!
//! In each period a user may cause at most half of the lines that the others leave, and always its first one. So a
//! flood by one user hides no line of another that causes few. Suppressed lines are counted by user; the counts are
//! taken a period after the first one. At most [`MAX_USERS`] users are told apart at a time; all others are one.

use super::shares::{BROKER, Principal, ShareLimits, Shares};
use std::collections::BTreeMap;

/// A period: a second, in nanoseconds.
const PERIOD: u64 = 1_000_000_000;
/// The part of the lines that a user may cause of those that the others leave, in percent.
const PERCENT: u32 = 50;
/// Users that are told apart.
const MAX_USERS: usize = 64;
/// Those beyond, and lines that no user has caused. The kernel gives this number to no user.
pub(crate) const OTHERS: Principal = BROKER;

/// Whether to log a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Log,
    /// It is counted.
    Suppress,
    /// The same, and the counts are to be taken a period later.
    SuppressFirst,
}

/// What a user has caused.
#[derive(Debug, Default)]
struct User {
    /// In this period.
    was_logged: bool,
    suppressed: u64,
}

/// Lines of one kind.
#[derive(Debug, Default)]
pub(crate) struct LineShares {
    /// When the period began.
    since: Option<u64>,
    /// Of this period.
    shares: Option<Shares>,
    users: BTreeMap<Principal, User>,
    /// The counts are to be taken.
    has_counts: bool,
}

impl LineShares {
    pub(crate) const fn new() -> LineShares {
        LineShares { since: None, shares: None, users: BTreeMap::new(), has_counts: false }
    }

    /// A line by `user`, of at most `most` lines in a period, at `now` in nanoseconds.
    pub(crate) fn add(&mut self, now: u64, user: Principal, most: usize) -> Verdict {
        if self.since.is_none_or(|since| now.saturating_sub(since) >= PERIOD) {
            self.since = Some(now);
            self.shares = None;
            self.users.retain(|_, user| user.suppressed > 0);
            self.users.values_mut().for_each(|user| user.was_logged = false);
        }
        let is_told_apart = self.users.contains_key(&user) || self.users.len() < MAX_USERS;
        let user = if is_told_apart { user } else { OTHERS };
        let limits = ShareLimits::of_all(most, PERCENT);
        let shares = self.shares.get_or_insert_with(|| Shares::new(limits));
        shares.adopt(limits);
        let caused = self.users.entry(user).or_default();
        if shares.take(user).is_ok() || !caused.was_logged {
            caused.was_logged = true;
            return Verdict::Log;
        }
        caused.suppressed += 1;
        if std::mem::replace(&mut self.has_counts, true) { Verdict::Suppress } else { Verdict::SuppressFirst }
    }

    /// The numbers of suppressed lines by user, since they were taken last.
    pub(crate) fn take_counts(&mut self) -> Vec<(Principal, u64)> {
        self.has_counts = false;
        let counts = self.users.iter_mut().map(|(user, caused)| (*user, std::mem::take(&mut caused.suppressed)));
        counts.filter(|(_, suppressed)| *suppressed > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::shares::uid;
    use proptest::prelude::*;

    fn logged(lines: &mut LineShares, now: u64, user: Principal, tries: u64) -> u64 {
        (0..tries).filter(|_| lines.add(now, user, 50) == Verdict::Log).count() as u64
    }

    #[test]
    fn a_flood_by_one_user_hides_no_line_of_another() {
        let mut lines = LineShares::new();
        assert_eq!(logged(&mut lines, 5, uid(1000), 10_000), 25);
        assert_eq!(logged(&mut lines, 5, uid(1001), 10), 10);
        assert_eq!(logged(&mut lines, 5, uid(1001), 10), 3, "half of the 25 that are left");
        for user in 1..=60 {
            assert!(logged(&mut lines, 5, uid(user), 100) >= 1, "the first of each");
        }
        assert_eq!(lines.take_counts().iter().find(|(user, _)| *user == uid(1000)), Some(&(uid(1000), 9_975)));
        assert_eq!(lines.take_counts(), []);
        assert_eq!(logged(&mut lines, 5 + PERIOD, uid(1000), 100), 25, "the next period");
    }

    #[test]
    fn the_counts_are_to_be_taken_once_and_outlive_their_period() {
        let mut lines = LineShares::new();
        let verdicts = [0, 1, 2, 3].map(|now| lines.add(now, uid(7), 2));
        assert_eq!(verdicts, [Verdict::Log, Verdict::SuppressFirst, Verdict::Suppress, Verdict::Suppress]);
        assert_eq!(lines.add(PERIOD, uid(7), 2), Verdict::Log);
        assert_eq!(lines.add(PERIOD, uid(7), 2), Verdict::Suppress);
        assert_eq!(lines.take_counts(), [(uid(7), 4)]);
        assert_eq!(lines.add(PERIOD, uid(7), 2), Verdict::SuppressFirst);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_memory_and_lines_are_bounded(
            tries in proptest::collection::vec((0u64..PERIOD / 2, 0u32..200, 1usize..100), 1..2000),
        ) {
            let (mut lines, mut now, mut logged, mut suppressed) = (LineShares::new(), 0, 0, 0);
            let (mut began, mut of_period) = (0, 0);
            for (index, (later, user, most)) in tries.iter().enumerate() {
                now += if index % 50 == 0 { *later } else { 0 };
                if now - began >= PERIOD {
                    (began, of_period) = (now, 0);
                }
                if lines.add(now, uid(*user), *most) == Verdict::Log {
                    logged += 1;
                    of_period += 1;
                }
                prop_assert!(lines.users.len() <= MAX_USERS + 1);
                prop_assert!(of_period <= 100 + MAX_USERS + 1);
                if index % 300 == 0 {
                    suppressed += lines.take_counts().iter().map(|(_, count)| count).sum::<u64>();
                }
            }
            suppressed += lines.take_counts().iter().map(|(_, count)| count).sum::<u64>();
            prop_assert_eq!(logged + suppressed, tries.len() as u64);
        }
    }
}

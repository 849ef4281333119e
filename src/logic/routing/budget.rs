//! The one budget out of which all rings' extensions are leased, counted in cells. What one user alone may lease of it
//! are `num_slots` × `slot_size` bytes (see `logic::shares`).

use crate::logic::shares::{Principal, ShareLimits, Shares};

/// The first lease of a ring, in cells: four pages.
const FIRST: u32 = 128;

/// The leases of the shared budget.
#[derive(Debug)]
pub(crate) struct Budget {
    shares: Shares,
    limits: ShareLimits,
    /// The most that one ring may have.
    most: u32,
    /// Leases are whole multiples of this many cells.
    unit: u32,
}

impl Budget {
    pub(crate) fn new(limits: ShareLimits, most: u32, unit: u32) -> Budget {
        Budget { shares: Shares::new(limits), limits, most: most / unit * unit, unit }
    }

    /// How large a ring's window becomes if it grows now: twice as large, but by no more than half of what its user may
    /// still lease, so that one busy ring leaves room for the next. `None`: it stays. Nothing is leased yet.
    pub(crate) fn next_window(&self, user: Principal, window: u32) -> Option<u32> {
        let missing = self.most.saturating_sub(window);
        if missing < self.unit {
            return None;
        }
        let free = u32::try_from(self.shares.left_of(user) / 2).unwrap_or(u32::MAX);
        let more = window.max(FIRST).min(free).min(missing) / self.unit * self.unit;
        (more > 0).then_some(window + more)
    }

    /// Whether a user's ring may have a larger window, and stays for want of free cells.
    pub(crate) fn is_short(&self, user: Principal, window: u32) -> bool {
        self.most.saturating_sub(window) >= self.unit && self.next_window(user, window).is_none()
    }

    /// A user has leased more cells, as [`Budget::next_window`] has said.
    pub(crate) fn lease(&mut self, user: Principal, cells: u32) {
        let leased = self.shares.take_many(user, cells as usize);
        debug_assert_eq!(leased, Ok(()), "{cells} cells");
    }

    /// Returns cells of a user's windows that are gone.
    pub(crate) fn give_back(&mut self, user: Principal, cells: u64) {
        self.shares.give_back_many(user, cells as usize);
    }

    /// Cells leased.
    pub(crate) fn used(&self) -> u64 {
        self.shares.held() as u64
    }

    /// Cells that all users may lease together.
    pub(crate) fn total(&self) -> u64 {
        self.limits.total() as u64
    }

    /// The cells that users have leased.
    pub(crate) fn shares(&self) -> &Shares {
        &self.shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::shares::uid;
    use proptest::prelude::*;

    const UNIT: u32 = 32;
    const USER: Principal = uid(1000);

    /// Grows a window as far as it goes; returns all its sizes.
    fn grow(budget: &mut Budget, user: Principal, mut window: u32) -> Vec<u32> {
        let step = || {
            let next = budget.next_window(user, window)?;
            budget.lease(user, next - window);
            window = next;
            Some(window)
        };
        std::iter::from_fn(step).collect()
    }

    #[test]
    fn windows_double_up_to_their_limit() {
        let mut budget = Budget::new(ShareLimits::of_one(8192, 90), 4096, UNIT);
        assert_eq!(grow(&mut budget, USER, 0), [128, 256, 512, 1024, 2048, 4096]);
        assert_eq!(budget.used(), 4096);
    }

    #[test]
    fn a_second_ring_finds_room_and_the_total_is_kept() {
        let mut budget = Budget::new(ShareLimits::of_one(1024, 90), 4096, UNIT);
        let mut windows = [0; 4];
        for _ in 0..20 {
            for window in &mut windows {
                if let Some(next) = budget.next_window(USER, *window) {
                    budget.lease(USER, next - *window);
                    *window = next;
                }
            }
        }
        assert!(windows.iter().all(|w| *w >= 32), "{windows:?}");
        assert!((1024 - 2 * u64::from(UNIT)..=1024).contains(&budget.used()), "{}", budget.used());
        for window in windows {
            budget.give_back(USER, window.into());
        }
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_user_that_comes_late_finds_room_when_another_has_leased_all_that_it_may() {
        let mut budget = Budget::new(ShareLimits::of_one(9000, 90), 4096, UNIT);
        for _ in 0..30 {
            grow(&mut budget, USER, 0);
        }
        assert!(budget.is_short(USER, 0) && !budget.is_short(USER, 4096));
        let windows = grow(&mut budget, uid(2000), 0);
        assert!(windows.last() > Some(&256), "{windows:?} of the 900 cells that are left to it");
    }

    proptest! {
        /// Rings of three users grow, are given back at once or a while later, and end, in any order.
        #[test]
        fn the_books_are_balanced(
            slots in 0usize..9000,
            percent in 1u32..=100,
            steps in prop::collection::vec((0usize..12, 0u8..4), 0..300),
        ) {
            let mut budget = Budget::new(ShareLimits::of_one(slots, percent), 1024, UNIT);
            let (mut windows, mut pending) = ([0u32; 12], [0u32; 12]);
            for (ring, action) in steps {
                let user = uid(ring as u32 % 3);
                match action {
                    0 | 1 => {
                        let free = budget.shares.left_of(user);
                        if let Some(next) = budget.next_window(user, windows[ring]) {
                            let more = next - windows[ring];
                            prop_assert!(more % UNIT == 0 && next <= 1024 && more as usize <= free / 2);
                            budget.lease(user, more);
                            windows[ring] = next;
                        } else {
                            prop_assert!(windows[ring] == 1024 || free / 2 < UNIT as usize);
                        }
                    }
                    2 => pending[ring] += std::mem::take(&mut windows[ring]),
                    _ => budget.give_back(user, std::mem::take(&mut pending[ring]).into()),
                }
                let cells = |ring: usize| u64::from(windows[ring] + pending[ring]);
                let held = |user| (user..12).step_by(3).map(cells).sum::<u64>();
                prop_assert_eq!(budget.used(), held(0) + held(1) + held(2));
                prop_assert!(budget.used() <= budget.total());
                for (user, cells) in budget.shares().users() {
                    prop_assert!(cells as u64 == held(user.uid() as usize) && cells <= slots);
                }
            }
            for ring in 0..12 {
                budget.give_back(uid(ring as u32 % 3), (windows[ring] + pending[ring]).into());
            }
            prop_assert_eq!((budget.used(), budget.shares().users().count()), (0, 0));
        }
    }
}

//! The one budget out of which all rings' extensions are leased: `num_slots` × `slot_size` bytes, counted in cells.

/// The first lease of a ring, in cells: four pages.
const FIRST: u32 = 128;

/// The leases of the shared budget.
#[derive(Debug)]
pub(crate) struct Budget {
    total: u64,
    used: u64,
    /// The most that one ring may have.
    most: u32,
    /// Leases are whole multiples of this many cells.
    unit: u32,
}

impl Budget {
    pub(crate) fn new(total: u64, most: u32, unit: u32) -> Budget {
        Budget { total, used: 0, most: most / unit * unit, unit }
    }

    /// How large a ring's window becomes if it grows now: twice as large, but no more than half of what is free in
    /// addition, so that one busy ring leaves room for the next. `None`: it stays. Nothing is leased yet.
    pub(crate) fn next_window(&self, window: u32) -> Option<u32> {
        let free = (self.total - self.used) / 2;
        let more = u64::from(window.max(FIRST)).min(free).min(u64::from(self.most.saturating_sub(window)));
        let more = u32::try_from(more).unwrap_or(u32::MAX) / self.unit * self.unit;
        (more > 0).then_some(window + more)
    }

    /// Whether a ring may have a larger window, and stays for want of free cells.
    pub(crate) fn is_short(&self, window: u32) -> bool {
        self.most.saturating_sub(window) >= self.unit && self.next_window(window).is_none()
    }

    /// A window has changed from `before` to `after` cells.
    pub(crate) fn change(&mut self, before: u32, after: u32) {
        self.used = self.used - u64::from(before) + u64::from(after);
        debug_assert!(self.used <= self.total, "{} of {}", self.used, self.total);
    }

    /// Returns the cells of windows that are gone.
    pub(crate) fn give_back(&mut self, cells: u64) {
        self.used -= cells;
    }

    /// Cells leased.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Cells there are.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_double_up_to_their_limit() {
        let (mut budget, mut window, mut seen) = (Budget::new(8192, 4096, 32), 0, vec![]);
        while let Some(next) = budget.next_window(window) {
            budget.change(window, next);
            window = next;
            seen.push(window);
        }
        assert_eq!(seen, [128, 256, 512, 1024, 2048, 4096]);
        assert_eq!(budget.used(), 4096);
    }

    #[test]
    fn a_second_ring_finds_room_and_the_total_is_kept() {
        let mut budget = Budget::new(1024, 4096, 32);
        let mut windows = [0; 4];
        for _ in 0..20 {
            for window in &mut windows {
                if let Some(next) = budget.next_window(*window) {
                    budget.change(*window, next);
                    *window = next;
                }
            }
        }
        assert!(windows.iter().all(|w| *w >= 32), "{windows:?}");
        assert!(budget.used() <= budget.total());
        for window in windows {
            budget.change(window, 0);
        }
        assert_eq!(budget.used(), 0);
    }
}

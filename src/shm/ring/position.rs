//! The position of the next record: arithmetic on private counts, without shared memory.

/// The two parts of a ring. Within each, cells are contiguous; a record lies in one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bank {
    Base,
    Extension,
}

/// The producer's position: the claimed cells and the laps that they are in.
///
/// A *lap* is a run of records that began at the start of a bank. A new lap may only begin when all before the current
/// one are consumed, or, in the extension, when no lap in flight lies there (R2). So the starts of the last two laps
/// say which cells are free.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    claimed: u64,
    lap: Lap,
    before: Lap,
}

#[derive(Clone, Copy, Debug)]
struct Lap {
    bank: Bank,
    start: u64,
}

/// Where a record goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) bank: Bank,
    /// Its first cell.
    pub(crate) at: u32,
    /// A lap begins with it.
    begins_lap: bool,
}

impl Plan {
    pub(crate) const START: Plan = {
        let lap = Lap { bank: Bank::Base, start: 0 };
        Plan { claimed: 0, lap, before: lap }
    };

    /// All cells claimed so far.
    pub(crate) fn claimed(&self) -> u64 {
        self.claimed
    }

    /// The place of `cells` contiguous cells, given the count that is `consumed` and the present sizes of the banks;
    /// `None` if they do not fit yet. They are claimed by [`Plan::take`].
    ///
    /// A record that fits into the base window always fits once the consumer has consumed everything.
    #[inline(always)]
    pub(crate) fn find(&self, cells: u32, consumed: u64, base: u32, window: u32) -> Option<Place> {
        let size = u64::from(if self.lap.bank == Bank::Base { base } else { window });
        let offset = self.claimed - self.lap.start;
        let before_in_flight = consumed < self.lap.start;
        let limit = if before_in_flight && self.before.bank == self.lap.bank {
            size.min(consumed - self.before.start)
        } else {
            size
        };
        if offset + u64::from(cells) <= limit {
            return Some(Place { bank: self.lap.bank, at: offset as u32, begins_lap: false });
        }
        self.find_lap(cells, consumed, base, window)
    }

    /// The same at the start of a new lap.
    #[cold]
    fn find_lap(&self, cells: u32, consumed: u64, base: u32, window: u32) -> Option<Place> {
        let before_in_flight = consumed < self.lap.start;
        // While both laps in flight lie in the base window, the extension is free (R2). It may have been leased just
        // now.
        let both_in_base = self.lap.bank == Bank::Base && self.before.bank == Bank::Base;
        if before_in_flight && !(both_in_base && window >= cells) {
            return None;
        }
        let drained = consumed == self.claimed;
        let bank = if window >= cells && !(drained && cells <= base) { Bank::Extension } else { Bank::Base };
        let size = u64::from(if bank == Bank::Base { base } else { window });
        let free = if bank == self.lap.bank && !drained { consumed - self.lap.start } else { size };
        (u64::from(cells) <= free).then_some(Place { bank, at: 0, begins_lap: true })
    }

    /// Claims `cells` at `place`, which [`Plan::find`] has found since the last claim.
    #[inline(always)]
    pub(crate) fn take(&mut self, place: Place, cells: u32) {
        if place.begins_lap {
            self.before = self.lap;
            self.lap = Lap { bank: place.bank, start: self.claimed };
        }
        self.claimed += u64::from(cells);
    }

    /// Finds `cells`, and claims them.
    #[inline]
    pub(crate) fn claim(&mut self, cells: u32, consumed: u64, base: u32, window: u32) -> Option<(Bank, u32)> {
        let place = self.find(cells, consumed, base, window)?;
        self.take(place, cells);
        Some((place.bank, place.at))
    }
}

#[cfg(all(test, not(lapce_ipc_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn a_drained_ring_starts_again_at_cell_0() {
        let mut plan = Plan::START;
        for lap in 0..5 {
            for at in 0..9 {
                assert_eq!(plan.claim(1, lap * 9, 9, 64), Some((Bank::Base, at)));
            }
        }
    }

    #[test]
    fn an_extension_that_is_leased_while_two_laps_are_in_flight_is_used_at_once() {
        let mut plan = Plan::START;
        assert_eq!(plan.claim(9, 0, 9, 0), Some((Bank::Base, 0)));
        assert_eq!(plan.claim(2, 3, 9, 0), Some((Bank::Base, 0)), "wraps round, undrained");
        assert_eq!(plan.claim(2, 3, 9, 0), None);
        assert_eq!(plan.claim(2, 3, 9, 32), Some((Bank::Extension, 0)));
        assert_eq!(plan.claim(31, 3, 9, 32), None, "three laps are in flight");
        assert_eq!(plan.claim(9, 11, 9, 32), Some((Bank::Extension, 2)));
    }

    #[test]
    fn an_undrained_ring_grows_into_the_extension_and_comes_back() {
        let mut plan = Plan::START;
        assert_eq!(plan.claim(8, 0, 9, 32), Some((Bank::Base, 0)));
        assert_eq!(plan.claim(8, 0, 9, 32), Some((Bank::Extension, 0)));
        assert_eq!(plan.claim(24, 0, 9, 32), Some((Bank::Extension, 8)));
        assert_eq!(plan.claim(1, 7, 9, 32), None, "the base lap is in flight");
        assert_eq!(plan.claim(9, 16, 9, 32), None, "8 cells are free at the start of the extension");
        assert_eq!(plan.claim(8, 16, 9, 32), Some((Bank::Extension, 0)));
        assert_eq!(plan.claim(1, 16, 9, 32), None);
        assert_eq!(plan.claim(1, 48, 9, 0), Some((Bank::Base, 0)), "drained, and the window is taken back");
    }

    /// The naive oracle: a list of the cells that each record in flight occupies.
    #[derive(Default)]
    struct Cells {
        in_flight: VecDeque<(Bank, u32, u32)>,
    }

    impl Cells {
        fn occupy(&mut self, bank: Bank, at: u32, cells: u32) {
            for &(other, from, len) in &self.in_flight {
                assert!(
                    other != bank || at + cells <= from || from + len <= at,
                    "{bank:?} {at}+{cells} overlaps {from}+{len}"
                );
            }
            self.in_flight.push_back((bank, at, cells));
        }
    }

    proptest! {
        /// Whatever the sizes and the consumer's pace: no record overlaps one in flight or leaves its bank, and a
        /// record of base size always fits into a drained ring.
        #[test]
        fn records_in_flight_never_overlap(
            base in 1u32..12, steps in prop::collection::vec((1u32..12, 0usize..6, prop::option::of(0u32..40)), 1..400)
        ) {
            let (mut plan, mut cells, mut consumed, mut window) = (Plan::START, Cells::default(), 0u64, 0u32);
            for (want, take, new_window) in steps {
                for _ in 0..take {
                    if let Some((_, _, len)) = cells.in_flight.pop_front() {
                        consumed += u64::from(len);
                    }
                }
                // A window shrinks only when the ring is drained; it may be announced at any time.
                if let Some(new) = new_window && (new > window || cells.in_flight.is_empty()) {
                    window = new;
                }
                match plan.claim(want, consumed, base, window) {
                    Some((bank, at)) => {
                        let size = if bank == Bank::Base { base } else { window };
                        prop_assert!(at + want <= size);
                        cells.occupy(bank, at, want);
                    }
                    None => prop_assert!(!cells.in_flight.is_empty() || (want > base && want > window)),
                }
                let in_flight: u32 = cells.in_flight.iter().map(|r| r.2).sum();
                prop_assert_eq!(plan.claimed(), consumed + u64::from(in_flight));
            }
        }
    }
}

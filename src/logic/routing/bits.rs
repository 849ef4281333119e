//! A set of small numbers, one bit for each.

/// The set. It takes as much memory as its largest number needs.
#[derive(Debug, Default)]
pub(crate) struct BitSet(Vec<u64>);

impl BitSet {
    #[inline]
    pub(crate) fn contains(&self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    pub(crate) fn insert(&mut self, number: u32) {
        let at = number as usize / 64;
        if self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        self.0[at] |= 1 << (number % 64);
    }

    pub(crate) fn remove(&mut self, number: u32) {
        if let Some(word) = self.0.get_mut(number as usize / 64) {
            *word &= !(1 << (number % 64));
        }
    }

    /// The numbers, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        let bits = |word: u64| {
            // Each without the lowest bit of the one before.
            std::iter::successors(Some(word), |word| Some(word & word.wrapping_sub(1))).take_while(|word| *word != 0)
        };
        let words = self.0.iter().enumerate();
        words.flat_map(move |(at, word)| bits(*word).map(move |word| at as u32 * 64 + word.trailing_zeros()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_and_go() {
        let mut set = BitSet::default();
        assert!(!set.contains(1000));
        for number in [63, 0, 64, 1000, 64] {
            set.insert(number);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 1000]);
        set.remove(64);
        set.remove(5000);
        assert!(set.contains(63) && !set.contains(64) && set.contains(1000));
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 1000]);
    }
}

//! The numbers that stand for names on one connection.

/// A table by number. A number is given again once it was released, the one that was released last first: so there
/// are never more numbers than were in use at the same time.
#[derive(Debug)]
pub(crate) struct Numbers<T> {
    given: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Numbers<T> {
    pub(crate) fn new() -> Numbers<T> {
        Numbers { given: Vec::new(), free: Vec::new() }
    }

    /// How many are in use.
    pub(crate) fn len(&self) -> usize {
        self.given.len() - self.free.len()
    }

    /// Gives `value` a number.
    pub(crate) fn give(&mut self, value: T) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.given.push(None);
            (self.given.len() - 1) as u32
        });
        self.given[number as usize] = Some(value);
        number
    }

    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.given.get(number as usize)?.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.given.get_mut(number as usize)?.as_mut()
    }

    /// Takes a number back; `None` if it stands for nothing.
    pub(crate) fn take(&mut self, number: u32) -> Option<T> {
        let value = self.given.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(value)
    }

    /// Takes any number back; `None`: none is in use.
    pub(crate) fn take_any(&mut self) -> Option<T> {
        while let Some(last) = self.given.pop() {
            if last.is_some() {
                return last;
            }
            let number = self.given.len() as u32;
            self.free.retain(|free| *free != number);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_again_once_it_was_taken_back() {
        let mut numbers = Numbers::new();
        assert_eq!([numbers.give('a'), numbers.give('b'), numbers.give('c')], [0, 1, 2]);
        assert_eq!((numbers.take(1), numbers.take(1), numbers.take(9)), (Some('b'), None, None));
        assert_eq!((numbers.len(), numbers.get(1), numbers.get(2)), (2, None, Some(&'c')));
        assert_eq!((numbers.give('d'), numbers.give('e'), numbers.len()), (1, 3, 4));
        numbers.take(3);
        let mut rest: Vec<_> = std::iter::from_fn(|| numbers.take_any()).collect();
        rest.sort_unstable();
        assert_eq!((rest, numbers.len()), (vec!['a', 'c', 'd'], 0));
    }

    #[test]
    fn a_client_that_uses_one_name_after_another_needs_one_number() {
        let mut numbers = Numbers::new();
        for name in 0..100_000 {
            assert_eq!(numbers.give(name), 0);
            assert_eq!(numbers.take(0), Some(name));
        }
    }
}

//! Numbers for interned names on one connection.

/// A table by number. Released numbers are reused, the last one first: so the table is never larger than the most
/// numbers that were in use at the same time.
#[derive(Debug)]
pub(crate) struct Numbers<T> {
    given: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Numbers<T> {
    pub(crate) fn new() -> Numbers<T> {
        Numbers { given: Vec::new(), free: Vec::new() }
    }

    /// The count of used numbers.
    pub(crate) fn len(&self) -> usize {
        self.given.len() - self.free.len()
    }

    /// Assigns a number to `value`.
    pub(crate) fn assign(&mut self, value: T) -> u32 {
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

    /// Releases a number; `None` if it is not in use.
    pub(crate) fn take(&mut self, number: u32) -> Option<T> {
        let value = self.given.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(value)
    }

    /// Releases any number; `None`: none is in use.
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
        assert_eq!([numbers.assign('a'), numbers.assign('b'), numbers.assign('c')], [0, 1, 2]);
        assert_eq!((numbers.take(1), numbers.take(1), numbers.take(9)), (Some('b'), None, None));
        assert_eq!((numbers.len(), numbers.get(1), numbers.get(2)), (2, None, Some(&'c')));
        assert_eq!((numbers.assign('d'), numbers.assign('e'), numbers.len()), (1, 3, 4));
        numbers.take(3);
        let mut rest: Vec<_> = std::iter::from_fn(|| numbers.take_any()).collect();
        rest.sort_unstable();
        assert_eq!((rest, numbers.len()), (vec!['a', 'c', 'd'], 0));
    }

    #[test]
    fn a_client_that_uses_one_name_after_another_needs_one_number() {
        let mut numbers = Numbers::new();
        for name in 0..100_000 {
            assert_eq!(numbers.assign(name), 0);
            assert_eq!(numbers.take(0), Some(name));
        }
    }
}

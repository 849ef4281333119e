//! Values behind an `Arc` that are used again, so that a steady flow of calls allocates none.

use std::collections::VecDeque;
use std::sync::Arc;

/// Values kept at most. More calls than this in flight at once allocate again.
const MOST: usize = 64;

/// Released values, in the order of their release. Another owner may still hold one: it is used again only when it is
/// the pool's alone.
#[derive(Debug)]
pub(crate) struct Spares<T>(VecDeque<Arc<T>>);

impl<T> Default for Spares<T> {
    fn default() -> Spares<T> {
        Spares(VecDeque::new())
    }
}

impl<T> Spares<T> {
    /// A shared value: in the memory of the value that was released first, if no other owner holds that.
    pub(crate) fn share(&mut self, value: T) -> Arc<T> {
        let Some(mut spare) = self.0.pop_front() else { return Arc::new(value) };
        match Arc::get_mut(&mut spare) {
            Some(place) => {
                *place = value;
                spare
            }
            None => Arc::new(value),
        }
    }

    pub(crate) fn release(&mut self, value: Arc<T>) {
        if self.0.len() < MOST {
            self.0.push_back(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_when_the_last_owner_is_gone() {
        let mut spares = Spares::default();
        let first = spares.share(1);
        spares.release(first.clone());
        let second = spares.share(2);
        assert_eq!((*first, *second), (1, 2), "the first is still held");
        let place = Arc::as_ptr(&second);
        spares.release(second);
        let third = spares.share(3);
        assert_eq!((*third, Arc::as_ptr(&third)), (3, place));
    }

    #[test]
    fn the_pool_is_bounded() {
        let mut spares = Spares::default();
        (0..2 * MOST).for_each(|value| spares.release(Arc::new(value)));
        assert_eq!(spares.0.len(), MOST);
    }
}

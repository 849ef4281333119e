//! Values under keys that never come twice: an index and how often the place was used before. What a peer says about
//! a value that is gone (a late reply, a credit for an evicted subscription) finds nothing, instead of its successor.

/// The key of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    index: u32,
    generation: u32,
}

/// Bits of a key's short form that hold the index.
const SHORT_INDEX_BITS: u32 = 20;

impl Key {
    /// The key in 64 bits.
    pub(crate) fn to_u64(self) -> u64 {
        u64::from(self.index) | u64::from(self.generation) << 32
    }

    pub(crate) fn from_u64(key: u64) -> Key {
        Key { index: key as u32, generation: (key >> 32) as u32 }
    }

    /// The key in 32 bits, for arenas with [`Arena::short`] keys.
    pub(crate) fn to_u32(self) -> u32 {
        self.index | self.generation << SHORT_INDEX_BITS
    }

    pub(crate) fn from_u32(key: u32) -> Key {
        Key { index: key & ((1 << SHORT_INDEX_BITS) - 1), generation: key >> SHORT_INDEX_BITS }
    }
}

/// An arena.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    generations: u32,
    most: usize,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Arena<T> {
    /// Keys of 64 bits; at most `most` values.
    pub(crate) fn long(most: usize) -> Arena<T> {
        Arena { places: Vec::new(), free: Vec::new(), generations: u32::MAX, most }
    }

    /// Keys of 32 bits, whose places come again after 4,096 uses; at most a million values.
    pub(crate) fn short() -> Arena<T> {
        let generations = (1 << (32 - SHORT_INDEX_BITS)) - 1;
        Arena { places: Vec::new(), free: Vec::new(), generations, most: 1 << SHORT_INDEX_BITS }
    }

    /// Puts `value` in, unless the arena is full.
    pub(crate) fn insert(&mut self, value: T) -> Option<Key> {
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            place.value = Some(value);
            return Some(Key { index, generation: place.generation });
        }
        if self.places.len() >= self.most {
            return None;
        }
        let index = u32::try_from(self.places.len()).ok()?;
        self.places.push(Place { generation: 1, value: Some(value) });
        Some(Key { index, generation: 1 })
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.index as usize).filter(|p| p.generation == key.generation)?;
        let value = place.value.take()?;
        place.generation = if place.generation == self.generations { 1 } else { place.generation + 1 };
        self.free.push(key.index);
        Some(value)
    }

    #[inline]
    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        self.places.get(key.index as usize).filter(|p| p.generation == key.generation)?.value.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.places.get_mut(key.index as usize).filter(|p| p.generation == key.generation)?.value.as_mut()
    }

    /// All values with their keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let key = Key { index: index as u32, generation: place.generation };
            place.value.as_ref().map(|value| (key, value))
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_find_its_successor() {
        let mut arena = Arena::long(10);
        let a = arena.insert('a').unwrap();
        assert_eq!(arena.remove(a), Some('a'));
        let b = arena.insert('b').unwrap();
        assert_eq!(arena.remove(a), None);
        assert_eq!((arena.get(a), arena.get(b)), (None, Some(&'b')));
        assert_eq!(Key::from_u64(b.to_u64()), b);
        assert_eq!(arena.get(Key::from_u64(77)), None);
    }

    #[test]
    fn short_keys_fit_into_32_bits_through_all_generations() {
        let mut arena = Arena::short();
        for n in 0..10_000 {
            let key = arena.insert(n).unwrap();
            assert_eq!(arena.get(Key::from_u32(key.to_u32())), Some(&n));
            assert_ne!(key.to_u32(), 0, "0 is no key");
            arena.remove(key);
        }
    }

    #[test]
    fn a_full_arena_says_so() {
        let mut arena = Arena::long(1);
        let key = arena.insert(1).unwrap();
        assert_eq!(arena.insert(2), None);
        arena.remove(key);
        assert!(arena.insert(3).is_some() && arena.len() == 1);
    }
}

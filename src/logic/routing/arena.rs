//! Values under keys that are never reused: an index and a generation. A record about a removed value (a late reply,
//! the rest of a message for an ended subscription) finds nothing, instead of its successor.

/// The key of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    index: u32,
    generation: u32,
}

/// Bits of a key's short form that hold the index.
const SHORT_INDEX_BITS: u32 = 20;
/// The limit of values of an arena whose keys have a short form.
pub(crate) const MAX_SHORT: usize = 1 << SHORT_INDEX_BITS;

impl Key {
    /// The key in 64 bits.
    pub(crate) fn to_u64(self) -> u64 {
        u64::from(self.index) | u64::from(self.generation) << 32
    }

    /// The index of its slot: another value has it later.
    #[inline]
    pub(crate) fn index(self) -> usize {
        self.index as usize
    }

    pub(crate) fn from_u64(key: u64) -> Key {
        Key { index: key as u32, generation: (key >> 32) as u32 }
    }

    /// The key's short form, for peers: never 0, and repeated only after 4,095 uses of the slot. See
    /// [`Arena::find`].
    pub(crate) fn to_u32(self) -> u32 {
        self.index | self.generation << SHORT_INDEX_BITS
    }

    /// The next generation of a slot.
    fn next_generation(self) -> u32 {
        let next = self.generation.wrapping_add(1);
        // So that no short form is 0.
        if next << SHORT_INDEX_BITS == 0 { next + 1 } else { next }
    }
}

/// An arena.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    most: usize,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Arena<T> {
    /// An arena of at most `most` values.
    pub(crate) fn new(most: usize) -> Arena<T> {
        Arena { slots: Vec::new(), free: Vec::new(), most }
    }

    /// Inserts `value`, unless the arena is full.
    pub(crate) fn insert(&mut self, value: T) -> Option<Key> {
        if let Some(index) = self.free.pop() {
            let place = &mut self.slots[index as usize];
            place.value = Some(value);
            return Some(Key { index, generation: place.generation });
        }
        if self.slots.len() >= self.most {
            return None;
        }
        let index = u32::try_from(self.slots.len()).ok()?;
        self.slots.push(Slot { generation: 1, value: Some(value) });
        Some(Key { index, generation: 1 })
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let value = self.get_slot(key)?.value.take()?;
        self.free_slot(key);
        Some(value)
    }

    /// Removes a value in its place.
    #[inline]
    pub(crate) fn discard(&mut self, key: Key) {
        if let Some(place) = self.get_slot(key).filter(|place| place.value.is_some()) {
            place.value = None;
            self.free_slot(key);
        }
    }

    #[inline]
    fn get_slot(&mut self, key: Key) -> Option<&mut Slot<T>> {
        self.slots.get_mut(key.index as usize).filter(|p| p.generation == key.generation)
    }

    #[inline]
    fn free_slot(&mut self, key: Key) {
        self.slots[key.index as usize].generation = key.next_generation();
        self.free.push(key.index);
    }

    /// The key with this short form, if its value is here.
    pub(crate) fn find(&self, short: u32) -> Option<Key> {
        self.key_at(short as usize & (MAX_SHORT - 1)).filter(|key| key.to_u32() == short)
    }

    /// The key of the value in a slot, if there is one.
    pub(crate) fn key_at(&self, index: usize) -> Option<Key> {
        let place = self.slots.get(index).filter(|place| place.value.is_some())?;
        Some(Key { index: u32::try_from(index).ok()?, generation: place.generation })
    }

    #[inline]
    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        self.slots.get(key.index as usize).filter(|p| p.generation == key.generation)?.value.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.get_slot(key)?.value.as_mut()
    }

    /// All values, to change them.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(|place| place.value.as_mut())
    }

    /// All values with their keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, place)| {
            let key = Key { index: index as u32, generation: place.generation };
            place.value.as_ref().map(|value| (key, value))
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_find_its_successor() {
        let mut arena = Arena::new(10);
        let a = arena.insert('a').unwrap();
        assert_eq!(arena.remove(a), Some('a'));
        let gone = arena.insert('x').unwrap();
        (0..2).for_each(|_| arena.discard(gone));
        let b = arena.insert('b').unwrap();
        assert_eq!(arena.remove(a), None);
        assert_eq!((arena.get(a), arena.get(gone), arena.get(b)), (None, None, Some(&'b')));
        arena.discard(gone);
        assert_eq!((arena.len(), arena.key_at(b.index()), arena.key_at(1)), (1, Some(b), None));
        assert_eq!(Key::from_u64(b.to_u64()), b);
        assert_eq!(arena.get(Key::from_u64(77)), None);
    }

    #[test]
    fn keys_never_come_twice_and_short_forms_find_who_is_there() {
        let mut arena = Arena::new(MAX_SHORT);
        let (mut keys, mut before) = (std::collections::HashSet::new(), None);
        for n in 0..10_000 {
            let key = arena.insert(n).unwrap();
            assert!(keys.insert(key.to_u64()));
            assert_eq!(arena.find(key.to_u32()), Some(key));
            assert_eq!(before.and_then(|before| arena.find(before)), None);
            assert_ne!(key.to_u32(), 0, "0 is no key");
            arena.remove(key);
            assert_eq!(arena.find(key.to_u32()), None);
            before = Some(key.to_u32());
        }
    }

    #[test]
    fn a_full_arena_says_so() {
        let mut arena = Arena::new(1);
        let key = arena.insert(1).unwrap();
        assert_eq!(arena.insert(2), None);
        arena.remove(key);
        assert!(arena.insert(3).is_some() && arena.len() == 1);
    }
}

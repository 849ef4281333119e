//! Hashing of the ids that the broker assigns.

use std::hash::{BuildHasherDefault, Hasher};

/// Hashes the numbers that the broker gives out: it is trusted not to choose them so that they collide.
pub(crate) type ById = BuildHasherDefault<IdHasher>;

#[derive(Debug, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        // Fibonacci hashing (Knuth, The Art of Computer Programming, volume 3, section 6.4).
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

//! The segment of one connection: an anonymous memory file that both sides map. A seal keeps a peer from shrinking the
//! file under the other side's mapping. The file has no name, so the memory is freed with the last process that holds
//! it.

use super::layout::{Geometry, PAGE_BYTES, RingName, control};
use super::ring::{Channel, Consumer, Producer, Signal};
use super::words::Words;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, SealFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The nonces of the three rings, on which the tags of records are based. They lie in 1..2^63, so that no tag is 0, the
/// value of untouched memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nonces {
    /// The bulk lane.
    pub(crate) bulk: u64,
    /// The express lane.
    pub(crate) express: u64,
    /// The egress ring.
    pub(crate) egress: u64,
}

impl Nonces {
    /// Random nonces.
    ///
    /// # Errors
    ///
    /// If the system has no entropy.
    pub(crate) fn random() -> io::Result<Nonces> {
        let mut bytes = [0; 24];
        fill_random(&mut bytes)?;
        let (words, _) = bytes.as_chunks::<8>();
        let [bulk, express, egress] = std::array::from_fn(|i| (u64::from_le_bytes(words[i]) >> 1).max(1));
        Ok(Nonces { bulk, express, egress })
    }

    fn of(&self, ring: RingName) -> u64 {
        match ring {
            RingName::Bulk => self.bulk,
            RingName::Express => self.express,
            RingName::Egress => self.egress,
        }
    }
}

/// Fills `bytes` with random bytes.
///
/// # Errors
///
/// If the system has no entropy.
pub(crate) fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Why the descriptor of a Welcome is no trustworthy segment.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SegmentError {
    /// The file has another size than Welcome said.
    #[error("segment has {found} bytes, announced were {expected}")]
    Size {
        /// Size of the file.
        found: u64,
        /// The size that the geometry requires.
        expected: u64,
    },
    /// The file could shrink under the mapping.
    #[error("segment is not sealed against shrinking")]
    NotSealed,
    /// The system refused.
    #[error("segment: {0}")]
    Io(#[from] io::Error),
}

impl From<rustix::io::Errno> for SegmentError {
    fn from(error: rustix::io::Errno) -> Self {
        SegmentError::Io(error.into())
    }
}

/// A mapped segment.
#[derive(Debug)]
pub(crate) struct Segment {
    file: OwnedFd,
    words: Words,
    geometry: Geometry,
    nonces: Nonces,
}

impl Segment {
    /// Creates a segment with the file mode `permissions`. Memory for control words and base windows is allocated at
    /// once, so a lack of memory is an error here and not a signal later.
    ///
    /// # Errors
    ///
    /// If the system refuses: too many descriptors, no memory.
    pub(crate) fn create(geometry: Geometry, nonces: Nonces, permissions: u32) -> Result<Segment, SegmentError> {
        let file = rustix::fs::memfd_create("lapce-ipc", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(permissions))?;
        rustix::fs::ftruncate(&file, geometry.segment_bytes() as u64)?;
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, geometry.base_bytes() as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let words = map(&file, &geometry)?;
        Ok(Segment { file, words, geometry, nonces })
    }

    /// Maps the segment of a Welcome.
    ///
    /// # Errors
    ///
    /// If its size or its seals are wrong, or the system refuses.
    pub(crate) fn open(file: OwnedFd, geometry: Geometry, nonces: Nonces) -> Result<Segment, SegmentError> {
        let (found, expected) = (rustix::fs::fstat(&file)?.st_size as u64, geometry.segment_bytes() as u64);
        if found != expected {
            return Err(SegmentError::Size { found, expected });
        }
        if !rustix::fs::fcntl_get_seals(&file)?.contains(SealFlags::SHRINK) {
            return Err(SegmentError::NotSealed);
        }
        let words = map(&file, &geometry)?;
        Ok(Segment { file, words, geometry, nonces })
    }

    /// Its sizes.
    #[must_use]
    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn channel(&self, ring: RingName) -> Channel {
        Channel::new(&self.words, &self.geometry, ring, self.nonces.of(ring))
    }

    /// The broker's ends: bulk, express, egress.
    pub(crate) fn broker_ends(&self) -> (Consumer, Consumer, Producer) {
        (
            Consumer::new(self.channel(RingName::Bulk)),
            Consumer::new(self.channel(RingName::Express)),
            Producer::new(self.channel(RingName::Egress)),
        )
    }

    /// The client's ends: bulk, express, egress.
    pub(crate) fn client_ends(&self) -> (Producer, Producer, Consumer) {
        (
            Producer::new(self.channel(RingName::Bulk)),
            Producer::new(self.channel(RingName::Express)),
            Consumer::following(self.channel(RingName::Egress)),
        )
    }

    /// The flag of the side that waits for data towards the broker (`Bulk`, `Express`: the same one) or the client
    /// (`Egress`).
    pub(crate) fn data_signal(&self, ring: RingName) -> Signal {
        self.signal(if ring == RingName::Egress { control::EGRESS_DATA } else { control::INGRESS_DATA })
    }

    /// The flag of the side that waits for space in `ring`.
    pub(crate) fn space_signal(&self, ring: RingName) -> Signal {
        self.signal(match ring {
            RingName::Bulk => control::BULK_SPACE,
            RingName::Express => control::EXPRESS_SPACE,
            RingName::Egress => control::EGRESS_SPACE,
        })
    }

    fn signal(&self, word: usize) -> Signal {
        Signal::new(self.geometry.control_part(&self.words), word)
    }

    /// The control word by which the broker tells that it holds messages newer than those in the egress ring.
    pub(crate) fn newer(&self) -> Newer {
        Newer { control: self.geometry.control_part(&self.words) }
    }

    /// The words in which each side publishes the CPU on which it waits.
    pub(crate) fn cpu_words(&self) -> CpuWords {
        CpuWords { control: self.geometry.control_part(&self.words) }
    }

    /// Writes any word of the segment, as a hostile client can.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn scribble(&self, word: usize, value: u64) {
        let words = self.words.as_slice();
        words[word % words.len()].store(value, crate::sync::Ordering::Relaxed);
    }

    /// Allocates memory for cells `from` to `to` of a ring's extension, as a page fault does. Unlike `fallocate`, this
    /// does not take the file's lock, which the peer can hold. (Linux 5.14; older kernels fall back to `fallocate`.)
    ///
    /// # Errors
    ///
    /// If the system has no memory.
    pub(crate) fn lease(&self, ring: RingName, from: u32, to: u32) -> io::Result<()> {
        let ((start, less), (_, len)) = (self.extension(ring, from), self.extension(ring, to));
        match self.words.populate((start + less) as usize, (len - less) as usize) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                Ok(rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, start + less, len - less)?)
            }
            populated => populated,
        }
    }

    /// Gives the memory of the first `cells` of a ring's extension back to the system. This can wait for the file's
    /// lock, which a peer can hold, so the router's thread must not call it.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub(crate) fn give_back(&self, ring: RingName, cells: u32) -> io::Result<()> {
        let (offset, len) = self.extension(ring, cells);
        let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
        Ok(rustix::fs::fallocate(&self.file, flags, offset, len)?)
    }

    fn extension(&self, ring: RingName, cells: u32) -> (u64, u64) {
        assert!(cells <= self.geometry.extension_cells(), "{cells} cells of an extension");
        (self.geometry.extension_offset(ring) as u64, u64::from(cells) * super::layout::CELL_BYTES as u64)
    }

    /// Resident pages of the segment, touched by either side. An audit compares them with the leases.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub(crate) fn pages(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.file)?.st_blocks as u64 * 512 / PAGE_BYTES as u64)
    }
}

impl AsFd for Segment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn map(file: &OwnedFd, geometry: &Geometry) -> io::Result<Words> {
    let map: MmapRaw = MmapOptions::new().len(geometry.segment_bytes()).map_raw(file)?;
    Ok(Words::of_mapping(Arc::new(map)))
}

/// A count of changes, odd while the broker holds messages that are newer than those in the egress ring. If it has
/// changed since the client last emptied the ring, the client reads on before it delivers a message.
#[derive(Debug, Clone)]
pub(crate) struct Newer {
    control: Words,
}

impl Newer {
    /// Broker: the count.
    pub(crate) fn set(&self, count: u64) {
        // Pairs with the Acquire in `get`: the last message lies in the ring before the count tells so.
        self.control.as_slice()[control::EGRESS_NEWER].store(count, crate::sync::Ordering::Release);
    }

    /// Client: the count.
    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.control.as_slice()[control::EGRESS_NEWER].load(crate::sync::Ordering::Acquire)
    }
}

/// The CPU on which each side waits: a hint for whether spinning can help.
#[derive(Debug, Clone)]
pub(crate) struct CpuWords {
    control: Words,
}

impl CpuWords {
    /// Broker: publishes its CPU.
    pub(crate) fn set_broker(&self, cpu: usize) {
        self.set(control::BROKER_CPU, cpu);
    }

    /// Client: publishes its CPU.
    pub(crate) fn set_client(&self, cpu: usize) {
        self.set(control::CLIENT_CPU, cpu);
    }

    /// The broker's CPU, if it published one.
    pub(crate) fn broker(&self) -> Option<usize> {
        self.get(control::BROKER_CPU)
    }

    /// The client's CPU, if it published one.
    pub(crate) fn client(&self) -> Option<usize> {
        self.get(control::CLIENT_CPU)
    }

    fn set(&self, word: usize, cpu: usize) {
        let (word, cpu) = (&self.control.as_slice()[word], cpu as u64 + 1);
        // The other side reads words of this line for each record: a store takes it away.
        if word.load(crate::sync::Ordering::Relaxed) != cpu {
            word.store(cpu, crate::sync::Ordering::Relaxed);
        }
    }

    fn get(&self, word: usize) -> Option<usize> {
        (self.control.as_slice()[word].load(crate::sync::Ordering::Relaxed) as usize).checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry::new(1024, 64).unwrap()
    }

    fn nonces() -> Nonces {
        Nonces::random().unwrap()
    }

    #[test]
    fn both_sides_see_the_same_words() {
        let (broker, nonces) = (Segment::create(geometry(), nonces(), 0o600).unwrap(), nonces());
        let client = Segment::open(broker.file.try_clone().unwrap(), geometry(), nonces).unwrap();
        broker.cpu_words().set_broker(3);
        assert_eq!(client.cpu_words().broker(), Some(3));
        assert_eq!(client.cpu_words().client(), None);
    }

    #[test]
    fn it_starts_with_one_page_and_leases_come_and_go() {
        let segment = Segment::create(geometry(), nonces(), 0o600).unwrap();
        assert_eq!(segment.pages().unwrap(), 1);
        segment.lease(RingName::Egress, 0, 32).unwrap();
        assert_eq!(segment.pages().unwrap(), 2);
        segment.lease(RingName::Egress, 32, 64).unwrap();
        assert_eq!(segment.pages().unwrap(), 3);
        segment.give_back(RingName::Egress, 64).unwrap();
        assert_eq!(segment.pages().unwrap(), 1);
    }

    #[test]
    fn nobody_can_change_its_size() {
        let segment = Segment::create(geometry(), nonces(), 0o600).unwrap();
        for size in [0, PAGE_BYTES as u64, 1 << 30] {
            assert_eq!(rustix::fs::ftruncate(&segment.file, size), Err(rustix::io::Errno::PERM));
        }
    }

    #[test]
    fn a_file_of_another_size_or_without_seals_is_refused() {
        let segment = Segment::create(geometry(), nonces(), 0o600).unwrap();
        let other = Geometry::new(1024, 32).unwrap();
        let error = Segment::open(segment.file.try_clone().unwrap(), other, nonces()).unwrap_err();
        assert_eq!(error.to_string(), "segment has 28672 bytes, announced were 16384");
        let file = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, geometry().segment_bytes() as u64).unwrap();
        assert!(matches!(Segment::open(file, geometry(), nonces()), Err(SegmentError::NotSealed)));
    }

    #[test]
    fn permissions_are_the_files_mode() {
        let segment = Segment::create(geometry(), nonces(), 0o640).unwrap();
        assert_eq!(rustix::fs::fstat(&segment.file).unwrap().st_mode & 0o777, 0o640);
    }
}

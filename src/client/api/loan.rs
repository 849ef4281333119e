//! Messages that are written in place.

use crate::client::connection::shared::Connection;
use crate::client::data::lane::{LaneProducer, broken};
use crate::client::data::lock::thread;
use crate::client::data::names::NameRef;
use crate::client::engine::wait;
use crate::client::error::{Kind, Result};
use crate::shm::words::write_bytes_at;
use crate::sync::Ordering;
use crate::wire::record::{Flags, Header, Kind as RecordKind};
use std::sync::MutexGuard;

/// Space in the bulk lane for a message that is written in place; see
/// [`Publisher::loan`](crate::client::Publisher::loan). Dropping it discards the message. While a loan is held, the
/// publishes of other threads wait, and so does the restore of the session after a restart of the broker: do not wait
/// for messages while you hold one.
///
/// Bytes that are not written have unspecified values.
pub struct Loan<'a> {
    connection: &'a Connection,
    lane: MutexGuard<'a, LaneProducer>,
    topic: NameRef,
    len: u32,
}

/// Finds the space, and stays inside the lane with it.
fn reserve(lane: &mut LaneProducer, len: u32) -> Result<bool> {
    if !lane.resends.is_empty() && !lane.place_resends()? {
        return Ok(false);
    }
    if !lane.is_one_record(len as usize) {
        // Another broker has smaller records.
        return Err(Kind::TooLarge { len: len as usize, max: lane.record_size() }.into());
    }
    lane.producer.enter();
    let found = lane.producer.reserve(len).map(|slot| slot.is_some());
    if found != Ok(true) {
        lane.producer.leave();
    }
    Ok(found.map_err(broken)?)
}

impl<'a> Loan<'a> {
    pub(crate) fn new(connection: &'a Connection, topic: NameRef, len: usize) -> Result<Loan<'a>> {
        let slot_size = connection.limits.slot_size();
        let len =
            u32::try_from(len).ok().filter(|len| *len <= slot_size).ok_or(Kind::TooLarge { len, max: slot_size })?;
        connection.check_open()?;
        loop {
            let mut lane = connection.bulk().claim()?;
            lane.topic(&topic)?;
            if reserve(&mut lane, len)? {
                connection.bulk().lender.store(thread(), Ordering::Relaxed);
                return Ok(Loan { connection, lane, topic, len });
            }
            drop(lane);
            // Looks whether there is space, and lets go of it; then it is claimed as above.
            wait::for_bell(connection, None, || {
                let fits = connection.bulk().claim_within().and_then(|mut lane| {
                    lane.wait_for_space();
                    let fits = reserve(&mut lane, len)?;
                    if fits {
                        lane.producer.leave();
                    }
                    Ok(fits)
                });
                match fits {
                    Ok(false) => None,
                    Ok(true) => Some(Ok(())),
                    Err(error) => Some(Err(error)),
                }
            })??;
        }
    }

    /// The size in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Panics
    ///
    /// If they extend beyond the end of the loan.
    pub fn write_at(&mut self, offset: usize, bytes: &[u8]) {
        assert!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len()),
            "{} bytes at offset {offset} exceed a loan of {} bytes",
            bytes.len(),
            self.len
        );
        // The same place each time: nothing moves before the publication.
        if let Ok(Some(slot)) = self.lane.producer.reserve(self.len) {
            write_bytes_at(slot.payload(), offset, bytes);
        }
    }

    /// Publishes what was written.
    ///
    /// # Errors
    ///
    /// If the connection has ended since.
    pub fn publish(mut self) -> Result<()> {
        self.connection.check_open()?;
        let placed = self.lane.topic(&self.topic)?;
        placed.seq += 1;
        let (flags, id, total, seq) = (Flags::WHOLE, placed.number, self.len, placed.seq);
        let header = Header { flags, id, total, seq, ..Header::new(RecordKind::Publish) };
        if let Some(slot) = self.lane.producer.reserve(self.len).map_err(broken)? {
            slot.publish(&header.to_words(), self.len);
        }
        // What remains, and waking the router, is the drop's.
        Ok(())
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if !self.connection.is_ours() {
            return;
        }
        self.lane.producer.leave();
        self.connection.bulk().lender.store(0, Ordering::Relaxed);
        self.lane.announce();
    }
}

impl std::fmt::Debug for Loan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loan({} bytes)", self.len)
    }
}

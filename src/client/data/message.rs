//! A received message: owned, or viewed in place.

use crate::shm::ring::{Consumer, Extent};
use crate::shm::words::read_bytes_at;
use crate::wire::name::Topic;
use crate::wire::record::Header;
use std::io;

/// A received message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    topic: Topic,
    payload: Vec<u8>,
    publisher: u32,
    sequence: u64,
    /// Its room was given back while it was put together.
    pub(crate) is_paid: bool,
}

impl Message {
    pub(crate) fn new(topic: Topic, payload: Vec<u8>, header: &Header) -> Message {
        Message { topic, payload, publisher: header.origin, sequence: header.seq, is_paid: false }
    }

    pub(crate) fn view(&self) -> View<'_> {
        View::here(&self.topic, self.publisher, self.sequence, &self.payload)
    }

    /// The topic of the message.
    #[must_use]
    pub fn topic(&self) -> &str {
        self.topic.as_str()
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The payload, without a copy.
    #[must_use]
    pub fn into_payload(self) -> Vec<u8> {
        self.payload
    }

    /// The id of the publishing connection; 0 is the broker. No two connections have one id at a time, and a client
    /// cannot choose it. After a restart of the broker a client mostly has the same.
    #[must_use]
    pub fn publisher(&self) -> u32 {
        self.publisher
    }

    /// The sequence number per publisher and topic: a gap means that messages were dropped.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// A message read in place. It may lie in shared memory that the broker writes, so its bytes can be copied but not
/// borrowed.
#[derive(Debug)]
pub struct View<'a> {
    topic: &'a Topic,
    publisher: u32,
    sequence: u64,
    bytes: Bytes<'a>,
}

#[derive(Debug)]
enum Bytes<'a> {
    InRing(&'a Consumer, Extent),
    Here(&'a [u8]),
}

impl<'a> View<'a> {
    #[inline(always)]
    pub(crate) fn in_ring(topic: &'a Topic, header: &Header, ring: &'a Consumer, extent: Extent) -> View<'a> {
        View { topic, publisher: header.origin, sequence: header.seq, bytes: Bytes::InRing(ring, extent) }
    }

    pub(crate) fn here(topic: &'a Topic, publisher: u32, sequence: u64, bytes: &'a [u8]) -> View<'a> {
        View { topic, publisher, sequence, bytes: Bytes::Here(bytes) }
    }

    /// The topic of the message.
    #[must_use]
    pub fn topic(&self) -> &str {
        self.topic.as_str()
    }

    /// As [`Message::publisher`].
    #[must_use]
    pub fn publisher(&self) -> u32 {
        self.publisher
    }

    /// As [`Message::sequence`].
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The length of the payload in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.bytes {
            Bytes::InRing(_, extent) => extent.len as usize,
            Bytes::Here(bytes) => bytes.len(),
        }
    }

    /// Whether the payload is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `to` with the bytes from `offset` on.
    ///
    /// # Panics
    ///
    /// If the payload is shorter.
    #[inline]
    pub fn copy_to(&self, offset: usize, to: &mut [u8]) {
        assert!(
            offset.checked_add(to.len()).is_some_and(|end| end <= self.len()),
            "{} bytes at {offset} of {}",
            to.len(),
            self.len()
        );
        match self.bytes {
            Bytes::InRing(ring, extent) => read_bytes_at(ring.payload_of(extent), offset, to),
            Bytes::Here(bytes) => to.copy_from_slice(&bytes[offset..offset + to.len()]),
        }
    }

    /// The payload, copied.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.copy_to(0, &mut bytes);
        bytes
    }

    pub(crate) fn to_message(&self) -> Message {
        let (topic, payload) = (self.topic.clone(), self.to_vec());
        Message { topic, payload, publisher: self.publisher, sequence: self.sequence, is_paid: false }
    }

    /// Reads the payload from its beginning.
    #[must_use]
    pub fn reader(&self) -> impl io::Read + '_ {
        ViewReader { view: self, at: 0 }
    }
}

struct ViewReader<'a> {
    view: &'a View<'a>,
    at: usize,
}

impl io::Read for ViewReader<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let len = to.len().min(self.view.len() - self.at);
        self.view.copy_to(self.at, &mut to[..len]);
        self.at += len;
        Ok(len)
    }
}

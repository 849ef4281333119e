//! The header of a record: the seven words between a ring's tag and the payload.
//!
//! All words are little-endian `u64`s; `lo`/`hi` are their 32-bit halves. Payload starts at byte 64 of the record.
//!
//! | word | lo | hi |
//! |---|---|---|
//! | 0 | the ring's tag (whole word) | |
//! | 1 | payload bytes in this record | kind (bits 32–39), flags (40–47), code (48–63) |
//! | 2 | `id` | `id2` |
//! | 3 | `total`: payload bytes of the whole message | `arg` |
//! | 4 | `seq` (whole word) | |
//! | 5 | `origin`: connection id | `dropped` |
//! | 6 | `nanos` (whole word) | |
//! | 7 | `publisher` (whole word) | |
//!
//! A message larger than a record goes as several, in order: [`Flags::FIRST`] on the first, [`Flags::LAST`] on the
//! last, `total` on all. Which fields a kind uses is written at [`Kind`]; the others are 0.

/// Words of a header after the tag.
pub const HEADER_WORDS: usize = 7;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// The kind of a record. Kinds below 32 go to the broker (bulk lane below 8, express lane from there), the
        /// others to a client. What the broker sends on for a call has the name of the record that it came by, with
        /// `Routed` before it: the requester numbers requests by slot and generation, the responder knows the call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            /// The kind with the number `kind`.
            #[must_use]
            #[inline]
            pub fn from_u8(kind: u8) -> Option<Kind> {
                match kind {
                    $($number => Some(Kind::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// Bulk. `id` topic (the connection's own number), `seq` the client's number in this topic, which only rises;
    /// [`Flags::RESENT`] if it is sent again.
    Publish = 1,
    /// Bulk. `seq` chosen by the client; [`Kind::Flushed`] follows when all records before it are routed.
    Flush = 2,
    /// Bulk. `id` topic (the connection's own number): the client releases the number, which may be assigned to
    /// another name. No reply; an unknown number is ignored. It follows the last message with that number, and is never
    /// within one.
    Release = 3,
    /// Express. `id`, `id2` request slot and generation; `arg` service (own number); `nanos` time limit of the whole
    /// call; 0 for the default, and for a [`Flags::STREAM`] none. Of a stream, `origin` is the time to its first chunk
    /// and `dropped` the time between chunks, in milliseconds; 0 for the defaults.
    Request = 8,
    /// Express. `seq` call; one message of the reply; [`Flags::END`] on the last message of the call. A message may
    /// begin before the last one is whole if it has [`Flags::END`] and [`Flags::ERROR`] (on all of its records): the
    /// rest of that one will not come. If it is whole in one cell, it needs no credit. So a call can be aborted at any
    /// time.
    Response = 9,
    /// Express. `id`, `id2` request: the requester no longer wants it.
    Cancel = 10,
    /// Express. `id` subscription, `arg` cells that its owner can take in addition.
    Credit = 11,
    /// Express. `id`, `id2` request, `arg` cells of the reply that the requester can take in addition.
    ResponseCredit = 12,
    /// Express. `seq` call, `arg` cells of request body that the responder can take in addition.
    BodyCredit = 13,
    /// Express. `arg` service (own number): as [`Kind::Release`]. Outstanding calls continue.
    ReleaseService = 14,

    /// `id` topic (the broker's number), payload its name. Comes before the first message with that number.
    TopicName = 32,
    /// `id` topic: its number is free and may be assigned to another name.
    TopicGone = 33,
    /// `id` subscription, `id2` topic, `seq` the publisher's number in this topic, `origin` its connection, `publisher`
    /// its key, `dropped` so far; [`Flags::RESENT`] as it was published. The key is the same at the next broker, and no
    /// other client can have it: a message that is sent again is recognised by key, topic and number. It is 0 for
    /// messages of the broker, which are never sent again.
    Deliver = 34,
    /// `id` subscription, `origin` the publisher's connection, `dropped` so far: the message that had begun will not be
    /// completed.
    Aborted = 35,
    /// `id` subscription, `dropped` so far.
    Dropped = 36,
    /// `id` subscription, `dropped` so far: it was evicted as a slow consumer.
    Evicted = 37,
    /// `seq` as in [`Kind::Flush`].
    Flushed = 38,
    /// To the responder: a [`Kind::Request`]. `seq` call, `id` service (own number), `origin` requester, `nanos` time
    /// left; 0: a stream without a time of the whole call.
    RoutedRequest = 39,
    /// To the responder: the call has ended without its reply. `seq` call, `code` an [`Outcome`].
    CallEnded = 40,
    /// To the responder: a [`Kind::ResponseCredit`]. `seq` call, `arg` cells of the reply that may be sent in addition.
    RoutedResponseCredit = 41,
    /// To the requester: a [`Kind::Response`]. `id`, `id2` request; one message of the reply. [`Flags::FIRST`] in the
    /// middle of a message: that one was aborted.
    RoutedResponse = 42,
    /// To the requester: the call has ended without a reply. `id`, `id2` request, `code` an [`Outcome`], `nanos` the
    /// time after which to retry, or 0.
    Failed = 43,
    /// To the requester: a [`Kind::BodyCredit`]. `id`, `id2` request, `arg` cells of request body that may be sent in
    /// addition.
    RoutedBodyCredit = 44,
    /// `id` topic (the connection's own number): a poison message of this client on it was quarantined: it killed
    /// the broker's router twice.
    Quarantined = 45,
}

/// The flags of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// The first record of a message.
    pub const FIRST: Flags = Flags(1);
    /// The last record of a message.
    pub const LAST: Flags = Flags(2);
    /// First and last: the whole message.
    pub const WHOLE: Flags = Flags(3);
    /// The last message of a call.
    pub const END: Flags = Flags(4);
    /// The message is an error reply; its payload is text.
    pub const ERROR: Flags = Flags(8);
    /// A call whose requester expects a stream.
    pub const STREAM: Flags = Flags(16);
    /// Along with `ERROR`: the responder has failed, and its breaker counts it. Without this an error reply is a
    /// reply like any other: the request was at fault.
    pub const FAILURE: Flags = Flags(32);
    /// A publish that is sent again because another broker had not consumed it. It may have been delivered all the
    /// same.
    pub const RESENT: Flags = Flags(64);

    /// Whether all of `other` are set.
    #[must_use]
    #[inline]
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether they are those of a fragment that is neither the first nor the last of its message.
    #[must_use]
    #[inline]
    pub const fn is_inner(self) -> bool {
        self.0 & Flags::WHOLE.0 == 0
    }

    /// These and `other`.
    #[must_use]
    #[inline]
    pub const fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// These and, if `yes`, `other`.
    #[must_use]
    #[inline]
    pub const fn with_if(self, other: Flags, yes: bool) -> Flags {
        if yes { self.with(other) } else { self }
    }

    /// Of the fragment `at..at + len` of a message of `total` bytes.
    #[must_use]
    #[inline]
    pub const fn fragment(at: usize, len: usize, total: usize) -> Flags {
        Flags(0).with_if(Flags::FIRST, at == 0).with_if(Flags::LAST, at + len == total)
    }
}

/// How a request ended without a reply; also why a call is over for its responder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Outcome {
    /// The service has no responder.
    NoResponders = 1,
    /// The service's breaker is open.
    BreakerOpen = 2,
    /// The time limit passed.
    DeadlineExceeded = 3,
    /// The responder's process or connection ended.
    ResponderLost = 4,
    /// The requester cancelled.
    Cancelled = 5,
    /// The message is larger than allowed.
    TooLarge = 6,
    /// A limit of the broker or of all responders is reached.
    Overloaded = 7,
    /// The requester's own connection ended.
    Disconnected = 8,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 8] = [
        Outcome::NoResponders,
        Outcome::BreakerOpen,
        Outcome::DeadlineExceeded,
        Outcome::ResponderLost,
        Outcome::Cancelled,
        Outcome::TooLarge,
        Outcome::Overloaded,
        Outcome::Disconnected,
    ];

    /// Its name in counters, logs and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::NoResponders => "no_responders",
            Outcome::BreakerOpen => "breaker_open",
            Outcome::DeadlineExceeded => "deadline_exceeded",
            Outcome::ResponderLost => "responder_lost",
            Outcome::Cancelled => "cancelled",
            Outcome::TooLarge => "too_large",
            Outcome::Overloaded => "overloaded",
            Outcome::Disconnected => "disconnected",
        }
    }

    /// The outcome with the number `code`.
    #[must_use]
    pub fn from_u16(code: u16) -> Option<Outcome> {
        Outcome::ALL.into_iter().find(|outcome| *outcome as u16 == code)
    }
}

/// A header in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The kind of the record.
    pub kind: Kind,
    /// Flags.
    pub flags: Flags,
    /// An [`Outcome`], where the kind has one.
    pub code: u16,
    /// See [`Kind`].
    pub id: u32,
    /// See [`Kind`].
    pub id2: u32,
    /// Payload bytes of the whole message.
    pub total: u32,
    /// See [`Kind`].
    pub arg: u32,
    /// See [`Kind`].
    pub seq: u64,
    /// See [`Kind`].
    pub origin: u32,
    /// See [`Kind`].
    pub dropped: u32,
    /// Nanoseconds; see [`Kind`].
    pub nanos: u64,
    /// See [`Kind::Deliver`].
    pub publisher: u64,
}

impl Header {
    /// A header with all other fields 0.
    #[must_use]
    #[inline]
    pub const fn new(kind: Kind) -> Header {
        Header {
            kind,
            flags: Flags(0),
            code: 0,
            id: 0,
            id2: 0,
            total: 0,
            arg: 0,
            seq: 0,
            origin: 0,
            dropped: 0,
            nanos: 0,
            publisher: 0,
        }
    }

    /// The words behind the tag; the payload's length is the ring's to fill in.
    #[must_use]
    #[inline]
    pub const fn to_words(&self) -> [u64; HEADER_WORDS] {
        [
            (self.kind as u64) << 32 | (self.flags.0 as u64) << 40 | (self.code as u64) << 48,
            pair(self.id, self.id2),
            pair(self.total, self.arg),
            self.seq,
            pair(self.origin, self.dropped),
            self.nanos,
            self.publisher,
        ]
    }

    /// Reads the words behind the tag.
    ///
    /// # Errors
    ///
    /// If the kind is unknown.
    #[inline]
    pub fn from_words(words: &[u64; HEADER_WORDS]) -> Result<Header, UnknownKind> {
        let number = (words[0] >> 32) as u8;
        let kind = Kind::from_u8(number).ok_or(UnknownKind(number))?;
        Ok(Header {
            kind,
            flags: Flags((words[0] >> 40) as u8),
            code: (words[0] >> 48) as u16,
            id: words[1] as u32,
            id2: (words[1] >> 32) as u32,
            total: words[2] as u32,
            arg: (words[2] >> 32) as u32,
            seq: words[3],
            origin: words[4] as u32,
            dropped: (words[4] >> 32) as u32,
            nanos: words[5],
            publisher: words[6],
        })
    }
}

const fn pair(lo: u32, hi: u32) -> u64 {
    lo as u64 | (hi as u64) << 32
}

/// A kind of record that this version does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown record kind {0}")]
pub struct UnknownKind(pub u8);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(n in 0u8..64, flags: u8, code: u16, w: [u32; 6], seq: u64, whole: [u64; 2]) {
            let Some(kind) = Kind::from_u8(n) else { return Ok(()) };
            let [id, id2, total, arg, origin, dropped] = w;
            let (flags, [nanos, publisher]) = (Flags(flags), whole);
            let header =
                Header { kind, flags, code, id, id2, total, arg, seq, origin, dropped, nanos, publisher };
            prop_assert_eq!(kind as u8, n);
            prop_assert_eq!(Header::from_words(&header.to_words()).unwrap(), header);
        }

        #[test]
        fn any_words_are_read_or_refused(words: [u64; HEADER_WORDS]) {
            match Header::from_words(&words) {
                Ok(header) => prop_assert_eq!(header.kind as u8, (words[0] >> 32) as u8),
                Err(UnknownKind(n)) => prop_assert_eq!(Kind::from_u8(n), None),
            }
        }
    }
}

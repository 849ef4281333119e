//! The journal: the progress of the record or timer that the router handles. With it the next incarnation completes
//! the work exactly once.
//!
//! A record is *decided*, which changes nothing; then it is *committed*, step by step; then its source's position goes
//! behind it. The journal says which of these has begun, and how many steps are done. It lies in the router's state,
//! which outlives the actor, and a new router first continues from there (`recover` in `recovery.rs`). The rules and
//! the crash points are in `actors.md`.
//!
//! Only panics matter here, and only some lines can panic. None lies between a push and the note of it. Where one does,
//! the receiver's position tells whether the push was done.

use super::message::Message;
use crate::logic::routing::arena::Key;
use crate::logic::routing::topics::TopicId;
use crate::shm::layout::RingName;
use crate::shm::ring::{Extent, Record};
use crate::wire::record::{HEADER_WORDS, Header};

/// The purpose of a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// The call in a place of the table is to be looked at: its deadline may have passed.
    Call(u32),
    /// The bulk lane of a connection has waited long enough.
    Parked(u32),
    /// A connection, named by key and id, may have become idle.
    Idle(u32, u32),
    /// Compare every segment with its leases.
    Audit,
    /// Notify a connection, named by key and id, of dropped messages.
    Drops(u32, u32),
    /// Count messages that were dropped for all subscriptions of a user at each of them.
    Missed,
}

/// The progress of the record.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Work {
    /// There is none, or nothing is changed yet.
    #[default]
    Undecided,
    /// The present record of a run goes to its receivers: where it lies, and the word of its header that may differ
    /// from the others' (`runs`). In the bulk lane the run is `Journal::run`, in the express lane `Journal::echoes`.
    Run(Extent, u64),
    /// The first record of a publish goes to the chosen subscriptions.
    First(Record, u32, Message),
    /// A further record goes to the receivers of its message.
    Further(Record, Header),
    /// A record of the express lane is carried out.
    Express(Record),
    /// All is done but the position.
    Done(Record),
}

/// The record or timer that killed a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Killer {
    /// The record at a position of a connection's lane. It never comes again once it is consumed.
    Record(u32, RingName, u64),
    Timer(Timer),
}

/// A run of messages that are routed with one decision (`pubsub::run`), or of fragments of one message
/// (`pubsub::fragments`).
#[derive(Debug, Default)]
pub(super) struct Run {
    /// The source's position at its first record.
    pub(super) begins_at: u64,
    /// Its records are fragments of one message.
    pub(super) is_within: bool,
    /// The publisher's number of the topic, and the router's.
    pub(super) id: u32,
    pub(super) topic: TopicId,
    /// Subscriptions of other users than the publisher's match.
    pub(super) has_others: bool,
    /// Users whose subscriptions do not get the messages (`Turn::PassOver`).
    pub(super) passed_over: Vec<usize>,
    /// The words of a header that are the same in all of its records.
    pub(super) shape: [u64; 3],
    /// The sequence number of the last message that is done.
    pub(super) sent: u64,
    pub(super) receivers: Vec<Receiver>,
}

/// A subscription that gets the records of a run.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) subscription: Key,
    /// Its connection, and the position of that at the first record.
    pub(super) owner: u32,
    pub(super) begins_at: u64,
    /// Cells of credit for each record.
    pub(super) cost: u32,
    /// The header with which it gets them, but for the sequence number.
    pub(super) header: [u64; HEADER_WORDS],
}

impl Run {
    /// A run of whole messages without receivers, so far.
    #[inline]
    pub(super) fn begin(&mut self, at: u64, id: u32, topic: TopicId, shape: [u64; 3]) {
        self.receivers.clear();
        self.passed_over.clear();
        (self.begins_at, self.is_within, self.id, self.topic, self.shape) = (at, false, id, topic, shape);
    }

    /// A record of it, with the sequence number `seq`.
    pub(super) fn message(&self, extent: Extent, seq: u64) -> Record {
        let [kind, topic, total] = self.shape;
        Record::with_header(extent, [kind, topic, total, seq, 0, 0, 0])
    }

    /// Bytes of each record.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.shape[0] as u32
    }
}

/// A run of requests to the echo (`calls::run`).
#[derive(Debug, Default)]
pub(super) struct Echoes {
    /// The positions of the source, and of the ring that gets the replies, at its first request.
    pub(super) begins_at: u64,
    pub(super) replies_at: u64,
    /// The words of a header that are the same in all of its requests, and matter: kind, flags, service and sizes.
    pub(super) shape: [u64; 2],
}

impl Echoes {
    /// Whether a record is a further request of it.
    #[inline(always)]
    pub(super) fn continues_with(&self, next: &Record) -> bool {
        next.header[0] == self.shape[0] && next.header[2] == self.shape[1]
    }

    /// Bytes of each request.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.shape[0] as u32
    }
}

/// The record or timer that the router handles.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// The connection and the lane of the record.
    pub(super) source: Option<(u32, RingName)>,
    pub(super) work: Work,
    pub(super) run: Run,
    pub(super) echoes: Echoes,
    /// Receivers that have the record.
    pub(super) step: usize,
    /// The next receiver's position before it got the record.
    pub(super) before: Option<u64>,
    /// An overflow record that moves into the ring of a connection: its subscription, and the ring's position before.
    pub(super) pump: Option<(u32, Key, u64)>,
    /// A timer that is being carried out.
    pub(super) timer: Option<Timer>,
    /// The record or timer of the last death, and the deaths in a row by it.
    pub(super) killer: Option<Killer>,
    pub(super) deaths: u32,
}

impl Journal {
    /// Whether the next receiver, whose position is `now`, is still to get the record.
    #[inline]
    pub(super) fn is_to_push(&self, now: u64) -> bool {
        self.before.is_none_or(|before| before == now)
    }

    /// Whether a router has died of the record at this position, or may have.
    #[inline]
    pub(super) fn suspects(&self, connection: u32, lane: RingName, position: u64) -> bool {
        self.killer == Some(Killer::Record(connection, lane, position))
    }

    /// A timer was carried out: if routers have died of it before, it is another one that comes next.
    pub(super) fn timed(&mut self) {
        if self.timer.take().map(Killer::Timer) == self.killer {
            self.deaths = 0;
        }
    }

    /// One receiver more has the record.
    #[inline]
    pub(super) fn stepped(&mut self) {
        self.step += 1;
        self.before = None;
    }
}

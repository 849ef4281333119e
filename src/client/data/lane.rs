//! Placing records in a lane towards the broker.
//!
//! Many threads of a client produce into one lane. The producer role is guarded by a mutex that lives in this process,
//! not in shared memory, and that is held for some records at a time, never while a thread waits for space; what a
//! peer does cannot make a thread wait for it. Uncontended it is one compare-and-swap, as a role claimed by hand would
//! be, and it needs no second path for threads that find it taken. Everything that belongs to one session of the client
//! lies behind it, so that a session at another broker takes this one's place under that lock.

use super::lock::{lock, thread, try_lock};
use super::names::{NONE, NameRef, Names, TopicNumber};
use super::resend_queue::{Resend, ResendQueue};
use crate::client::error::{Error, Kind, Result};
use crate::shm::doorbell::ClientBells;
use crate::shm::ring::{Payload, Producer, Signal, Violation, publication_fence};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::wire::control::Limits;
use crate::wire::record::{Flags, Header, Kind as RecordKind, Outcome};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Lane {
    producing: Mutex<LaneProducer>,
    /// Told when a message of several records is whole or given up.
    whole: Condvar,
    /// The thread that holds a loan, as a number; 0: none.
    pub(crate) lender: AtomicU64,
    /// Not 0 while records of calls wait for space.
    has_deferred: AtomicU64,
}

/// Fragments that are placed before the router is woken.
const FRAGMENTS: usize = 16;
/// Messages between two checks of the control socket by a publisher that never waits: a check is a system call.
const CHECK_EVERY: u32 = 64;

/// The producer role, and what goes with it.
#[derive(Debug)]
pub(crate) struct LaneProducer {
    pub(crate) producer: Producer,
    /// Armed by the client while a thread waits for space.
    space: Signal,
    /// Armed by the router while it does not poll this lane.
    data: Signal,
    bells: Arc<ClientBells>,
    /// Which of the client's sessions this is.
    pub(crate) session: u64,
    /// The topics, by their places.
    topics: Vec<TopicNumber>,
    /// The reasons why the current broker refused topics, by id.
    refused: HashMap<u64, Error>,
    /// A thread waits for space in the middle of a message of several records.
    pub(crate) is_taken: bool,
    /// Messages since the publisher looked at the control socket.
    unchecked: u32,
    pub(crate) resends: ResendQueue,
    /// The number of the last flush that was begun.
    pub(crate) flush: u64,
    pub(crate) slot_size: usize,
    pub(crate) max_message_size: usize,
}

pub(crate) fn broken(violation: Violation) -> Kind {
    Kind::Protocol(violation.to_string())
}

/// A record was cut for the broker before, whose records were larger: the call that it belongs to is over.
#[cold]
fn too_large_for_session() -> Error {
    Kind::Outcome { outcome: Outcome::Disconnected, retry_after: None }.into()
}

impl Lane {
    pub(crate) fn new(producing: LaneProducer) -> Lane {
        Lane {
            producing: Mutex::new(producing),
            whole: Condvar::new(),
            lender: AtomicU64::new(0),
            has_deferred: AtomicU64::new(0),
        }
    }

    /// The producer role, between two messages.
    #[inline]
    pub(crate) fn claim(&self) -> Result<MutexGuard<'_, LaneProducer>> {
        self.claim_until(None)
    }

    /// The same; the message of another thread is waited for until `deadline`.
    #[inline(always)]
    pub(crate) fn claim_until(&self, deadline: Option<Instant>) -> Result<MutexGuard<'_, LaneProducer>> {
        let producing = self.claim_within()?;
        if producing.is_taken { self.await_whole(producing, deadline) } else { Ok(producing) }
    }

    /// Waits for the end of another thread's message.
    #[cold]
    fn await_whole<'a>(
        &self,
        mut producing: MutexGuard<'a, LaneProducer>,
        deadline: Option<Instant>,
    ) -> Result<MutexGuard<'a, LaneProducer>> {
        while producing.is_taken {
            producing = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => self.whole.wait(producing).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Err(Kind::Timeout.into()),
                Some(left) => self.whole.wait_timeout(producing, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        Ok(producing)
    }

    /// The producer role, perhaps within another's message.
    #[inline]
    pub(crate) fn claim_within(&self) -> Result<MutexGuard<'_, LaneProducer>> {
        if self.lender.load(Ordering::Relaxed) == thread() {
            return Err(Kind::LoanOutstanding.into());
        }
        Ok(lock(&self.producing))
    }

    /// The producer role, if it is free.
    pub(crate) fn try_claim(&self) -> Option<MutexGuard<'_, LaneProducer>> {
        try_lock(&self.producing)
    }

    /// Goes on in another session. What lies in the last one's lane is about calls that are over.
    pub(crate) fn replace(&self, next: LaneProducer, session: u64) {
        *lock(&self.producing) = LaneProducer { session, ..next };
    }

    /// The message that the lane was taken for is whole or given up.
    pub(crate) fn end_message(&self) {
        lock(&self.producing).is_taken = false;
        self.whole.notify_all();
    }

    /// Places a record that ends a call: now, or when there is space. Never waits. There are no more deferred records
    /// than calls. A deferred record is placed before anything else, by the next user of the lane or by the reader
    /// when the bell announces space.
    pub(crate) fn place_or_defer(&self, session: u64, header: &Header, payload: &[u8]) {
        let Ok(mut lane) = self.claim() else { return };
        if lane.session != session {
            // Every call of that session is over.
            return;
        }
        // Noted before the lane asks to be woken: the reader that the bell wakes looks here, and waits for the lane.
        self.has_deferred.store(1, Ordering::Relaxed);
        match lane.try_push(header, payload) {
            Ok(false) => lane.resends.push(Resend::record(header, payload)),
            // The next user of the lane gets the error.
            Ok(true) | Err(_) => self.has_deferred.store(0, Ordering::Relaxed),
        }
    }

    /// Places deferred records, as far as there is space.
    #[inline]
    pub(crate) fn place_deferred(&self) {
        if self.has_deferred.load(Ordering::Relaxed) != 0 {
            self.place_deferred_now();
        }
    }

    #[cold]
    fn place_deferred_now(&self) {
        let Ok(mut lane) = self.claim() else { return };
        if !matches!(lane.place_resends(), Ok(false)) {
            self.has_deferred.store(0, Ordering::Relaxed);
        }
    }
}

impl LaneProducer {
    pub(crate) fn new(
        producer: Producer,
        space: Signal,
        data: Signal,
        bells: Arc<ClientBells>,
        limits: &Limits,
    ) -> LaneProducer {
        LaneProducer {
            producer,
            space,
            data,
            bells,
            session: 0,
            topics: Vec::new(),
            refused: HashMap::new(),
            is_taken: false,
            unchecked: 0,
            resends: ResendQueue::default(),
            flush: 0,
            slot_size: limits.slot_size as usize,
            max_message_size: limits.max_message_size as usize,
        }
    }

    /// Goes on in another session, whose lane `next` is. What the last one has not consumed is to be sent again, in
    /// records of the size that the next one takes. Returns how many messages the next one does not take.
    ///
    /// # Errors
    ///
    /// If the last session's lane does not hold what was placed there.
    pub(crate) fn renew(
        &mut self,
        next: LaneProducer,
        session: u64,
        names: &mut Names,
    ) -> (usize, Result<(), Violation>) {
        let consumed = self.producer.look().unwrap_or(u64::MAX);
        let mut numbers = names.renumber(consumed, &mut self.topics, &mut self.refused);
        let (unknown, taken) = self.resends.take_from(&mut self.producer, &mut numbers);
        let LaneProducer { producer, space, data, bells, slot_size, max_message_size, .. } = next;
        (self.producer, self.space, self.data, self.bells, self.session) = (producer, space, data, bells, session);
        (self.slot_size, self.max_message_size) = (slot_size, max_message_size);
        (unknown + self.resends.discard_above(max_message_size), taken)
    }

    /// Wakes the router, if it does not poll us.
    #[inline(always)]
    pub(crate) fn announce(&mut self) {
        publication_fence();
        if self.data.is_armed() {
            self.wake();
        }
    }

    #[cold]
    fn wake(&mut self) {
        if self.data.take() {
            self.bells.ring();
            self.unchecked = CHECK_EVERY;
        }
    }

    /// A message was published without waiting. Now and then the publisher must check itself whether the broker
    /// is there still: always when it has rung, for that is dearer.
    #[inline]
    pub(crate) fn should_check_link(&mut self) -> bool {
        self.unchecked += 1;
        if self.unchecked < CHECK_EVERY {
            return false;
        }
        self.unchecked = 0;
        true
    }

    /// Whether no thread is in the middle of a message.
    pub(crate) fn is_free(&self) -> bool {
        !self.is_taken
    }

    /// Asks to be woken when there is space.
    pub(crate) fn wait_for_space(&self) {
        self.space.arm();
    }

    /// Places a record if there is space; if not, asks to be woken when there is. Never waits.
    #[inline(always)]
    pub(crate) fn try_push(&mut self, header: &Header, payload: &[u8]) -> Result<bool> {
        if !self.resends.is_empty() && !self.place_resends()? {
            return Ok(false);
        }
        self.try_push_now(header, payload)
    }

    #[inline(always)]
    fn try_push_now(&mut self, header: &Header, payload: &[u8]) -> Result<bool> {
        if payload.len() > self.slot_size {
            return Err(too_large_for_session());
        }
        let pushed = self.producer.push_or_arm(&header.to_words(), Payload::Bytes(payload), &self.space);
        let pushed = pushed.map_err(broken)?;
        if pushed {
            self.announce();
        }
        Ok(pushed)
    }

    /// Places what is to be sent again, as far as there is space. Returns whether that is all.
    #[cold]
    pub(crate) fn place_resends(&mut self) -> Result<bool> {
        let mut resends = std::mem::take(&mut self.resends);
        let sent = loop {
            let Some((header, part)) = resends.next(self.slot_size) else { break Ok(true) };
            match self.try_push_now(&header, part) {
                Ok(true) => resends.placed(self.slot_size, self.producer.claimed()),
                not_now => break not_now,
            }
        };
        self.resends = resends;
        sent
    }

    /// Whether a message of `len` bytes is one record. Call it under the lock of the lane: the size of records may
    /// be another at another broker.
    #[inline]
    pub(crate) fn is_one_record(&self, len: usize) -> bool {
        len <= self.slot_size
    }

    /// The largest payload of one record, in bytes.
    pub(crate) fn record_size(&self) -> u32 {
        u32::try_from(self.slot_size).unwrap_or(u32::MAX)
    }

    /// Publishes a message of one record, if there is space.
    #[inline]
    pub(crate) fn try_publish(&mut self, topic: &NameRef, total: u32, payload: &[u8]) -> Result<bool> {
        let TopicNumber { number: id, seq, .. } = *self.topic(topic)?;
        let seq = seq + 1;
        let header = Header { flags: Flags::WHOLE, id, total, seq, ..Header::new(RecordKind::Publish) };
        let pushed = self.try_push(&header, payload)?;
        if pushed {
            self.topics[topic.at as usize].seq = seq;
        }
        Ok(pushed)
    }

    /// Publishes messages of one record each, in order, as far as there is space. Returns how many.
    pub(crate) fn try_publish_batch<P: AsRef<[u8]>>(&mut self, topic: &NameRef, payloads: &[P]) -> Result<usize> {
        if !self.resends.is_empty() && !self.place_resends()? {
            return Ok(0);
        }
        let TopicNumber { number: id, mut seq, .. } = *self.topic(topic)?;
        let (mut placed, mut pushed) = (0, Ok(true));
        self.producer.enter();
        for payload in payloads.iter().map(AsRef::as_ref).take_while(|payload| payload.len() <= self.slot_size) {
            // Every payload was found to be short enough.
            let total = payload.len() as u32;
            let header = Header { flags: Flags::WHOLE, id, total, seq: seq + 1, ..Header::new(RecordKind::Publish) };
            pushed = self.producer.push(&header.to_words(), Payload::Bytes(payload));
            if pushed != Ok(true) {
                break;
            }
            (placed, seq) = (placed + 1, seq + 1);
        }
        self.producer.leave();
        self.topics[topic.at as usize].seq = seq;
        self.announce();
        self.unchecked = self.unchecked.saturating_add(placed as u32);
        pushed.map_err(broken)?;
        Ok(placed)
    }

    /// Places the next fragments of a message, whose first `at` bytes are placed: several, as far as there is space.
    /// Returns how many bytes; `None`: there was no space for one, and it asks to be woken when there is.
    pub(crate) fn try_fragments(&mut self, header: &Header, payload: &[u8], at: usize) -> Result<Option<usize>> {
        let size = self.slot_size;
        let part = |at: usize| {
            let part = &payload[at..payload.len().min(at + size)];
            let flags = header.flags.with(Flags::fragment(at, part.len(), payload.len()));
            (Header { flags, ..*header }, part)
        };
        if !self.resends.is_empty() && !self.place_resends()? {
            return Ok(None);
        }
        let mut end = at;
        self.producer.enter();
        for _ in 0..FRAGMENTS {
            let (header, part) = part(end);
            // A violation is found again by `try_push`.
            if end == payload.len() || self.producer.push(&header.to_words(), Payload::Bytes(part)) != Ok(true) {
                break;
            }
            end += part.len();
        }
        self.producer.leave();
        if end > at {
            self.announce();
            return Ok(Some(end - at));
        }
        let (header, part) = part(at);
        Ok(self.try_push(&header, part)?.then_some(part.len()))
    }

    /// Places requests of one record each, in order, as far as there is space. `claim` returns slot and generation of
    /// the next one; `None`: there is no slot. Returns how many are placed. If there was no space for the last one that
    /// was claimed, and `arms`, asks to be woken when there is.
    pub(crate) fn try_requests<P: AsRef<[u8]>>(
        &mut self,
        header: &Header,
        payloads: &[P],
        arms: bool,
        mut claim: impl FnMut() -> Option<(u32, u32)>,
    ) -> Result<usize> {
        if !self.resends.is_empty() && !self.place_resends()? {
            return Ok(0);
        }
        let mut placed = 0;
        self.producer.enter();
        for payload in payloads.iter().map(AsRef::as_ref).take_while(|payload| payload.len() <= self.slot_size) {
            let Some((id, id2)) = claim() else { break };
            // Every payload was found to be short enough.
            let header = Header { flags: Flags::WHOLE, id, id2, total: payload.len() as u32, ..*header };
            let words = header.to_words();
            let mut pushed = self.producer.push(&words, Payload::Bytes(payload));
            if pushed == Ok(false) && arms {
                self.producer.leave();
                self.space.arm();
                self.producer.enter();
                pushed = self.producer.push(&words, Payload::Bytes(payload));
            }
            // A violation is reported to the next request, which is placed by itself.
            if pushed != Ok(true) {
                break;
            }
            placed += 1;
        }
        self.producer.leave();
        if placed > 0 {
            self.announce();
        }
        Ok(placed)
    }

    /// Places the flush `number`, if there is space: its reply says that everything placed before it is routed.
    pub(crate) fn try_flush(&mut self, number: u64) -> Option<Result<u64>> {
        let header = Header { seq: number, ..Header::new(RecordKind::Flush) };
        match self.try_push(&header, &[]) {
            Ok(false) => None,
            Ok(true) => {
                self.flush = self.flush.max(number);
                Some(Ok(number))
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// A topic's number and the sequence number of its last message.
    ///
    /// # Errors
    ///
    /// If the current broker has refused the topic.
    #[inline]
    pub(crate) fn topic(&mut self, topic: &NameRef) -> Result<&mut TopicNumber> {
        let at = topic.at as usize;
        if self.topics.get(at).is_none_or(|placed| placed.id != topic.id || placed.number == NONE) {
            self.adopt_topic(topic)?;
        }
        Ok(&mut self.topics[at])
    }

    #[cold]
    fn adopt_topic(&mut self, topic: &NameRef) -> Result<()> {
        if self.session != topic.session {
            // Known in each session that it was held in: this one's broker has refused it.
            let gone = || Kind::Disconnected("the restarted broker does not know the topic".to_owned()).into();
            return Err(self.refused.get(&topic.id).cloned().unwrap_or_else(gone));
        }
        let at = topic.at as usize;
        if self.topics.len() <= at {
            self.topics.resize(at + 1, TopicNumber::default());
        }
        let placed = &mut self.topics[at];
        let seq = if placed.id == topic.id { placed.seq } else { topic.past };
        *placed = TopicNumber { id: topic.id, number: topic.number, seq };
        Ok(())
    }

    /// The sequence number of the last message of the topic with this place and id, if it had any.
    pub(crate) fn last_sequence(&self, at: u32, id: u64) -> Option<u64> {
        self.topics.get(at as usize).filter(|placed| placed.id == id).map(|placed| placed.seq)
    }
}

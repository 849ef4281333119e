//! Placing records in a lane towards the broker.
//!
//! Many threads of a client produce into one lane. The producer role is guarded by a mutex that lives in this process,
//! not in shared memory, and that is held for the length of one record, never while a thread waits for space; what a
//! peer does cannot make anybody wait for it. Uncontended it is one compare-and-swap, as a role claimed by hand would
//! be, and it needs no second path for those who find it taken. Everything that belongs to one session of the client
//! lies behind it, so that a session at another broker takes this one's place under that lock.

use super::error::{Error, Kind, Result};
use super::inner::{Inner, lock, try_lock};
use super::names::{NONE, Names, Place, Placed};
use super::unsent::Unsents;
use crate::shm::doorbell::ClientBells;
use crate::shm::layout::HEADER_WORDS;
use crate::shm::ring::{Payload, Producer, Signal, Violation, publication_fence};
use crate::sync::{AtomicU64, Ordering};
use crate::wire::control::Limits;
use crate::wire::record::{Flags, Header, Kind as RecordKind, Outcome};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Lane {
    producing: Mutex<Producing>,
    /// Told when a message of several records is whole or given up.
    whole: Condvar,
    /// The thread that holds a loan, as a number; 0: none.
    pub(super) lender: AtomicU64,
}

/// Messages between two looks of a publisher that never waits at the control socket: a look is a system call.
const LOOK_EVERY: u32 = 64;

/// The producer role, and what goes with it.
#[derive(Debug)]
pub(super) struct Producing {
    pub(super) producer: Producer,
    /// Ours: a thread waits for space.
    space: Signal,
    /// The router's: it does not poll us.
    data: Signal,
    bells: Arc<ClientBells>,
    /// Which of the client's sessions this is.
    pub(super) session: u64,
    /// The topics, by their places.
    topics: Vec<Placed>,
    /// Why the present broker knows a topic no more, by its id.
    refused: HashMap<u64, Error>,
    /// A thread waits for space in the middle of a message of several records.
    is_taken: bool,
    /// Messages since the publisher looked at the control socket.
    unlooked: u32,
    pub(super) unsents: Unsents,
    /// The number of the last flush that was begun.
    pub(super) flush: u64,
    slot_size: usize,
    max_message_size: usize,
}

/// A number for this thread, never 0.
pub(super) fn thread() -> u64 {
    std::thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark) as u64)
}

pub(super) fn broken(violation: Violation) -> Kind {
    Kind::Protocol(violation.to_string())
}

/// A record was cut for the broker before, whose records were larger: the call that it belongs to is over.
#[cold]
fn outgrown() -> Error {
    Kind::Outcome { outcome: Outcome::Disconnected, retry_after: None }.into()
}

/// The flags of the part `at..at + len` of a message of `total` bytes.
#[inline]
pub(super) fn part_flags(at: usize, len: usize, total: usize) -> Flags {
    Flags::default().with_if(Flags::FIRST, at == 0).with_if(Flags::LAST, at + len == total)
}

impl Lane {
    pub(super) fn new(producing: Producing) -> Lane {
        Lane { producing: Mutex::new(producing), whole: Condvar::new(), lender: AtomicU64::new(0) }
    }

    /// The producer role, between two messages.
    #[inline]
    pub(super) fn claim(&self) -> Result<MutexGuard<'_, Producing>> {
        self.claim_until(None)
    }

    /// The same; the message of another thread is waited for until `deadline`.
    #[inline]
    pub(super) fn claim_until(&self, deadline: Option<Instant>) -> Result<MutexGuard<'_, Producing>> {
        let mut producing = self.claim_within()?;
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
    pub(super) fn claim_within(&self) -> Result<MutexGuard<'_, Producing>> {
        if self.lender.load(Ordering::Relaxed) == thread() {
            return Err(Kind::LoanOutstanding.into());
        }
        Ok(lock(&self.producing))
    }

    /// The producer role, if nobody has it.
    pub(super) fn try_claim(&self) -> Option<MutexGuard<'_, Producing>> {
        try_lock(&self.producing)
    }

    /// Goes on in another session. What lies in the last one's lane is about calls that are over.
    pub(super) fn replace(&self, next: Producing, session: u64) {
        *lock(&self.producing) = Producing { session, ..next };
    }

    /// The message that the lane was taken for is whole or given up.
    fn let_go(&self) {
        lock(&self.producing).is_taken = false;
        self.whole.notify_all();
    }
}

impl Producing {
    pub(super) fn new(
        producer: Producer,
        space: Signal,
        data: Signal,
        bells: Arc<ClientBells>,
        limits: &Limits,
    ) -> Producing {
        Producing {
            producer,
            space,
            data,
            bells,
            session: 0,
            topics: Vec::new(),
            refused: HashMap::new(),
            is_taken: false,
            unlooked: 0,
            unsents: Unsents::default(),
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
    pub(super) fn renew(&mut self, next: Producing, session: u64, names: &mut Names) -> (usize, Result<(), Violation>) {
        let consumed = self.producer.look().unwrap_or(u64::MAX);
        let mut numbers = names.go_on(consumed, &mut self.topics, &mut self.refused);
        let (unknown, taken) = self.unsents.take_from(&mut self.producer, &mut numbers);
        let Producing { producer, space, data, bells, slot_size, max_message_size, .. } = next;
        (self.producer, self.space, self.data, self.bells, self.session) = (producer, space, data, bells, session);
        (self.slot_size, self.max_message_size) = (slot_size, max_message_size);
        (unknown + self.unsents.leave_out_above(max_message_size), taken)
    }

    /// Places a record if there is space.
    #[inline]
    fn place(&mut self, header: &[u64; HEADER_WORDS], payload: Payload<'_>) -> Result<bool> {
        if payload.len() as usize > self.slot_size {
            return Err(outgrown());
        }
        self.producer.enter();
        let pushed = self.producer.push(header, payload);
        self.producer.leave();
        Ok(pushed.map_err(broken)?)
    }

    /// Wakes the router, if it does not poll us.
    #[inline]
    pub(super) fn announce(&mut self) {
        publication_fence();
        if self.data.take() {
            self.bells.ring();
            self.unlooked = LOOK_EVERY;
        }
    }

    /// A message was published, and nobody has waited. Now and then the publisher must look itself whether the broker
    /// is there still: always when it has rung, for that is dearer.
    #[inline]
    pub(super) fn should_look(&mut self) -> bool {
        self.unlooked += 1;
        if self.unlooked < LOOK_EVERY {
            return false;
        }
        self.unlooked = 0;
        true
    }

    /// Whether nobody is in the middle of a message.
    pub(super) fn is_free(&self) -> bool {
        !self.is_taken
    }

    /// Asks to be woken when there is space.
    pub(super) fn wait_for_space(&self) {
        self.space.arm();
    }

    /// Places a record if there is space; if not, asks to be woken when there is. Never waits.
    #[inline]
    pub(super) fn try_push(&mut self, header: &Header, payload: &[u8]) -> Result<bool> {
        if !self.unsents.is_empty() && !self.send_again()? {
            return Ok(false);
        }
        self.try_push_now(header, payload)
    }

    #[inline]
    fn try_push_now(&mut self, header: &Header, payload: &[u8]) -> Result<bool> {
        let (words, payload) = (header.to_words(), Payload::Bytes(payload));
        if !self.place(&words, payload)? {
            self.space.arm();
            // The flag first, then once more: space that came in between is not missed.
            if !self.place(&words, payload)? {
                return Ok(false);
            }
            self.space.disarm();
        }
        self.announce();
        Ok(true)
    }

    /// Places what is to be sent again, as far as there is space. Answers whether that is all.
    #[cold]
    pub(super) fn send_again(&mut self) -> Result<bool> {
        let mut unsents = std::mem::take(&mut self.unsents);
        let sent = loop {
            let Some((header, part)) = unsents.next(self.slot_size) else { break Ok(true) };
            match self.try_push_now(&header, part) {
                Ok(true) => unsents.placed(self.slot_size, self.producer.claimed()),
                not_now => break not_now,
            }
        };
        self.unsents = unsents;
        sent
    }

    /// Whether a message of `len` bytes is one record. It is asked under the lock of the lane: the size of records may
    /// be another at another broker.
    #[inline]
    pub(super) fn is_one_record(&self, len: usize) -> bool {
        len <= self.slot_size
    }

    /// The largest payload of one record, in bytes.
    pub(super) fn record_size(&self) -> u32 {
        u32::try_from(self.slot_size).unwrap_or(u32::MAX)
    }

    /// Publishes a message of one record, if there is space.
    #[inline]
    pub(super) fn try_publish(&mut self, topic: &Place, total: u32, payload: &[u8]) -> Result<bool> {
        let Placed { number: id, seq, .. } = *self.topic(topic)?;
        let seq = seq + 1;
        let header = Header { flags: Flags::WHOLE, id, total, seq, ..Header::new(RecordKind::Publish) };
        let pushed = self.try_push(&header, payload)?;
        if pushed {
            self.topics[topic.at as usize].seq = seq;
        }
        Ok(pushed)
    }

    /// A topic's number and the sequence number of its last message.
    ///
    /// # Errors
    ///
    /// If the present broker has refused the topic.
    #[inline]
    pub(super) fn topic(&mut self, topic: &Place) -> Result<&mut Placed> {
        let at = topic.at as usize;
        if self.topics.get(at).is_none_or(|placed| placed.id != topic.id || placed.number == NONE) {
            self.learn(topic)?;
        }
        Ok(&mut self.topics[at])
    }

    #[cold]
    fn learn(&mut self, topic: &Place) -> Result<()> {
        if self.session != topic.session {
            // Known in each session that it was held in: this one's broker has refused it.
            let gone = || Kind::Disconnected("the broker that is there now does not know the topic".to_owned()).into();
            return Err(self.refused.get(&topic.id).cloned().unwrap_or_else(gone));
        }
        let at = topic.at as usize;
        if self.topics.len() <= at {
            self.topics.resize(at + 1, Placed::default());
        }
        let placed = &mut self.topics[at];
        let seq = if placed.id == topic.id { placed.seq } else { topic.past };
        *placed = Placed { id: topic.id, number: topic.number, seq };
        Ok(())
    }

    /// The sequence number of the last message of the topic with this place and id, if it had any.
    pub(super) fn last_sequence(&self, at: u32, id: u64) -> Option<u64> {
        self.topics.get(at as usize).filter(|placed| placed.id == id).map(|placed| placed.seq)
    }
}

/// A message on its way into the bulk lane, part by part.
#[derive(Debug)]
pub(super) struct Parts {
    topic: Place,
    header: Header,
    at: usize,
    /// The session in which it was begun, if it was.
    begun: Option<u64>,
}

impl Parts {
    pub(super) fn new(topic: Place, total: u32) -> Parts {
        Parts { topic, header: Header { total, ..Header::new(RecordKind::Publish) }, at: 0, begun: None }
    }

    /// Places parts as far as there is space. Answers whether it is whole.
    pub(super) fn place(&mut self, lane: &mut Producing, payload: &[u8], keep: bool) -> Result<bool> {
        if self.begun.is_some_and(|session| session != lane.session) {
            // Its broker has died within it, and so it is begun anew at the next.
            self.header.id = lane.topic(&self.topic)?.number;
            (self.at, self.begun) = (0, Some(lane.session));
            self.header.flags = Flags::RESENT;
        }
        if payload.len() > lane.max_message_size {
            let max = u32::try_from(lane.max_message_size).unwrap_or(u32::MAX);
            return Err(Kind::TooLarge { len: payload.len(), max }.into());
        }
        loop {
            let part = &payload[self.at..payload.len().min(self.at + lane.slot_size)];
            if self.begun.is_none() {
                let Placed { number, seq, .. } = *lane.topic(&self.topic)?;
                (self.header.id, self.header.seq) = (number, seq + 1);
            }
            let flags = self.header.flags.with(part_flags(self.at, part.len(), payload.len()));
            if !lane.try_push(&Header { flags, ..self.header }, part)? {
                return Ok(false);
            }
            if self.begun.is_none() {
                lane.topic(&self.topic)?.seq = self.header.seq;
                self.begun = Some(lane.session);
            }
            self.at += part.len();
            if self.at == payload.len() {
                break;
            }
        }
        if keep && payload.len() > lane.slot_size {
            let consumed = lane.producer.look().map_err(broken)?;
            let claimed = lane.producer.claimed();
            lane.unsents.keep(&self.header, payload, claimed, consumed);
        }
        Ok(true)
    }
}

impl Inner {
    /// Places a record of a call in the express lane, if there is space. Never waits.
    ///
    /// # Errors
    ///
    /// If the call was of another session, or the connection has ended.
    pub(super) fn try_express(&self, session: u64, header: &Header, payload: &[u8]) -> Result<bool> {
        self.look_up()?;
        let mut lane = self.express().claim()?;
        if lane.session != session {
            return Err(Kind::Outcome { outcome: Outcome::Disconnected, retry_after: None }.into());
        }
        lane.try_push(header, payload)
    }

    /// Places a record that is about no call. Never waits.
    pub(super) fn try_express_anyway(&self, header: &Header, payload: &[u8]) -> Result<bool> {
        self.look_up()?;
        self.express().claim()?.try_push(header, payload)
    }

    /// Publishes a message of any size, waiting for space if need be.
    #[cold]
    pub(super) fn publish_waiting(&self, topic: &Place, total: u32, payload: &[u8]) -> Result<()> {
        let (mut message, keep) = (Parts::new(*topic, total), self.endpoint.reconnect.is_some());
        loop {
            let mut lane = self.bulk().claim()?;
            if message.place(&mut lane, payload, keep)? {
                return Ok(());
            }
            lane.is_taken = message.begun.is_some();
            drop(lane);
            let placed = self.wait_for_bell(|| {
                let mut lane = match self.bulk().claim_within() {
                    Ok(lane) => lane,
                    Err(error) => return Some(Err(error)),
                };
                if lane.is_taken && message.begun.is_none() {
                    // Within another's message: wait for its end, not for space.
                    return Some(Ok(false));
                }
                match message.place(&mut lane, payload, keep) {
                    Ok(false) => {
                        lane.is_taken = message.begun.is_some();
                        None
                    }
                    placed => Some(placed),
                }
            });
            if message.begun.is_some() {
                self.bulk().let_go();
            }
            if placed?? {
                return Ok(());
            }
        }
    }

    /// Places parts of a message as far as there is space; `None`: it is not whole yet. The caller sees to it that no
    /// other message comes in between.
    #[cfg(feature = "tokio")]
    pub(super) fn try_parts(&self, message: &mut Parts, payload: &[u8]) -> Option<Result<()>> {
        let keep = self.endpoint.reconnect.is_some();
        let lane = self.look_up().and_then(|_| self.bulk().claim());
        let placed = lane.and_then(|mut lane| message.place(&mut lane, payload, keep));
        match placed {
            Ok(false) => None,
            placed => Some(placed.map(|_| ())),
        }
    }

    /// Places a flush with a new number, if there is space: when it is answered, all that was placed before is routed.
    pub(super) fn try_flush(&self, lane: &mut Producing) -> Option<Result<u64>> {
        let number = self.next_number();
        let header = Header { seq: number, ..Header::new(RecordKind::Flush) };
        match lane.try_push(&header, &[]) {
            Ok(false) => None,
            Ok(true) => {
                lane.flush = lane.flush.max(number);
                Some(Ok(number))
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Places what is to be sent again, if that is possible now. Answers whether that is all.
    pub(super) fn send_again(&self) -> bool {
        let Some(mut lane) = self.bulk().try_claim() else { return false };
        // What is wrong with the lane is told to who publishes.
        lane.send_again().unwrap_or(true)
    }

    /// A message's length, if it is not too large, nor one of several records from where nothing may wait: it could
    /// be begun and not ended.
    #[inline]
    pub(super) fn check_size(&self, len: usize) -> Result<u32> {
        let max = self.limits.max_message_size();
        let len = u32::try_from(len).ok().filter(|len| *len <= max).ok_or(Kind::TooLarge { len, max })?;
        if len > self.limits.slot_size() {
            self.may_wait()?;
        }
        Ok(len)
    }
}

//! What all handles of a connection share, and how any of them waits.
//!
//! Whoever waits looks for its own thing; if it is not there it tries to become the reader. The one that succeeds sorts
//! what arrives into everybody's queues, spins and sleeps; the others sleep on a condition variable. When the reader
//! has got what it wanted it wakes them, and one of them becomes the reader.
//!
//! Locks are taken in this order, each held briefly: reader role, table, a queue; lane; socket.

use super::WaitStrategy;
use super::connect::{Endpoint, Welcome};
use super::error::{Error, Kind, Result};
use super::lane::{Lane, Producing};
use super::link::Link;
#[cfg(feature = "tokio")]
use super::link::Step;
use super::outgoing::Outgoing;
use super::reader::Reader;
use super::request::Pending;
use super::roles::{Following, Lead, Viewing};
use super::serve::{Arrived, Inbox, Incoming};
use super::session::{Restored, Restoring};
use super::state::{ConnectionState, States};
use super::subscription::{Early, Queue};
use crate::shm::doorbell::{ClientBells, Nest};
use crate::shm::layout::{RingName, credit_step};
use crate::shm::ring::Consumer;
use crate::shm::segment::Segment;
use crate::sync::{AtomicU64, Ordering, Site, fence};
use crate::wire::control::{BrokerFrame, ClientFrame, Limits};
use crate::wire::name::Topic;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// Locks, also if a thread panicked while it held the lock: no holder leaves anything half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// When a wait of `timeout` ends.
pub(super) fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

pub(super) fn unexpected(frame: &BrokerFrame) -> Error {
    match frame {
        BrokerFrame::Failed { code, message, .. } => Kind::Failed { code: *code, message: message.clone() }.into(),
        other => Kind::Protocol(format!("unexpected answer {other:?}")).into(),
    }
}

/// Hashes the numbers that the broker gives out: it is trusted not to choose them so that they collide.
pub(super) type ById = BuildHasherDefault<IdHasher>;

#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

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

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Something that a record in the egress ring brings.
    Record,
    /// Something else, of which a bell tells.
    Bell,
}

/// The connection stands, as far as is known.
const UP: u64 = 0;
/// It is lost, and looked for.
const AWAY: u64 = 1;
/// It has ended for good.
const ENDED: u64 = 2;

/// Who waits for what arrives.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) subscriptions: HashMap<u32, Arc<Queue>, ById>,
    /// Subscriptions and services that were asked for, by the question's serial. The rings and the socket are not in
    /// step: messages may come before the answer that tells their number, and wait as `orphans`.
    pub(super) subscribing: HashMap<u32, Arc<Queue>>,
    pub(super) serving: HashMap<u32, Arc<Inbox>>,
    pub(super) orphans: Vec<(u32, Early)>,
    pub(super) orphan_calls: Vec<(u32, Arrived)>,
    pub(super) requests: Vec<RequestSlot>,
    pub(super) free_requests: Vec<u32>,
    /// Places of requests that have ended here, and whose cancels wait for space.
    pub(super) owed_cancels: Vec<u32>,
    pub(super) inboxes: HashMap<u32, Arc<Inbox>>,
    pub(super) calls: HashMap<u64, Arc<Incoming>>,
    pub(super) answers: HashMap<u32, Option<BrokerFrame>>,
    pub(super) flushed: u64,
    /// Messages of ours that the broker took out.
    pub(super) set_aside: u64,
    pub(super) topics: HashMap<String, u32>,
    pub(super) services: HashMap<String, u32>,
    /// The names that the broker has given numbers to, by those: topics, services.
    pub(super) named: [Vec<Topic>; 2],
    /// How many brokers, or sessions of one, there were before the present.
    pub(super) session: u64,
    /// What the next broker was asked for, and what it has given.
    pub(super) restoring: HashMap<u32, Restoring>,
    pub(super) restored: Vec<Restored>,
    pub(super) closed: Option<Error>,
    down: Arc<AtomicU64>,
    pub(super) states: States,
    /// Why the broker is about to close the connection.
    pub(super) closing: Option<Error>,
    pub(super) wakers: Vec<std::task::Waker>,
}

impl Table {
    /// The connection is in another state: who waits for that looks.
    pub(super) fn set_state(&mut self, state: ConnectionState) {
        self.states.set(state);
        self.wakers.drain(..).for_each(std::task::Waker::wake);
    }

    /// Something came for a subscription. If its number is not known yet, it waits.
    pub(super) fn tell_subscription(&mut self, subscription: u32, what: Early, slot_size: u32) {
        match self.subscriptions.get(&subscription) {
            Some(queue) => queue.receive(what, slot_size),
            None if !self.subscribing.is_empty() => {
                if let Early::Dropped(_) = what {
                    // Each says how many there were so far.
                    self.orphans.retain(|(id, early)| *id != subscription || !matches!(early, Early::Dropped(_)));
                }
                self.orphans.push((subscription, what));
            }
            // It crossed our `unsubscribe`.
            None => {}
        }
    }

    /// The connection has ended, for the first reason that is told.
    pub(super) fn close(&mut self, error: Error) {
        if self.closed.is_none() {
            self.set_state(ConnectionState::Closed { reason: error.clone() });
            self.closed = Some(error);
            self.down.store(ENDED, Ordering::Relaxed);
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct RequestSlot {
    pub(super) generation: u32,
    pub(super) pending: Option<Arc<Pending>>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    connection: AtomicU64,
    pub(super) limits: Limits,
    pub(super) wait: WaitStrategy,
    /// For event loops of the user's own.
    pub(super) nest: Nest,
    lanes: [Lane; 2],
    pub(super) table: Mutex<Table>,
    pub(super) endpoint: Endpoint,
    pub(super) outgoing: Mutex<Outgoing>,
    reader: Mutex<Reader>,
    /// The thread that looks at a record in the ring, as a number; 0: none. It has the reader role.
    viewer: AtomicU64,
    /// How many sleep on `turn`, and what tells them that it is time to look again.
    followers: AtomicU64,
    turns: Mutex<u64>,
    turn: Condvar,
    serial: AtomicU64,
    /// Not 0 while cancels wait for space.
    pub(super) owes_cancels: AtomicU64,
    /// What a publisher has to know of the connection: [`UP`], [`AWAY`] or [`ENDED`]. Changed under the table's lock.
    down: Arc<AtomicU64>,
}

impl Inner {
    pub(super) fn new(
        socket: Arc<UnixStream>,
        welcome: Welcome,
        wait: WaitStrategy,
        endpoint: Endpoint,
    ) -> Result<Inner> {
        let Welcome { segment, bells, limits, greeted, decoder } = welcome;
        let nest = Nest::new(&bells).map_err(|error| Kind::Disconnected(error.to_string()))?;
        let bells = Arc::new(bells);
        let link = Link::new(socket.clone(), bells.clone(), decoder, greeted.token);
        let (bulk, express, egress) = Inner::ends(&segment, &bells, limits.slot_size);
        let down = Arc::new(AtomicU64::new(UP));
        Ok(Inner {
            connection: AtomicU64::new(u64::from(greeted.connection)),
            limits,
            wait,
            nest,
            lanes: [Lane::new(bulk), Lane::new(express)],
            table: Mutex::new(Table { down: down.clone(), ..Table::default() }),
            endpoint,
            outgoing: Mutex::new(Outgoing::new(socket)),
            reader: Mutex::new(Reader::new(segment, egress, bells, link)),
            viewer: AtomicU64::new(0),
            followers: AtomicU64::new(0),
            turns: Mutex::new(0),
            turn: Condvar::new(),
            serial: AtomicU64::new(1),
            owes_cancels: AtomicU64::new(0),
            down,
        })
    }

    /// Our ends of a session's rings: bulk, express, egress.
    pub(super) fn ends(
        segment: &Segment,
        bells: &Arc<ClientBells>,
        slot_size: u32,
    ) -> (Producing, Producing, Consumer) {
        let (bulk, express, egress) = segment.client_ends();
        let lane = |producer, name| {
            let (space, data) = (segment.space_signal(name), segment.data_signal(name));
            Producing::new(producer, space, data, bells.clone(), slot_size)
        };
        (lane(bulk, RingName::Bulk), lane(express, RingName::Express), egress)
    }

    /// The connection's id at the present broker.
    pub(super) fn connection(&self) -> u32 {
        self.connection.load(Ordering::Relaxed) as u32
    }

    pub(super) fn set_connection(&self, id: u32) {
        self.connection.store(u64::from(id), Ordering::Relaxed);
    }

    pub(super) fn bulk(&self) -> &Lane {
        &self.lanes[0]
    }

    pub(super) fn express(&self) -> &Lane {
        &self.lanes[1]
    }

    /// How much credit for answers and bodies may be owed before it is given back, in cells.
    pub(super) fn stream_step(&self) -> u32 {
        credit_step(self.limits.stream_credit_cells, self.limits.slot_size)
    }

    /// Why the connection has ended, if it has.
    pub(super) fn closed(&self) -> Option<Error> {
        lock(&self.table).closed.clone()
    }

    /// The reader role, if nobody has it.
    fn try_lead(&self) -> Option<Lead<'_>> {
        Some(Lead::new(try_lock(&self.reader)?, self))
    }

    /// Notes, until the guard is dropped, that this thread looks at a record in the ring: what the user does meanwhile
    /// must not wait, for it would wait for itself.
    pub(super) fn view(&self) -> Viewing<'_> {
        Viewing::new(&self.viewer)
    }

    /// An error if this thread would wait for itself.
    pub(super) fn may_wait(&self) -> Result<()> {
        match Viewing::is_of_this_thread(&self.viewer) {
            true => Err(Kind::ViewOutstanding.into()),
            false => Ok(()),
        }
    }

    /// Waits until `ready` gives something, the connection ends, or `deadline` is past. `ready` is called often, with
    /// no lock held but perhaps the reader role; it may place records, and must not wait.
    pub(super) fn wait_until<T>(&self, deadline: Option<Instant>, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
        self.wait_for(What::Record, deadline, |_| ready())
    }

    /// As [`Inner::wait_until`], for what no record brings but a bell: space in a lane, or an answer over the socket.
    /// To spin for that would be in vain.
    pub(super) fn wait_for_bell<T>(&self, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
        self.wait_for(What::Bell, None, |_| ready())
    }

    /// As [`Inner::wait_until`]; when the caller has the reader role, `ready` gets it, to take a record out of the ring
    /// itself.
    pub(super) fn wait_reading<T>(&self, ready: impl FnMut(Option<&mut Reader>) -> Option<T>) -> Result<T> {
        self.wait_for(What::Record, None, ready)
    }

    fn wait_for<T>(
        &self,
        what: What,
        deadline: Option<Instant>,
        mut ready: impl FnMut(Option<&mut Reader>) -> Option<T>,
    ) -> Result<T> {
        loop {
            if let Some(mut lead) = self.try_lead() {
                return self.read(&mut lead.reader, what, deadline, &mut ready);
            }
            // Counted before anything is looked at, so that a reader that finds nobody is seen to have left.
            let _following = Following::new(&self.followers);
            fence(Site::Sleep);
            let seen = *lock(&self.turns);
            if let Some(mut lead) = self.try_lead() {
                return self.read(&mut lead.reader, what, deadline, &mut ready);
            }
            if let Some(found) = ready(None) {
                return Ok(found);
            }
            if let Some(closed) = self.closed() {
                // What arrived before the end was sorted before the end was told: it may be ours.
                return ready(None).ok_or(closed);
            }
            if deadline.is_none_or(|deadline| Instant::now() < deadline) {
                self.may_wait()?;
            }
            if let Some(result) = self.follow(seen, deadline) {
                return result;
            }
        }
    }

    fn read<T>(
        &self,
        reader: &mut Reader,
        what: What,
        deadline: Option<Instant>,
        ready: &mut impl FnMut(Option<&mut Reader>) -> Option<T>,
    ) -> Result<T> {
        let mut last_look = false;
        loop {
            // Its own thing may be in the ring: taken there, it need not pass through a queue.
            if let Some(found) = ready(Some(reader)) {
                return Ok(found);
            }
            if reader.sort(self) > 0 {
                if let Some(found) = ready(Some(reader)) {
                    return Ok(found);
                }
                self.pass_on();
                continue;
            }
            if let Some(closed) = self.closed() {
                return Err(closed);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                if std::mem::replace(&mut last_look, true) {
                    return Err(Kind::Timeout.into());
                }
                // Who never waits long enough to sleep must learn of the socket, too.
                reader.look_at_bells(self, Some(Duration::ZERO));
                reader.step(self);
                continue;
            }
            if reader.wait(self, what, deadline) {
                // Whom the bell was for is not known: a lane may have space.
                self.pass_on();
            }
        }
    }

    /// Sleeps until the reader has sorted something or left. `None`: look again.
    fn follow<T>(&self, seen: u64, deadline: Option<Instant>) -> Option<Result<T>> {
        let mut turns = lock(&self.turns);
        while *turns == seen {
            turns = match deadline {
                None => self.turn.wait(turns).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Some(Err(Kind::Timeout.into()));
                    }
                    self.turn.wait_timeout(turns, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        None
    }

    /// The reader has sorted something, or leaves: the others look.
    pub(super) fn pass_on(&self) {
        fence(Site::Wake);
        if self.followers.load(Ordering::SeqCst) > 0 {
            *lock(&self.turns) += 1;
            self.turn.notify_all();
        }
    }

    /// Sorts what has arrived, without waiting.
    pub(super) fn sort_now(&self) {
        if let Some(mut lead) = self.try_lead() {
            while lead.reader.sort(self) > 0 {}
        }
    }

    /// For an event loop that found the descriptor readable: sorts what has arrived, asks to be woken and looks once
    /// more.
    #[cfg(feature = "tokio")]
    pub(super) fn drive(&self) -> Step {
        let Some(mut lead) = self.try_lead() else { return Step::Changed };
        let reader = &mut lead.reader;
        reader.look_at_bells(self, Some(Duration::ZERO));
        let mut step = reader.step(self);
        while reader.sort(self) > 0 {}
        if !reader.arm() {
            step = Step::Changed;
        }
        drop(lead);
        // Whom the bell was for is not known: a lane may have space.
        let wakers = std::mem::take(&mut lock(&self.table).wakers);
        wakers.into_iter().for_each(std::task::Waker::wake);
        step
    }

    /// An error if the connection has ended: what was placed now would be lost. Otherwise, whether it was lost, and
    /// looked for, when a publisher last looked.
    #[inline]
    pub(super) fn look_up(&self) -> Result<bool> {
        match self.down.load(Ordering::Relaxed) {
            UP => Ok(false),
            ENDED => Err(self.closed().unwrap_or(Kind::Timeout.into())),
            _ => Ok(true),
        }
    }

    /// For who does not wait: notices that the broker has gone, and goes on looking for it. Another thread that waits
    /// does so anyway.
    #[cold]
    pub(super) fn look_after_link(&self) {
        let Some(mut lead) = self.try_lead() else { return };
        let reader = &mut lead.reader;
        reader.look_at_bells(self, Some(Duration::ZERO));
        let _ = reader.step(self);
        let table = lock(&self.table);
        if table.closed.is_none() {
            self.down.store(if reader.is_away() { AWAY } else { UP }, Ordering::Relaxed);
        }
    }

    /// A number that has not been used before.
    pub(super) fn next_number(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// The connection has ended.
    pub(super) fn close(&self, error: Error) {
        lock(&self.table).close(error);
        lock(&self.outgoing).lose();
    }

    /// Asks a question over the control socket and waits for the answer.
    pub(super) fn ask(&self, question: impl FnOnce(u32) -> ClientFrame) -> Result<BrokerFrame> {
        let serial = self.start_ask(question)?;
        self.wait_for_bell(|| self.take_answer(serial))
    }

    pub(super) fn start_ask(&self, question: impl FnOnce(u32) -> ClientFrame) -> Result<u32> {
        let serial = self.next_number() as u32;
        {
            let mut table = lock(&self.table);
            if let Some(closed) = &table.closed {
                return Err(closed.clone());
            }
            table.answers.insert(serial, None);
        }
        let question = question(serial);
        lock(&self.outgoing).ask(serial, question);
        Ok(serial)
    }

    /// Asks for something whose answer does not matter. `question` sees the table as it is when the question is put.
    pub(super) fn tell(&self, question: impl FnOnce(&mut Table, u32) -> ClientFrame) {
        let serial = self.next_number() as u32;
        let mut table = lock(&self.table);
        let question = question(&mut table, serial);
        if table.closed.is_none() {
            lock(&self.outgoing).ask(serial, question);
        }
    }

    pub(super) fn take_answer(&self, serial: u32) -> Option<BrokerFrame> {
        let mut table = lock(&self.table);
        table.answers.get(&serial)?.as_ref()?;
        table.answers.remove(&serial)?
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The broker routes what is in the lanes before it lets the connection go.
        let bye = ClientFrame::Bye.encode().unwrap_or_default();
        lock(&self.outgoing).say(&bye);
    }
}

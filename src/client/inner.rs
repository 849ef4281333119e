//! What all handles of a connection share.
//!
//! Locks are taken in this order, each held briefly: reader role, table, a queue; lane; socket.

use super::WaitStrategy;
use super::answer::Incoming;
use super::behind::Behind;
use super::connect::{Endpoint, Welcome};
use super::error::{Error, Kind, Result};
use super::lane::{Lane, Producing};
use super::limits::Present;
use super::link::Link;
use super::names::Names;
use super::outgoing::Outgoing;
use super::pending::Pending;
use super::queue::{Early, Queue};
use super::reader::Reader;
use super::serve::{Arrived, Inbox};
use super::session::{Restored, Restoring};
use super::state::{ConnectionState, Down, States};
use crate::shm::doorbell::{AggregateEpoll, ClientBells};
use crate::shm::fork::ForkMark;
use crate::shm::layout::{RingName, credit_step};
use crate::shm::ring::Consumer;
use crate::shm::segment::Segment;
use crate::sync::{AtomicU64, Ordering};
use crate::wire::control::{BrokerFrame, ClientFrame, Limits};
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
    pub(super) topics: Names,
    pub(super) services: Names,
    /// How many brokers, or sessions of one, there were before the present.
    pub(super) session: u64,
    /// What the next broker was asked for, and what it has given.
    pub(super) restoring: HashMap<u32, Restoring>,
    pub(super) restored: Vec<Restored>,
    pub(super) closed: Option<Error>,
    down: Arc<Down>,
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
            self.down.end(error.clone());
            self.closed = Some(error);
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
    /// Of the process that connected: a child that it forks must leave everything here alone.
    owner: ForkMark,
    pub(super) limits: Present,
    pub(super) wait: WaitStrategy,
    /// For event loops of the user's own.
    pub(super) nest: AggregateEpoll,
    lanes: [Lane; 2],
    pub(super) table: Mutex<Table>,
    pub(super) endpoint: Endpoint,
    pub(super) outgoing: Mutex<Outgoing>,
    pub(super) reader: Mutex<Reader>,
    /// The thread that looks at a record in the ring, as a number; 0: none. It has the reader role.
    pub(super) viewer: AtomicU64,
    /// How many sleep on `turn`, and what tells them that it is time to look again.
    pub(super) followers: AtomicU64,
    pub(super) turns: Mutex<u64>,
    pub(super) turn: Condvar,
    serial: AtomicU64,
    /// Not 0 while something was posted that had no space yet: see `posted`.
    pub(super) has_posted: AtomicU64,
    /// Not 0 while cancels wait for space.
    pub(super) owes_cancels: AtomicU64,
    /// Not 0 while names are to be released: see `hold`.
    pub(super) has_leaving: AtomicU64,
    pub(super) down: Arc<Down>,
    /// Whether the broker holds newer messages than those in the ring.
    pub(super) behind: Behind,
}

impl Inner {
    pub(super) fn new(
        socket: Arc<UnixStream>,
        welcome: Welcome,
        wait: WaitStrategy,
        endpoint: Endpoint,
    ) -> Result<Inner> {
        let Welcome { segment, bells, limits, greeted, decoder } = welcome;
        let nest = AggregateEpoll::new(&bells).map_err(|error| Kind::Disconnected(error.to_string()))?;
        let bells = Arc::new(bells);
        let link = Link::new(socket.clone(), bells.clone(), decoder, greeted.token);
        let (bulk, express, egress) = Inner::ends(&segment, &bells, &limits);
        let down: Arc<Down> = Arc::default();
        Ok(Inner {
            behind: Behind::new(segment.newer()),
            connection: AtomicU64::new(u64::from(greeted.connection)),
            owner: ForkMark::new(),
            limits: Present::new(&limits),
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
            has_posted: AtomicU64::new(0),
            owes_cancels: AtomicU64::new(0),
            has_leaving: AtomicU64::new(0),
            down,
        })
    }

    /// Our ends of a session's rings: bulk, express, egress.
    pub(super) fn ends(
        segment: &Segment,
        bells: &Arc<ClientBells>,
        limits: &Limits,
    ) -> (Producing, Producing, Consumer) {
        let (bulk, express, egress) = segment.client_ends();
        let lane = |producer, name| {
            let (space, data) = (segment.space_signal(name), segment.data_signal(name));
            Producing::new(producer, space, data, bells.clone(), limits)
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
        credit_step(self.limits.stream_credit_cells(), self.limits.slot_size())
    }

    /// Whether this process is the one that connected.
    #[inline]
    pub(super) fn is_ours(&self) -> bool {
        self.owner.is_ours()
    }

    /// An error in a child that was forked. It comes before any lock, which another thread may have held at the fork.
    #[inline]
    pub(super) fn check_fork(&self) -> Result<()> {
        if self.is_ours() { Ok(()) } else { Err(Kind::Forked.into()) }
    }

    /// Why the connection has ended, if it has.
    pub(super) fn closed(&self) -> Option<Error> {
        if let Err(forked) = self.check_fork() {
            return Some(forked);
        }
        lock(&self.table).closed.clone()
    }

    /// An error if the connection has ended: what was placed now would be lost. Otherwise, whether it was lost, and
    /// looked for, when a publisher last looked.
    #[inline]
    pub(super) fn look_up(&self) -> Result<bool> {
        self.check_fork()?;
        self.down.look()
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
        self.ask_until(None, question)
    }

    pub(super) fn ask_until(
        &self,
        deadline: Option<Instant>,
        question: impl FnOnce(u32) -> ClientFrame,
    ) -> Result<BrokerFrame> {
        let asked = self.start_ask(question)?;
        self.wait_for_bell_until(deadline, || asked.answer())
    }

    /// Asks for something whose answer does not matter. `question` sees the table as it is when the question is put;
    /// `None`: there is nothing to ask for.
    pub(super) fn tell(&self, question: impl FnOnce(&mut Table, u32) -> Option<ClientFrame>) {
        if !self.is_ours() {
            return;
        }
        let serial = self.next_number() as u32;
        let mut table = lock(&self.table);
        let question = question(&mut table, serial);
        if let Some(question) = question.filter(|_| table.closed.is_none()) {
            lock(&self.outgoing).ask(serial, question);
        }
    }
}

impl Inner {
    /// The last word to the broker, which routes what is in the lanes before it lets the connection go.
    pub(super) fn say_goodbye(&self) {
        self.place_posted();
        self.say_bye();
    }

    fn say_bye(&self) {
        let bye = ClientFrame::Bye.encode().unwrap_or_default();
        lock(&self.outgoing).say(&bye);
    }

    /// The user ends the connection.
    pub(super) fn close_here(&self) {
        if !self.is_ours() {
            return;
        }
        self.place_posted();
        // Before the broker hears of it: the end of the socket, which follows, is then no loss.
        lock(&self.table).close(Kind::Disconnected("it was closed here".to_owned()).into());
        self.say_bye();
        lock(&self.outgoing).lose();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.is_ours() {
            self.say_goodbye();
        }
    }
}

//! The state that all handles of a connection share.
//!
//! Locks are taken in this order, each held briefly: reader role, table, a queue; lane; socket.

use super::link::Link;
use super::reader::Reader;
use super::table::Table;
use crate::client::connect::endpoint::{Endpoint, Welcome};
use crate::client::data::connection_state::LinkStatus;
use crate::client::data::control_queue::ControlQueue;
use crate::client::data::lag::BrokerBacklog;
use crate::client::data::lane::{Lane, LaneProducer};
use crate::client::data::limits::CurrentLimits;
use crate::client::data::lock::{lock, thread};
use crate::client::error::{Error, Kind, Result};
use crate::shm::doorbell::{AggregateEpoll, ClientBells};
use crate::shm::fork::ForkMark;
use crate::shm::layout::{RingName, credit_step};
use crate::shm::ring::Consumer;
use crate::shm::segment::Segment;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::wire::control::{ClientFrame, Limits};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar};

/// How a thread waits for the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitStrategy {
    /// Spins while the router is awake on another CPU, for a bounded time that tunes itself; then sleeps.
    #[default]
    Adaptive,
    /// Never sleeps: the shortest latency, for a whole CPU.
    Busy,
    /// Sleeps at once.
    Block,
}

#[derive(Debug)]
pub(crate) struct Connection {
    id: AtomicU64,
    /// The process that connected: a child that it forks must not touch anything here.
    owner: ForkMark,
    pub(crate) limits: CurrentLimits,
    pub(crate) wait: WaitStrategy,
    /// The descriptor for the user's event loop.
    pub(crate) epoll: AggregateEpoll,
    lanes: [Lane; 2],
    pub(crate) table: Mutex<Table>,
    pub(crate) endpoint: Endpoint,
    pub(crate) control: Mutex<ControlQueue>,
    pub(crate) reader: Mutex<Reader>,
    /// The thread that reads a record in place, as a number; 0: none. It has the reader role.
    pub(crate) viewer: AtomicU64,
    /// How many threads sleep on `turn`, and what wakes them to look again.
    pub(crate) followers: AtomicU64,
    pub(crate) turns: Mutex<u64>,
    pub(crate) turn: Condvar,
    serial: AtomicU64,
    /// The slot of a request whose reply was taken out of the ring (low half), and its generation; 0: none. The thread
    /// with the reader role stores it where there is none, and the next claim of a slot releases it, under the lock of
    /// the table that a claim has anyway. So it is not missing where another thread needs a slot. The word alone is
    /// handed over, so its own order is enough.
    pub(crate) kept_slot: AtomicU64,
    /// Not 0 while cancels wait for space.
    pub(crate) owes_cancels: AtomicU64,
    /// Not 0 while names are to be released: see `interning`.
    pub(crate) has_unused_names: AtomicU64,
    pub(crate) link_status: Arc<LinkStatus>,
    /// Whether the broker holds newer messages than those in the ring.
    pub(crate) backlog: BrokerBacklog,
}

impl Connection {
    pub(crate) fn new(
        socket: Arc<UnixStream>,
        welcome: Welcome,
        wait: WaitStrategy,
        endpoint: Endpoint,
    ) -> Result<Connection> {
        let Welcome { segment, bells, limits, greeted, decoder } = welcome;
        let epoll = AggregateEpoll::new(&bells).map_err(|error| Kind::Disconnected(error.to_string()))?;
        let bells = Arc::new(bells);
        let link = Link::new(socket.clone(), bells.clone(), decoder, greeted.token);
        let (bulk, express, egress) = Connection::ends(&segment, &bells, &limits);
        let link_status: Arc<LinkStatus> = Arc::default();
        Ok(Connection {
            backlog: BrokerBacklog::new(segment.newer()),
            id: AtomicU64::new(u64::from(greeted.connection)),
            owner: ForkMark::new(),
            limits: CurrentLimits::new(&limits),
            wait,
            epoll,
            lanes: [Lane::new(bulk), Lane::new(express)],
            table: Mutex::new(Table { link_status: link_status.clone(), ..Table::default() }),
            endpoint,
            control: Mutex::new(ControlQueue::new(socket)),
            reader: Mutex::new(Reader::new(segment, egress, bells, link)),
            viewer: AtomicU64::new(0),
            followers: AtomicU64::new(0),
            turns: Mutex::new(0),
            turn: Condvar::new(),
            serial: AtomicU64::new(1),
            kept_slot: AtomicU64::new(0),
            owes_cancels: AtomicU64::new(0),
            has_unused_names: AtomicU64::new(0),
            link_status,
        })
    }

    /// Our ends of a session's rings: bulk, express, egress.
    pub(crate) fn ends(
        segment: &Segment,
        bells: &Arc<ClientBells>,
        limits: &Limits,
    ) -> (LaneProducer, LaneProducer, Consumer) {
        let (bulk, express, egress) = segment.client_ends();
        let lane = |producer, name| {
            let (space, data) = (segment.space_signal(name), segment.data_signal(name));
            LaneProducer::new(producer, space, data, bells.clone(), limits)
        };
        (lane(bulk, RingName::Bulk), lane(express, RingName::Express), egress)
    }

    /// The connection's id at the current broker.
    pub(crate) fn id(&self) -> u32 {
        self.id.load(Ordering::Relaxed) as u32
    }

    pub(crate) fn set_id(&self, id: u32) {
        self.id.store(u64::from(id), Ordering::Relaxed);
    }

    pub(crate) fn bulk(&self) -> &Lane {
        &self.lanes[0]
    }

    pub(crate) fn express(&self) -> &Lane {
        &self.lanes[1]
    }

    /// How much credit for replies and bodies may be owed before it is returned, in cells.
    pub(crate) fn stream_step(&self) -> u32 {
        credit_step(self.limits.stream_credit_cells(), self.limits.slot_size())
    }

    /// Whether this process has created the connection.
    #[inline]
    pub(crate) fn is_ours(&self) -> bool {
        self.owner.is_ours()
    }

    /// An error in a child that was forked. It comes before any lock, which another thread may have held at the fork.
    #[inline]
    pub(crate) fn check_fork(&self) -> Result<()> {
        if self.is_ours() { Ok(()) } else { Err(Kind::Forked.into()) }
    }

    /// Why the connection has ended, if it has.
    pub(crate) fn closed(&self) -> Option<Error> {
        if let Err(forked) = self.check_fork() {
            return Some(forked);
        }
        lock(&self.table).closed.clone()
    }

    /// An error if the connection has ended: what was placed now would be lost. Otherwise, whether the socket was lost
    /// when a publisher last checked it.
    #[inline]
    pub(crate) fn check_open(&self) -> Result<bool> {
        self.check_fork()?;
        self.link_status.check()
    }

    /// A number that has not been used before.
    pub(crate) fn next_number(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// The connection has ended.
    pub(crate) fn close(&self, error: Error) {
        lock(&self.table).close(error);
        lock(&self.control).disconnect();
    }

    /// An error if this thread would wait for itself.
    pub(crate) fn may_wait(&self) -> Result<()> {
        // Only this thread itself can have stored its number.
        match self.viewer.load(Ordering::Relaxed) == thread() {
            true => Err(Kind::ViewOutstanding.into()),
            false => Ok(()),
        }
    }

    /// A message's length, if it is not too large, nor one of several records from where nothing may wait: it could
    /// be begun and not ended.
    #[inline]
    pub(crate) fn check_size(&self, len: usize) -> Result<u32> {
        let max = self.limits.max_message_size();
        let Some(len) = u32::try_from(len).ok().filter(|len| *len <= max) else {
            return Err(Kind::TooLarge { len, max }.into());
        };
        if len > self.limits.slot_size() {
            self.may_wait()?;
        }
        Ok(len)
    }

    /// Sends a Bye: the broker routes the records in the lanes before it closes the connection.
    pub(crate) fn send_final_bye(&self) {
        self.express().place_deferred();
        self.send_bye();
    }

    fn send_bye(&self) {
        let bye = ClientFrame::Bye.encode().unwrap_or_default();
        lock(&self.control).send_frame(&bye);
    }

    /// The user ends the connection.
    pub(crate) fn close_by_user(&self) {
        if !self.is_ours() {
            return;
        }
        self.express().place_deferred();
        // Before the broker hears of it: the end of the socket, which follows, is then no loss.
        lock(&self.table).close(Kind::Disconnected("closed by this client".to_owned()).into());
        self.send_bye();
        lock(&self.control).disconnect();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.is_ours() {
            self.send_final_bye();
        }
    }
}

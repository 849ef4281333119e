//! What the router owns, and one step of its work. No actor, no clock, no waiting: `now` is an argument.
//!
//! All of it lives outside the actor's value and outlives it. Each record is handled in two parts: everything that can
//! fail comes first and changes nothing, then a commit that cannot fail, which ends with the source's position.

use super::call::Call;
use super::connection::{CloseReason, Info};
use super::counters::Counters;
use super::egress::Egresses;
use super::ingress::Ingress;
use super::journal::{Journal, Work};
use super::keeping::KeptWork;
use super::memory::{self, Memory};
use super::message::Chosen;
use super::settings::Settings;
use super::timers::Timer;
use super::timings::Timings;
use crate::broker::events::Events;
use crate::broker::fault;
use crate::routing::arena::Arena;
use crate::routing::schedule::Schedule;
use crate::routing::services::{ServiceId, Services};
use crate::routing::topics::Topics;
use crate::routing::wheel::Wheel;
use crate::shm::doorbell::{BellBoard, LOOK, RouterWaker};
use crate::shm::layout::RingName;
use crate::shm::ring::Record;
use crate::sync::AtomicU64;
use crate::wire::control::ClosingCode;
use crate::wire::name::Name;
use crate::wire::record::Kind;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

/// The service that the broker answers itself.
pub(crate) const ECHO: &str = "echo";

/// Cells that a connection may use up in one turn, besides its records: large records count for more.
const QUANTUM_CELLS: u64 = 512;
/// So many receivers of a record count as one record more of the batch.
const RECEIVERS: usize = 16;
/// Bytes of a message under way that a receiver must take within `slow_consumer_timeout_ms`.
const PACE: u64 = 1 << 20;
/// How long a connection must have been cold before its extensions are taken back.
pub(super) const IDLE: u64 = 500_000_000;

/// The router's state.
pub(crate) struct RouterState {
    pub(super) settings: Settings,
    pub(super) ingresses: Vec<Option<Box<Ingress>>>,
    pub(super) free_keys: Vec<u32>,
    pub(super) egresses: Egresses,
    pub(super) topics: Topics,
    pub(super) services: Services,
    pub(super) echo: ServiceId,
    pub(super) calls: Arena<Call>,
    pub(super) wheel: Wheel<Timer>,
    /// Timers that are due, the first last.
    pub(super) due: Vec<Timer>,
    pub(super) schedule: Schedule,
    pub(super) board: BellBoard,
    pub(super) rang: Vec<u32>,
    /// The own bell has rung: there is something in the actor's mailbox.
    pub(super) has_mail: bool,
    pub(super) chosen: Vec<Chosen>,
    pub(super) journal: Journal,
    pub(super) kept: KeptWork,
    pub(super) now: u64,
    /// How often the loop has turned, for the watchdog. Only the loop's thread writes.
    pub(super) turns: Arc<AtomicU64>,
    pub(super) counters: Counters,
    pub(super) timings: Timings,
    pub(super) system_sent: u64,
    /// Ids of the connections that ended last.
    pub(super) recent: VecDeque<u32>,
    /// Connections that ended, for the actor to tell.
    pub(super) ended: Vec<(Info, CloseReason)>,
    pub(super) events: Events,
    /// When the bulk lanes open that are closed at the start; `None`: they are open.
    pub(super) lanes_open_at: Option<u64>,
}

/// Whether a lane has more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Dry,
    More,
    /// Its next record must wait for another connection.
    Parked,
}

impl RouterState {
    /// A router without connections.
    ///
    /// # Errors
    ///
    /// If the system refuses an epoll descriptor.
    pub(crate) fn new(settings: Settings, events: Events, now: u64) -> io::Result<RouterState> {
        let no_room = || io::Error::other("limits.max_services leaves no room for the echo");
        let mut services = Services::new(settings.max_services, settings.breakers.clone());
        services.set_probe_delays(settings.probe_delays);
        let echo = Name::parse(ECHO).ok().and_then(|name| services.intern(&name)).ok_or_else(no_room)?;
        let memory = Memory::new(settings.budget, settings.max_window);
        let mut wheel = Wheel::new(now);
        wheel.set(now + settings.audit_interval, Timer::Audit);
        Ok(RouterState {
            ingresses: Vec::new(),
            free_keys: Vec::new(),
            egresses: Egresses::new(memory, settings.max_backlog_bytes, settings.drop_grace),
            topics: Topics::new(settings.max_topics, settings.max_routes),
            services,
            echo,
            calls: Arena::new(1 << 24),
            wheel,
            due: Vec::new(),
            schedule: Schedule::default(),
            board: BellBoard::new()?,
            rang: Vec::with_capacity(LOOK),
            has_mail: false,
            chosen: Vec::new(),
            journal: Journal::default(),
            kept: KeptWork::default(),
            now,
            turns: Arc::default(),
            counters: Counters::default(),
            timings: Timings::default(),
            system_sent: 0,
            recent: VecDeque::new(),
            ended: Vec::new(),
            events,
            settings,
            lanes_open_at: None,
        })
    }

    /// The bell by which other threads wake the router's.
    ///
    /// # Errors
    ///
    /// If the system refuses a descriptor.
    pub(crate) fn router_waker(&self) -> io::Result<RouterWaker> {
        self.board.router_waker()
    }

    #[inline]
    pub(super) fn ingress(&self, key: u32) -> Option<&Ingress> {
        self.ingresses.get(key as usize)?.as_deref()
    }

    #[inline]
    pub(super) fn ingress_mut(&mut self, key: u32) -> Option<&mut Ingress> {
        self.ingresses.get_mut(key as usize)?.as_deref_mut()
    }

    /// The connection `key`, if it is still the one with this id.
    pub(super) fn ingress_of(&mut self, key: u32, id: u32) -> Option<&mut Ingress> {
        self.ingress_mut(key).filter(|ingress| ingress.info.id == id)
    }

    /// Whether nothing is under way.
    pub(super) fn is_quiescent(&mut self) -> bool {
        self.schedule.is_idle()
            && self.calls.len() == 0
            && (0..self.ingresses.len() as u32).all(|key| {
                self.ingresses[key as usize].as_deref_mut().is_none_or(|ingress| {
                    ingress.parked.is_none()
                        && matches!(ingress.express.peek(), Ok(None))
                        && matches!(ingress.bulk.peek(), Ok(None))
                }) && self.egresses.get(key).is_none_or(|egress| !egress.has_backlog() && !egress.keeping.waits())
            })
    }

    /// Serves one connection, or answers that nobody waits to be served.
    pub(super) fn step(&mut self) -> bool {
        let Some(key) = self.schedule.next() else { return false };
        let before = self.counters.records;
        self.serve(key);
        self.close_pending();
        self.watch_kept();
        self.egresses.flush();
        self.watch_grown();
        self.watch_drops();
        self.timings.visited(self.counters.records - before);
        true
    }

    fn serve(&mut self, key: u32) {
        let express = self.drain_lane(key, RingName::Express);
        let parked = self.ingress(key).is_some_and(|ingress| ingress.parked.is_some());
        let is_closed = parked || self.bulk_lane_waits(key);
        let bulk = if is_closed { Lane::Parked } else { self.drain_lane(key, RingName::Bulk) };
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else { return };

        let freed = ingress.bulk.unpublished() + ingress.express.unpublished();
        ingress.bulk.publish();
        ingress.express.publish();
        if freed > 0 {
            self.egresses.grow_lanes(key, &mut ingress.bulk, &mut ingress.express);
            ingress.since_space += freed;
            (ingress.rings, ingress.rings_since, ingress.active_at) = (0, self.now, self.now);
        }
        // R9: a producer that waits is told of space by the quarter, or when there is nothing else to come. It is a
        // wake for each, so no sooner.
        let quarter = u64::from(self.settings.geometry.base_cells() + ingress.windows()) / 4;
        let has_more = bulk == Lane::More || express == Lane::More;
        if ingress.since_space > 0 && (ingress.since_space >= quarter || !has_more) {
            ingress.since_space = 0;
            self.egresses.freed(key);
        }
        // All that the client has said of calls is said, so they are over, however long its publishes wait.
        let calls_end = ingress.ended && express == Lane::Dry;
        if express == Lane::More || bulk == Lane::More {
            self.schedule.requeue(key);
        } else if ingress.ended && bulk == Lane::Dry {
            self.schedule.mark_cold(key);
            let left = CloseReason { code: ClosingCode::Shutdown, reason: "client left".into() };
            self.egresses.pending_close.push((key, left));
        } else if let Some(coldest) = self.schedule.mark_idle(key) {
            self.cool(coldest);
        }
        if calls_end {
            self.end_calls_of(key);
        }
    }

    fn drain_lane(&mut self, key: u32, lane: RingName) -> Lane {
        let mut records = self.settings.batch_records;
        loop {
            let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else { return Lane::Dry };
            let consumer = ingress.lane(lane);
            if records == 0 || consumer.unpublished() > QUANTUM_CELLS {
                return Lane::More;
            }
            records -= 1;
            let routed = match consumer.peek() {
                Ok(None) => return Lane::Dry,
                Ok(Some(record)) => {
                    self.journal.source = Some((key, lane));
                    fault::point("router.found", u64::from(record.len));
                    let routed = match lane {
                        RingName::Bulk => {
                            let routed = self.route_bulk(key, &record);
                            // One with many receivers counts for more.
                            records = records.saturating_sub((self.chosen.len() / RECEIVERS) as u32);
                            routed
                        }
                        _ => self.route_express(key, &record).map(|()| Lane::More),
                    };
                    self.journal.source = None;
                    routed
                }
                Err(violation) => Err(violation.into()),
            };
            match routed {
                Ok(Lane::Parked) => return Lane::Parked,
                Ok(_) => {}
                Err(close) => {
                    self.egresses.pending_close.push((key, close));
                    return Lane::Dry;
                }
            }
        }
    }

    /// The time, read once for a batch.
    #[inline]
    pub(super) fn set_now(&mut self, now: u64) {
        self.timings.clock_read(now - self.now);
        self.now = now;
        self.egresses.now = now;
    }

    /// Carries out what is due at `now`.
    pub(super) fn advance(&mut self, now: u64) {
        self.set_now(now);
        // What a router that died has left is due still.
        let already = self.due.len();
        self.wheel.advance(now, &mut self.due);
        self.due[already..].reverse();
        while let Some(timer) = self.due.last().copied() {
            self.journal.timer = Some(timer);
            fault::point("router.timer", 0);
            match timer {
                Timer::Call(call) => self.deadline(call),
                Timer::Parked(key) => self.waited_too_long(key),
                Timer::Idle(key, id) => self.trim_if_idle(key, id),
                Timer::Audit => self.audit(),
                Timer::Drops(key, id) => self.tell_drops(key, id),
            }
            self.due.pop();
            self.journal.timed();
            fault::point("router.timed", 0);
        }
        self.close_pending();
        self.watch_kept();
        self.egresses.flush();
        self.watch_grown();
        self.watch_drops();
    }

    fn trim_if_idle(&mut self, key: u32, id: u32) {
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut().filter(|ingress| ingress.info.id == id) else {
            return;
        };
        let Some(egress) = self.egresses.get(key) else { return };
        let active_at = ingress.active_at.max(egress.active_at);
        if self.now - active_at < IDLE {
            self.wheel.set(active_at + IDLE, Timer::Idle(key, id));
            return;
        }
        if let Err(close) = self.egresses.trim(key, &mut ingress.bulk, &mut ingress.express) {
            self.egresses.pending_close.push((key, close));
        }
        // What is in use, or was not taken back for another reason, is looked at with the audits: that costs nothing.
        ingress.is_watched = ingress.windows() + self.egresses.egress_window(key) > 0;
        if ingress.is_watched {
            self.wheel.set(self.now + self.settings.audit_interval, Timer::Idle(key, id));
        }
    }

    /// Whoever has got a lease is looked at when it may be idle.
    fn watch_grown(&mut self) {
        while let Some(key) = self.egresses.memory.grown.pop() {
            let (at, ingresses) = (self.now + IDLE, &mut self.ingresses);
            if let Some(ingress) = ingresses[key as usize].as_deref_mut().filter(|ingress| !ingress.is_watched) {
                ingress.is_watched = true;
                self.wheel.set(at, Timer::Idle(key, ingress.info.id));
            }
        }
    }

    fn audit(&mut self) {
        for key in 0..self.ingresses.len() as u32 {
            let (Some(ingress), Some(egress)) = (self.ingresses[key as usize].as_deref(), self.egresses.get(key))
            else {
                continue;
            };
            if let Err(close) = memory::audit(ingress.windows(), &egress.ring, &egress.leases) {
                self.egresses.pending_close.push((key, close));
            }
        }
        self.wheel.set(self.now + self.settings.audit_interval, Timer::Audit);
    }

    /// The work on a record is done: its source's position goes behind it.
    #[inline]
    pub(super) fn done(&mut self, key: u32, lane: RingName, record: &Record, kind: Kind) {
        self.journal.work = Work::Done(*record);
        fault::point("router.committed", kind as u64);
        self.advance_source(key, lane, record);
        (self.journal.source, self.journal.work) = (None, Work::Undecided);
        fault::point("router.advanced", kind as u64);
    }

    /// The source's position goes behind a record that is done.
    pub(super) fn advance_source(&mut self, key: u32, lane: RingName, record: &Record) {
        self.counters.records += 1;
        self.counters.bytes += u64::from(record.len);
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else { return };
        ingress.bytes += u64::from(record.len);
        if lane == RingName::Bulk {
            if let Some((on, since)) = ingress.waits.take()
                && ingress.partial.is_some()
            {
                // Who takes a message in small pieces may not hold it for ever: each puts the time off by its size.
                let earned = self.settings.slow_consumer_timeout.saturating_mul(u64::from(record.len)) / PACE;
                ingress.waits = Some((on, self.now.min(since + earned)));
            }
            ingress.bulk.advance(record);
        } else {
            ingress.express.advance(record);
        }
    }

    /// Works by other settings from now on. What is there stays, also where there is more of it than there may be.
    pub(super) fn adopt(&mut self, settings: Settings) {
        self.services.adopt(settings.max_services);
        self.services.set_probe_delays(settings.probe_delays);
        self.topics.adopt(settings.max_topics, settings.max_routes);
        self.egresses.adopt(settings.max_backlog_bytes, settings.drop_grace);
        self.settings = settings;
    }
}

//! What the router owns, and one step of its work. No actor, no clock, no waiting: `now` is an argument.
//!
//! All of it lives outside the actor's value and outlives it. Each record is handled in two parts: everything that can
//! fail comes first and changes nothing, then a commit that cannot fail, which ends with the source's position.

use super::inlet::{Info, Inlet, Parked};
use super::journal::Journal;
use super::keeping::KeptWork;
use super::memory::{self, Memory};
use super::outlet::{Doom, Outlets};
use super::publish::{Chosen, Message, Wait};
use super::settings::Settings;
use super::timings::Timings;
use crate::broker::events::Events;
use crate::broker::fault;
use crate::routing::arena::{Arena, Key};
use crate::routing::schedule::Schedule;
use crate::routing::services::{ServiceId, Services};
use crate::routing::topics::Topics;
use crate::routing::wheel::Wheel;
use crate::shm::doorbell::{BellBoard, LOOK, RouterWaker};
use crate::shm::layout::RingName;
use crate::sync::AtomicU64;
use crate::wire::name::Name;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::calls::Call;

/// The service that the broker answers itself.
pub(crate) const ECHO: &str = "echo";

/// Cells that a connection may use up in one turn, besides its records: large records count for more.
const QUANTUM_CELLS: u64 = 512;
/// So many receivers of a record count as one record more of the batch.
const RECEIVERS: usize = 16;
/// How long a connection must have been cold before its extensions are taken back.
pub(super) const IDLE: u64 = 500_000_000;

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// The deadline of a call.
    Call(Key),
    /// The bulk lane of a connection has waited long enough.
    Parked(u32),
    /// A connection, named by key and id, may have become idle.
    Idle(u32, u32),
    /// Compare every segment with its leases.
    Audit,
    /// Tell a connection, named by key and id, of messages that it did not get.
    Drops(u32, u32),
}

/// How often what happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) published: u64,
    pub(crate) delivered: u64,
    pub(crate) unmatched: u64,
    /// By the subscription's policy, in the order of `DeliveryPolicy`.
    pub(crate) dropped: [u64; 3],
    pub(crate) aborted: u64,
    pub(crate) evicted: u64,
    pub(crate) requests: u64,
    pub(crate) replies: u64,
    pub(crate) chunks: u64,
    pub(crate) cancels: u64,
    pub(crate) late: u64,
    /// By outcome, in the order of `Outcome::ALL`.
    pub(crate) failed: [u64; 8],
    pub(crate) records: u64,
    /// Those that are a part of a message of several.
    pub(crate) fragments: u64,
    pub(crate) bytes: u64,
    pub(crate) looks: u64,
    pub(crate) sleeps: u64,
    pub(crate) parked: u64,
    pub(crate) violations: u64,
    /// Records and timers that killed two routers.
    pub(crate) set_aside: u64,
    pub(crate) connections: u64,
}

/// The router's state.
pub(crate) struct RouterState {
    pub(super) settings: Settings,
    pub(super) inlets: Vec<Option<Box<Inlet>>>,
    pub(super) free_keys: Vec<u32>,
    pub(super) outlets: Outlets,
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
    pub(super) ended: Vec<(Info, Doom)>,
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
            inlets: Vec::new(),
            free_keys: Vec::new(),
            outlets: Outlets::new(memory, settings.max_backlog_bytes, settings.drop_grace),
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
    pub(super) fn inlet(&self, key: u32) -> Option<&Inlet> {
        self.inlets.get(key as usize)?.as_deref()
    }

    #[inline]
    pub(super) fn inlet_mut(&mut self, key: u32) -> Option<&mut Inlet> {
        self.inlets.get_mut(key as usize)?.as_deref_mut()
    }

    /// The connection `key`, if it is still the one with this id.
    pub(super) fn inlet_of(&mut self, key: u32, id: u32) -> Option<&mut Inlet> {
        self.inlet_mut(key).filter(|inlet| inlet.info.id == id)
    }

    /// Whether nothing is under way.
    pub(super) fn is_quiescent(&mut self) -> bool {
        self.schedule.is_idle()
            && self.calls.len() == 0
            && (0..self.inlets.len() as u32).all(|key| {
                self.inlets[key as usize].as_deref_mut().is_none_or(|inlet| {
                    inlet.parked.is_none()
                        && matches!(inlet.express.peek(), Ok(None))
                        && matches!(inlet.bulk.peek(), Ok(None))
                }) && self.outlets.get(key).is_none_or(|outlet| !outlet.has_backlog() && !outlet.keeping.waits())
            })
    }

    /// Publishers that were parked on `key` try again, who has waited longest first: what there is now may be enough
    /// for one of them only.
    pub(super) fn retry_waiters(&mut self, key: u32) {
        let Some(outlet) = self.outlets.get_mut(key) else { return };
        let mut waiters = std::mem::take(&mut outlet.waiters);
        if waiters.len() > 1 {
            waiters.sort_by_key(|waiter| self.inlet(*waiter).and_then(|inlet| inlet.waits).map(|(_, since)| since));
        }
        for waiter in waiters.drain(..) {
            self.unpark(waiter);
        }
        if let Some(outlet) = self.outlets.get_mut(key) {
            outlet.waiters = waiters;
        }
    }

    pub(super) fn unpark(&mut self, key: u32) {
        let Some(inlet) = self.inlets[key as usize].as_deref_mut() else { return };
        if let Some(parked) = inlet.parked.take() {
            self.wheel.cancel(parked.timer);
            self.schedule.wake(key);
        }
    }

    /// The bulk lane of `key` waits for a connection, to begin `message` or to go on within one.
    pub(super) fn park(&mut self, key: u32, wait: Wait, message: Option<Message>) {
        let Some(inlet) = self.inlets[key as usize].as_deref_mut() else { return };
        let on = wait.on;
        let until = wait.until.unwrap_or_else(|| {
            let since = inlet.waits.filter(|(whom, _)| *whom == on).map_or(self.now, |(_, since)| since);
            inlet.waits = Some((on, since));
            since + self.settings.slow_consumer_timeout
        });
        let timer = self.wheel.set(until, Timer::Parked(key));
        inlet.parked = Some(Parked { timer, on, message, is_grace: wait.until.is_some() });
        self.counters.parked += 1;
        if let Some(outlet) = self.outlets.get_mut(on) {
            outlet.waiters.push(key);
        }
    }

    /// Serves one connection, or answers that nobody waits to be served.
    pub(super) fn step(&mut self) -> bool {
        let Some(key) = self.schedule.next() else { return false };
        let before = self.counters.records;
        self.serve(key);
        self.end_doomed();
        self.watch_kept();
        self.outlets.flush();
        self.watch_grown();
        self.watch_drops();
        self.timings.visited(self.counters.records - before);
        true
    }

    fn serve(&mut self, key: u32) {
        let express = self.drain_lane(key, RingName::Express);
        let parked = self.inlet(key).is_some_and(|inlet| inlet.parked.is_some());
        let is_closed = parked || self.bulk_lane_waits(key);
        let bulk = if is_closed { Lane::Parked } else { self.drain_lane(key, RingName::Bulk) };
        let Some(inlet) = self.inlets[key as usize].as_deref_mut() else { return };

        let freed = inlet.bulk.unpublished() + inlet.express.unpublished();
        inlet.bulk.publish();
        inlet.express.publish();
        if freed > 0 {
            self.outlets.grow_lanes(key, inlet);
            inlet.since_space += freed;
            (inlet.rings, inlet.rings_since, inlet.active_at) = (0, self.now, self.now);
        }
        // R9: a producer that waits is told of space by the quarter, or when there is nothing else to come. It is a
        // wake for each, so no sooner.
        let quarter = u64::from(self.settings.geometry.base_cells() + inlet.windows()) / 4;
        let has_more = bulk == Lane::More || express == Lane::More;
        if inlet.since_space > 0 && (inlet.since_space >= quarter || !has_more) {
            inlet.since_space = 0;
            self.outlets.freed(key);
        }
        // All that the client has said of calls is said, so they are over, however long its publishes wait.
        let calls_end = inlet.ended && express == Lane::Dry;
        if express == Lane::More || bulk == Lane::More {
            self.schedule.requeue(key);
        } else if inlet.ended && bulk == Lane::Dry {
            self.schedule.mark_cold(key);
            let left = Doom { code: crate::wire::control::ClosingCode::Shutdown, reason: "client left".into() };
            self.outlets.doomed.push((key, left));
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
            let Some(inlet) = self.inlets[key as usize].as_deref_mut() else { return Lane::Dry };
            let consumer = inlet.lane(lane);
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
                Err(doom) => {
                    self.outlets.doomed.push((key, doom));
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
        self.outlets.now = now;
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
        self.end_doomed();
        self.watch_kept();
        self.outlets.flush();
        self.watch_grown();
        self.watch_drops();
    }

    fn trim_if_idle(&mut self, key: u32, id: u32) {
        let Some(inlet) = self.inlets[key as usize].as_deref_mut().filter(|inlet| inlet.info.id == id) else { return };
        let Some(outlet) = self.outlets.get(key) else { return };
        let active_at = inlet.active_at.max(outlet.active_at);
        if self.now - active_at < IDLE {
            self.wheel.set(active_at + IDLE, Timer::Idle(key, id));
            return;
        }
        if let Err(doom) = self.outlets.trim(key, inlet) {
            self.outlets.doomed.push((key, doom));
        }
        // What is in use, or was not taken back for another reason, is looked at with the audits: that costs nothing.
        inlet.is_watched = inlet.windows() + self.outlets.egress_window(key) > 0;
        if inlet.is_watched {
            self.wheel.set(self.now + self.settings.audit_interval, Timer::Idle(key, id));
        }
    }

    /// Whoever has got a lease is looked at when it may be idle.
    fn watch_grown(&mut self) {
        while let Some(key) = self.outlets.memory.grown.pop() {
            let (at, inlets) = (self.now + IDLE, &mut self.inlets);
            if let Some(inlet) = inlets[key as usize].as_deref_mut().filter(|inlet| !inlet.is_watched) {
                inlet.is_watched = true;
                self.wheel.set(at, Timer::Idle(key, inlet.info.id));
            }
        }
    }

    fn audit(&mut self) {
        for key in 0..self.inlets.len() as u32 {
            let (Some(inlet), Some(outlet)) = (self.inlets[key as usize].as_deref(), self.outlets.get(key)) else {
                continue;
            };
            if let Err(doom) = memory::audit(inlet, outlet) {
                self.outlets.doomed.push((key, doom));
            }
        }
        self.wheel.set(self.now + self.settings.audit_interval, Timer::Audit);
    }
}

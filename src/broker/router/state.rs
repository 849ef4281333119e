//! The router's state, and one step of its work. No actor, no clock, no waiting: `now` is an argument.
//!
//! All of it lives outside the actor's value and outlives it. Each record is handled in two parts: everything that can
//! fail comes first and changes nothing, then a commit that cannot fail, which ends with the source's position.

use super::calls::Calls;
use super::connection::{CloseReason, Info};
use super::egress::Flush;
use super::journal::Timer;
use super::ports::{LaneState, Ports};
use super::pubsub::PubSub;
use super::runs::{self, RUN_RECORDS};
use super::settings::Settings;
use super::timings::Timings;
use crate::broker::supervision::fault;
use crate::broker::telemetry::events::Events;
use crate::shm::doorbell::{BellBoard, MAX_EVENTS, RouterWaker};
use crate::shm::layout::{RingName, cells_for};
use crate::shm::ring::Record;
use crate::sync::AtomicU64;
use crate::wire::control::ClosingCode;
use crate::wire::record::{Header, Kind};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

/// Cells that a connection may use up in one turn, besides its records: large records count for more.
const QUANTUM_CELLS: u64 = 512;
/// Receivers of a record that count as one more record of the batch.
const RECEIVERS_PER_RECORD: usize = 16;

/// The router's state: it owns the parts, hands each record to the part that it belongs to, and ends connections.
pub(crate) struct RouterState {
    pub(super) ports: Ports,
    pub(super) pubsub: PubSub,
    pub(super) calls: Calls,
    pub(super) timings: Timings,
    /// Keys of connections that have ended.
    pub(super) free_keys: Vec<u32>,
    /// Ids of the connections that ended last.
    pub(super) recent: VecDeque<u32>,
    /// Connections that have ended, for the actor to report.
    pub(super) ended: Vec<(Info, CloseReason)>,
    /// Timers that are due, the first last.
    pub(super) due: Vec<Timer>,
    pub(super) board: BellBoard,
    pub(super) rang: Vec<u32>,
    /// The router's own bell was rung: the actor's mailbox has a message.
    pub(super) has_mail: bool,
    /// Turns of the loop, for the watchdog. Only the loop's thread writes.
    pub(super) turns: Arc<AtomicU64>,
}

impl RouterState {
    /// A router without connections.
    ///
    /// # Errors
    ///
    /// If the system refuses an epoll descriptor.
    pub(crate) fn new(settings: Settings, events: Events, now: u64) -> io::Result<RouterState> {
        Ok(RouterState {
            pubsub: PubSub::new(&settings),
            calls: Calls::new(&settings),
            ports: Ports::new(settings, events, now),
            timings: Timings::default(),
            free_keys: Vec::new(),
            recent: VecDeque::new(),
            ended: Vec::new(),
            due: Vec::new(),
            board: BellBoard::new()?,
            rang: Vec::with_capacity(MAX_EVENTS),
            has_mail: false,
            turns: Arc::default(),
        })
    }

    /// Closes the bulk lanes until `until`, or until the order to open them.
    pub(crate) fn close_lanes(&mut self, until: u64) {
        self.ports.close_lanes(until);
    }

    /// The bell by which other threads wake the router's.
    ///
    /// # Errors
    ///
    /// If the system refuses a descriptor.
    pub(crate) fn router_waker(&self) -> io::Result<RouterWaker> {
        self.board.router_waker()
    }

    /// Whether no record, call or backlog is left.
    pub(super) fn is_quiescent(&mut self) -> bool {
        self.ports.schedule.is_idle()
            && self.calls.outstanding() == 0
            && (0..self.ports.ingresses.len() as u32).all(|key| {
                self.ports.ingresses[key as usize].as_deref_mut().is_none_or(|ingress| {
                    ingress.parked.is_none()
                        && matches!(ingress.express.peek(), Ok(None))
                        && matches!(ingress.bulk.peek(), Ok(None))
                }) && self
                    .ports
                    .egresses
                    .get(key)
                    .is_none_or(|egress| !egress.has_backlog() && !egress.overflow.has_messages())
            })
    }

    /// Serves one connection. Returns whether there was one to serve.
    pub(super) fn step(&mut self) -> bool {
        let Some(key) = self.ports.schedule.next() else { return false };
        let before = self.ports.counters.records;
        self.serve(key);
        self.end_batch();
        self.timings.visited(self.ports.counters.records - before);
        true
    }

    /// The end of a batch: closes what is to be closed, wakes the receivers, and sets the timers that the batch needs.
    #[inline]
    pub(super) fn end_batch(&mut self) {
        self.close_pending();
        self.pubsub.watch_overflow(&mut self.ports);
        self.ports.egresses.flush(Flush::Enough);
        self.ports.watch_grown();
        self.pubsub.watch_drops(&mut self.ports);
    }

    fn serve(&mut self, key: u32) {
        let express = self.drain_lane(key, RingName::Express);
        let is_parked = self.ports.ingress(key).is_some_and(|ingress| ingress.parked.is_some());
        let waits = if is_parked { Some(LaneState::Parked) } else { self.ports.closed_lane(key) };
        let bulk = waits.unwrap_or_else(|| self.drain_lane(key, RingName::Bulk));
        let Some(ingress) = self.ports.ingresses[key as usize].as_deref_mut() else { return };

        let freed = ingress.bulk.unpublished() + ingress.express.unpublished();
        ingress.bulk.publish_consumed();
        ingress.express.publish_consumed();
        if freed > 0 {
            self.ports.egresses.grow_lanes(key, &mut ingress.bulk, &mut ingress.express);
            ingress.since_space += freed;
            (ingress.rings, ingress.rings_since, ingress.active_at) = (0, self.ports.now, self.ports.now);
        }
        // R9: a producer that waits is woken when a quarter is free, or when no more records come: each wake is dear.
        let quarter = u64::from(self.ports.settings.geometry.base_cells() + ingress.windows()) / 4;
        let has_more = bulk == LaneState::More || express == LaneState::More;
        if ingress.since_space > 0 && (ingress.since_space >= quarter || !has_more) {
            ingress.since_space = 0;
            self.ports.egresses.freed(key);
        }
        // The client's express lane is drained, so its calls end now, however long its publishes wait.
        let calls_end = ingress.ended && express == LaneState::Dry;
        if express == LaneState::More || bulk == LaneState::More {
            self.ports.schedule.requeue(key);
        } else if ingress.ended && bulk == LaneState::Dry {
            self.ports.schedule.mark_cold(key);
            let left = CloseReason { code: ClosingCode::Shutdown, reason: "client disconnected".into() };
            self.ports.egresses.pending_close.push((key, left));
        } else if let Some(coldest) = self.ports.schedule.mark_idle(key) {
            self.ports.cool(coldest);
        }
        if calls_end {
            self.calls.end_calls_of(&mut self.ports, key);
        }
    }

    fn drain_lane(&mut self, key: u32, lane: RingName) -> LaneState {
        let mut records = self.ports.settings.batch_records;
        loop {
            let Some(ingress) = self.ports.ingresses[key as usize].as_deref_mut() else { return LaneState::Dry };
            let consumer = ingress.lane(lane);
            if records == 0 || consumer.unpublished() > QUANTUM_CELLS {
                return LaneState::More;
            }
            records -= 1;
            let routed = match consumer.peek() {
                Ok(None) => return LaneState::Dry,
                Ok(Some(record)) => {
                    self.ports.journal.source = Some((key, lane));
                    fault::point("router.found", u64::from(record.len));
                    let cells = u64::from(cells_for(record.len));
                    let most = (QUANTUM_CELLS - consumer.unpublished()) / cells + 1;
                    let most = u32::try_from(most).unwrap_or(u32::MAX);
                    let deliveries = (records + 1) * RUN_RECORDS;
                    let (routed, is_dry) = match lane {
                        RingName::Bulk => self.pubsub.route_run(&mut self.ports, key, &record, (most, deliveries)),
                        _ => self.calls.route_run(&mut self.ports, key, &record, most.min(deliveries)),
                    };
                    if is_dry {
                        return LaneState::Dry;
                    }
                    if routed > 0 {
                        let receivers = if lane == RingName::Bulk { self.ports.journal.run.receivers.len() } else { 1 };
                        let each = runs::deliveries(receivers);
                        let more = (receivers / RECEIVERS_PER_RECORD) as u32;
                        records = (records + 1).saturating_sub((routed * each).div_ceil(RUN_RECORDS) + routed * more);
                        continue;
                    }
                    self.ports.journal.source = Some((key, lane));
                    let routed = match lane {
                        RingName::Bulk => {
                            let routed = self.pubsub.route_bulk(&mut self.ports, key, &record);
                            // One with many receivers counts for more.
                            records = records.saturating_sub((self.pubsub.receivers() / RECEIVERS_PER_RECORD) as u32);
                            routed
                        }
                        _ => self.route_express(key, &record).map(|()| LaneState::More),
                    };
                    self.ports.journal.source = None;
                    routed
                }
                Err(violation) => Err(violation.into()),
            };
            match routed {
                Ok(LaneState::Parked) => return LaneState::Parked,
                Ok(_) => {}
                Err(close) => {
                    self.ports.egresses.pending_close.push((key, close));
                    return LaneState::Dry;
                }
            }
        }
    }

    /// Routes one record of the express lane, and consumes it.
    #[inline]
    fn route_express(&mut self, key: u32, record: &Record) -> Result<(), CloseReason> {
        let header = Header::from_words(&record.header).map_err(CloseReason::violation)?;
        if header.kind == Kind::Credit {
            self.ports.decided(record);
            self.pubsub.credit(&mut self.ports, key, &header);
        } else {
            self.calls.route(&mut self.ports, key, record, &header)?;
        }
        self.ports.done(key, RingName::Express, record, header.kind);
        Ok(())
    }

    /// The time, read once for a batch.
    #[inline]
    pub(super) fn set_now(&mut self, now: u64) {
        self.timings.clock_read(now - self.ports.now);
        self.ports.now = now;
        self.ports.egresses.now = now;
    }

    /// Carries out what is due at `now`.
    pub(super) fn advance(&mut self, now: u64) {
        self.set_now(now);
        // Timers that the last incarnation left are still due.
        let already = self.due.len();
        self.ports.wheel.advance(now, &mut self.due);
        self.due[already..].reverse();
        if !self.due.is_empty() {
            // Its work may take long.
            self.ports.egresses.flush(Flush::All);
        }
        while let Some(timer) = self.due.last().copied() {
            self.ports.journal.timer = Some(timer);
            fault::point("router.timer", 0);
            match timer {
                Timer::Call(place) => self.calls.deadline(&mut self.ports, place),
                Timer::Parked(key) => self.pubsub.waited_too_long(&mut self.ports, key),
                Timer::Idle(key, id) => self.ports.trim_if_idle(key, id),
                Timer::Audit => self.ports.audit(),
                Timer::Drops(key, id) => self.pubsub.tell_drops(&mut self.ports, key, id),
                Timer::Missed => self.pubsub.count_missed(&mut self.ports),
            }
            self.due.pop();
            self.ports.journal.timed();
            fault::point("router.timed", 0);
        }
        self.end_batch();
    }

    /// Applies other settings. Existing objects stay, also beyond a lowered limit.
    pub(super) fn adopt(&mut self, settings: Settings) {
        self.calls.adopt(&settings);
        self.pubsub.adopt(&settings);
        self.ports.egresses.adopt(&settings);
        self.ports.patience.adopt(settings.user_wait);
        self.ports.settings = settings;
    }
}

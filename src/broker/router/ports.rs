//! The ports: all connections with what their traffic shares (time, timers, counters, the journal).
//!
//! As a port of a switch has an ingress and an egress, so has a connection. Publish/subscribe and calls work on the
//! ports; they know nothing of each other. The fields are open to the router's files, because one record borrows
//! several of them at a time: its payload lies in an ingress, and goes to an egress.

use super::counters::Counters;
use super::egress::Egresses;
use super::ingress::Ingress;
use super::journal::{Journal, Timer, Work};
use super::memory;
use super::settings::Settings;
use crate::broker::supervision::fault;
use crate::broker::telemetry::events::Events;
use crate::logic::patience::Patience;
use crate::logic::routing::schedule::Schedule;
use crate::logic::routing::wheel::Wheel;
use crate::shm::layout::RingName;
use crate::shm::ring::Record;
use crate::wire::record::Kind;

/// Bytes of a begun message that a receiver must take within `slow_consumer_timeout_ms`.
const PACE_BYTES: u64 = 1 << 20;
/// The same of a receiver whose ring finds no free slot: a small ring passes few bytes per wake of its reader.
const PACE_BYTES_WITHOUT_SLOTS: u64 = PACE_BYTES / 16;
/// How long a connection must have been cold before its extensions are taken back.
pub(super) const IDLE_NS: u64 = 500_000_000;

/// The connections, and what their traffic shares.
pub(super) struct Ports {
    pub(super) settings: Settings,
    /// The time, read once for a batch.
    pub(super) now: u64,
    pub(super) ingresses: Vec<Option<Box<Ingress>>>,
    pub(super) egresses: Egresses,
    pub(super) schedule: Schedule,
    pub(super) wheel: Wheel<Timer>,
    pub(super) journal: Journal,
    pub(super) counters: Counters,
    pub(super) events: Events,
    pub(super) patience: Patience,
    /// When the bulk lanes open that are closed at the start; `None`: they are open.
    pub(super) lanes_open_at: Option<u64>,
}

/// The state of a lane after a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneState {
    /// It has no record.
    Dry,
    /// It has more than a batch.
    More,
    /// Its next record must wait for another connection.
    Parked,
}

impl Ports {
    /// No connections; the first audit is due after its interval.
    pub(super) fn new(settings: Settings, events: Events, now: u64) -> Ports {
        let mut wheel = Wheel::new(now);
        wheel.set(now + settings.audit_interval, Timer::Audit);
        Ports {
            now,
            ingresses: Vec::new(),
            egresses: Egresses::new(&settings),
            schedule: Schedule::default(),
            wheel,
            journal: Journal::default(),
            counters: Counters::default(),
            events,
            patience: Patience::new(settings.user_wait),
            lanes_open_at: None,
            settings,
        }
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

    /// What a record of the express lane brings is decided, and from here on it is carried out.
    #[inline]
    pub(super) fn decided(&mut self, record: &Record) {
        fault::point("router.decided", u64::from(record.len));
        self.journal.work = Work::Express(*record);
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
            ingress.bulk.advance(record);
            if ingress.waiting_on.is_some() {
                self.passed_after_wait(key, record.len);
            }
        } else {
            ingress.express.advance(record);
        }
    }

    /// The lane of `key` had waited, and records of `len` bytes are done since. Within a message of several records
    /// the wait goes on: a receiver cannot hold one for ever by taking it in small pieces, so each extends the time by
    /// its size.
    #[cold]
    pub(super) fn passed_after_wait(&mut self, key: u32, len: u32) {
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut() else { return };
        let Some((on, since)) = ingress.waiting_on.take() else { return };
        if ingress.partial.is_none() {
            return;
        }
        let pace = if self.egresses.lacks_slots(on) { PACE_BYTES_WITHOUT_SLOTS } else { PACE_BYTES };
        let earned = self.settings.slow_consumer_timeout.saturating_mul(u64::from(len)) / pace;
        ingress.waiting_on = Some((on, self.now.min(since + earned)));
    }

    pub(super) fn trim_if_idle(&mut self, key: u32, id: u32) {
        let Some(ingress) = self.ingresses[key as usize].as_deref_mut().filter(|ingress| ingress.info.id == id) else {
            return;
        };
        let Some(egress) = self.egresses.get(key) else { return };
        let active_at = ingress.active_at.max(egress.active_at);
        if self.now - active_at < IDLE_NS {
            self.wheel.set(active_at + IDLE_NS, Timer::Idle(key, id));
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

    /// Sets a timer for each connection with a new lease: it may be idle by then.
    pub(super) fn watch_grown(&mut self) {
        while let Some(key) = self.egresses.memory.grown.pop() {
            let (at, ingresses) = (self.now + IDLE_NS, &mut self.ingresses);
            if let Some(ingress) = ingresses[key as usize].as_deref_mut().filter(|ingress| !ingress.is_watched) {
                ingress.is_watched = true;
                self.wheel.set(at, Timer::Idle(key, ingress.info.id));
            }
        }
    }

    pub(super) fn audit(&mut self) {
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
}

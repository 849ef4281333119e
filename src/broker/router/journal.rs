//! What the router has under way: so that one that dies leaves nothing half done, and nothing twice.
//!
//! A record is *decided*, which changes nothing; then it is *committed*, step by step; then its source's position goes
//! behind it. The journal says which of these has begun, and how many steps are done. It lies in the router's state,
//! which outlives the actor, and a new router first carries on from there (`recover`). The rules and the crash points
//! are in `actors.md`.
//!
//! Only panics are at issue here, and they come at places, not at any instruction: between a push and the note that it
//! was done lies nothing that can fail. Where something does, the ring's own position tells whether it was done.

use super::drops::Drops;
use super::publish::Message;
use super::state::{RouterState, Timer};
use crate::broker::events::Event;
use crate::broker::fault;
use crate::routing::arena::Key;
use crate::shm::layout::RingName;
use crate::shm::ring::Record;
use crate::wire::record::{Header, Kind};

/// Deaths by the same record, or the same timer, after which it is set aside.
const MOST_DEATHS: u32 = 2;

/// Bytes of a message under way that a receiver must take within `slow_consumer_timeout_ms`.
const PACE: u64 = 1 << 20;

/// How far the record under way has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Work {
    /// There is none, or nothing is changed yet.
    #[default]
    Undecided,
    /// The first record of a publish goes to those who are `chosen`.
    First(Record, u32, Message),
    /// A further record goes to the receivers of the message under way.
    Further(Record, Header),
    /// A record of the express lane is carried out.
    Express(Record, Header),
    /// All is done but the position.
    Done(Record),
}

/// What a router died of, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Killer {
    /// The record at a position of a connection's lane. It never comes again once it is consumed.
    Record(u32, RingName, u64),
    Timer(Timer),
}

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// Whose record, in which lane.
    pub(super) source: Option<(u32, RingName)>,
    pub(super) work: Work,
    /// Receivers that have the record.
    pub(super) step: usize,
    /// The next receiver's position before it got the record.
    pub(super) before: Option<u64>,
    /// A kept record goes into the ring of a connection: for which subscription, and the ring's position before.
    pub(super) pump: Option<(u32, Key, u64)>,
    /// A timer that is being carried out.
    pub(super) timer: Option<Timer>,
    /// What was under way when a router died last, and how often it died of that.
    killer: Option<Killer>,
    deaths: u32,
}

impl Journal {
    /// Whether the next receiver, whose position is `now`, is still to get the record.
    #[inline]
    pub(super) fn is_to_push(&self, now: u64) -> bool {
        self.before.is_none_or(|before| before == now)
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

impl RouterState {
    /// The work on a record is done: its source's position goes behind it.
    #[inline]
    pub(super) fn done(&mut self, key: u32, lane: RingName, record: &Record, kind: Kind) {
        self.journal.work = Work::Done(*record);
        fault::point("router.committed", kind as u64);
        self.advance_source(key, lane, record);
        (self.journal.source, self.journal.work) = (None, Work::Undecided);
        fault::point("router.advanced", kind as u64);
    }

    /// A router was built anew over this state: settles what the last one had under way, and wakes everybody, for a
    /// bell may have been heard and not acted upon.
    pub(in crate::broker) fn recover(&mut self) {
        fault::point("router.started", 0);
        self.timings.forget();
        // Before anything else is pushed: its position tells.
        self.settle_pump();
        self.count_deaths();
        let is_killer = self.journal.deaths >= MOST_DEATHS;
        if let Some(timer) = self.journal.timer.take()
            && is_killer
        {
            self.counters.set_aside += 1;
            self.due.pop();
            self.set_timer_aside(timer);
        }
        if let Some((key, lane)) = self.journal.source {
            if is_killer {
                self.set_aside(key, lane);
            }
            self.settle(key, lane);
        }
        if is_killer {
            (self.journal.killer, self.journal.deaths) = (None, 0);
        }
        // Before anything else is heard: their keys may be others' soon.
        self.end_doomed();
        self.has_mail = true;
        let keys: Vec<_> = (0..self.inlets.len() as u32).filter(|key| self.inlet(*key).is_some()).collect();
        let now = self.now;
        self.topics.subscriptions.iter_mut().for_each(|subscription| subscription.grace.forget(now));
        for key in &keys {
            self.schedule.mark_cold(*key);
            self.schedule.wake(*key);
            self.outlets.touch(*key);
            self.unpark(*key);
            if let Some(inlet) = self.inlet_mut(*key) {
                // Nobody could take anything meanwhile: that is not held against those whom it waits for.
                inlet.waits = None;
            }
            if self.pump(*key) {
                self.retry_waiters(*key);
            }
            self.tell_late_drops(*key);
        }
        self.outlets.flush();
        // What came in time lies in the lanes, and is taken before any deadline is looked at.
        for _ in keys {
            self.step();
        }
    }

    fn count_deaths(&mut self) {
        let killer = match self.journal.source {
            Some((key, lane)) => {
                self.inlet_mut(key).map(|inlet| Killer::Record(inlet.info.id, lane, inlet.lane(lane).consumed()))
            }
            None => self.journal.timer.map(Killer::Timer),
        };
        // If it died of something else, that says nothing of what killed the one before.
        if killer.is_none() {
            return;
        }
        let journal = &mut self.journal;
        journal.deaths = if killer == journal.killer { journal.deaths + 1 } else { 1 };
        journal.killer = killer;
    }

    /// A timer has killed two routers. Whatever it was for, nobody must wait for ever because of it.
    fn set_timer_aside(&mut self, timer: Timer) {
        match timer {
            Timer::Call(call) => self.lose_call(call),
            Timer::Parked(key) => self.unpark(key),
            Timer::Idle(key, id) => {
                if let Some(inlet) = self.inlet_of(key, id) {
                    inlet.is_watched = false;
                }
            }
            Timer::Drops(key, _) => {
                if let Some(outlet) = self.outlets.get_mut(key) {
                    outlet.drops = Drops::Told;
                }
            }
            Timer::Audit => {
                self.wheel.set(self.now + self.settings.audit_interval, Timer::Audit);
            }
        }
    }

    /// Brings the record under way to its end, if it was begun.
    fn settle(&mut self, key: u32, lane: RingName) {
        match self.journal.work {
            Work::Undecided => {}
            Work::First(record, id, message) => self.commit_first(key, &record, id, &message),
            Work::Further(record, header) => self.commit_further(key, &record, &header),
            Work::Express(record, header) => {
                // Half done, which no code that is there can leave. Its call is over for both sides.
                self.give_up_express(key, &header);
                self.journal.work = Work::Done(record);
                self.advance_source(key, lane, &record);
            }
            Work::Done(record) => self.advance_source(key, lane, &record),
        }
        (self.journal.source, self.journal.work) = (None, Work::Undecided);
    }

    /// A record has killed two routers. It is taken out, and its sender told.
    fn set_aside(&mut self, key: u32, lane: RingName) {
        self.counters.set_aside += 1;
        let Some(inlet) = self.inlet_mut(key) else { return };
        let (consumed, id) = (inlet.lane(lane).consumed(), inlet.info.id);
        self.events.tell(Event::SetAside { connection: id, lane, position: consumed });
        let Some(record) = self.record_under_way(key, lane) else { return };
        match lane {
            RingName::Bulk => self.set_publish_aside(key, &record),
            _ => {
                if let Ok(header) = Header::from_words(&record.header) {
                    self.give_up_express(key, &header);
                }
            }
        }
        // What `settle` has left to do.
        self.journal.work = Work::Done(record);
    }

    fn record_under_way(&mut self, key: u32, lane: RingName) -> Option<Record> {
        match self.journal.work {
            Work::First(record, ..) | Work::Further(record, _) | Work::Express(record, _) | Work::Done(record) => {
                Some(record)
            }
            Work::Undecided => self.inlet_mut(key)?.lane(lane).peek().ok().flatten(),
        }
    }

    /// The source's position goes behind a record that is done.
    pub(super) fn advance_source(&mut self, key: u32, lane: RingName, record: &Record) {
        self.counters.records += 1;
        self.counters.bytes += u64::from(record.len);
        let Some(inlet) = self.inlets[key as usize].as_deref_mut() else { return };
        inlet.bytes += u64::from(record.len);
        if lane == RingName::Bulk {
            if let Some((on, since)) = inlet.waits.take()
                && inlet.partial.is_some()
            {
                // Who takes a message in small pieces may not hold it for ever: each puts the time off by its size.
                let earned = self.settings.slow_consumer_timeout.saturating_mul(u64::from(record.len)) / PACE;
                inlet.waits = Some((on, self.now.min(since + earned)));
            }
            inlet.bulk.advance(record);
        } else {
            inlet.express.advance(record);
        }
    }
}

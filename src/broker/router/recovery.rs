//! Recovery: a new incarnation of the router completes the record or timer that the last one had begun, and quarantines
//! a poison message.

use super::egress::{DropNotice, Flush};
use super::journal::Timer;
use super::journal::{Killer, Work};
use super::state::RouterState;
use crate::broker::supervision::fault;
use crate::broker::telemetry::events::Event;
use crate::shm::layout::RingName;
use crate::shm::ring::Record;
use crate::wire::record::Header;

/// Deaths by the same record, or the same timer, after which it is quarantined.
const MAX_DEATHS: u32 = 2;

impl RouterState {
    /// Called by a new incarnation: completes the record or timer of the last one, and schedules all connections,
    /// because a doorbell may have been read without effect.
    pub(in crate::broker) fn recover(&mut self) {
        fault::point("router.started", 0);
        self.timings.forget();
        // Before any other push: the ring's position shows the progress.
        self.pubsub.settle_pump(&mut self.ports);
        self.pubsub.settle_run(&mut self.ports);
        self.calls.settle_run(&mut self.ports);
        self.count_deaths();
        let is_killer = self.ports.journal.deaths >= MAX_DEATHS;
        if let Some(timer) = self.ports.journal.timer.take()
            && is_killer
        {
            self.ports.counters.poisoned += 1;
            self.due.pop();
            self.quarantine_timer(timer);
        }
        if let Some((key, lane)) = self.ports.journal.source {
            if is_killer {
                self.quarantine(key, lane);
            }
            self.settle(key, lane);
        }
        if is_killer {
            (self.ports.journal.killer, self.ports.journal.deaths) = (None, 0);
        }
        // Before any other event: their keys may be reused soon.
        self.close_pending();
        self.has_mail = true;
        let keys: Vec<_> =
            (0..self.ports.ingresses.len() as u32).filter(|key| self.ports.ingress(*key).is_some()).collect();
        let now = self.ports.now;
        self.pubsub.forget_graces(now);
        for key in &keys {
            self.ports.schedule.mark_cold(*key);
            self.ports.schedule.wake(*key);
            self.ports.egresses.touch(*key);
            self.ports.unpark(*key);
            if let Some(ingress) = self.ports.ingress_mut(*key) {
                // No receiver could make progress meanwhile: the slow consumer timeout begins anew.
                ingress.waiting_on = None;
            }
            if self.pubsub.pump(&mut self.ports, *key) {
                self.ports.retry_waiters(*key);
            }
            self.pubsub.tell_late_drops(&mut self.ports, *key);
        }
        self.ports.egresses.flush(Flush::All);
        // Records that came in time are in the lanes, and are routed before deadlines are checked.
        for _ in keys {
            self.step();
        }
    }

    fn count_deaths(&mut self) {
        let killer = match self.ports.journal.source {
            Some((key, lane)) => self
                .ports
                .ingress_mut(key)
                .map(|ingress| Killer::Record(ingress.info.id, lane, ingress.lane(lane).consumed())),
            None => self.ports.journal.timer.map(Killer::Timer),
        };
        // An unrelated death neither confirms nor clears the suspect.
        if killer.is_none() {
            return;
        }
        let journal = &mut self.ports.journal;
        journal.deaths = if killer == journal.killer { journal.deaths + 1 } else { 1 };
        journal.killer = killer;
    }

    /// A timer has killed two routers. Its purpose is fulfilled in the simplest way, so that no wait lasts for ever.
    fn quarantine_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Call(place) => self.calls.lose_call_in(&mut self.ports, place),
            Timer::Parked(key) => self.ports.unpark(key),
            Timer::Idle(key, id) => {
                if let Some(ingress) = self.ports.ingress_of(key, id) {
                    ingress.is_watched = false;
                }
            }
            Timer::Drops(key, _) => {
                if let Some(egress) = self.ports.egresses.get_mut(key) {
                    egress.drops = DropNotice::None;
                }
            }
            // The next message that is dropped so sets it anew.
            Timer::Missed => self.pubsub.forget_count(),
            Timer::Audit => {
                self.ports.wheel.set(self.ports.now + self.ports.settings.audit_interval, Timer::Audit);
            }
        }
    }

    /// Completes the record, if it was begun.
    fn settle(&mut self, key: u32, lane: RingName) {
        match self.ports.journal.work {
            // `settle_run` has made another of a run.
            Work::Undecided | Work::Run(..) => {}
            Work::First(record, id, message) => self.pubsub.commit_first(&mut self.ports, key, &record, id, &message),
            Work::Further(record, header) => self.pubsub.commit_further(&mut self.ports, key, &record, &header),
            Work::Express(record) => {
                // Half done: the current code cannot leave that. The call ends for both sides.
                self.give_up_express(key, &record);
                self.ports.journal.work = Work::Done(record);
                self.ports.advance_source(key, lane, &record);
            }
            Work::Done(record) => self.ports.advance_source(key, lane, &record),
        }
        (self.ports.journal.source, self.ports.journal.work) = (None, Work::Undecided);
    }

    /// A record has killed two routers. It is skipped, and its sender notified.
    fn quarantine(&mut self, key: u32, lane: RingName) {
        self.ports.counters.poisoned += 1;
        let Some(ingress) = self.ports.ingress_mut(key) else { return };
        let (consumed, id) = (ingress.lane(lane).consumed(), ingress.info.id);
        self.ports.events.tell(Event::Quarantined { connection: id, lane, position: consumed });
        let Some(record) = self.record_under_way(key, lane) else { return };
        match lane {
            RingName::Bulk => self.pubsub.quarantine_publish(&mut self.ports, key, &record),
            // The request has its outcome already.
            _ if matches!(self.ports.journal.work, Work::Done(_)) => {}
            _ => self.give_up_express(key, &record),
        }
        // What `settle` has left to do.
        self.ports.journal.work = Work::Done(record);
    }

    fn give_up_express(&mut self, key: u32, record: &Record) {
        if let Ok(header) = Header::from_words(&record.header) {
            self.calls.give_up_express(&mut self.ports, key, &header);
        }
    }

    fn record_under_way(&mut self, key: u32, lane: RingName) -> Option<Record> {
        match self.ports.journal.work {
            Work::First(record, ..) | Work::Further(record, _) | Work::Express(record) | Work::Done(record) => {
                Some(record)
            }
            Work::Undecided | Work::Run(..) => self.ports.ingress_mut(key)?.lane(lane).peek().ok().flatten(),
        }
    }
}

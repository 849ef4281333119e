//! Recovery: a router that was built anew completes what the last one had under way, and quarantines a poison message.

use super::egress::DropNotice;
use super::ingress::Partial;
use super::journal::{Killer, Work};
use super::message::Message;
use super::state::RouterState;
use super::timers::Timer;
use crate::broker::events::Event;
use crate::broker::fault;
use crate::shm::layout::RingName;
use crate::shm::ring::{Payload, Record};
use crate::wire::record::{Flags, Header, Kind};

/// Deaths by the same record, or the same timer, after which it is set aside.
const MOST_DEATHS: u32 = 2;

impl RouterState {
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
            self.counters.poisoned += 1;
            self.due.pop();
            self.quarantine_timer(timer);
        }
        if let Some((key, lane)) = self.journal.source {
            if is_killer {
                self.quarantine(key, lane);
            }
            self.settle(key, lane);
        }
        if is_killer {
            (self.journal.killer, self.journal.deaths) = (None, 0);
        }
        // Before anything else is heard: their keys may be others' soon.
        self.close_pending();
        self.has_mail = true;
        let keys: Vec<_> = (0..self.ingresses.len() as u32).filter(|key| self.ingress(*key).is_some()).collect();
        let now = self.now;
        self.topics.subscriptions.iter_mut().for_each(|subscription| subscription.grace.forget(now));
        for key in &keys {
            self.schedule.mark_cold(*key);
            self.schedule.wake(*key);
            self.egresses.touch(*key);
            self.unpark(*key);
            if let Some(ingress) = self.ingress_mut(*key) {
                // Nobody could take anything meanwhile: that is not held against those whom it waits for.
                ingress.waits = None;
            }
            if self.pump(*key) {
                self.retry_waiters(*key);
            }
            self.tell_late_drops(*key);
        }
        self.egresses.flush();
        // What came in time lies in the lanes, and is taken before any deadline is looked at.
        for _ in keys {
            self.step();
        }
    }

    fn count_deaths(&mut self) {
        let killer = match self.journal.source {
            Some((key, lane)) => self
                .ingress_mut(key)
                .map(|ingress| Killer::Record(ingress.info.id, lane, ingress.lane(lane).consumed())),
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
    fn quarantine_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Call(call) => self.lose_call(call),
            Timer::Parked(key) => self.unpark(key),
            Timer::Idle(key, id) => {
                if let Some(ingress) = self.ingress_of(key, id) {
                    ingress.is_watched = false;
                }
            }
            Timer::Drops(key, _) => {
                if let Some(egress) = self.egresses.get_mut(key) {
                    egress.drops = DropNotice::None;
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
    fn quarantine(&mut self, key: u32, lane: RingName) {
        self.counters.poisoned += 1;
        let Some(ingress) = self.ingress_mut(key) else { return };
        let (consumed, id) = (ingress.lane(lane).consumed(), ingress.info.id);
        self.events.tell(Event::SetAside { connection: id, lane, position: consumed });
        let Some(record) = self.record_under_way(key, lane) else { return };
        match lane {
            RingName::Bulk => self.quarantine_publish(key, &record),
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
            Work::Undecided => self.ingress_mut(key)?.lane(lane).peek().ok().flatten(),
        }
    }

    /// A record of the bulk lane is taken out: who has not got it by now sees a gap, and the publisher is told. What is
    /// still to come of the message goes to nobody.
    pub(super) fn quarantine_publish(&mut self, key: u32, record: &Record) {
        let Ok(header) = Header::from_words(&record.header) else { return };
        if header.kind == Kind::Release {
            return;
        }
        if header.kind == Kind::Flush {
            // What was before it is routed, and nothing of it can be lost.
            let answer = Header { seq: header.seq, ..Header::new(Kind::Flushed) };
            return self.egresses.send(key, &answer, Payload::EMPTY);
        }
        match self.journal.work {
            Work::First(_, id, message) => {
                self.settle_step(key, &message);
                for at in self.journal.step..self.chosen.len() {
                    let RouterState { egresses, topics, chosen, counters, .. } = self;
                    chosen[at].pass_over(topics, egresses, counters);
                }
                self.skip_rest(key, id, &message);
            }
            Work::Undecided if header.kind == Kind::Publish && header.flags.has(Flags::FIRST) => {
                let Some(ingress) = self.ingress_mut(key).filter(|ingress| ingress.partial.is_none()) else { return };
                ingress.partial_targets.clear();
                let Some(published) = ingress.topics.get(header.id) else { return };
                let (topic, seq, origin) = (published.topic, header.seq.max(published.sent), ingress.info.id);
                let (total, len, flags) = (header.total, record.len, header.flags);
                self.skip_rest(key, header.id, &Message { topic, origin, seq, total, len, flags });
            }
            Work::Undecided | Work::Further(..) => self.quarantine_further(key, record, &header),
            Work::Express(..) | Work::Done(_) => return,
        }
        let notice = Header { id: header.id, ..Header::new(Kind::SetAside) };
        self.egresses.send(key, &notice, Payload::EMPTY);
    }

    /// The receiver whose turn it was may have the record: its ring tells.
    fn settle_step(&mut self, key: u32, message: &Message) {
        let Some(chosen) = self.chosen.get(self.journal.step).copied() else { return };
        let Some(found) = self.topics.subscriptions.get(chosen.subscription) else { return };
        let Some(egress) = self.egresses.get(found.owner) else { return };
        if self.journal.is_to_push(egress.position()) {
            return;
        }
        if chosen.gets_it {
            chosen.charge(&mut self.topics, &mut self.egresses);
            self.counters.delivered += 1;
        } else if !found.puts_together(message.origin) {
            return self.journal.stepped();
        }
        if !message.flags.has(Flags::LAST)
            && let Some(ingress) = self.ingress_mut(key)
        {
            ingress.partial_targets.push(chosen.subscription);
        }
        self.journal.stepped();
    }

    /// The first record of a message is taken out; so its further ones have no receivers.
    fn skip_rest(&mut self, key: u32, id: u32, message: &Message) {
        let Some(ingress) = self.ingress_mut(key) else { return };
        if let Some(published) = ingress.topics.get_mut(id) {
            published.sent = message.seq;
        }
        if message.total > message.len {
            let (topic, seq, total) = (message.topic, message.seq, message.total);
            ingress.partial = Some(Partial { id, topic, seq, total, left: total - message.len });
            self.abort_targets(key);
        }
    }

    /// A further record is taken out: whoever has got the message's last has all of it, the others' is aborted.
    fn quarantine_further(&mut self, key: u32, record: &Record, header: &Header) {
        let is_committing = matches!(self.journal.work, Work::Further(..));
        let RouterState { ingresses, egresses, topics, journal, .. } = self;
        let Some(ingress) = ingresses[key as usize].as_deref_mut() else { return };
        let Some(partial) = &mut ingress.partial else { return };
        partial.left = partial.left.saturating_sub(record.len);
        if is_committing && header.flags.has(Flags::LAST) {
            let next = ingress.partial_targets.get(journal.step).and_then(|s| topics.subscriptions.get(*s));
            let has_it = next
                .and_then(|subscription| egresses.get(subscription.owner))
                .is_some_and(|egress| !journal.is_to_push(egress.position()));
            let whole = journal.step + usize::from(has_it);
            ingress.partial_targets.drain(..whole.min(ingress.partial_targets.len()));
        }
        self.abort_targets(key);
        if let Some(ingress) = self.ingress_mut(key)
            && ingress.partial.as_ref().is_some_and(|partial| partial.left == 0)
        {
            ingress.partial = None;
        }
    }
}

//! What the router owns, and one step of its work. No actor, no clock, no waiting: `now` is an argument.
//!
//! All of it lives outside the actor's value and outlives it. Each record is handled in two parts: everything that can
//! fail comes first and changes nothing, then a commit that cannot fail, which ends with the source's position.

use super::inlet::{Info, Inlet, Parked};
use super::memory::{self, Memory};
use super::outlet::{Doom, MOST_WOKEN, Outlet, Outlets};
use super::publish::Chosen;
use super::settings::Settings;
use crate::broker::events::Events;
use crate::routing::arena::{Arena, Key};
use crate::routing::schedule::Schedule;
use crate::routing::services::{ServiceId, Services};
use crate::routing::topics::Topics;
use crate::routing::wheel::Wheel;
use crate::shm::doorbell::{BellBoard, BrokerBells, LOOK};
use crate::shm::layout::RingName;
use crate::shm::segment::Segment;
use crate::wire::name::Name;
use std::io;
use std::time::Duration;

use super::calls::Call;

/// The service that the broker answers itself.
pub(crate) const ECHO: &str = "echo";

/// Cells that a connection may use up in one turn, besides its records: large records count for more.
const QUANTUM_CELLS: u64 = 512;
/// How long a connection must have been cold before its extensions are taken back.
const IDLE: u64 = 500_000_000;

/// What a timer is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Timer {
    /// The deadline of a call.
    Call(Key),
    /// The bulk lane of a connection has waited long enough.
    Parked(u32),
    /// A connection, named by key and id, may have become idle.
    Idle(u32, u32),
    /// Compare every segment with its leases.
    Audit,
}

/// How often what happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) published: u64,
    pub(crate) delivered: u64,
    pub(crate) unmatched: u64,
    pub(crate) dropped: u64,
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
    pub(crate) bytes: u64,
    pub(crate) looks: u64,
    pub(crate) sleeps: u64,
    pub(crate) parked: u64,
    pub(crate) violations: u64,
    pub(crate) connections: u64,
}

/// The router's state.
pub(crate) struct Core {
    pub(super) settings: Settings,
    pub(super) inlets: Vec<Option<Box<Inlet>>>,
    free_keys: Vec<u32>,
    pub(super) outlets: Outlets,
    pub(super) topics: Topics,
    pub(super) services: Services,
    pub(super) echo: ServiceId,
    pub(super) calls: Arena<Call>,
    pub(super) wheel: Wheel<Timer>,
    due: Vec<Timer>,
    pub(super) schedule: Schedule,
    board: BellBoard,
    rang: Vec<u32>,
    pub(super) chosen: Vec<Chosen>,
    pub(super) now: u64,
    pub(super) counters: Counters,
    pub(super) system_sent: u64,
    next_id: u32,
    /// Connections that ended, for the actor to tell.
    pub(super) ended: Vec<(Info, Doom)>,
    pub(super) events: Events,
}

/// Whether a lane has more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Dry,
    More,
    /// Its next record must wait for another connection.
    Parked,
}

impl Core {
    /// A router without connections.
    ///
    /// # Errors
    ///
    /// If the system refuses an epoll descriptor.
    pub(crate) fn new(settings: Settings, events: Events, now: u64) -> io::Result<Core> {
        let no_room = || io::Error::other("limits.max_services leaves no room for the echo");
        let mut services = Services::new(settings.max_services);
        let echo = Name::parse(ECHO).ok().and_then(|name| services.intern(&name)).ok_or_else(no_room)?;
        let mut wheel = Wheel::new(now);
        wheel.set(now + settings.audit_interval, Timer::Audit);
        Ok(Core {
            inlets: Vec::new(),
            free_keys: Vec::new(),
            outlets: Outlets::new(Memory::new(settings.budget, settings.max_window), settings.max_backlog_bytes),
            topics: Topics::new(settings.max_topics),
            services,
            echo,
            calls: Arena::long(1 << 24),
            wheel,
            due: Vec::new(),
            schedule: Schedule::default(),
            board: BellBoard::new()?,
            rang: Vec::with_capacity(LOOK),
            chosen: Vec::new(),
            now,
            counters: Counters::default(),
            system_sent: 0,
            next_id: 1,
            ended: Vec::new(),
            events,
            settings,
        })
    }

    /// The descriptor that becomes readable when a client rings.
    pub(super) fn board(&self) -> &BellBoard {
        &self.board
    }

    /// Takes a new connection in. Answers its key and id.
    ///
    /// # Errors
    ///
    /// If the system refuses to watch its bell.
    pub(super) fn attach(
        &mut self,
        name: Name,
        peer: crate::shm::peer::Credentials,
        segment: Segment,
        bells: BrokerBells,
    ) -> io::Result<(u32, u32)> {
        let (key, is_new) = match self.free_keys.last() {
            Some(key) => (*key, false),
            None => (self.inlets.len() as u32, true),
        };
        self.board.watch(&bells, key)?;
        if is_new {
            self.inlets.push(None);
        } else {
            self.free_keys.pop();
        }
        let id = self.next_id;
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        let (bulk, express, egress) = segment.broker_ends();
        let info = Info { id, name, peer };
        let data = segment.data_signal(RingName::Bulk);
        data.arm();
        self.inlets[key as usize] = Some(Box::new(Inlet {
            info: info.clone(),
            opened: self.now,
            bulk,
            express,
            data,
            topics: Vec::new(),
            services: Vec::new(),
            serving: Vec::new(),
            requests: Vec::new(),
            outstanding: 0,
            partial: None,
            partial_targets: Vec::new(),
            parked: None,
            waits: None,
            ended: false,
            since_space: 0,
            rings: 0,
            rings_since: self.now,
            active_at: self.now,
            is_watched: false,
            messages: 0,
            bytes: 0,
        }));
        self.outlets.insert(key, Outlet::new(segment, egress, bells));
        self.schedule.add(key);
        self.counters.connections += 1;
        self.tell_connection("opened", &info, None);
        Ok((key, id))
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

    /// The client of `key` is gone. What it has published is routed still; whoever waits for it is told now.
    pub(super) fn client_gone(&mut self, key: u32, id: u32) {
        let Some(inlet) = self.inlet_of(key, id) else { return };
        inlet.ended = true;
        let serving: Vec<_> = inlet.serving.iter().flatten().copied().collect();
        for service in serving {
            self.services.unserve(service, key);
        }
        let Some(outlet) = self.outlets.get_mut(key) else { return };
        for subscription in std::mem::take(&mut outlet.subscriptions) {
            self.topics.unsubscribe(subscription);
        }
        self.retry_waiters(key);
        self.schedule.wake(key);
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
                }) && self.outlets.get(key).is_none_or(|outlet| !outlet.has_backlog())
            })
    }

    /// Looks who has rung. Answers how many.
    pub(super) fn look(&mut self) -> usize {
        self.look_for(Duration::ZERO)
    }

    /// The same, and waits up to `time` if nobody has.
    pub(super) fn look_for(&mut self, time: Duration) -> usize {
        self.counters.looks += 1;
        let (rang, board) = (&mut self.rang, &self.board);
        rang.clear();
        let count = board.look(time, |key| rang.push(key)).unwrap_or(0);
        for at in 0..self.rang.len() {
            let key = self.rang[at];
            self.rang_by(key);
        }
        count
    }

    fn rang_by(&mut self, key: u32) {
        let (now, most) = (self.now, self.settings.max_rings_without_progress);
        // One that we asked for, when we wait for space, brings no record and is no fault.
        let asked = self.outlets.get(key).is_some_and(Outlet::waits_for_space);
        let Some(inlet) = self.inlet_mut(key) else { return };
        inlet.rings += u32::from(!asked);
        if inlet.rings > most {
            if now - inlet.rings_since < 1_000_000_000 {
                let reason = format!("it rang {} times in a second without sending anything", inlet.rings);
                self.outlets.doomed.push((key, Doom { code: crate::wire::control::ClosingCode::Overuse, reason }));
            } else {
                (inlet.rings, inlet.rings_since) = (0, now);
            }
        }
        self.schedule.wake(key);
        if self.outlets.pump(key) {
            self.retry_waiters(key);
        }
    }

    /// Publishers that were parked on `key` try again.
    pub(super) fn retry_waiters(&mut self, key: u32) {
        let Some(outlet) = self.outlets.get_mut(key) else { return };
        let mut waiters = std::mem::take(&mut outlet.waiters);
        for waiter in waiters.drain(..) {
            self.unpark(waiter);
        }
        if let Some(outlet) = self.outlets.get_mut(key) {
            outlet.waiters = waiters;
        }
    }

    fn unpark(&mut self, key: u32) {
        let Some(inlet) = self.inlets[key as usize].as_deref_mut() else { return };
        if let Some(parked) = inlet.parked.take() {
            self.wheel.cancel(parked.timer);
            self.schedule.wake(key);
        }
    }

    /// The bulk lane of `key` waits for the connection `on`.
    pub(super) fn park(&mut self, key: u32, on: u32) {
        let Some(inlet) = self.inlets[key as usize].as_deref_mut() else { return };
        let since = inlet.waits.filter(|(whom, _)| *whom == on).map_or(self.now, |(_, since)| since);
        inlet.waits = Some((on, since));
        let timer = self.wheel.set(since + self.settings.slow_consumer_timeout, Timer::Parked(key));
        inlet.parked = Some(Parked { timer, on });
        self.counters.parked += 1;
        if let Some(outlet) = self.outlets.get_mut(on) {
            outlet.waiters.push(key);
        }
    }

    /// Serves one connection, or answers that nobody waits to be served.
    pub(super) fn step(&mut self) -> bool {
        let Some(key) = self.schedule.next() else { return false };
        self.serve(key);
        self.outlets.flush();
        self.end_doomed();
        true
    }

    fn serve(&mut self, key: u32) {
        let express = self.drain_lane(key, RingName::Express);
        let parked = self.inlet(key).is_some_and(|inlet| inlet.parked.is_some());
        let bulk = if parked { Lane::Parked } else { self.drain_lane(key, RingName::Bulk) };
        let Some(inlet) = self.inlets[key as usize].as_deref_mut() else { return };

        let freed = inlet.bulk.unpublished() + inlet.express.unpublished();
        inlet.bulk.publish();
        inlet.express.publish();
        if freed > 0 {
            self.outlets.grow_lanes(key, inlet);
            inlet.since_space += freed;
            (inlet.rings, inlet.rings_since, inlet.active_at) = (0, self.now, self.now);
            // R9: a producer that waits is told of space by the quarter, or when there is nothing else to come.
            let quarter = u64::from(self.settings.geometry.base_cells() + inlet.windows()) / 4;
            if inlet.since_space >= quarter || bulk != Lane::More || express != Lane::More {
                inlet.since_space = 0;
                self.outlets.freed(key);
            }
        }
        // All that the client has said of calls is said, so they are over, however long its publishes wait.
        let calls_end = inlet.ended && express == Lane::Dry;
        if express == Lane::More || bulk == Lane::More {
            self.schedule.yields(key);
        } else if inlet.ended && bulk == Lane::Dry {
            self.schedule.cools(key);
            let left = Doom { code: crate::wire::control::ClosingCode::Shutdown, reason: "client left".into() };
            self.outlets.doomed.push((key, left));
        } else if let Some(coldest) = self.schedule.is_dry(key) {
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
            let consumer = if lane == RingName::Bulk { &mut inlet.bulk } else { &mut inlet.express };
            if records == 0 || consumer.unpublished() > QUANTUM_CELLS {
                return Lane::More;
            }
            records -= 1;
            let routed = match consumer.peek() {
                Ok(None) => return Lane::Dry,
                Ok(Some(record)) if lane == RingName::Bulk => self.route_bulk(key, &record),
                Ok(Some(record)) => self.route_express(key, &record).map(|()| Lane::More),
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

    /// Polls the quiet connections. Answers whether one has something.
    pub(super) fn poll_quiet(&mut self) -> bool {
        let mut any = false;
        let mut at = 0;
        while let Some(&key) = self.schedule.quiet().get(at) {
            let Some(inlet) = self.inlets[key as usize].as_deref_mut() else {
                self.schedule.cools(key);
                continue;
            };
            let found = !matches!(inlet.express.peek(), Ok(None))
                || (inlet.parked.is_none() && !matches!(inlet.bulk.peek(), Ok(None)));
            if found {
                any = true;
                self.schedule.wake(key);
            } else {
                at += 1;
            }
        }
        any
    }

    /// Stops polling `key`: arms its flag, then looks once more (R8).
    fn cool(&mut self, key: u32) {
        self.schedule.cools(key);
        let Some(inlet) = self.inlets[key as usize].as_deref_mut() else { return };
        inlet.data.arm();
        let found = !matches!(inlet.express.peek(), Ok(None))
            || (inlet.parked.is_none() && !matches!(inlet.bulk.peek(), Ok(None)));
        if found {
            inlet.data.disarm();
            self.schedule.wake(key);
            return;
        }
        let egress = self.outlets.get(key).map_or(0, |outlet| outlet.egress.window());
        if inlet.windows() + egress > 0 && !inlet.is_watched {
            inlet.is_watched = true;
            self.wheel.set(self.now + IDLE, Timer::Idle(key, inlet.info.id));
        }
    }

    /// Before the router sleeps: nobody is polled any more. Answers whether it may sleep.
    pub(super) fn cool_all(&mut self) -> bool {
        self.outlets.woken.clear();
        while let Some(&key) = self.schedule.quiet().first() {
            self.cool(key);
        }
        self.schedule.is_idle()
    }

    /// Whether spinning on `own_cpu` can pay: some client that is polled is awake on another CPU, and nobody whom we have
    /// woken needs our CPU, or that of one who spins, to run on.
    pub(super) fn spinning_can_pay(&self, own_cpu: usize) -> bool {
        let outlets = || self.schedule.quiet().iter().filter_map(|key| Some((*key, self.outlets.get(*key)?)));
        let mut awake = outlets().filter(|(_, outlet)| outlet.client_is_awake());
        let pays = awake.any(|(_, outlet)| outlet.cpu.client() != Some(own_cpu));
        let is_crowded = |key: u32| {
            let Some(outlet) = self.outlets.get(key).filter(|outlet| outlet.client_is_awake()) else { return false };
            let cpu = outlet.cpu.client();
            cpu == Some(own_cpu)
                || outlets().any(|(other, o)| other != key && o.client_is_awake() && o.cpu.client() == cpu)
        };
        pays && self.outlets.woken.len() < MOST_WOKEN && !self.outlets.woken.iter().any(|key| is_crowded(*key))
    }

    /// Publishes to the quiet clients on which CPU the router waits.
    pub(super) fn publish_cpu(&self, cpu: usize) {
        for key in self.schedule.quiet() {
            if let Some(outlet) = self.outlets.get(*key) {
                outlet.cpu.set_broker(cpu);
            }
        }
    }

    /// The time, read once for a batch.
    pub(super) fn set_now(&mut self, now: u64) {
        self.now = now;
        self.outlets.now = now;
    }

    /// Carries out what is due at `now`.
    pub(super) fn advance(&mut self, now: u64) {
        self.set_now(now);
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now, &mut due);
        for timer in due.drain(..) {
            match timer {
                Timer::Call(call) => self.deadline(call),
                Timer::Parked(key) => self.waited_too_long(key),
                Timer::Idle(key, id) => self.trim_if_idle(key, id),
                Timer::Audit => self.audit(),
            }
        }
        self.due = due;
        self.outlets.flush();
        self.end_doomed();
    }

    fn trim_if_idle(&mut self, key: u32, id: u32) {
        let Some(inlet) = self.inlets[key as usize].as_deref_mut().filter(|inlet| inlet.info.id == id) else { return };
        let Some(outlet) = self.outlets.get(key) else { return };
        let active_at = inlet.active_at.max(outlet.active_at);
        if self.now - active_at < IDLE {
            self.wheel.set(active_at + IDLE, Timer::Idle(key, id));
            return;
        }
        inlet.is_watched = false;
        if let Err(doom) = self.outlets.trim(key, inlet) {
            self.outlets.doomed.push((key, doom));
        }
    }

    fn audit(&mut self) {
        self.wheel.set(self.now + self.settings.audit_interval, Timer::Audit);
        for key in 0..self.inlets.len() as u32 {
            let (Some(inlet), Some(outlet)) = (self.inlets[key as usize].as_deref(), self.outlets.get(key)) else {
                continue;
            };
            if let Err(doom) = memory::audit(inlet, outlet) {
                self.outlets.doomed.push((key, doom));
            }
        }
    }

    /// Ends the connections that must end: those that broke the protocol, and those whose client left.
    pub(super) fn end_doomed(&mut self) {
        while let Some((key, doom)) = self.outlets.doomed.pop() {
            self.end(key, doom);
        }
    }

    /// Ends a connection now: its calls get their outcome, its subscriptions and topics go, its memory is given back.
    pub(super) fn end(&mut self, key: u32, doom: Doom) {
        if self.inlet(key).is_none() {
            return;
        }
        self.end_calls_of(key);
        self.abort_partial(key);
        self.unpark(key);
        self.schedule.remove(key);
        let Some(outlet) = self.outlets.remove(key) else { return };
        let Some(inlet) = self.inlets[key as usize].take() else { return };
        self.board.unwatch(outlet.bells());
        for subscription in &outlet.subscriptions {
            self.topics.unsubscribe(*subscription);
        }
        for waiter in &outlet.waiters {
            self.unpark(*waiter);
        }
        for service in inlet.serving.iter().flatten() {
            self.services.unserve(*service, key);
            self.services.release(*service);
        }
        for service in &inlet.services {
            self.services.release(*service);
        }
        for published in &inlet.topics {
            self.release_topic(published.topic);
        }
        self.outlets.memory.forget(inlet.windows() + outlet.egress.window());
        self.free_keys.push(key);
        self.counters.violations += u64::from(doom.code != crate::wire::control::ClosingCode::Shutdown);
        self.tell_connection("closed", &inlet.info, Some(&doom.reason));
        self.ended.push((inlet.info.clone(), doom));
    }
}

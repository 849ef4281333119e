//! The hot path stepped on one thread, without actors, processes or a clock, for `.ci/instructions` and
//! `.ci/breakdown`: callgrind counts what happens inside [`measured`].
//!
//! Clients are the client's ends of real segments; the router works as a burst of its loop does. Nothing depends on
//! time or chance, so a count is the same in each run. A [`Meter`] takes the time of the measured parts; no other
//! figure is taken in that run.

use super::calls::ECHO;
use super::in_process::{ClientEnds, work};
use super::settings::Settings;
use super::state::RouterState;
use crate::broker::telemetry::events::Events;
use crate::config::Config;
use crate::shm::ring::Payload;
#[cfg(feature = "count-sync")]
use crate::sync::counted::Counts;
use crate::wire::control::{BrokerFrame, ClientFrame, DeliveryPolicy, InternKind};
use crate::wire::record::{Flags, Header, Kind};
use std::hint::black_box;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
/// Fails if a message is not delivered.
type Scenario = fn(&mut Meter) -> Result<()>;

/// Messages that are measured.
pub(crate) const MESSAGES: u32 = 1_024;
/// Messages before, so that tables have grown and each path has run.
const WARM_UP: u32 = 1_024;
/// Fits into the first window of a ring.
const BATCH: u32 = 8;
/// Bytes of a message.
const SIZE: u32 = 64;
/// The time between two turns of the router, in nanoseconds.
const TURN_NS: u64 = 10_000;

/// The scenarios by name: what is measured of a message of 64 bytes.
pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    ("push", |meter| publish(BATCH, Part::Push, meter)),
    ("pop", |meter| publish(BATCH, Part::Pop, meter)),
    ("route_one", |meter| publish(1, Part::Route, meter)),
    ("route_batch", |meter| publish(BATCH, Part::Route, meter)),
    ("request_round_trip", request),
    ("request_batch", |meter| requests(true, meter)),
    ("routed_batch", |meter| requests(false, meter)),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Push,
    Route,
    Pop,
}

/// Callgrind counts in here, by name.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

/// What the measured parts of a scenario have cost.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// The time in them, and their number, if the time is taken.
    spent: Option<(Duration, u32)>,
    #[cfg(feature = "count-sync")]
    pub(crate) counts: Counts,
}

impl Meter {
    fn when<T>(&mut self, is_measured: bool, work: impl FnOnce() -> T) -> T {
        if !is_measured {
            return work();
        }
        #[cfg(feature = "count-sync")]
        let before = Counts::here();
        let started = self.spent.is_some().then(Instant::now);
        let result = measured(work);
        if let (Some((time, parts)), Some(started)) = (&mut self.spent, started) {
            *time += started.elapsed();
            *parts += 1;
        }
        #[cfg(feature = "count-sync")]
        {
            self.counts += Counts::here() - before;
        }
        result
    }

    /// The time of a message in nanoseconds, by `scenario`. The looks at the clock, two for each measured part of up to
    /// [`BATCH`] messages, are measured by parts without work, and subtracted.
    ///
    /// # Errors
    ///
    /// As the scenario.
    pub(crate) fn time(scenario: Scenario) -> Result<f64> {
        let timing = || Meter {
            spent: Some(Default::default()),
            #[cfg(feature = "count-sync")]
            counts: Counts::default(),
        };
        let (mut meter, mut idle) = (timing(), timing());
        scenario(&mut meter)?;
        for _ in 0..MESSAGES {
            idle.when(true, || ());
        }
        let nanos = |meter: Meter| meter.spent.map_or((0.0, 0.0), |(time, n)| (time.as_nanos() as f64, f64::from(n)));
        let ((spent, parts), (looks, idle_parts)) = (nanos(meter), nanos(idle));
        Ok((spent - parts * looks / idle_parts) / f64::from(MESSAGES))
    }
}

/// A publisher and one subscriber.
fn publish(batch: u32, part: Part, meter: &mut Meter) -> Result<()> {
    let mut router = Router::new()?;
    let (mut publisher, mut subscriber) = (router.connect()?, router.connect()?);
    let (pattern, policy) = ("a.b".parse()?, DeliveryPolicy::DropOldest);
    router.ask(&subscriber, ClientFrame::Subscribe { serial: 1, pattern, policy, credit: 0 })?;
    let id = router.intern(&publisher, InternKind::Topic, "a.b")?;
    let (flags, total) = (Flags::WHOLE, SIZE);
    let (mut seq, mut delivered, mut buffer) = (0, 0, Vec::with_capacity(SIZE as usize));
    for first in (0..WARM_UP + MESSAGES).step_by(batch as usize) {
        let is_measured = |now: Part| part == now && first >= WARM_UP;
        meter.when(is_measured(Part::Push), || {
            (0..batch).try_for_each(|_| {
                seq += 1;
                let header = Header { flags, id, total, seq, ..Header::new(Kind::Publish) };
                publisher.push(false, header, &[7; SIZE as usize])
            })
        })?;
        publisher.bells.ring();
        meter.when(is_measured(Part::Route), || router.turn());
        delivered += meter.when(is_measured(Part::Pop), || subscriber.pop_all(Kind::Deliver, &mut buffer))?;
        subscriber.bells.ring();
    }
    (delivered == WARM_UP + MESSAGES).then_some(()).ok_or_else(|| format!("{delivered} messages were delivered").into())
}

/// A requester and one responder, from the request's push to the response's pop.
fn request(meter: &mut Meter) -> Result<()> {
    let mut router = Router::new()?;
    let (mut requester, mut responder) = (router.connect()?, router.connect()?);
    router.ask(&responder, ClientFrame::Serve { serial: 1, service: "s".parse()?, max_in_flight: 0 })?;
    let arg = router.intern(&requester, InternKind::Service, "s")?;
    let (flags, total) = (Flags::WHOLE, SIZE);
    let mut buffer = Vec::with_capacity(SIZE as usize);
    for n in 0..WARM_UP + MESSAGES {
        let replies = meter.when(n >= WARM_UP, || {
            let header = Header { flags, id2: n, arg, total, ..Header::new(Kind::Request) };
            requester.push(true, header, &[8; SIZE as usize])?;
            requester.bells.ring();
            router.turn();
            let call = responder.pop(&mut buffer)?.ok_or("no call")?;
            let flags = flags.with(Flags::END);
            let header = Header { flags, seq: call.seq, total, ..Header::new(Kind::Response) };
            responder.push(true, header, &buffer)?;
            responder.bells.ring();
            router.turn();
            requester.pop_all(Kind::RoutedResponse, &mut buffer)
        })?;
        if replies != 1 {
            return Err(format!("request {n} has {replies} replies").into());
        }
        requester.bells.ring();
        router.turn();
    }
    Ok(())
}

/// A requester with so many requests outstanding at a time, and one responder or the echo: the router's turns, one with
/// the requests, and one with the responses of another client.
fn requests(is_echo: bool, meter: &mut Meter) -> Result<()> {
    let mut router = Router::new()?;
    let (mut requester, mut responder) = (router.connect()?, router.connect()?);
    router.ask(&responder, ClientFrame::Serve { serial: 1, service: "s".parse()?, max_in_flight: 0 })?;
    let arg = router.intern(&requester, InternKind::Service, if is_echo { ECHO } else { "s" })?;
    let (flags, total) = (Flags::WHOLE, SIZE);
    let (mut replies, mut buffer) = (0, Vec::with_capacity(SIZE as usize));
    for first in (0..WARM_UP + MESSAGES).step_by(BATCH as usize) {
        for slot in 0..BATCH {
            let header = Header { flags, id: slot, id2: first, arg, total, ..Header::new(Kind::Request) };
            requester.push(true, header, &[8; SIZE as usize])?;
        }
        requester.bells.ring();
        meter.when(first >= WARM_UP, || router.turn());
        if !is_echo {
            while let Some(call) = responder.pop(&mut buffer)? {
                let flags = flags.with(Flags::END);
                responder.push(true, Header { flags, seq: call.seq, total, ..Header::new(Kind::Response) }, &buffer)?;
            }
            responder.bells.ring();
            meter.when(first >= WARM_UP, || router.turn());
        }
        replies += requester.pop_all(Kind::RoutedResponse, &mut buffer)?;
        requester.bells.ring();
    }
    (replies == WARM_UP + MESSAGES).then_some(()).ok_or_else(|| format!("{replies} requests have a reply").into())
}

struct Router {
    state: RouterState,
    asked: u64,
}

impl Router {
    fn new() -> Result<Router> {
        let mut config = Config::default();
        // Peers here ring after each batch, and little time passes.
        config.limits.max_rings_without_progress = 1_000_000;
        Ok(Router { state: RouterState::new(Settings::new(&config)?, Events::new(), 0)?, asked: 0 })
    }

    fn connect(&mut self) -> Result<ClientEnds> {
        ClientEnds::attach(&mut self.state)
    }

    fn ask(&mut self, peer: &ClientEnds, frame: ClientFrame) -> Result<BrokerFrame> {
        self.asked += 1;
        let told = self.state.handle_request(peer.key, peer.id, self.asked, frame).ok_or("no such connection")?;
        self.turn();
        Ok(told)
    }

    fn intern(&mut self, peer: &ClientEnds, kind: InternKind, name: &str) -> Result<u32> {
        match self.ask(peer, ClientFrame::Intern { serial: 1, kind, name: name.parse()? })? {
            BrokerFrame::Interned { id, .. } => Ok(id),
            other => Err(format!("expected an id, got {other:?}").into()),
        }
    }

    /// Works until no work is left.
    fn turn(&mut self) {
        self.state.advance(self.state.ports.now + TURN_NS);
        work(&mut self.state);
    }
}

impl ClientEnds {
    fn push(&mut self, is_express: bool, header: Header, payload: &[u8]) -> Result<()> {
        let lane = if is_express { &mut self.express } else { &mut self.bulk };
        lane.enter();
        let pushed = lane.push(&header.to_words(), Payload::Bytes(payload));
        lane.leave();
        if pushed? { Ok(()) } else { Err("the ring is full".into()) }
    }

    /// The next record, whose payload is then in `buffer`.
    fn pop(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Header>> {
        let Some(record) = self.egress.peek()? else { return Ok(None) };
        buffer.clear();
        self.egress.append_payload(&record, buffer);
        self.egress.advance(&record);
        self.egress.publish_consumed();
        Ok(Some(Header::from_words(&record.header)?))
    }

    /// All records; the number of those of one kind.
    fn pop_all(&mut self, kind: Kind, buffer: &mut Vec<u8>) -> Result<u32> {
        let mut count = 0;
        while let Some(header) = self.pop(buffer)? {
            count += u32::from(header.kind == kind);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scenario_routes_all_its_messages() {
        for (name, run) in SCENARIOS {
            run(&mut Meter::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

//! The input as a program: what hostile clients do, what happens to the router meanwhile, and how time passes.

use super::machine::Machine;
use super::supervised::MS;
use crate::broker::router::connection::CloseReason;
use crate::broker::router::in_process::ClientEnds;
use crate::broker::router::settings::Settings;
use crate::broker::supervision::fault;
use crate::config::Config;
use crate::shm::layout::RingName;
use crate::shm::ring::Payload;
use crate::shm::ring::hostile::Input;
use crate::wire::control::{BrokerFrame, ClientFrame, DeliveryPolicy, InternKind};
use crate::wire::record::{Flags, HEADER_WORDS, Header, Kind};

const ACTIONS_MAX: u32 = 400;
const CLIENTS_MAX: usize = 6;
/// Clients that a program may attach in all: each costs system calls.
const ATTACHES_MAX: usize = 10;
/// Bytes of a record.
const SLOT_SIZE: usize = 1024;
const TOPICS: [&str; 6] = ["a", "a.b", "a.c", "b", "b.c.d", "c"];
const PATTERNS: [&str; 7] = [">", "a", "a.>", "*.b", "b.c.d", "$sys.>", "*"];
const SERVICES: [&str; 5] = ["s", "t", "u", "v", "echo"];
const TOTALS: [u32; 8] = [0, 1, 64, 1000, 1024, 1025, 3000, 20_000];
const TIMES: [u64; 8] = [0, MS / 100, 2 * MS, 20 * MS, 200 * MS, 1_001 * MS, 5_001 * MS, 61_000 * MS];
const POLICIES: [DeliveryPolicy; 3] = [DeliveryPolicy::Block, DeliveryPolicy::DropNewest, DeliveryPolicy::DropOldest];
/// Points at which the router may die, wherever its input leads it.
const POINTS: [&str; 19] = [
    "router.found",
    "router.decided",
    "router.target",
    "router.delivered",
    "router.express",
    "router.committed",
    "router.advanced",
    "router.flush",
    "router.ring",
    "router.bell",
    "router.park",
    "router.timer",
    "router.timed",
    "router.started",
    "router.answering",
    "router.ending",
    "router.queued",
    "router.pumped",
    "router.message",
];

/// What a client knows of what it has begun. It may say something else all the same.
#[derive(Default)]
struct Memory {
    sequence: u64,
    /// Topic, and bytes of the whole message and bytes still to come.
    partial: Option<(u32, u32, u32)>,
    /// The same of the request that it sent last: slot, generation, service.
    body: Option<(Header, u32)>,
    generation: u32,
    /// Calls to answer, and bytes that are left of the reply.
    calls: Vec<(u64, u32)>,
    /// What the router has given it.
    subscriptions: Vec<u32>,
}

struct Program<'a> {
    input: Input<'a>,
    machine: Machine,
    memory: Vec<Memory>,
}

/// Runs a whole program.
pub(in crate::broker) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let Some(machine) = machine(input.byte()) else { return };
    let mut program = Program { input, machine, memory: Vec::new() };
    program.attach();
    for _ in 0..ACTIONS_MAX {
        if program.input.is_empty() {
            break;
        }
        let action = program.input.byte();
        program.act(action % 64);
        // Without this the next action comes before the router has looked.
        if action & 0x40 == 0 {
            program.machine.work();
        }
    }
    program.machine.finish();
}

/// Places records with any header in the lanes of a client that has a topic, a subscription, a service and a request.
pub(in crate::broker) fn records(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let Some(machine) = machine(0) else { return };
    let mut program = Program { input: Input::new(&[]), machine, memory: Vec::new() };
    for action in [0, 1, 3, 5, 2, 9] {
        program.act(action);
        program.machine.work();
    }
    while !input.is_empty() {
        let (lane, len) = (input.byte(), input.byte());
        let header: [u64; HEADER_WORDS] = std::array::from_fn(|_| input.edge());
        if let Ok(read) = Header::from_words(&header) {
            let written = read.to_words();
            assert_eq!(Header::from_words(&written), Ok(read));
            // The length is the ring's, and the rest of the words is reserved.
            assert_eq!((written[0] >> 32, &written[1..6]), (header[0] >> 32, &header[1..6]));
        }
        let lane = if lane & 1 == 0 { RingName::Bulk } else { RingName::Express };
        push(&mut program.machine.clients[0], lane, &header, &vec![0x5a; usize::from(len) * 4]);
        if lane == RingName::Bulk || len & 1 == 0 {
            program.machine.work();
        }
    }
    program.machine.finish();
}

fn machine(variant: u8) -> Option<Machine> {
    Machine::new(|config| {
        config.router.batch_records = [64, 1, 4, 16][usize::from(variant & 3)];
        if variant & 4 != 0 {
            config.limits.max_rings_without_progress = 10;
        }
        if variant & 8 != 0 {
            config.circuit_breaker.failure_threshold = 1;
        }
        if variant & 16 != 0 {
            config.delivery.drop_grace_ms = 0;
        }
        if variant & 32 != 0 {
            // Bases of the rings only.
            (config.shared_memory.num_slots, config.shared_memory.max_window_slots) = (4, 4);
        }
    })
}

fn push(ends: &mut ClientEnds, lane: RingName, words: &[u64; HEADER_WORDS], payload: &[u8]) {
    let producer = if lane == RingName::Bulk { &mut ends.bulk } else { &mut ends.express };
    producer.enter();
    let pushed = producer.push(words, Payload::Bytes(&payload[..payload.len().min(SLOT_SIZE)]));
    producer.leave();
    // After nonsense in the control words an honest producer gives up; this one does not care.
    if pushed != Ok(true) {
        ends.segment.space_signal(lane).arm();
    }
    ends.bells.ring();
}

impl Program<'_> {
    fn attach(&mut self) {
        let uid = 1000 + u32::from(self.input.byte() & 1);
        let alive = self.machine.router.state.ports.ingresses.iter().flatten().count();
        if self.memory.len() < ATTACHES_MAX && alive < CLIENTS_MAX + 2 && self.machine.attach(uid).is_some() {
            self.memory.push(Memory::default());
        }
    }

    fn act(&mut self, action: u8) {
        if action == 0 || self.memory.is_empty() {
            return self.attach();
        }
        let client = self.input.byte() as usize % self.memory.len();
        match action {
            1 => {
                let name = self.input.pick(&TOPICS);
                self.intern(client, InternKind::Topic, name);
            }
            2 => {
                let name = self.input.pick(&SERVICES);
                self.intern(client, InternKind::Service, name);
            }
            3 | 4 => {
                let pattern = self.input.pick(&PATTERNS).parse().expect("a pattern");
                let (policy, credit) = (self.input.pick(&POLICIES), self.input.pick(&[0, 1, 9, 40, u32::MAX]));
                let frame = ClientFrame::Subscribe { serial: 1, pattern, policy, credit };
                if let Some(BrokerFrame::Subscribed { subscription, .. }) = self.machine.ask(client, frame) {
                    self.memory[client].subscriptions.push(subscription);
                }
            }
            5 => {
                let service = self.input.pick(&SERVICES).parse().expect("a name");
                let max_in_flight = self.input.pick(&[0, 1, 3, u32::MAX]);
                self.machine.ask(client, ClientFrame::Serve { serial: 1, service, max_in_flight });
            }
            6 => {
                let subscription = self.subscription(client);
                self.machine.ask(client, ClientFrame::Unsubscribe { serial: 1, subscription });
            }
            7 => {
                let service = u32::from(self.input.byte() % 4);
                self.machine.ask(client, ClientFrame::Unserve { serial: 1, service });
            }
            8 | 16..=19 => self.publish(client),
            9 | 20..=22 => self.request(client),
            10 | 23..=25 => self.reply(client),
            11..=13 | 26 | 27 => self.small(client, action),
            14 | 28..=31 => self.read(client),
            15 | 32 | 33 => self.forge(client),
            34 | 35 => {
                let (at, value) = (self.input.word() as usize, self.input.edge());
                // The control words and the base windows are where the router looks most.
                let at = if at & 1 == 0 { at / 2 % 512 } else { at / 2 };
                self.machine.clients[client].segment.scribble(at, value);
                self.machine.clients[client].bells.ring();
            }
            36 => self.machine.end(client, None),
            37 => self.machine.end(client, Some(CloseReason::violation("fuzzed"))),
            38..=41 => {
                let time = self.input.pick(&TIMES);
                self.machine.pass(time);
            }
            42..=45 => {
                let (point, nth) = (self.input.pick(&POINTS), u32::from(self.input.byte() % 8) + 1);
                fault::armed::arm(point, nth);
            }
            46..=52 => self.witness(action),
            _ => self.operate(action),
        }
    }

    fn witness(&mut self, action: u8) {
        let Some(mut witness) = self.machine.witness.take() else { return };
        if action < 51 {
            witness.publish(&mut self.machine.router);
        } else {
            witness.request();
        }
        self.machine.witness = Some(witness);
    }

    /// What an operator, or another actor of the broker, does.
    fn operate(&mut self, action: u8) {
        let state = &mut self.machine.router.state;
        match action % 6 {
            0 => {
                let until = state.ports.now + self.input.pick(&TIMES);
                state.close_lanes(until);
            }
            1 => state.ports.open_lanes(),
            // A reload: of keys that take effect at once.
            2 => {
                let mut config: Config = self.machine.config.clone();
                let less = u32::from(self.input.byte());
                (config.limits.max_topics, config.limits.max_routes) = (less % 16 + 1, less % 32 + 1);
                config.limits.max_services = less % 6 + 1;
                config.limits.max_backlog_bytes = [65_536, 4096, 1 << 20][less as usize % 3];
                config.limits.max_requests_per_responder = less % 4 + 1;
                config.limits.default_request_timeout_ms = u64::from(less) + 1;
                config.delivery.slow_consumer_timeout_ms = u64::from(less) * 20 + 1;
                config.router.batch_records = less % 8 + 1;
                state.adopt(Settings::new(&config).expect("the sizes are the same"));
            }
            3 => {
                let rules = state.ports.settings.breakers.clone();
                state.calls.gates(rules);
            }
            4 => {
                let _ = (state.report(true), state.metrics());
            }
            _ => {
                let (now, force) = (state.ports.now, self.input.byte());
                for service in state.calls.services().iter() {
                    match force % 3 {
                        0 => drop(service.gate.force(force & 4 == 0, Some(1000 * MS), now)),
                        1 => drop(service.gate.release(now)),
                        _ => drop(service.gate.tick(now)),
                    }
                }
            }
        }
    }

    fn intern(&mut self, client: usize, kind: InternKind, name: &str) {
        let name = name.parse().expect("a name");
        self.machine.ask(client, ClientFrame::Intern { serial: 1, kind, name });
    }

    /// One of its own, mostly.
    fn subscription(&mut self, client: usize) -> u32 {
        let at = self.input.byte() as usize;
        let own = &self.memory[client].subscriptions;
        own.get(at % 8 % own.len().max(1)).copied().unwrap_or(at as u32)
    }

    /// How many bytes of what is left the next record has: as many as fit, mostly.
    fn piece(&mut self, left: u32) -> (usize, Flags) {
        let most = left.min(SLOT_SIZE as u32);
        let len = match self.input.byte() {
            0..=199 => most,
            few => most.min(u32::from(few) - 199),
        };
        (len as usize, Flags::default().with_if(Flags::LAST, len == left))
    }

    fn publish(&mut self, client: usize) {
        let memory = &mut self.memory[client];
        let (topic, total, left, first) = match memory.partial.take() {
            Some((topic, total, left)) => (topic, total, left, Flags::default()),
            None => {
                let (topic, total) = (u32::from(self.input.byte() % 4), self.input.pick(&TOTALS));
                memory.sequence += 1;
                (topic, total, total, Flags::FIRST)
            }
        };
        let seq = memory.sequence;
        let (len, last) = self.piece(left);
        if left > len as u32 {
            self.memory[client].partial = Some((topic, total, left - len as u32));
        }
        let flags = first.with(last).with_if(Flags::RESENT, len % 5 == 4);
        let header = Header { flags, id: topic, total, seq, ..Header::new(Kind::Publish) };
        push(&mut self.machine.clients[client], RingName::Bulk, &header.to_words(), &vec![7; len]);
    }

    fn request(&mut self, client: usize) {
        let (mut header, left) = match self.memory[client].body.take() {
            Some((header, left)) => (Header { flags: Flags::default(), ..header }, left),
            None => {
                let (id, arg) = (u32::from(self.input.byte() % 4), u32::from(self.input.byte() % 4));
                let (total, flags) = (self.input.pick(&TOTALS), self.input.byte());
                self.memory[client].generation += 1;
                let flags = Flags::FIRST.with_if(Flags::STREAM, flags & 1 != 0);
                let (id2, nanos) = (self.memory[client].generation, self.input.pick(&[0, 1, 50 * MS, u64::MAX]));
                (Header { flags, id, id2, arg, total, nanos, ..Header::new(Kind::Request) }, total)
            }
        };
        let (len, last) = self.piece(left);
        header.flags = header.flags.with(last);
        if left > len as u32 {
            self.memory[client].body = Some((header, left - len as u32));
        }
        push(&mut self.machine.clients[client], RingName::Express, &header.to_words(), &vec![8; len]);
    }

    fn reply(&mut self, client: usize) {
        let how = self.input.byte();
        let calls = &mut self.memory[client].calls;
        if calls.is_empty() {
            return;
        }
        let at = usize::from(how >> 4) % calls.len();
        let (seq, begun) = calls[at];
        let breaks_off = how & 8 != 0;
        let is_first = begun == 0 || breaks_off;
        let total = if is_first { self.input.pick(&TOTALS) } else { begun };
        let (len, last) = self.piece(total);
        let flags = last
            .with_if(Flags::FIRST, is_first)
            .with_if(Flags::END, how & 1 != 0 || breaks_off)
            .with_if(Flags::ERROR, how & 2 != 0 || breaks_off)
            .with_if(Flags::FAILURE, how & 4 != 0);
        self.memory[client].calls[at].1 = total - len as u32;
        if flags.has(Flags::END.with(Flags::LAST)) {
            self.memory[client].calls.swap_remove(at);
        }
        let header = Header { flags, seq, total, ..Header::new(Kind::Response) };
        push(&mut self.machine.clients[client], RingName::Express, &header.to_words(), &vec![9; len]);
    }

    /// Records without a payload.
    fn small(&mut self, client: usize, action: u8) {
        let (lane, kind) = match action {
            11 => (RingName::Express, Kind::Cancel),
            12 => (RingName::Express, Kind::Credit),
            13 => (RingName::Express, Kind::ResponseCredit),
            26 => (RingName::Express, self.input.pick(&[Kind::BodyCredit, Kind::ReleaseService])),
            _ => (RingName::Bulk, self.input.pick(&[Kind::Flush, Kind::Release])),
        };
        let id = if kind == Kind::Credit { self.subscription(client) } else { u32::from(self.input.byte() % 4) };
        let memory = &self.memory[client];
        let id2 = memory.generation.saturating_sub(u32::from(self.input.byte() % 4));
        let seq = memory.calls.first().map_or(0, |(call, _)| *call);
        let arg = if kind == Kind::ReleaseService { id } else { self.input.pick(&[1, 9, 0, 32, u32::MAX]) };
        let header = Header { id, id2, seq, arg, ..Header::new(kind) };
        push(&mut self.machine.clients[client], lane, &header.to_words(), &[]);
    }

    /// Reads records of its egress ring, and learns the numbers of calls. It may give the credit back.
    fn read(&mut self, client: usize) {
        let (most, returns) = (self.input.pick(&[1, 3, 1000]), self.input.byte() & 1 == 0);
        let mut credit = Vec::new();
        let ends = &mut self.machine.clients[client];
        for _ in 0..most {
            // Its own nonsense may stand there.
            let Ok(Some(record)) = ends.egress.peek() else { break };
            ends.egress.advance(&record);
            let Ok(header) = Header::from_words(&record.header) else { continue };
            match header.kind {
                Kind::RoutedRequest if header.flags.has(Flags::FIRST) => {
                    self.memory[client].calls.push((header.seq, 0));
                }
                Kind::CallEnded => self.memory[client].calls.retain(|(call, _)| *call != header.seq),
                Kind::Deliver if returns => credit.push(Header { id: header.id, arg: 9, ..Header::new(Kind::Credit) }),
                _ => {}
            }
        }
        ends.egress.publish_consumed();
        ends.bells.ring();
        for header in credit {
            push(&mut self.machine.clients[client], RingName::Express, &header.to_words(), &[]);
        }
    }

    /// A record with anything in its header.
    fn forge(&mut self, client: usize) {
        let kinds = [1u8, 1, 2, 3, 8, 8, 9, 9, 10, 11, 12, 13, 14, 33];
        let (kind, flags, len) = (self.input.pick(&kinds), self.input.byte(), self.input.byte());
        let lane = if (kind < 8) != (flags & 0x80 != 0) { RingName::Bulk } else { RingName::Express };
        let mut words: [u64; HEADER_WORDS] = std::array::from_fn(|_| self.input.edge());
        words[0] = u64::from(kind) << 32 | u64::from(flags) << 40 | words[0] << 48;
        push(&mut self.machine.clients[client], lane, &words, &vec![1; usize::from(len) * 4]);
    }
}

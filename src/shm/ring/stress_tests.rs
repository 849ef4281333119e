//! Two real processes, both directions at once, with everything that a connection uses: the segment and the bells go
//! over a socket, either side sleeps when it has nothing to do, the broker widens and trims the windows all the
//! while.
//!
//! The test starts its own executable again, with the one test `child`, which is the client when the environment says
//! so. No wait for the peer ends by itself: a lost wake-up is a hang, and [`PATIENCE`] without progress is a failure.

use super::signal::publication_fence;
use super::{Channel, Consumer, Payload, Producer, Record, Signal, Violation};
use crate::shm::descriptors;
use crate::shm::doorbell::{BellBoard, BrokerBells, ClientBells, ClientDescriptors};
use crate::shm::layout::{CELL_WORDS, Geometry, HEADER_WORDS, PAGE_CELLS, RingName, cells_for};
use crate::shm::segment::{Nonces, Segment};
use crate::shm::words::Words;
use crate::sync::Ordering;
use memmap2::MmapOptions;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CLIENT: &str = "LAPCE_IPC_TEST_RING_CLIENT";
const RECORDS: u64 = 5_000_000;
const TURNS: u64 = 150_000;
const PATIENCE: Duration = Duration::from_secs(60);
const SLOT_SIZE: u32 = 1024;
const EXTENSION_PAGES: u32 = 8;
const BATCH: usize = 64;
const SEED: u64 = 0x2545_f491_4f6c_dd1d;

fn geometry() -> Geometry {
    Geometry::new(SLOT_SIZE, EXTENSION_PAGES * PAGE_CELLS).unwrap()
}

/// The records of one direction, the same on both sides: random sizes and bytes, and a checksum over all before.
struct Source {
    random: u64,
    sequence: u64,
    sum: u64,
    header: [u64; HEADER_WORDS],
    payload: Vec<u8>,
}

impl Source {
    fn new(seed: u64) -> Source {
        let mut source = Source { random: seed, sequence: 0, sum: 0, header: [0; HEADER_WORDS], payload: Vec::new() };
        source.step();
        source
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Goes on to the next record.
    fn step(&mut self) {
        let random = self.random();
        let most = [u64::from(SLOT_SIZE), 256, 64, 64, 64, 64, 64, 64][random as usize % 8];
        self.payload.clear();
        self.payload.resize(((random >> 8) % (most + 1)) as usize, 0);
        let mut word = random;
        for chunk in self.payload.chunks_mut(8) {
            word = word.wrapping_mul(SEED).rotate_left(23);
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
            self.sum = (self.sum ^ word).rotate_left(5);
        }
        let len = self.payload.len() as u64;
        self.header = [len, self.sequence, self.sum, !self.sum, random, word, self.sequence ^ self.sum];
        self.sequence += 1;
    }

    fn sent(&self) -> u64 {
        self.sequence - 1
    }
}

/// One side of the connection: what it sends, what it expects, the flags.
struct Side {
    producer: Producer,
    consumer: Consumer,
    /// Whether the producer has to `enter` and `leave`.
    enters: bool,
    out: Source,
    expected: Source,
    /// How many records go out, and how many are to come.
    records: (u64, u64),
    /// Whether each record answers the one before it from the other side; the client begins.
    turns: bool,
    /// What this side arms, for data and for space; what it checks, for waits for its data and its space.
    waits: (Signal, Signal),
    wakes: (Signal, Signal),
    buffer: Vec<u8>,
    /// Cells of all records that were taken.
    cells: u64,
    sleeps: u64,
    end: Instant,
    /// Records sent and taken when `end` was last moved.
    progress: (u64, u64),
}

impl Side {
    fn broker(segment: &Segment, records: (u64, u64), turns: bool) -> Side {
        let (bulk, _, egress) = segment.broker_ends();
        let (ours, theirs) = (RingName::Egress, RingName::Bulk);
        Side { turns, ..Side::new(segment, (egress, ours), (bulk, theirs), records) }
    }

    fn client(segment: &Segment, records: (u64, u64), turns: bool) -> Side {
        let (bulk, _, egress) = segment.client_ends();
        let (ours, theirs) = (RingName::Bulk, RingName::Egress);
        Side { turns, ..Side::new(segment, (bulk, ours), (egress, theirs), records) }
    }

    fn new(segment: &Segment, out: (Producer, RingName), into: (Consumer, RingName), records: (u64, u64)) -> Side {
        let seed = |ring| if ring == RingName::Bulk { SEED } else { !SEED };
        Side {
            producer: out.0,
            consumer: into.0,
            enters: out.1 == RingName::Bulk,
            out: Source::new(seed(out.1)),
            expected: Source::new(seed(into.1)),
            records,
            turns: false,
            waits: (segment.data_signal(into.1), segment.space_signal(out.1)),
            wakes: (segment.data_signal(out.1), segment.space_signal(into.1)),
            buffer: Vec::new(),
            cells: 0,
            sleeps: 0,
            end: Instant::now() + PATIENCE,
            progress: (0, 0),
        }
    }

    fn is_done(&self) -> bool {
        (self.out.sent(), self.expected.sent()) == self.records
    }

    /// How many records may go out now.
    fn left(&self) -> u64 {
        let turn = self.expected.sent() + u64::from(self.enters);
        let until = if self.turns { turn.min(self.records.0) } else { self.records.0 };
        until - self.out.sent()
    }

    fn inside<T>(&mut self, act: impl FnOnce(&mut Producer, &mut Source) -> T) -> T {
        if self.enters {
            self.producer.enter();
        }
        let done = act(&mut self.producer, &mut self.out);
        if self.enters {
            self.producer.leave();
        }
        done
    }

    fn verify(&mut self, record: &Record) {
        self.buffer.clear();
        self.consumer.append_payload(record, &mut self.buffer);
        assert_eq!(
            (&record.header, &self.buffer),
            (&self.expected.header, &self.expected.payload),
            "not what was sent"
        );
        self.expected.step();
        self.cells += u64::from(cells_for(record.len));
    }

    /// Takes a batch, without giving its cells back.
    fn take(&mut self) -> Result<usize, Violation> {
        for taken in 0..BATCH {
            let Some(record) = self.consumer.peek()? else { return Ok(taken) };
            self.verify(&record);
            self.consumer.advance(&record);
        }
        Ok(BATCH)
    }

    /// Sends and takes a batch; wakes the peer where it asked for it. Returns whether anything was done.
    fn work(&mut self, ring: impl Fn()) -> bool {
        let left = self.left().min(BATCH as u64);
        let sent = self.inside(|producer, out| {
            (0..left)
                .take_while(|_| {
                    let pushed = producer.push(&out.header, Payload::Bytes(&out.payload)).unwrap();
                    if pushed {
                        out.step();
                    }
                    pushed
                })
                .count()
        });
        let taken = self.take().unwrap();
        // R9: space is worth a signal when it is a quarter of the window, or all.
        let quarter = u64::from(geometry().base_cells() + self.consumer.window()) / 4;
        let gives = self.consumer.unpublished() > 0 && (taken < BATCH || self.consumer.unpublished() >= quarter);
        if gives {
            self.consumer.publish_consumed();
        }
        self.signal(sent > 0, gives, ring);
        sent + taken > 0
    }

    /// Wakes the peer, if it waits for what there is now and only then: one wake-up too many would hide one that is
    /// lost.
    fn signal(&self, data: bool, space: bool, ring: impl Fn()) {
        publication_fence();
        let (data, space) = (data && self.wakes.0.take(), space && self.wakes.1.take());
        if data || space {
            ring();
        }
    }

    /// Arms the flags and looks once more. Returns whether to sleep.
    fn arm(&mut self) -> bool {
        self.waits.0.arm();
        let blocked = self.left() > 0;
        if blocked {
            self.waits.1.arm();
        }
        let something = self.consumer.peek().unwrap().is_some()
            || blocked && self.inside(|producer, out| producer.fits(out.payload.len() as u32).unwrap());
        if something {
            self.waits.0.disarm();
            self.waits.1.disarm();
        } else {
            self.sleeps += 1;
        }
        !something
    }

    /// Now and then this side is slow, so that the other runs into an empty or a full ring.
    fn dawdle(&mut self) {
        if !self.turns && self.out.sequence.is_multiple_of(997) {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn time_left(&mut self) -> Duration {
        let progress = (self.out.sent(), self.expected.sent());
        if std::mem::replace(&mut self.progress, progress) != progress {
            self.end = Instant::now() + PATIENCE;
        }
        let left = self.end.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{}", self.positions());
        left
    }

    fn positions(&self) -> String {
        let (sent, taken, (out, into)) = (self.out.sent(), self.expected.sent(), self.records);
        let side = if self.enters { "client" } else { "broker" };
        format!(
            "{side} is stuck: sent {sent} of {out}, {} cells claimed; took {taken} of {into}; slept {} times",
            self.producer.start_plan().claimed(),
            self.sleeps
        )
    }
}

/// The broker's side, with the client's process.
struct Broker {
    side: Side,
    segment: Segment,
    nonces: Nonces,
    bells: BrokerBells,
    board: BellBoard,
    socket: UnixStream,
    child: Child,
    random: Source,
    trims: (u32, u32),
}

impl Broker {
    /// Starts a client that sends so many records and expects so many, by turns or as they come.
    fn start(sends: u64, expects: u64, turns: bool) -> Broker {
        let nonces = Nonces::random().unwrap();
        let segment = Segment::create(geometry(), nonces, 0o600).unwrap();
        let (bells, ClientDescriptors { ring, wait }) = BrokerBells::new().unwrap();
        let board = BellBoard::new().unwrap();
        board.watch(&bells, 1).unwrap();
        let (socket, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "shm::ring::stress_tests::child", "--nocapture", "--quiet"])
            .env(
                CLIENT,
                format!("{sends} {expects} {} {} {} {}", u64::from(turns), nonces.bulk, nonces.express, nonces.egress),
            )
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        descriptors::send(socket.as_fd(), b"welcome", &[segment.as_fd(), ring.as_fd(), wait.as_fd()]).unwrap();
        let (side, random) = (Side::broker(&segment, (expects, sends), turns), Source::new(SEED ^ 1));
        Broker { side, segment, nonces, bells, board, socket, child, random, trims: (0, 0) }
    }

    /// Widens or trims a window, as chance has it.
    fn resize(&mut self) {
        let random = self.random.random();
        let cells = ((random >> 8) as u32 % EXTENSION_PAGES + 1) * PAGE_CELLS;
        match random % 4 {
            0 if cells > self.side.consumer.window() => {
                self.segment.lease(RingName::Bulk, 0, cells).unwrap();
                self.side.consumer.grow(cells);
            }
            1 if cells > self.side.producer.window() => {
                self.segment.lease(RingName::Egress, 0, cells).unwrap();
                self.side.producer.set_window(cells);
            }
            2 if self.side.consumer.window() > 0 => {
                let window = self.side.consumer.window();
                if self.side.consumer.try_trim().unwrap() {
                    self.segment.give_back(RingName::Bulk, window).unwrap();
                    self.trims.0 += 1;
                }
            }
            3 if self.side.producer.window() > 0 && self.side.producer.is_drained().unwrap() => {
                let window = self.side.producer.window();
                self.side.producer.set_window(0);
                self.segment.give_back(RingName::Egress, window).unwrap();
                self.trims.1 += 1;
            }
            _ => {}
        }
        // A wider window is space, and a trim may have given cells back.
        self.side.signal(false, true, || self.bells.ring());
    }

    fn sleep(&mut self) {
        let left = self.side.time_left();
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut watched = [PollFd::new(&self.board, PollFlags::IN), PollFd::new(&self.socket, PollFlags::IN)];
        poll(&mut watched, Some(&timeout)).unwrap();
        let gone = !watched[1].revents().is_empty();
        assert!(!gone || self.side.consumer.peek().unwrap().is_some(), "client is gone; {}", self.side.positions());
        self.board.look(Some(Duration::ZERO), |key| assert_eq!(key, Some(1))).unwrap();
    }

    /// Tags in the bulk lane that belong to records which the consumer has not come to, less those before.
    fn tags_left(&self) -> Vec<u64> {
        let map = MmapOptions::new().len(geometry().segment_bytes()).map_raw(&self.segment.as_fd()).unwrap();
        let lane = Channel::new(&Words::of_mapping(Arc::new(map)), &geometry(), RingName::Bulk, self.nonces.bulk);
        let window = &lane.extension.as_slice()[..self.side.consumer.window() as usize * CELL_WORDS];
        let cells = lane.base.as_slice().chunks(CELL_WORDS).chain(window.chunks(CELL_WORDS));
        let next = lane.tag(self.side.cells);
        let ahead = cells.map(|cell| cell[0].load(Ordering::Relaxed).wrapping_sub(next));
        ahead.filter(|ahead| *ahead < u64::from(EXTENSION_PAGES * PAGE_CELLS)).collect()
    }

    fn run(&mut self, until: impl Fn(&Side) -> bool) {
        let mut rounds = 0u64;
        while !until(&self.side) {
            rounds += 1;
            if rounds.is_multiple_of(16) {
                self.resize();
                self.side.time_left();
            }
            if !self.side.work(|| self.bells.ring()) && !until(&self.side) && self.side.arm() {
                self.sleep();
            }
            self.side.dawdle();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The client, when the environment says so; otherwise nothing.
#[test]
fn child() {
    let Ok(terms) = std::env::var(CLIENT) else { return };
    let terms: Vec<u64> = terms.split(' ').map(|term| term.parse().unwrap()).collect();
    let [sends, expects, turns, bulk, express, egress] = terms[..] else { panic!("{terms:?}") };
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    poll(&mut [PollFd::new(&socket, PollFlags::IN)], None).unwrap();
    let (mut bytes, mut received) = ([0; 7], Vec::new());
    assert_eq!(descriptors::receive(socket.as_fd(), &mut bytes, &mut received).unwrap(), 7);
    let [file, ring, wait] = <[_; 3]>::try_from(received).unwrap();
    let segment = Segment::open(file, geometry(), Nonces { bulk, express, egress }).unwrap();
    let bells = ClientBells::new(ClientDescriptors { ring, wait }, socket.as_fd()).unwrap();
    let mut side = Side::client(&segment, (sends, expects), turns != 0);
    while !side.is_done() {
        side.dawdle();
        if !side.work(|| bells.ring()) && side.arm() {
            let woken = bells.wait(Some(side.time_left())).unwrap();
            assert!(!woken.socket, "broker is gone; {}", side.positions());
        }
    }
}

#[test]
fn two_processes_lose_no_record_and_no_wake_up() {
    let mut broker = Broker::start(RECORDS, RECORDS, false);
    broker.run(Side::is_done);
    assert!(broker.child.wait().unwrap().success());
    assert!(broker.side.producer.is_drained().unwrap());
    let (bulk, egress) = broker.trims;
    assert!(bulk > 0 && egress > 0, "the windows were trimmed {bulk} and {egress} times");
    assert!(broker.side.sleeps > 0, "the broker never slept");
}

/// One record is under way at any time: no later one makes up for a wake-up that is lost.
#[test]
fn two_processes_take_turns() {
    let mut broker = Broker::start(TURNS, TURNS, true);
    broker.run(Side::is_done);
    assert!(broker.child.wait().unwrap().success());
}

#[test]
fn a_client_that_is_killed_leaves_whole_records() {
    for round in 1..=8 {
        let mut broker = Broker::start(u64::MAX, 0, false);
        broker.run(|side| side.expected.sent() > round * 3000);
        // The client fills the ring meanwhile, or is hit on the way.
        std::thread::sleep(Duration::from_micros(round * 5));
        broker.child.kill().unwrap();
        broker.child.wait().unwrap();
        while broker.side.take().unwrap() > 0 {}
        assert_eq!(broker.tags_left(), [] as [u64; 0], "records that were published and not found");
    }
}

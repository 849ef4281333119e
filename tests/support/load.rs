//! The load generator, and its ledger: one thread that drives many connections in bounded batches.
//! It runs in a process of its own.
//!
//! ```text
//! member 0 ─ topic 0 ─► member 1 ─ topic 1 ─► … ─► member n-1 ─ topic n-1 ─► member 0
//! ```
//!
//! Each member publishes on a topic of its own, to which the next one subscribes; so each message goes from one
//! connection through the broker to another. Messages carry their topic and their number. The ledger is exact: the next
//! message of a topic must be the next number, so a message that is lost, doubled or out of order fails at once, and
//! one that does not come fails by [`watch`]. A reply must repeat its request.

use super::role::{die, end_with_any_thread, tell};
use lapce_ipc::client::{Client, Publisher, ReplyStream, Subscription};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a message: one record of the smallest size.
pub const SIZE: usize = 64;
/// How long the load may stand still.
const PATIENCE: Duration = Duration::from_secs(15);
/// The member that an injected fault is at, and the number of the message.
const FAULTY: usize = 3;
const FAULTY_NUMBER: u64 = 20;

static PROGRESS: AtomicU64 = AtomicU64::new(0);
static WAITING_FOR: AtomicU64 = AtomicU64::new(0);

/// Fails this process when the load stands still: a message that does not come, or a connection that is stalled. And
/// when any of its threads panics.
pub fn watch() {
    end_with_any_thread();
    std::thread::spawn(|| {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let now = PROGRESS.load(Ordering::Relaxed);
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() > PATIENCE {
                let member = WAITING_FOR.load(Ordering::Relaxed);
                tell(&format!("stalled: member {member} got nothing for {PATIENCE:?}, after {now} messages of all"));
                die();
            }
        }
    });
}

/// Notes that something came.
pub fn progressed() {
    // One thread writes it: no need for a locked instruction.
    PROGRESS.store(PROGRESS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Each connection takes some descriptors.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("a higher limit");
}

/// In a role: connects to the broker that the environment names.
#[track_caller]
pub fn connect() -> Client {
    Client::builder().no_reconnect().connect().expect("the broker takes us")
}

struct Member {
    // Dropped in this order: the handles before the client.
    publisher: Publisher,
    subscription: Subscription,
    client: Client,
    sent: u64,
    got: u64,
}

/// The members.
pub struct Load {
    members: Vec<Member>,
    fault: String,
    /// Where the next batch begins, and the members whose messages are still to be read.
    at: usize,
    unread: Vec<usize>,
    asked: Vec<(usize, u64, Instant, ReplyStream)>,
    serial: u64,
}

impl Load {
    /// Opens the connections.
    #[track_caller]
    pub fn open(count: usize, fault: &str) -> Load {
        raise_descriptor_limit();
        if fault == "mapping" {
            // The broker keeps its segment mapped until this process ends.
            std::mem::forget(connect());
        }
        let topic = |number: usize| format!("load.{number}");
        let member = |number: usize| {
            let client = connect();
            let subscription = client.subscribe(&topic((number + count - 1) % count)).expect("a subscription");
            let publisher = client.publisher(&topic(number)).expect("a topic");
            progressed();
            Member { publisher, subscription, client, sent: 0, got: 0 }
        };
        let members = (0..count).map(member).collect();
        let unread = Vec::with_capacity(count);
        Load { members, fault: fault.to_owned(), at: 0, unread, asked: Vec::with_capacity(count), serial: 0 }
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Messages that came, of all members.
    pub fn delivered(&self) -> u64 {
        self.members.iter().map(|member| member.got).sum()
    }

    /// Publishes `burst` messages on each of the next `batch` members, up to `each` in all, while there is space; and
    /// reads what the batch before published. Returns how many messages it read: 0 when all is done.
    pub fn step(&mut self, batch: usize, burst: u64, each: u64) -> u64 {
        let count = self.members.len();
        let last = std::mem::take(&mut self.unread);
        let mut now = Vec::with_capacity(batch);
        for index in (self.at..self.at + batch).map(|index| index % count) {
            self.publish(index, burst, each);
            now.push(index);
        }
        self.at = (self.at + batch) % count;
        self.unread = now;
        last.into_iter().map(|index| self.read(index)).sum()
    }

    /// Publishes and reads until each member has published `each` messages and all have come.
    pub fn run(&mut self, batch: usize, burst: u64, each: u64) {
        // A member without space is visited again.
        while self.members.iter().any(|member| member.sent < each) {
            for _ in 0..self.members.len().div_ceil(batch) {
                self.step(batch, burst, each);
            }
        }
        self.settle();
    }

    /// Reads all that is outstanding, and checks that nothing is missing.
    #[track_caller]
    pub fn settle(&mut self) {
        self.unread.clear();
        for index in 0..self.members.len() {
            self.read(index);
        }
        for index in 0..self.members.len() {
            let (sent, got) = (self.members[index].sent, self.next(index).got);
            assert_eq!(sent, got, "topic {index}: {sent} messages published, {got} delivered");
        }
        for (index, member) in self.members.iter_mut().enumerate() {
            let more = member.subscription.try_next().expect("the subscription is in force");
            assert!(more.is_none(), "topic {index}: a message more than was published: {more:?}");
            assert_eq!(member.subscription.dropped(), 0, "member {index}");
        }
    }

    /// One message of so many bytes on each of these members, read at once: their rings lease slots for it. Not to be
    /// mixed with other messages that are outstanding.
    pub fn swell(&mut self, members: std::ops::Range<usize>, size: usize) {
        for index in members {
            self.members[index].publisher.publish(vec![index as u8; size]).expect("it is published");
            let next = (index + 1) % self.members.len();
            let message = self.members[next].subscription.next().expect("a message").expect("no error");
            assert!(message.payload().len() == size && message.payload().iter().all(|byte| *byte == index as u8));
            progressed();
        }
    }

    fn next(&self, index: usize) -> &Member {
        &self.members[(index + 1) % self.members.len()]
    }

    fn publish(&mut self, index: usize, burst: u64, each: u64) {
        let member = &mut self.members[index];
        let until = (member.sent + burst).min(each);
        while member.sent < until {
            let payload = numbered(index, member.sent);
            let is_faulty = index == FAULTY && member.sent == FAULTY_NUMBER;
            if is_faulty && self.fault == "lost" {
                member.sent += 1;
                continue;
            }
            if !member.publisher.try_publish(payload).expect("it is published") {
                return;
            }
            if is_faulty && self.fault == "doubled" {
                member.publisher.publish(payload).expect("it is published");
            }
            member.sent += 1;
        }
    }

    /// Reads what was published on a topic.
    fn read(&mut self, index: usize) -> u64 {
        let count = self.members.len();
        let sent = self.members[index].sent;
        if index == FAULTY && self.fault == "stall" && sent > FAULTY_NUMBER {
            return 0;
        }
        let member = &mut self.members[(index + 1) % count];
        let before = member.got;
        while member.got < sent {
            WAITING_FOR.store(index as u64, Ordering::Relaxed);
            let mut bytes = [0; 16];
            member.subscription.read_next(|view| view.copy_to(0, &mut bytes)).expect("a message");
            check(&bytes, index, member.got);
            if self.fault == "allocation" {
                std::hint::black_box(Box::new(bytes));
            }
            member.got += 1;
            progressed();
        }
        member.got - before
    }

    /// One request of each of these members, all outstanding at once; each round trip in nanoseconds, from before the
    /// request to behind its reply.
    pub fn ask(&mut self, members: std::ops::Range<usize>, service: &str, round_trips: &mut Vec<u64>) {
        let mut asked = std::mem::take(&mut self.asked);
        for index in members {
            let serial = self.serial;
            self.serial += 1;
            let from = Instant::now();
            let request = self.members[index].client.request_stream(service, numbered(index, serial));
            asked.push((index, serial, from, request.expect("it is sent")));
        }
        for (index, serial, from, mut stream) in asked.drain(..) {
            let reply = stream.next().expect("a reply").expect("no error");
            round_trips.push(u64::try_from(from.elapsed().as_nanos()).unwrap_or(u64::MAX));
            assert!(reply == numbered(index, serial), "member {index}: not the reply of request {serial}");
            assert!(stream.next().is_none(), "member {index}: a second reply to request {serial}");
            progressed();
        }
        self.asked = asked;
    }

    /// A client of the load.
    pub fn client(&self, index: usize) -> &Client {
        &self.members[index].client
    }
}

/// Checks that a message is the next of its topic.
#[track_caller]
fn check(bytes: &[u8; 16], index: usize, next: u64) {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (number, topic) = (word(0), word(8));
    let what = if number > next { "lost" } else { "doubled" };
    assert!(topic == index as u64, "topic {index}: a message of topic {topic}");
    assert!(number == next, "topic {index}: message {number} came where {next} is next: {what}");
}

/// The message of this number on a topic.
pub fn numbered(index: usize, number: u64) -> [u8; SIZE] {
    let mut bytes = [number as u8; SIZE];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..16].copy_from_slice(&(index as u64).to_le_bytes());
    bytes
}

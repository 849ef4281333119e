//! What one message costs in locked operations, fences, locks and allocations, as a ratchet: the figures may only fall.
//!
//!     cargo test --features count-sync --test sync_counts -- --nocapture
//!
//! The client's rows are its own API against a real broker. A call is counted on the thread that makes it, so what the
//! router does meanwhile is not among the figures. The router's rows are those of `lapce-ipc bench-stepped`. Not
//! counted are the counts of references in an `Arc`, the two locked instructions of each lock, and looks at the clock;
//! `.ci/breakdown` counts every locked instruction of the stepped scenarios in the machine code.

mod support;

use allocation_counter::measure;
use lapce_ipc::client::{Requester, WaitStrategy};
use lapce_ipc::counted::{AtomicU64, Counts, Mutex};
use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::Instant;
use support::probe::note;
use support::{Broker, DEADLINE, LAPCE_IPC, command, output, stderr};

/// Messages of a batch, and of a round of single messages.
const BATCH: usize = 64;
/// Rounds of each row; the first tenth is a warm-up.
const ROUNDS: usize = 200;
/// Messages that a scenario of `bench-stepped` measures.
const MEASURED: u64 = 1024;
/// Bytes of a message.
const SIZE: usize = 64;

/// What `messages` messages cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cost {
    messages: u64,
    updates: u64,
    fences: u64,
    locks: u64,
    /// `None`: not counted here.
    allocations: Option<u64>,
}

impl Cost {
    fn figures(&self) -> [u64; 4] {
        [self.updates, self.fences, self.locks, self.allocations.unwrap_or(0)]
    }

    fn each(&self) -> String {
        let each = |figure: u64| format!("{:>8.3}", figure as f64 / self.messages as f64);
        let allocations = self.allocations.map_or("       -".to_owned(), each);
        format!("{} {} {} {allocations}", each(self.updates), each(self.fences), each(self.locks))
    }
}

/// One way to use the client or the router, and what it may cost.
struct Row(&'static str, Cost);

/// One update: on a loaded machine the router may sleep before each call, and then its flag is taken and its bell rung.
const fn client(messages: u64, fences: u64, locks: u64) -> Cost {
    Cost { messages, updates: 1, fences, locks, allocations: Some(0) }
}

/// So many fences for each `messages` of a scenario, of all that it measures.
const fn stepped(messages: u64, fences: u64) -> Cost {
    Cost { messages: MEASURED, updates: 0, fences: MEASURED / messages * fences, locks: 0, allocations: None }
}

/// Of one call of the client's API in steady state: the router is awake, and no other thread wants a role or a lock.
/// The fences are named as in `sync::Site`.
const CLIENT: &[Row] = &[
    // Fences: `Enter` before the window is read, `Wake` before the look at the router's flag. Lock: the lane.
    Row("publish", client(1, 2, 1)),
    // The same once. A batch this long also looks at the control socket: the locks of the reader role and the table,
    // and `Wake` when the role is given back.
    Row("publish_batch", client(BATCH as u64, 3, 3)),
    // Fence: `Wake` for the followers, when the role is given back. Lock: the reader role.
    Row("read_next", client(1, 1, 1)),
    // The same once. Cells go back at each quarter of the ring, here twice in a batch, with a `Wake` each.
    Row("read_batch", client(BATCH as u64, 3, 1)),
    // Fences: `Enter` and `Wake` of the request, `Wake` for the cells of the reply, `Wake` for the followers.
    // Locks: the reader role, the table for the slot, the lane. The slot is released by the next call.
    Row(CALL_INTO, client(1, 4, 3)),
    // The same once, and the table to release the slots. The cells of the replies go back at each quarter of the ring,
    // and in the end, with a `Wake` each.
    Row(CALL_BATCH, client(BATCH as u64, 5, 4)),
];

const CALL_INTO: &str = "call_into";
const CALL_BATCH: &str = "call_batch";

/// Of a scenario of `bench-stepped`.
const STEPPED: &[Row] = &[
    // `Enter`: each record is placed by itself. The bell is not measured.
    Row("push", stepped(1, 1)),
    // `Wake` before the router looks at the flags of its receivers: once for each turn, which has one message or eight.
    Row("route_one", stepped(1, 1)),
    Row("route_batch", stepped(8, 1)),
    Row("pop", stepped(1, 0)),
    // `Enter` of the request and of the response, and `Wake` of the router's two turns.
    Row("request_round_trip", stepped(1, 4)),
    // `Wake` of each turn: one with eight requests and their replies, or one with those and one with the responses.
    Row("request_batch", stepped(8, 1)),
    Row("routed_batch", stepped(8, 2)),
];

fn cost<T>(messages: usize, work: impl FnOnce() -> T) -> (T, Cost) {
    let mut counted = None;
    let allocated = measure(|| counted = Some(Counts::of(work)));
    let (result, Counts { updates, fences, locks }) = counted.expect("it is done");
    (result, Cost { messages: messages as u64, updates, fences, locks, allocations: Some(allocated.count_total) })
}

/// The least of each figure: a call may ring a bell for a router that sleeps, or look at the control socket.
fn usual(costs: &[Cost]) -> Cost {
    let costs = &costs[costs.len() / 10..];
    let least = |of: fn(&Cost) -> u64| costs.iter().map(of).min().unwrap_or_default();
    let [updates, fences, locks, allocations] =
        [least(|one| one.updates), least(|one| one.fences), least(|one| one.locks), least(|one| one.figures()[3])];
    Cost { messages: costs[0].messages, updates, fences, locks, allocations: Some(allocations) }
}

/// Whether no figure is above what it may be.
fn is_within(found: &Cost, allowed: &Cost) -> bool {
    found.figures().iter().zip(allowed.figures()).all(|(found, allowed)| *found <= allowed)
}

fn check(rows: &[Row], found: impl Fn(&str) -> Cost) {
    let (mut text, mut above) = (String::new(), Vec::new());
    for Row(name, allowed) in rows {
        let found = found(name);
        text += &format!("counts {name:<20} {}\n", found.each());
        if !is_within(&found, allowed) {
            above.push(format!("{name}: {found:?}, and may be {allowed:?}"));
        } else if found.figures()[1..] != allowed.figures()[1..] {
            note(&format!("{name}: {found:?}: lower its row"));
        }
    }
    let _ = writeln!(std::io::stdout(), "for each message: updates, fences, locks, allocations\n{text}");
    assert!(above.is_empty(), "{}", above.join("\n"));
}

#[test]
fn a_message_costs_the_client_no_more_locks_and_fences_than_it_did() {
    // The first window of each ring holds a whole batch, so that none depends on what the router leases.
    let broker = Broker::start_with(&[("shared_memory.slot_size", "16384")]);
    let (client, other) = (broker.client(), broker.client());
    let publisher = client.publisher("counts").expect("a topic");
    let mut subscription = other.subscribe("counts").expect("a subscription");
    let (payload, payloads) = ([7; SIZE], vec![[8; SIZE]; BATCH]);
    let [mut publish, mut publish_batch, mut read_next, mut read_batch] = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        for _ in 0..BATCH {
            publish.push(cost(1, || publisher.publish(payload).expect("it is published")).1);
        }
        // All is in the ring of the subscriber then.
        client.flush().expect("it is routed");
        for _ in 0..BATCH {
            let (len, cost) = cost(1, || subscription.read_next(|view| view.len()).expect("a message"));
            assert_eq!(len, SIZE);
            read_next.push(cost);
        }
        publish_batch.push(cost(BATCH, || publisher.publish_batch(&payloads).expect("they are published")).1);
        client.flush().expect("they are routed");
        let mut left = BATCH;
        while left > 0 {
            let (count, cost) = cost(BATCH, || subscription.read_batch(|_| ()).expect("messages"));
            left -= count;
            read_batch.extend((count == BATCH).then_some(cost));
        }
    }
    check(CLIENT, |name| match name {
        "publish" => usual(&publish),
        "publish_batch" => usual(&publish_batch),
        "read_next" => usual(&read_next),
        "read_batch" => usual(&read_batch),
        CALL_BATCH => {
            let batch = vec![[9; SIZE]; BATCH];
            least(&broker, CALL_BATCH, BATCH, |requester, _| {
                let mut replies = 0;
                requester.call_batch(&batch, |_, reply| replies += reply.expect("a reply").len()).expect("it is sent");
                assert_eq!(replies, BATCH * SIZE);
            })
        }
        _ => least(&broker, CALL_INTO, 1, |requester, reply| {
            requester.call_into([9; SIZE], reply).expect("a reply");
        }),
    });
}

/// The least of many calls: the replies were there at one of the first looks, so the thread has not waited for them.
fn least(broker: &Broker, name: &str, messages: usize, work: impl Fn(&Requester, &mut Vec<u8>)) -> Cost {
    let allowed = CLIENT.iter().find_map(|Row(row, allowed)| (*row == name).then_some(allowed)).expect("a row");
    if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() == 1) {
        note(&format!("{name}: not counted, because no reply comes while this thread has the only CPU"));
        return *allowed;
    }
    let client = broker.builder().no_reconnect().wait(WaitStrategy::Busy).connect().expect("the broker takes us");
    let (requester, mut reply) = (client.requester("echo").expect("a service"), Vec::new());
    let (started, mut least) = (Instant::now(), None::<Cost>);
    for call in 0_u64.. {
        let ((), now) = cost(messages, || work(&requester, &mut reply));
        let sum = |cost: Cost| cost.figures().iter().sum::<u64>();
        if least.is_none_or(|least| sum(now) < sum(least)) {
            least = Some(now);
        }
        let is_enough =
            call >= (ROUNDS * BATCH / messages) as u64 && least.is_some_and(|least| is_within(&least, allowed));
        if is_enough || started.elapsed() > DEADLINE / 3 {
            break;
        }
    }
    least.expect("a call")
}

#[test]
fn a_routed_message_costs_no_more_locks_and_fences_than_it_did() {
    check(STEPPED, |name| {
        let mut run = command(LAPCE_IPC);
        run.args(["bench-stepped", name, "--counts"]);
        let output = output(run, &[]);
        let text = String::from_utf8_lossy(&output.stdout);
        let figures: Vec<u64> = text.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
        let [updates, fences, locks] = figures[..] else { panic!("{text}{}", stderr(&output)) };
        Cost { messages: MEASURED, updates, fences, locks, allocations: None }
    });
}

#[test]
fn each_operation_of_this_thread_is_counted_and_none_of_others() {
    let (word, mutex) = (AtomicU64::new(1), Mutex::new(2));
    let ((), counts) = Counts::of(|| {
        word.store(word.load(Ordering::SeqCst), Ordering::Release);
        word.store(3, Ordering::SeqCst);
        assert_eq!(word.swap(4, Ordering::AcqRel), 3);
        assert_eq!(word.compare_exchange(3, 5, Ordering::AcqRel, Ordering::Relaxed), Err(4));
        let held = mutex.lock().expect("no thread panicked");
        assert!(mutex.try_lock().is_err());
        drop(held);
        let other = || word.fetch_add(1, Ordering::SeqCst);
        assert_eq!(std::thread::scope(|scope| scope.spawn(other).join().expect("it ends")), 4);
    });
    assert_eq!(counts, Counts { updates: 2, fences: 1, locks: 2 });
    assert_eq!(size_of::<AtomicU64>(), size_of::<u64>());
    assert_eq!(align_of::<AtomicU64>(), align_of::<std::sync::atomic::AtomicU64>());
}

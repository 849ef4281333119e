//! Sixteen processes of two users do anything at random to the broker and to their own memory, and come back whenever
//! they are ended. Clients beside them lose nothing, get nothing twice and nothing out of order; and afterwards the
//! broker is what it was before.
//!
//! ```sh
//! LAPCE_IPC_RANDOM_SECS=60 cargo test --test hostile_random -- --nocapture    # instead of five seconds
//! LAPCE_IPC_RANDOM_SEED=1234 cargo test --test hostile_random                 # the same numbers again
//! ```

#[path = "support/mutant.rs"]
mod mutant;
#[path = "support/raw.rs"]
mod raw;
#[path = "support/scene.rs"]
mod scene;
mod support;

use lapce_ipc::client::DeliveryPolicy;
use lapce_ipc::wire::control::InternKind;
use lapce_ipc::wire::{ClientFrame, Name, Pattern, Topic};
use mutant::{Random, mutate, rage};
use raw::Raw;
use scene::Good;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::ledger::{self, Ends};
use support::memory::{mappings, private};
use support::probe::note;
use support::role::{Child, end_with_any_thread, heard, role, tell};
use support::users::{are_root, open_folder};
use support::{Broker, wait_until};

const PROCESSES: u64 = 16;
/// Bytes that the broker may log in a minute: lines about clients are limited.
const LOG_BYTES_MAX_A_MINUTE: u64 = 1_000_000;
/// Bytes that it logs in any case.
const LOG_BYTES_FLOOR: u64 = 20_000;
/// How much the broker's heap and stacks may have grown: what the allocator keeps of a peak, and tables that were
/// larger for a while.
const GROWTH_MAX: u64 = 4 << 20;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

#[test]
fn sixteen_random_processes_disturb_nothing() {
    let secs = variable("LAPCE_IPC_RANDOM_SECS").unwrap_or(5).max(2);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").subsec_nanos();
    let seed = variable("LAPCE_IPC_RANDOM_SEED").unwrap_or(u64::from(now));
    note(&format!("LAPCE_IPC_RANDOM_SEED={seed} LAPCE_IPC_RANDOM_SECS={secs}"));
    let keys = [
        // The processes live on, so without this their sessions would wait for them.
        ("restart.resume_window_ms", "0"),
        ("shared_memory.audit_interval_ms", "100"),
        // Of each kind of line.
        ("logging.max_lines_per_second", "20"),
        ("shared_memory.permissions", "0o666"),
        ("ipc.allowed_uids", "65534"),
        // The clients with a ledger may not run for seconds. As long may a hostile client hold a message up that has
        // begun.
        ("delivery.slow_consumer_timeout_ms", "10000"),
    ];
    let mut broker = Broker::start_with(&keys);
    broker.without_limit();
    let other_user = are_root().then(|| {
        std::fs::set_permissions(broker.folder(), std::fs::Permissions::from_mode(0o755)).expect("our folder");
        open_folder(std::env::current_exe().expect("this program").to_str().expect("a path"))
    });
    let copy = other_user.as_ref().map(|(_, copy)| copy.as_path());

    // As much as one phase makes the broker keep is its baseline.
    phase(&broker, copy, seed, Duration::from_secs(secs).div_f64(4.0));
    let pid = broker.process().pid();
    wait_until("segments to be unmapped", || mappings(pid) == 0);
    let (descriptors, heap) = (broker.descriptors_at_rest(), private(pid));
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").count();
    let threads_before = threads();

    phase(&broker, copy, seed.wrapping_add(PROCESSES), Duration::from_secs(secs).mul_f64(0.75));
    wait_until("descriptors to be closed", || broker.descriptors() == descriptors);
    wait_until("segments to be unmapped", || mappings(pid) == 0);
    wait_until("threads to end", || threads() == threads_before);
    let grown = || private(pid).saturating_sub(heap);
    wait_until("memory to be given back", || grown() <= GROWTH_MAX);
    let log = broker.process().stderr();
    // That a thread has not run for a second is the machine's load, with so many processes.
    let is_error =
        |line: &&str| line.contains("panicked") || line.contains("Z ERROR ") && !line.contains("thread stuck");
    assert_eq!(log.lines().find(is_error), None);
    let most = LOG_BYTES_FLOOR + LOG_BYTES_MAX_A_MINUTE * secs / 60;
    assert!((log.len() as u64) < most, "{} bytes of log, {most} are allowed", log.len());
    note(&format!("{} bytes of log, the heap has grown by {} bytes", log.len(), grown()));
    broker.process().signal("TERM");
    assert_eq!(broker.process().code(), 0, "{log}");
}

/// Lets the processes rage for this time beside clients that keep a ledger; then all of them end.
fn phase(broker: &Broker, copy: Option<&Path>, seed: u64, time: Duration) {
    let good = Good::start(&broker.socket());
    let (done, progress) = (AtomicBool::new(false), AtomicU64::new(0));
    let (publishes, subscribes) = (broker.client(), broker.client());
    let mut messages = subscribes.subscribe("ledger").expect("a subscription");
    let mut connections = 0;
    std::thread::scope(|scope| {
        // Also when something fails.
        let ends = Ends(&done);
        let published = scope.spawn(|| ledger::publish(&publishes, "ledger", &[8, 64, 900, 3000, 20_000], &done));
        let received = scope.spawn(|| ledger::whole(&mut messages, &progress));
        let mut children: Vec<Child> = (0..PROCESSES)
            .map(|number| {
                let role = format!("rages {}", seed.wrapping_add(number));
                match copy {
                    Some(copy) if number % 2 == 1 => Child::ready_as_other_user(broker, copy, &role),
                    _ => Child::ready(broker, &role),
                }
            })
            .collect();
        let until = Instant::now() + time;
        while Instant::now() < until {
            let before = progress.load(Ordering::SeqCst);
            wait_until("another message", || {
                assert!(!received.is_finished() && !published.is_finished(), "the ledger has failed, see above");
                assert!(children.iter_mut().all(|child| !child.has_ended()), "a process has ended");
                progress.load(Ordering::SeqCst) > before
            });
        }
        good.goes_on();
        for child in &mut children {
            child.say("stop");
            connections += child.hears("connections").parse::<u64>().expect("a number");
        }
        drop(children);
        drop(ends);
        let (published, received) = (published.join().expect("the publisher"), received.join().expect("the ledger"));
        assert_eq!(published, received);
        note(&format!("{received} messages beside {connections} hostile connections"));
    });
    assert!(connections > PROCESSES, "{connections} connections: none was ended");
    assert_eq!(messages.dropped(), 0);
    good.finish();
    drop(messages);
    drop((publishes, subscribes));
    let watch = broker.client();
    wait_until("all others to be gone", || watch.status().expect("a status").connections.len() == 1);
    wait_until("memory to be given back", || watch.status().expect("a status").slots_used == 0);
    let status = watch.status().expect("a status");
    assert_eq!((status.topics, status.subscriptions), (0, 0), "{status:?}");
}

#[test]
fn child() {
    let Some(role) = role() else { return };
    let seed = role.strip_prefix("rages ").and_then(|seed| seed.parse::<u64>().ok()).expect("a seed");
    end_with_any_thread();
    let stop = Arc::new(AtomicBool::new(false));
    let stops = stop.clone();
    std::thread::spawn(move || {
        heard();
        stops.store(true, Ordering::SeqCst);
    });
    let socket = PathBuf::from(std::env::var_os("LAPCE_IPC_SOCKET").expect("the broker's socket"));
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    tell("ready");
    let mut connections = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        let mut raw = Raw::connect(&socket, "rages");
        connections += 1;
        begin(&mut raw, &mut random);
        // Some rage from the first moment, others only break one rule after many records that are right.
        let (worst, steps) = (random.below(20) + 1, random.below(400));
        for step in 0..steps {
            if random.below(20) < worst {
                mutate(&mut raw, &mut random)
            } else {
                rage(&mut raw, &mut random)
            }
            if step % 8 == 7 && (raw.has_ended() || stop.load(Ordering::SeqCst)) {
                break;
            }
        }
    }
    tell(&format!("connections {connections}"));
    heard();
}

/// What a client needs before its records can do anything. A refusal, at a limit, is no matter.
fn begin(raw: &mut Raw, random: &mut Random) {
    const POLICIES: [DeliveryPolicy; 2] = [DeliveryPolicy::DropNewest, DeliveryPolicy::DropOldest];
    let topic = Topic::parse("bad.mutant").expect("a topic");
    let echo = Topic::parse(["echo", "bad"][random.below(2) as usize]).expect("a name");
    raw.ask(|serial| ClientFrame::Intern { serial, kind: InternKind::Topic, name: topic });
    raw.ask(|serial| ClientFrame::Intern { serial, kind: InternKind::Service, name: echo });
    // It may have all messages of the others, if it does not make them wait.
    let pattern = Pattern::parse([">", "bad.>"][random.below(2) as usize]).expect("a pattern");
    let (policy, credit) = (POLICIES[random.below(2) as usize], random.below(100) as u32);
    raw.ask(|serial| ClientFrame::Subscribe { serial, pattern, policy, credit });
    if random.below(4) == 0 {
        let pattern = Pattern::parse("bad.>").expect("a pattern");
        let policy = DeliveryPolicy::Block;
        raw.ask(|serial| ClientFrame::Subscribe { serial, pattern, policy, credit: 0 });
    }
    let service = Name::parse("bad").expect("a name");
    raw.ask(|serial| ClientFrame::Serve { serial, service, max_in_flight: 0 });
}

//! Random faults under traffic.
//!
//!     cargo test --release --test nuclear_chaos -- --nocapture
//!
//! `LAPCE_IPC_CHAOS_SEED` sets the sequence of faults (it is printed), `LAPCE_IPC_CHAOS_SECS` the duration: 60 s, 1,800
//! as the original. A broker, and clients in processes of their own (`support/chaos.rs`). Some clients live to the end,
//! others are killed and replaced; no client waits for another longer than the broker's limits (`PATIENT`) allow, so
//! that the ledgers of those that live are exact also on a busy machine.
//!
//! | ledger | rule |
//! |---|---|
//! | messages of a publisher that lives | each once and in order, at every subscriber that lives, over all faults |
//! | messages of a publisher that is killed | those that were flushed: each once; further ones at most once, in order |
//! | requests | one outcome each, of those that are promised; one that got its reply ran once, others at most once |
//! | the broker | no panic; each hostile connection is closed |

#[path = "support/chaos.rs"]
mod chaos;
#[path = "support/raw.rs"]
mod raw;
mod support;

use raw::{Control, Lane, Raw, forged, hello};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::criteria::{Report, injected, scaled};
use support::cut::cut;
use support::ledger::PATIENT;
use support::memory::Memory;
use support::probe::note;
use support::role::{Child, role};
use support::{Broker, DEADLINE, wait_until, work_for};

const NAME: &str = "nuclear_chaos";
/// Time between two ends of the broker: a client whose sessions end at once waits before it connects again.
const LIFE: Duration = Duration::from_millis(1_500);
/// Sockets that are connected and say nothing.
const SILENT: usize = 8;

/// The faults. Each run has each of them.
const FAULTS: [&str; 11] = [
    "broker killed",
    "broker SIGTERM",
    "broker SIGSTOP",
    "client SIGSTOP",
    "socket cut",
    "publisher killed",
    "subscriber killed",
    "responder killed",
    "memory pressure killed",
    "corrupt frame",
    "corrupt record",
];

/// Clients that are killed and replaced.
const MORTAL: [&str; 4] = ["publisher killed", "subscriber killed", "responder killed", "memory pressure killed"];

/// Random numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    fn millis(&mut self, from: usize, to: usize) -> Duration {
        Duration::from_millis((from + self.below(to - from)) as u64)
    }
}

struct Chaos {
    broker: Broker,
    probe: lapce_ipc::client::Client,
    random: Random,
    clients: BTreeMap<&'static str, Child>,
    /// Topics of publishers that were or will be killed, with the files of their flushed numbers.
    killed: Vec<(String, PathBuf)>,
    silent: Vec<Control>,
    last_kill: Instant,
    /// Milliseconds from each kill of the broker, or its exit after SIGTERM, to the first reply of the next one.
    recoveries: Vec<f64>,
    counts: BTreeMap<&'static str, u64>,
    most: u64,
    started: Instant,
    history: Vec<String>,
}

impl Drop for Chaos {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.history.len().saturating_sub(30);
            note(&format!("the last faults, in ms:\n  {}", self.history[from..].join("\n  ")));
        }
    }
}

impl Chaos {
    fn start(seed: u64) -> Chaos {
        let mut broker = Broker::start_with(&PATIENT);
        broker.without_limit();
        let probe = broker.builder().connect().expect("the broker takes us");
        let mut chaos = Chaos {
            broker,
            probe,
            random: Random(seed | 1),
            clients: BTreeMap::new(),
            killed: Vec::new(),
            silent: Vec::new(),
            last_kill: Instant::now(),
            recoveries: Vec::new(),
            counts: BTreeMap::new(),
            most: 0,
            started: Instant::now(),
            history: Vec::new(),
        };
        let (folder, fault) = (chaos.broker.folder().display().to_string(), injected());
        chaos.spawn("subscriber", "subscribe");
        chaos.spawn("slow subscriber", "slow");
        chaos.spawn("responder", &format!("serve {folder}/served"));
        chaos.spawn("first publisher", &format!("publish chaos.first {folder}/first {fault}"));
        chaos.spawn("second publisher", &format!("publish chaos.second {folder}/second none"));
        chaos.spawn("requester", &format!("ask {}", if fault == "ran-twice" { "doubled" } else { "none" }));
        MORTAL.into_iter().for_each(|name| chaos.replace(name));
        chaos
    }

    fn spawn(&mut self, name: &'static str, role: &str) {
        let mut child = Child::spawn_in(&self.broker, NAME, role);
        child.hears("ready");
        self.note(&format!("{name}: process {}", child.pid()));
        self.clients.insert(name, child);
    }

    /// Starts the next client of a kind that is killed.
    fn replace(&mut self, name: &'static str) {
        let folder = self.broker.folder().to_owned();
        let number = self.killed.len();
        let role = match name {
            "publisher killed" => {
                let (topic, file) = (format!("chaos.mortal.{number}"), folder.join(format!("flushed.{number}")));
                let role = format!("publish {topic} {} none", file.display());
                self.killed.push((topic, file));
                role
            }
            "subscriber killed" => "late".to_owned(),
            "responder killed" => format!("serve {}", folder.join("served").display()),
            _ => format!("press pressure.{}", self.counts.get(name).copied().unwrap_or_default()),
        };
        self.spawn(name, &role);
    }

    fn kill(&mut self, name: &'static str) {
        drop(self.clients.remove(name));
        self.replace(name);
    }

    /// A client of any kind.
    fn any(&mut self) -> &mut Child {
        let at = self.random.below(self.clients.len());
        self.clients.values_mut().nth(at).expect("so many")
    }

    /// Waits for the first reply of the broker, and returns the milliseconds.
    fn recovery(&mut self, from: Instant) -> f64 {
        while let Err(error) = self.probe.request("echo", "probe") {
            assert!(error.is_disconnected(), "{error}");
            assert!(from.elapsed() < DEADLINE, "no reply since the broker was killed: {error}");
        }
        from.elapsed().as_secs_f64() * 1e3
    }

    fn restart(&mut self, signal: &str) {
        work_for(LIFE.saturating_sub(self.last_kill.elapsed()));
        self.without_panic();
        let killed = Instant::now();
        self.broker.end(signal);
        // A broker that is stopped delivers first what it has.
        let from = if signal == "KILL" { killed } else { Instant::now() };
        self.broker.start_again();
        self.broker.without_limit();
        let took = self.recovery(from);
        self.recoveries.push(took);
        self.last_kill = Instant::now();
    }

    fn note(&mut self, what: &str) {
        self.history.push(format!("{} {what}", self.started.elapsed().as_millis()));
    }

    fn without_panic(&mut self) {
        let log = self.broker.process().stderr();
        assert!(!log.contains("panicked"), "{log}");
    }

    fn fault(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
        self.note(name);
        let (pause, socket) = (self.random.millis(10, 150), self.broker.socket());
        match name {
            "broker killed" => self.restart("KILL"),
            "broker SIGTERM" => self.restart("TERM"),
            "broker SIGSTOP" => {
                self.broker.process().stop();
                work_for(pause);
                self.broker.process().signal("CONT");
            }
            "client SIGSTOP" => {
                // Another fault while it is stopped, and perhaps its own socket cut.
                let child = self.any();
                let pid = child.pid();
                child.stop();
                if self.random.below(2) == 0 {
                    cut(pid, &socket);
                }
                work_for(pause);
                support::signal(pid, "CONT");
            }
            "socket cut" => {
                let pid = self.any().pid();
                cut(pid, &socket);
            }
            "corrupt frame" => {
                let mut control = Control::connect(&socket);
                if self.random.below(2) == 0 {
                    control.say(&hello("corrupt"));
                    control.frame();
                }
                let bytes: Vec<u8> = (0..64).map(|_| self.random.below(256) as u8).collect();
                // A frame of 60 bytes whose variant no frame has.
                control.send(&[&60u32.to_le_bytes()[..], &[255; 4], &bytes[..56]].concat());
                while control.frame().is_some() {}
                // And one that says nothing.
                self.silent.push(Control::connect(&socket));
                if self.silent.len() > SILENT {
                    self.silent.remove(0);
                }
            }
            "corrupt record" => {
                let mut raw = Raw::connect(&socket, "corrupt");
                let (kind, len) = [(200, 0), (1, 1025), (8, u32::MAX)][self.random.below(3)];
                let lane = [Lane::Bulk, Lane::Express][self.random.below(2)];
                raw.place(lane, &forged(kind, len), &[]);
                raw.control.closing();
            }
            mortal => self.kill(mortal),
        }
    }

    /// Does each fault once, in random order, then random ones until it is time.
    fn run(&mut self, time: Duration) {
        let started = Instant::now();
        let mut first = FAULTS.to_vec();
        while !first.is_empty() || started.elapsed() < time {
            let mut name = FAULTS[self.random.below(FAULTS.len())];
            if !first.is_empty() {
                name = first.swap_remove(self.random.below(first.len()));
            } else if name.starts_with("broker ") && self.last_kill.elapsed() < LIFE {
                // Others meanwhile.
                name = FAULTS[3 + self.random.below(FAULTS.len() - 3)];
            }
            self.fault(name);
            for (name, child) in &mut self.clients {
                assert!(!child.has_ended(), "{name}: process {} has ended by itself", child.pid());
            }
            self.most = self.most.max(Memory::of(self.broker.process().pid()).total());
            let pause = self.random.millis(10, 100);
            work_for(pause);
        }
    }

    fn said(&mut self, name: &str, word: &str) -> Value {
        let child = self.clients.get_mut(name).expect("it lives");
        serde_json::from_str(&child.hears_within(word, 2 * DEADLINE)).expect("JSON")
    }

    /// Ends the clients, and holds their ledgers against each other.
    fn finish(mut self, report: &mut Report) {
        let publishers = ["first publisher", "second publisher", "publisher killed"];
        let published = publishers.map(|name| {
            self.clients.get_mut(name).expect("it lives").say("end");
            self.said(name, "published")
        });
        self.clients.get_mut("requester").expect("it lives").say("end");
        let asked = self.said("requester", "asked");
        self.probe.publish(chaos::OVER, "").expect("it is published");
        let received = self.said("subscriber", "received");
        let slow = self.said("slow subscriber", "received");
        self.said("subscriber killed", "received");
        let last = |topic: &str| received["last"][topic].as_u64().unwrap_or_default();
        let own = self.killed.last().expect("one lives").0.clone();
        for (topic, published) in ["chaos.first", "chaos.second", &own].into_iter().zip(&published) {
            let published = published["messages"].as_u64().expect("a number");
            assert_eq!(last(topic), published, "{topic}: messages delivered, and published");
        }
        let mut flushed = 0;
        for (topic, file) in &self.killed {
            // It may have been killed before its first flush.
            let bytes = std::fs::read(file).unwrap_or_default();
            let number = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            assert!(last(topic) >= number, "{topic}: {number} messages flushed, {} delivered", last(topic));
            flushed += number;
        }
        // A message whose publisher or broker was killed within it counts as dropped.
        let killed = |name: &str| self.counts[name];
        let restarts = killed("broker killed") + killed("broker SIGTERM");
        let within = killed("publisher killed") + restarts * publishers.len() as u64;
        let dropped = received["dropped"].as_u64().expect("a number");
        assert!(dropped <= within, "{dropped} messages dropped at a subscriber that waits for all");
        let requests = asked["requests"].as_u64().expect("a number");
        let failed: Vec<u64> = serde_json::from_value(asked["failed"].clone()).expect("numbers");
        self.ran(requests, &failed);
        self.without_panic();
        let status = self.probe.status().expect("a status");
        assert_eq!(support::probe::counter(&status, "poison_messages"), 0);
        let too_large: u64 = published.iter().map(|one| one["too_large"].as_u64().expect("a number")).sum();

        report.figure("faults", json!(self.counts));
        report.figure("messages_received", received["messages"].clone());
        report.figure("messages_flushed_by_killed_publishers", flushed);
        report.figure("messages_too_large_and_refused", too_large);
        report.figure("slow_subscriber", json!({"messages": slow["messages"], "gaps": slow["gaps"]}));
        report.figure("requests", requests);
        report.figure("outcomes", asked["outcomes"].clone());
        report.figure("memory_mb_most", self.most as f64 / 1e6);
        let part = failed.len() as f64 / requests as f64;
        let actual = format!("{:.3} % of {requests} requests", part * 100.0);
        report.criterion("failed outcomes", "under 1 %", actual, part < 0.01);
        let times = self.recoveries.len();
        self.recoveries.sort_by(f64::total_cmp);
        let (median, most) = (self.recoveries[times / 2], self.recoveries[times - 1]);
        let actual = format!("median {median:.1} ms, most {most:.1} of {times} restarts");
        report.criterion("recovery", "median under 100 ms", actual, median < 100.0);
        report.criterion("ledgers", "none lost or doubled", "whole".to_owned(), true);
    }

    /// Checks which requests ran.
    fn ran(&self, requests: u64, failed: &[u64]) {
        let served = std::fs::read(self.broker.folder().join("served")).expect("the responders' file");
        let mut times = vec![0u8; requests as usize];
        for bytes in served.as_chunks().0 {
            let number = u64::from_le_bytes(*bytes) as usize;
            times[number] += 1;
            assert!(times[number] == 1, "request {number} ran twice");
        }
        for number in failed {
            times[*number as usize] = 1;
        }
        let never = times.iter().position(|times| *times == 0);
        assert_eq!(never, None, "a request that got its reply without being run");
    }
}

#[test]
fn nuclear_chaos() {
    if let Some(role) = role() {
        return chaos::play(&role);
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seconds = number("LAPCE_IPC_CHAOS_SECS").unwrap_or(scaled(60, 3));
    let seed = number("LAPCE_IPC_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()) * 0x9e37_79b9 + 1);
    let _ = writeln!(std::io::stdout(), "LAPCE_IPC_CHAOS_SEED={seed} LAPCE_IPC_CHAOS_SECS={seconds}");
    let mut report = Report::new(NAME);
    report.figure("seed", seed);
    report.figure("seconds", seconds);
    let mut chaos = Chaos::start(seed);
    chaos.run(Duration::from_secs(seconds));
    wait_until("the broker to answer", || chaos.probe.request("echo", "end").is_ok());
    chaos.finish(&mut report);
    report.finish();
}

//! What a message costs, beside the floor of this machine: `cargo bench`.
//!
//! A broker process of its own, and clients in this process. `floor` is a round trip between two threads over two cache
//! lines, which nothing that crosses cores can beat; everything else is to be read as a multiple of it. `lapce-ipc
//! bench` measures the same with more processes, and tails.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use lapce_ipc::client::{Client, WaitStrategy};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct Broker {
    process: Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Broker {
    fn start() -> Broker {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("ipc.sock");
        let process = Command::new(env!("CARGO_BIN_EXE_ipc_server_main"))
            .arg("--socket")
            .arg(&socket)
            .env("RUST_LOG", "error")
            .args(["--health-addr", "127.0.0.1:0"])
            .spawn()
            .expect("a broker");
        let broker = Broker { process, socket, _folder: folder };
        while Client::builder().socket(&broker.socket).connect().is_err() {
            std::thread::yield_now();
        }
        broker
    }

    fn client(&self, wait: WaitStrategy) -> Client {
        Client::builder().socket(&self.socket).wait(wait).connect().expect("a connection")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[repr(align(128))]
struct Line(AtomicU64);

fn floor(c: &mut Criterion) {
    let lines = Arc::new((Line(AtomicU64::new(0)), Line(AtomicU64::new(0))));
    let there = lines.clone();
    let echo = std::thread::spawn(move || {
        let mut last = 0;
        while last != u64::MAX {
            let now = there.0.0.load(Ordering::Acquire);
            if now != last {
                last = now;
                there.1.0.store(now, Ordering::Release);
            }
            std::hint::spin_loop();
        }
    });
    let mut n = 0;
    c.bench_function("floor", |b| {
        b.iter(|| {
            n += 1;
            lines.0.0.store(n, Ordering::Release);
            while lines.1.0.load(Ordering::Acquire) != n {
                std::hint::spin_loop();
            }
        });
    });
    lines.0.0.store(u64::MAX, Ordering::Release);
    echo.join().expect("the other thread ends");
}

fn echo(c: &mut Criterion) {
    let broker = Broker::start();
    let mut group = c.benchmark_group("echo");
    for (wait, name) in
        [(WaitStrategy::Busy, "busy"), (WaitStrategy::Adaptive, "adaptive"), (WaitStrategy::Block, "block")]
    {
        let client = broker.client(wait);
        for size in [64, 1024, 65_536] {
            let payload = vec![1; size];
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(format!("{name}/{size}"), |b| {
                b.iter(|| client.request("echo", &payload).expect("a reply"));
            });
        }
    }
}

fn publish(c: &mut Criterion) {
    const MESSAGES: u64 = 1024;
    // One thread publishes and reads: no more than the subscription has room for without being read.
    const IN_FLIGHT: u64 = 64;
    let broker = Broker::start();
    let (publisher, subscriber) = (broker.client(WaitStrategy::Adaptive), broker.client(WaitStrategy::Adaptive));
    let mut subscription = subscriber.subscribe("bench").expect("a subscription");
    let publisher = publisher.publisher("bench").expect("a publisher");
    let mut group = c.benchmark_group("publish");
    group.throughput(Throughput::Elements(MESSAGES));
    for size in [64, 1024] {
        let payload = vec![1; size];
        group.bench_function(format!("{size}"), |b| {
            b.iter_batched(
                || (),
                |()| {
                    for _ in 0..MESSAGES / IN_FLIGHT {
                        for _ in 0..IN_FLIGHT {
                            publisher.publish(&payload).expect("published");
                        }
                        for _ in 0..IN_FLIGHT {
                            subscription.next().expect("a message").expect("a message");
                        }
                    }
                },
                BatchSize::SmallInput,
            );
        });
    }
}

criterion_group!(benches, floor, echo, publish);
criterion_main!(benches);

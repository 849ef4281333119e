//! `busy` where there is one CPU: nobody comes to run while somebody spins.

mod support;

use lapce_ipc::client::{Client, WaitStrategy};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::time::{Duration, Instant};
use support::Broker;

#[test]
fn busy_on_one_cpu_sleeps_and_says_so() {
    let all = sched_getaffinity(None).unwrap();
    let cpu = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).expect("a CPU");
    let mut one = CpuSet::new();
    one.set(cpu);
    // What is started from here inherits it.
    sched_setaffinity(None, &one).unwrap();
    let mut broker = Broker::start_with(&[("router.wait", "busy")]);
    broker.process().wait_for("busy waiting disabled reason=one_cpu");
    let client = Client::builder().socket(broker.socket()).wait(WaitStrategy::Busy).connect().unwrap();
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let asked = Instant::now();
            assert_eq!(client.request("echo", "x").unwrap(), b"x");
            asked.elapsed()
        })
        .collect();
    times.sort_unstable();
    // Some 10 µs; with spinning it was a time slice of the scheduler for each, 4 to 8 ms.
    assert!(times[100] < Duration::from_millis(2), "median {:?}", times[100]);
}

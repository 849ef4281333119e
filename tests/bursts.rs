//! Bursts of honest clients: nothing is lost to a subscriber that reads, and no client is disconnected for its memory.

mod support;

use lapce_ipc::client::Client;
use support::{Broker, wait_until};

/// How often something is done: longer runs are asked for by an environment variable.
fn rounds(variable: &str, usual: u32) -> u32 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// `LAPCE_IPC_AUDIT_ROUNDS=400 cargo test --test bursts` runs for five minutes.
#[test]
fn honest_clients_in_bursts_pass_audits_every_ten_milliseconds() {
    let mut broker = Broker::start_with(&[("shared_memory.audit_interval_ms", "10")]);
    let rounds = rounds("LAPCE_IPC_AUDIT_ROUNDS", 4);
    if rounds > 20 {
        broker.without_limit();
    }
    let clients: Vec<Client> = (0..60).map(|_| broker.client()).collect();
    for _ in 0..rounds {
        std::thread::scope(|scope| {
            for clients in clients.chunks(15) {
                scope.spawn(move || {
                    for client in clients {
                        for _ in 0..400 {
                            client.publish("burst", [7; 64]).expect("the broker takes it");
                        }
                        client.flush().expect("the broker takes all");
                    }
                });
            }
        });
        // The memory of an idle connection is taken back after half a second.
        wait_until("the memory to be taken back", || slots_used(&broker) == 0);
    }
    for client in &clients {
        client.flush().expect("it is connected");
    }
    assert_eq!(broker.counter("violations"), 0);
}

fn slots_used(broker: &Broker) -> u32 {
    broker.client().status().expect("a status").slots_used
}

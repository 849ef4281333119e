//! Zero allocation on the client's hot path, as a ratchet: what each pattern allocates for a message today.
//!
//!     cargo test --release --test allocations -- --nocapture
//!
//! The router's own is `steady_routing_allocates_nothing` (`cargo test --lib steady_routing`).

#[path = "support/allocations.rs"]
mod allocations;
mod support;

use allocation_counter::measure;
use std::io::Write;
use std::time::Duration;
use support::criteria::{MEASURES, injected};
use support::probe::note;
use support::{Broker, DEADLINE};

/// Messages of each pattern.
const MESSAGES: u64 = if MEASURES { 1_000_000 } else { 10_000 };
/// Growth of a table now and then is none for each message.
const SLACK: f64 = 0.001;

#[test]
fn the_hot_path_of_the_client_allocates_no_more_than_it_did() {
    let mut broker = Broker::start();
    broker.without_limit();
    let is_faulty = injected() == "allocation";
    let extra = || {
        if is_faulty {
            std::hint::black_box(Box::new(7u64));
        }
    };
    let counted = allocations::count(|| broker.client(), MESSAGES, extra);
    let mut text = String::from("\nallocations of the client for each message\n");
    for one in &counted {
        let rest = one.each() - one.promised;
        let falls = if rest > SLACK { format!("should fall by {rest:.3}") } else { "as promised".to_owned() };
        text += &format!("  {:<26} {:>8} messages  {:.4} each  {falls}\n", one.pattern, one.messages, one.each());
    }
    let list: Vec<_> = counted.iter().map(allocations::Counted::json).collect();
    let _ = writeln!(std::io::stdout(), "{text}{}", serde_json::json!({"test": "allocations", "patterns": list}));
    for one in counted {
        let allowed = one.allowed + SLACK;
        assert!(one.each() <= allowed, "{}: {:.4} allocations each, {} may be", one.pattern, one.each(), one.allowed);
        if one.each() < one.allowed - 0.5 && !one.pattern.contains("awaited") {
            note(&format!("{}: {:.4} each: lower its constant", one.pattern, one.each()));
        }
    }
}

#[test]
fn a_subscription_that_is_dropped_within_a_message_leaves_no_memory() {
    let broker = Broker::start();
    let (client, publisher) = (broker.client(), broker.client());
    let mut large = client.subscribe("large").unwrap();
    let mut small = client.subscribe("small").unwrap();
    std::thread::scope(|scope| {
        // More than the rings hold, so it waits for the subscriber.
        scope.spawn(|| publisher.publish("large", vec![7; 8 << 20]).unwrap());
        let mut held = 0;
        while held < 200_000 {
            held += measure(|| assert!(large.next_timeout(Duration::from_millis(1)).unwrap().is_none())).bytes_current;
        }
        let mut dropped = Some(large);
        let left = measure(|| {
            drop(dropped.take());
            client.publish("small", b"").unwrap();
            small.next_timeout(DEADLINE).unwrap().expect("a message in time");
        });
        // What arrived before the broker knew it is no more than the ring holds.
        assert!(left.bytes_current < -held + 20_000, "{} of {held} bytes are left", held + left.bytes_current);
    });
}

//! A ledger: messages that say their numbers, each of which must come once and in order, whatever happens to the
//! broker.

use super::DEADLINE;
use lapce_ipc::client::{Client, Subscription};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The number of the last message.
pub const END: u64 = u64::MAX;

/// Time limits under which a ledger stays whole also on a machine that does not run a thread for seconds: a client that
/// is not back in time has a gap, and a subscriber that does not read is evicted, which is right, and not what these
/// tests are about.
pub const PATIENT: [(&str, &str); 2] =
    [("restart.restart_grace_ms", "60000"), ("delivery.slow_consumer_timeout_ms", "60000")];

/// A message of any size that says its number.
pub fn numbered(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![number as u8; len.max(8)];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Publishes messages of these sizes in turn until it is `done`, then the last one. Answers how many.
#[track_caller]
pub fn publish(client: &Client, topic: &str, sizes: &[usize], done: &AtomicBool) -> u64 {
    let (publisher, mut number) = (client.publisher(topic).unwrap(), 0);
    while !done.load(Ordering::SeqCst) {
        publisher.publish(numbered(number, sizes[number as usize % sizes.len()])).unwrap();
        number += 1;
    }
    client.flush().unwrap();
    publisher.publish(END.to_le_bytes()).unwrap();
    client.flush().unwrap();
    number
}

/// Checks a ledger to its end: every number once and in order. Answers how many.
#[track_caller]
pub fn whole(messages: &mut Subscription, progress: &AtomicU64) -> u64 {
    for expected in 0.. {
        let message = messages.next_timeout(DEADLINE).unwrap().expect("a message in time");
        let number = u64::from_le_bytes(message.payload()[..8].try_into().unwrap());
        if number == END {
            return expected;
        }
        assert_eq!((number, message.sequence()), (expected, expected + 1));
        assert!(message.payload()[8..].iter().all(|byte| *byte == number as u8), "message {number} is whole");
        progress.store(number, Ordering::SeqCst);
    }
    unreachable!("numbers end")
}

/// Tells the publishers that it is over, also when something went wrong.
pub struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

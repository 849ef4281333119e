//! Services and requests of the tests of calls.

#![allow(dead_code, reason = "each program uses its part")]
#![allow(unreachable_pub, reason = "pub is what a test may use")]

use super::DEADLINE;
use lapce_ipc::client::{Client, Request, RequestOptions};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Serves from a thread of its own until the broker ends.
#[track_caller]
pub fn serve<R: AsRef<[u8]>>(
    client: &Client,
    service: &str,
    handler: impl FnMut(&mut Request) -> Result<R, String> + Send + 'static,
) {
    let mut service = client.serve(service).expect("a service");
    std::thread::spawn(move || service.run(handler));
}

/// A request that must have its outcome in so many milliseconds.
pub fn within(ms: u64) -> RequestOptions {
    RequestOptions { timeout: Some(Duration::from_millis(ms)), ..RequestOptions::default() }
}

/// The payload of a request, as text.
pub fn text(request: &Request) -> String {
    String::from_utf8_lossy(request.payload()).into_owned()
}

/// Runs each of `callers` in a thread of its own, while another thread of `client` receives what `other` publishes: it
/// must get each message, in order.
#[track_caller]
pub fn beside_messages(client: &Client, other: &Client, callers: &[&(dyn Fn() + Sync)]) {
    let (mut subscription, is_over) = (client.subscribe("t").expect("a subscription"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let is_over = &is_over;
        scope.spawn(move || {
            let mut expected = 0_u64;
            loop {
                let message = subscription.next_timeout(DEADLINE).expect("no end").expect("a message");
                if message.payload() == b"end" {
                    break;
                }
                assert_eq!(message.payload(), expected.to_le_bytes());
                expected += 1;
            }
        });
        scope.spawn(move || {
            let publisher = other.publisher("t").expect("a topic");
            for number in 0_u64.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                publisher.publish(number.to_le_bytes()).expect("it is published");
            }
            publisher.publish("end").expect("it is published");
        });
        let calling: Vec<_> = callers.iter().map(|caller| scope.spawn(caller)).collect();
        let ended: Vec<_> = calling.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
}

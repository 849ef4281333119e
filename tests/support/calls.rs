//! Services and requests of the tests of calls.

#![allow(dead_code, reason = "each program uses its part")]
#![allow(unreachable_pub, reason = "pub is what a test may use")]

use lapce_ipc::client::{Client, Request, RequestOptions};
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

//! Sends requests, and tells apart how they end.
//!
//! ```sh
//! cargo run --bin ipc_server_main        # in another terminal
//! cargo run --example request
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it got")]

use lapce_ipc::client::{Client, RequestOptions, Result};
use std::time::Duration;

/// Runs the example.
pub fn main() -> Result<()> {
    let client = Client::connect()?;
    // The broker itself serves `echo`.
    let reply = client.request("echo", "hi")?;
    println!("echo: {}", String::from_utf8_lossy(&reply));

    let options = RequestOptions { timeout: Some(Duration::from_secs(1)), ..RequestOptions::default() };
    match client.request_with("example.absent", "hi", options) {
        Ok(reply) => println!("example.absent: {}", String::from_utf8_lossy(&reply)),
        Err(error) if error.is_no_responders() => println!("example.absent: no responders"),
        Err(error) if error.is_deadline_exceeded() => println!("example.absent: no reply in time"),
        Err(error) => return Err(error),
    }
    Ok(())
}

//! Reads the beginning of a reply that does not end by itself, and cancels the rest.
//!
//! ```sh
//! cargo run --bin ipc_server_main        # in another terminal
//! cargo run --example stream_with_cancel
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it got")]

use lapce_ipc::client::{Client, Result};
use std::thread;

/// Runs the example.
pub fn main() -> Result<()> {
    let server = Client::connect()?;
    let service = server.serve("example.count")?;
    let serves = thread::spawn(move || -> Result<()> {
        for request in service.take(1) {
            let mut request = request?;
            let mut number = 0u64;
            // The stream's credit holds the service back; a cancel is an error here, and ends it.
            while request.chunk(number.to_string()).is_ok() {
                number += 1;
            }
            println!("the service was cancelled: {}", request.is_cancelled());
        }
        Ok(())
    });

    let client = Client::connect()?;
    let mut stream = client.request_stream("example.count", "")?;
    for chunk in stream.by_ref().take(5) {
        println!("{}", String::from_utf8_lossy(&chunk?));
    }
    // Dropping a stream that has not ended cancels its request.
    drop(stream);
    serves.join().expect("the service does not panic")
}

//! Offers a service, and uses it from a second connection.
//!
//! ```sh
//! cargo run --bin ipc_server_main        # in another terminal
//! cargo run --example service
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it got")]

use lapce_ipc::client::{Client, Result};
use std::thread;

/// Runs the example.
pub fn main() -> Result<()> {
    let server = Client::connect()?;
    // Requests arrive from here on, also before the thread runs.
    let service = server.serve("example.upper")?;
    // A server that does not end would call `service.run(|request| ...)`.
    let serves = thread::spawn(move || -> Result<()> {
        for request in service.take(3) {
            let request = request?;
            let reply = request.payload().to_ascii_uppercase();
            // An error says that this requester no longer waits: no reason to stop.
            let _ = request.reply(reply);
        }
        Ok(())
    });

    let client = Client::connect()?;
    for word in ["one", "two", "three"] {
        println!("{word}: {}", String::from_utf8_lossy(&client.request("example.upper", word)?));
    }
    serves.join().expect("the service does not panic")
}

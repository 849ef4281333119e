//! Publishes three words and prints what a subscription receives.
//!
//! ```sh
//! cargo run --bin ipc_server_main        # in another terminal
//! cargo run --example pubsub
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it got")]

use lapce_ipc::client::{Client, Result};

/// Runs the example.
pub fn main() -> Result<()> {
    let client = Client::connect()?;
    // The subscription is in force when this returns: it misses none of what follows.
    let subscription = client.subscribe("example.words.*")?;
    for word in ["one", "two", "three"] {
        client.publish("example.words.english", word)?;
    }
    for message in subscription.take(3) {
        let message = message?;
        println!("{}: {}", message.topic(), String::from_utf8_lossy(message.payload()));
    }
    Ok(())
}

//! The async client: a subscription, a service and a request in one task.
//!
//! ```sh
//! cargo run --bin ipc_server_main        # in another terminal
//! cargo run --features tokio --example async
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it got")]

use lapce_ipc::client::asynchronous::AsyncClient;
use lapce_ipc::client::{Error, Result};

/// Runs the example.
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> Result<()> {
    let client = AsyncClient::connect().await?;
    let mut subscription = client.subscribe("example.saved").await?;
    client.publish("example.saved", "src/main.rs").await?;
    if let Some(message) = subscription.next().await {
        let message = message?;
        println!("{}: {}", message.topic(), String::from_utf8_lossy(message.payload()));
    }

    let server = AsyncClient::connect().await?;
    let mut service = server.serve("example.length").await?;
    let serves = async {
        if let Some(request) = service.next().await {
            let request = request?;
            let length = request.payload().len().to_string();
            // An error says that the requester no longer waits.
            let _ = request.reply(length).await;
        }
        Ok::<(), Error>(())
    };
    let asks = async {
        let reply = client.request("example.length", "hello").await?;
        println!("length: {}", String::from_utf8_lossy(&reply));
        Ok::<(), Error>(())
    };
    tokio::try_join!(serves, asks)?;
    Ok(())
}

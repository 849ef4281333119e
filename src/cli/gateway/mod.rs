//! `gateway`: the HTTP API of OpenAI in front of services of the broker, for programs that speak no other.
//!
//! Zed's edit predictions, llama.vscode and every OpenAI library share the supervised engine in this way. It serves
//! `/v1/completions`, `/v1/chat/completions` and `/v1/models`, on a loopback address or a Unix socket, to programs that
//! send its token. A closed connection cancels the request at the broker, and so at the engine.
//!
//! | file | idea |
//! |---|---|
//! | `server` | the HTTP server: access, paths |
//! | `input` | requests of the API as typed messages |
//! | `output` | typed replies as JSON of the API |
//! | `relay` | a reply as the body of a response |
//! | `error` | errors of the API |
//! | `token` | the token and its file |

mod error;
mod input;
mod output;
mod relay;
mod server;
mod token;

use super::exit::EndSignals;
use super::failure::{Code, Failure};
use super::logging::{log_to_stderr, value};
use super::options::{WaitOption, at_least_one, duration};
use super::target::{BrokerTarget, log_states};
use crate::broker::{self, Access, Bound};
use crate::client::asynchronous::AsyncClient;
use crate::client::{self, Builder, Name};
use crate::config::HealthServer;
use crate::sync::AtomicU64;
use clap::Args;
use server::{Gateway, Listener};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;
use token::Token;

#[derive(Debug, Args)]
pub(super) struct GatewayArgs {
    /// Where to listen: a loopback address with a port, or unix:PATH
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8421", value_parser = address)]
    listen: Address,
    /// The service that completes
    #[arg(long, value_name = "NAME", default_value = "ai.inline-completion")]
    service: String,
    /// The service that chats
    #[arg(long, value_name = "NAME", default_value = "ai.chat")]
    chat_service: String,
    /// The file with the token, created if there is none; without it, each start makes a new token in a file in
    /// XDG_RUNTIME_DIR
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// Require no token
    #[arg(long, conflicts_with = "token_file")]
    no_token: bool,
    /// The largest request body
    #[arg(long, value_name = "BYTES", default_value = "4194304", value_parser = at_least_one)]
    max_body: u64,
    /// Connections at a time; more wait
    #[arg(long, value_name = "COUNT", default_value = "64", value_parser = at_least_one)]
    max_connections: u64,
    /// Limit of the time for outstanding requests after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    drain_timeout: Duration,
    #[command(flatten)]
    wait: WaitOption,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc gateway                                     listen on 127.0.0.1:8421
  lapce-ipc gateway --token-file ~/.config/ipc-token    keep the token, for programs that have it in their settings
  lapce-ipc gateway --listen unix:/run/user/1000/ai     listen on a Unix socket
  curl -H \"Authorization: Bearer $(cat TOKEN_FILE)\" -H 'Content-Type: application/json' \\
      -d '{\"prompt\": \"fn main() {\", \"suffix\": \"}\", \"stream\": true}' http://127.0.0.1:8421/v1/completions

It serves /v1/completions, /v1/chat/completions and /v1/models. The log names the address and the token's file. A \
closed connection cancels its request at the engine. The model's name is passed back and has no other effect: the \
engine behind the service has one model.

SIGTERM or SIGINT: outstanding requests are finished, then the exit code is 0.";

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

fn address(text: &str) -> Result<Address, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return if path.is_empty() { Err("expected unix:PATH".to_owned()) } else { Ok(Address::Unix(path.into())) };
    }
    let text = text.replace("localhost:", "127.0.0.1:");
    let address: SocketAddr = text.parse().map_err(|_| "expected ADDRESS:PORT or unix:PATH".to_owned())?;
    if address.ip().is_loopback() { Ok(Address::Tcp(address)) } else { Err("not a loopback address".to_owned()) }
}

/// Serves until a signal.
///
/// # Errors
///
/// If an option is invalid, the address is taken, there is no broker, or there is no token.
pub(super) fn run(target: &BrokerTarget, args: &GatewayArgs) -> Result<(), Failure> {
    for service in [&args.service, &args.chat_service] {
        Name::parse(service).map_err(client::Error::from)?;
    }
    log_to_stderr("info")?;
    let builder = target.persistent_builder("gateway", args.wait.wait)?;
    actix_web::rt::System::new().block_on(serve(builder, args))
}

async fn serve(builder: Builder, args: &GatewayArgs) -> Result<(), Failure> {
    let mut signals = EndSignals::new()?;
    let client = AsyncClient::connect_with(builder).await?;
    let states = tokio::spawn(log_states(client.events()));
    let (listener, _bound, name, shown) = bind(&args.listen)?;
    let token = match &args.token_file {
        _ if args.no_token => None,
        Some(path) => Some(Token::kept(path)?),
        None => Some(Token::generated(std::env::var_os("XDG_RUNTIME_DIR"), &name)?),
    };
    let gateway = Gateway {
        client: client.clone(),
        access: Access::new(&HealthServer::default(), token.as_ref().map(|token| token.token.clone())),
        service: args.service.clone(),
        chat_service: args.chat_service.clone(),
        max_body: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        next_id: AtomicU64::new(1),
    };
    let unavailable = |error: std::io::Error| Failure::new(Code::Unavailable, format!("cannot serve HTTP: {error}"));
    let max_connections = usize::try_from(args.max_connections).unwrap_or(usize::MAX);
    let server = server::server(gateway, listener, max_connections, args.drain_timeout.as_secs().max(1));
    let server = server.map_err(unavailable)?;
    let handle = server.handle();
    let running = tokio::spawn(server);
    match &token {
        Some(token) => log::info!("gateway listening url={shown} token_file={}", value(token.path.display())),
        None => log::warn!("gateway listening url={shown} token_file=none"),
    }
    signals.next().await;
    log::info!("draining drain_timeout_ms={}", args.drain_timeout.as_millis());
    tokio::select! {
        () = handle.stop(true) => {}
        () = signals.next() => handle.stop(false).await,
    }
    let _ = running.await;
    states.abort();
    client.close();
    log::info!("ended");
    Ok(())
}

/// The socket; what keeps its path; its name in the token's file; the URL in the log.
fn bind(address: &Address) -> Result<(Listener, Option<Bound>, String, String), Failure> {
    match address {
        Address::Tcp(address) => {
            let failed = |error| Failure::new(Code::Unavailable, format!("cannot listen on {address}: {error}"));
            let listener = TcpListener::bind(address).map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            Ok((Listener::Tcp(listener), None, bound.port().to_string(), format!("http://{bound}/v1")))
        }
        Address::Unix(path) => {
            let failed = |error: broker::SocketError| Failure::new(Code::Unavailable, error.to_string());
            let (bound, listener) = broker::bind(path, 0o600).map_err(failed)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok((Listener::Unix(listener), Some(bound), name, format!("unix:{}", value(path.display()))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_and_unix_sockets_are_listened_on() {
        assert_eq!(address("127.0.0.1:80"), Ok(Address::Tcp(([127, 0, 0, 1], 80).into())));
        assert_eq!(address("localhost:80"), address("127.0.0.1:80"));
        assert!(matches!(address("[::1]:0"), Ok(Address::Tcp(_))));
        assert_eq!(address("unix:/run/a"), Ok(Address::Unix("/run/a".into())));
        for text in ["0.0.0.0:80", "10.0.0.1:80", "[::]:80", "127.0.0.1", "unix:", "", "host:80"] {
            assert!(address(text).is_err(), "{text}");
        }
    }
}

//! `lsp`: a language server that passes inline completions between an editor and an engine behind the broker.
//!
//! | file | idea |
//! |---|---|
//! | `framing` | the base protocol, with limits |
//! | `protocol` | the messages, as far as they are needed |
//! | `positions` | positions and offsets |
//! | `documents` | the texts of the open documents |
//! | `suggestion` | what of a completion is inserted; typing through |
//! | `completions` | requests from arrival to reply: debounce, supersede, staleness |
//! | `session` | from `initialize` to `exit` |
//! | `replies` | the engine's chunks |
//! | `broker` | the connection, and calls |
//! | `start` | `--start` |
//! | `bridge` | the loop: client, broker and time |
//!
//! Everything up to `session` is pure; `bridge` tells it the time, and does what it says.
//!
//! The default debounce, 75 ms: of 50 keys at 70 to 240 ms, 45 reach the engine, and a completion comes 75 ms later
//! than without. Fast typing below that costs one request. 150 ms would leave 11 of them (`what_the_debounce_saves` in
//! `tests/lsp_latency.rs`); a request that is superseded before its first token costs the engine none.

mod bridge;
mod broker;
mod completions;
mod documents;
mod framing;
mod positions;
mod protocol;
mod replies;
mod session;
mod start;
mod suggestion;

use super::failure::{Code, Failure};
use super::logging::log_to_stderr;
use super::options::{at_least_one, duration};
use super::serve;
use super::target::BrokerTarget;
use crate::client::{self, Name, ReconnectOptions, RequestOptions, WaitStrategy};
use bridge::Bridge;
use clap::Args;
use completions::Settings;
use start::Starter;
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct LspArgs {
    /// The service that completes
    #[arg(long, value_name = "NAME", default_value = "ai.inline-completion")]
    service: String,
    /// How long to wait for the next key before an automatic request goes to the engine; 0 for not at all
    #[arg(long, value_name = "TIME", default_value = "75ms", value_parser = duration_or_zero)]
    debounce: Duration,
    /// The most tokens of a completion
    #[arg(long, value_name = "COUNT", default_value = "128", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_tokens: u32,
    /// The longest time for a completion
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = duration)]
    timeout: Duration,
    /// The most bytes of text before the cursor that the engine gets
    #[arg(long, value_name = "BYTES", default_value = "8192", value_parser = at_least_one)]
    prefix_bytes: u64,
    /// The most bytes of text behind the cursor that the engine gets
    #[arg(long, value_name = "BYTES", default_value = "2048")]
    suffix_bytes: u64,
    /// The most bytes of all open documents together; beyond it, those that were not used for long are forgotten
    #[arg(long, value_name = "BYTES", default_value = "67108864", value_parser = at_least_one)]
    documents_bytes: u64,
    /// Also serve textDocument/completion. Lapce shows the list of the first server that replies, and no other
    #[arg(long)]
    completion: bool,
    /// Start a broker if none runs; it goes on when the editor ends
    #[arg(long)]
    start: bool,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc lsp --start                 what an editor starts: also a broker, if none runs
  lapce-ipc lsp --service ai.fast       complete by another service
  lapce-ipc lsp --debounce 0            send each key to the engine
  lapce-ipc lsp --completion            for editors without inline completion

The server speaks the Language Server Protocol on stdin and stdout: textDocument/inlineCompletion (LSP 3.18). Each \
request is a streamed request to the service, with the typed messages completion_request and completion_chunk as \
JSON. A newer request, a change of the document and $/cancelRequest cancel it at the engine. A superseded request \
gets the error -32801. Without a broker or an engine requests get the error -32803, and window/showMessage tells the \
user once; the server reconnects by itself.

The broker that --start starts logs to $XDG_STATE_HOME/lapce-ipc/broker.log (~/.local/state/lapce-ipc/broker.log), or \
into $XDG_RUNTIME_DIR. RUST_LOG sets the log level of this server on stderr (default: warn).";

/// A time, or 0 without a unit.
fn duration_or_zero(text: &str) -> Result<Duration, String> {
    match text.trim_start_matches('0') {
        "" | "ms" | "s" if text.starts_with('0') => Ok(Duration::ZERO),
        _ => duration(text),
    }
}

/// Serves until the end of input.
///
/// # Errors
///
/// If an option is invalid, or the client breaks the framing of its messages.
pub(super) fn run(target: &BrokerTarget, args: &LspArgs) -> Result<(), Failure> {
    Name::parse(&args.service).map_err(client::Error::from)?;
    log_to_stderr("warn")?;
    let bytes = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    let settings = Settings {
        service: args.service.clone(),
        debounce: args.debounce,
        max_tokens: args.max_tokens,
        prefix_bytes: bytes(args.prefix_bytes),
        suffix_bytes: bytes(args.suffix_bytes),
        documents_bytes: bytes(args.documents_bytes),
        completion: args.completion,
    };
    let options = RequestOptions { timeout: Some(args.timeout), ..RequestOptions::default() };
    let reconnect = ReconnectOptions { max_attempts: None, ..ReconnectOptions::default() };
    let builder = target.builder("lsp", WaitStrategy::Block)?.reconnect(reconnect);
    let named = target.named_socket()?;
    let starter = args.start.then(|| Starter::new(named, target.config.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.map_err(|error| Failure::new(Code::Unavailable, format!("cannot start: {error}")))?;
    let ended = runtime.block_on(Bridge::new(settings, options).run(builder, starter));
    // A thread may be waiting for a broker.
    runtime.shutdown_background();
    ended
}

/// Runs the broker that `--start` starts: in a session of its own, so that no signal of the editor's terminal ends it.
///
/// # Errors
///
/// Those of the broker.
pub(super) fn serve_in_session(target: &BrokerTarget, args: &serve::ServeArgs) -> Result<(), Failure> {
    rustix::process::setsid()
        .map_err(|error| Failure::new(Code::Unavailable, format!("cannot make a session: {error}")))?;
    serve::run(target, args)
}

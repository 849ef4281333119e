//! `connect`: JSON lines on stdin and stdout, for programs without a binding of their own.
//!
//! | file | idea |
//! |---|---|
//! | `protocol` | the lines: operations and events |
//! | `lines` | stdin and stdout, with limits |
//! | `session` | the operations under way, from first line to last |
//! | `work` | one operation: a subscription, a request, a service and its calls |

mod lines;
mod protocol;
mod session;
mod work;

use super::exit::exit_with_reader;
use super::failure::{Code, Failure};
use super::logging::queued_stderr;
use super::options::at_least_one;
use super::target::BrokerTarget;
use crate::client::WaitStrategy;
use clap::Args;
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct ConnectArgs {
    /// The longest line of input, in bytes; longer ones are refused
    #[arg(long, value_name = "BYTES", default_value = "67108864", value_parser = at_least_one)]
    max_line_bytes: u64,
    /// The most subscriptions, services, requests and calls at a time
    #[arg(long, value_name = "N", default_value = "1024", value_parser = at_least_one)]
    max_operations: u64,
    /// How long a requester that takes none of 64 chunks may delay further lines, in ms; then its call ends
    #[arg(long, value_name = "MS", default_value = "1000")]
    call_patience_ms: u64,
}

pub(super) const EXAMPLES: &str = r#"
Each line of input is an operation, a JSON object with `op`; each line of output is an event, an object with `event`.
`id` is a number or a text of the program's own; events repeat it. Payloads: `data` (text), `data_base64` or `json`
(any value); in events `data`, or `data_base64` if the payload is no UTF-8.

  {"op":"pub","topic":"a.b","data":"hi","id":1}        {"event":"done","id":1}    without `id` no event
  {"op":"sub","id":2,"pattern":"a.>"}                  {"event":"ready","id":2}
                                                       {"event":"message","id":2,"topic":"a.b","publisher":7,...}
  {"op":"request","id":3,"service":"echo","data":"x"}  {"event":"reply","id":3,"data":"x"}
  {"op":"request","id":4,...,"stream":true}            {"event":"chunk","id":4,"data":"x"} ... {"event":"end","id":4}
  {"op":"serve","id":5,"service":"upper"}              {"event":"ready","id":5}
                                                       {"event":"request","id":5,"call":1,"data":"x","stream":false,...}
  {"op":"chunk","call":1,"data":"X"}                   of a streamed reply, any number
  {"op":"reply","call":1,"data":"X"}                   the reply; without a payload it ends a streamed one
  {"op":"fail","call":1,"message":"why"}               an error reply that the breaker counts
  {"op":"refuse","call":1,"message":"why"}             one that it does not count: the request was wrong
                                                       {"event":"cancelled","id":5,"call":1}
  {"op":"cancel","id":3}                               ends a request, a subscription or a service
                                                       {"event":"end","id":2} or {"event":"error","id":3,...}

Other members: `policy` of sub (block, drop-oldest, drop-newest), `timeout_ms` of request, `max_in_flight` of serve.
Errors: {"event":"error","id":3,"code":"no_responders","message":"..."}; of a line that is no operation with `line`, its
number; with `call` if it is about that call, and `overloaded` if its requester does not take the reply. Of the
connection: `connected`, `disconnected`. At the end of the input, subscriptions and services end; publishes and requests
are finished first.

Example:
  echo '{"op":"request","id":1,"service":"echo","data":"hi"}' | lapce-ipc connect
"#;

/// Carries out the operations on stdin until its end.
///
/// # Errors
///
/// If there is no broker, it closes the connection, or stdin or stdout fails.
pub(super) fn run(target: &BrokerTarget, args: &ConnectArgs) -> Result<(), Failure> {
    queued_stderr()?;
    let builder = target.persistent_builder("connect", WaitStrategy::Adaptive)?;
    let to_size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Unavailable, format!("cannot start: {error}")))?;
    let (input, output) = (lines::read(to_size(args.max_line_bytes))?, lines::write()?);
    exit_with_reader();
    let (max_operations, patience) = (to_size(args.max_operations), Duration::from_millis(args.call_patience_ms));
    let ended = runtime.block_on(session::run(builder, input, output.events, max_operations, patience));
    // No task holds the sender of events any more.
    drop(runtime);
    match output.writer.join() {
        Ok(written) => written.and(ended),
        Err(_) => ended,
    }
}

//! `request`: asks a service.

use super::data::DataArgs;
use super::failure::{Code, Failure};
use super::options::{WaitOption, duration};
use super::output::{Out, plain};
use super::target::BrokerTarget;
use crate::client::{Client, Error, ErrorDetail as ErrorKind, RequestOptions};
use clap::Args;
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct RequestArgs {
    /// Name of the service
    service: String,
    #[command(flatten)]
    data: DataArgs,
    /// Deadline, connecting included: 500ms, 2s, 1m; at most the broker's limits.max_request_timeout_ms, by default its
    /// limits.default_request_timeout_ms
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Print the reply's chunks as they arrive
    #[arg(long)]
    stream: bool,
    /// Print the reply without a newline at the end
    #[arg(long)]
    raw: bool,
    /// With --stream: limit of the time to the first chunk; default limits.stream_first_chunk_ms
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "stream")]
    first_chunk: Option<Duration>,
    /// With --stream: limit of the time between chunks; default limits.stream_idle_ms
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "stream")]
    idle: Option<Duration>,
    #[command(flatten)]
    wait: WaitOption,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc request echo hi
  lapce-ipc request format @src/main.rs --raw --timeout 5s
  lapce-ipc request chat 'why is the sky blue?' --stream

An error reply goes to stderr, and the exit code is 1. No responders: 69. No reply in time, or a service whose \
breaker is open: 75.";

/// Sends the request and prints the reply.
///
/// # Errors
///
/// The outcome of a request without a reply; or an error before it was sent or while printing.
pub(super) fn run(target: &BrokerTarget, args: &RequestArgs) -> Result<(), Failure> {
    let mut out = Out::new()?;
    let (client, left) = match args.timeout {
        Some(timeout) => {
            let (client, left) = target.connect_within("request", args.wait.wait, timeout)?;
            let longest = Duration::from_millis(client.limits().max_request_timeout_ms.into());
            if timeout > longest {
                let message =
                    format!("--timeout {timeout:?} is longer than limits.max_request_timeout_ms, {longest:?}");
                return Err(Failure::new(Code::Usage, message));
            }
            (client, Some(left))
        }
        None => (target.connect("request", args.wait.wait)?, None),
    };
    let payload = args.data.get().read(client.limits().max_message_size)?;
    let options =
        RequestOptions { timeout: left, first_chunk: args.first_chunk, idle: args.idle, ..RequestOptions::default() };
    let failed = |error| failed(error, args, &client);
    if args.stream {
        for chunk in client.request_stream_with(&args.service, payload, options).map_err(failed)? {
            out.write(&chunk.map_err(failed)?)?;
            out.flush()?;
        }
    } else {
        out.write(&client.request_with(&args.service, payload, options).map_err(failed)?)?;
    }
    if !args.raw {
        out.write(b"\n")?;
    }
    out.flush()
}

/// The outcome with its context; an error reply or an invalid request needs none.
fn failed(error: Error, args: &RequestArgs, client: &Client) -> Failure {
    let is_outcome =
        matches!(error.detail(), ErrorKind::Outcome { .. } | ErrorKind::Disconnected(_) | ErrorKind::Closed { .. });
    let failure = Failure::from(error);
    if !is_outcome {
        return failure;
    }
    let default = Duration::from_millis(client.limits().default_request_timeout_ms.into());
    let (timeout, socket) = (args.timeout.unwrap_or(default), client.socket().to_string_lossy());
    failure.about(format_args!("service {}, timeout {timeout:?}, socket {}", args.service, plain(&socket)))
}

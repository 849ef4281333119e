//! `request`: asks a service.

use super::args::{WaitOption, duration};
use super::data::Data;
use super::exit::Failure;
use super::output::Out;
use super::place::Place;
use crate::client::RequestOptions;
use clap::Args;
use std::ffi::OsString;
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct RequestArgs {
    /// Whom to ask
    service: String,
    /// What to ask; `-` reads it from stdin, `@FILE` from a file; nothing is an empty message
    #[arg(value_name = "DATA | - | @FILE")]
    data: Option<OsString>,
    /// How long it may take: 500ms, 2s, 1m; what the broker says if not given
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Print the reply's chunks as they come
    #[arg(long)]
    stream: bool,
    /// Print the bytes as they are, without a newline at the end
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    wait: WaitOption,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc request echo hi
  lapce-ipc request format @src/main.rs --raw --timeout 5s
  lapce-ipc request chat 'why is the sky blue?' --stream

An error reply goes to stderr, and the exit code is 1. Nobody who serves it: 69. No reply in time, or
the service has failed so often that its breaker is open: 75.";

/// Asks and prints the reply.
///
/// # Errors
///
/// How the request ended, if not by a reply; or what kept it from being sent or printed.
pub(super) fn run(place: &Place, args: &RequestArgs) -> Result<(), Failure> {
    let client = place.connect("request", args.wait.wait)?;
    let payload = Data::new(args.data.as_ref()).read(client.limits().max_message_size)?;
    let options = RequestOptions { timeout: args.timeout, ..RequestOptions::default() };
    let mut out = Out::new()?;
    if args.stream {
        for chunk in client.request_stream_with(&args.service, payload, options)? {
            out.write(&chunk?)?;
            out.flush()?;
        }
    } else {
        out.write(&client.request_with(&args.service, payload, options)?)?;
    }
    if !args.raw {
        out.write(b"\n")?;
    }
    out.flush()
}

//! `pub`: publishes.

use super::data::DataArgs;
use super::failure::Failure;
use super::options::at_least_one;
use super::output::note;
use super::target::BrokerTarget;
use crate::client::WaitStrategy;
use clap::Args;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
pub(super) struct PubArgs {
    /// Topic: tokens joined by dots
    topic: String,
    #[command(flatten)]
    data: DataArgs,
    /// Publish the message N times
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    count: u64,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc pub lapce.ai.completion hello
  lapce-ipc pub lapce.files @Cargo.toml
  date | lapce-ipc pub lapce.clock -
  lapce-ipc pub lapce.handle --data @someone

The command exits when the broker has accepted the message for all current subscribers.";

/// How long the work may take without a progress line on a terminal.
const PROGRESS: Duration = Duration::from_secs(2);

/// Publishes, and waits until it is routed.
///
/// # Errors
///
/// If there is no broker, or the message cannot be read or sent.
pub(super) fn run(target: &BrokerTarget, args: &PubArgs) -> Result<(), Failure> {
    let client = target.connect("pub", WaitStrategy::Adaptive)?;
    let payload = args.data.get().read(client.limits().max_message_size)?;
    let publisher = client.publisher(&args.topic)?;
    let watched = std::io::stderr().is_terminal();
    let mut reported = Instant::now();
    for number in 1..=args.count {
        publisher.publish(&payload)?;
        if watched && number % 256 == 0 && reported.elapsed() >= PROGRESS {
            reported = Instant::now();
            note(format_args!("published {number} of {}", args.count));
        }
    }
    Ok(client.flush()?)
}

//! `sub`: prints published messages.
//!
//! By default nothing is lost: publishers wait while this process is slow, and the broker evicts its subscription if it
//! reads nothing for `slow_consumer_timeout_ms`, so a pager does not delay publishers for long. With a `drop_*` policy
//! publishers wait only briefly, and drops are reported. The thread that reports connection states also receives
//! messages from shared memory while stdout is blocked.

use super::exit::exit_with_reader;
use super::failure::Failure;
use super::logging::queued_stderr;
use super::options::{Policy, WaitOption, at_least_one};
use super::output::{Out, note};
use super::target::BrokerTarget;
use crate::client::{self, Message, Pattern, SubscribeOptions, Subscription};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde::Serialize;
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
pub(super) struct SubArgs {
    /// Topic pattern: `*` matches one token, a final `>` one or more
    pattern: String,
    /// Exit after N messages
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    count: Option<u64>,
    /// Print one JSON object per line: topic, publisher, sequence, and data or data_base64
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// Print the payloads only, without separators
    #[arg(long)]
    raw: bool,
    /// Print the topic and a space before each message; always on for events of the broker (below `$sys.`), except with
    /// `--raw`
    #[arg(short, long, conflicts_with_all = ["json", "raw"])]
    topics: bool,
    /// Delivery policy of a subscription without credit: publishers wait, or the oldest or newest messages are dropped
    #[arg(long, value_name = "POLICY", default_value = "block")]
    policy: Policy,
    /// Credit for unread messages, in bytes; the broker's maximum by default
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
    capacity: u32,
    #[command(flatten)]
    wait: WaitOption,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc sub 'lapce.>'
  lapce-ipc sub 'lapce.>' --topics
  lapce-ipc sub lapce.ai.completion --count 1 --raw >answer
  lapce-ipc sub '$sys.>' --json | jq .topic

`subscribed` on stderr: the subscription is in force. If the broker ends, the command reconnects and \
reports it on stderr.

If messages arrive faster than they are printed, publishers wait (--policy block), so a burst of 50,000 messages \
into a file is printed whole. If stdout is blocked for so long that the broker evicts the subscription \
(delivery.slow_consumer_timeout_ms), the command prints the messages it has and exits with 75. With --policy \
drop-oldest or drop-newest publishers wait for at most delivery.drop_grace_ms; drops are reported on stderr.";

/// The interval of reports of drops.
const REPORT: Duration = Duration::from_secs(1);

/// Prints messages until there were enough. A broker that ends is waited for.
///
/// # Errors
///
/// If there is no broker, it closes the connection or evicts the subscription, or stdout fails.
pub(super) fn run(target: &BrokerTarget, args: &SubArgs) -> Result<(), Failure> {
    Pattern::parse(&args.pattern).map_err(client::Error::from)?;
    let mut out = Out::new()?;
    queued_stderr()?;
    let client = target.connect_persistent("sub", args.wait.wait)?;
    let options = SubscribeOptions { policy: args.policy.into(), capacity_bytes: args.capacity };
    let mut subscription = client.subscribe_with(&args.pattern, options)?;
    exit_with_reader();
    note(format_args!("subscribed"));

    let printed = print_all(&mut out, args, &mut subscription);
    // Also what came before an end.
    out.flush()?;
    printed
}

fn print_all(out: &mut Out, args: &SubArgs, subscription: &mut Subscription) -> Result<(), Failure> {
    let mut drops = Drops { reported: 0, at: Instant::now() };
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let message = match subscription.try_next()? {
            Some(message) => message,
            None => {
                out.flush()?;
                drops.report(subscription, Duration::ZERO);
                let Some(message) = subscription.next().transpose()? else { break };
                message
            }
        };
        print(out, args, &message)?;
        drops.report(subscription, REPORT);
        left -= 1;
    }
    drops.report(subscription, Duration::ZERO);
    Ok(())
}

/// Drops reported so far.
struct Drops {
    reported: u64,
    at: Instant,
}

impl Drops {
    /// Reports new drops, at most once per interval.
    fn report(&mut self, subscription: &Subscription, interval: Duration) {
        let new = subscription.dropped().saturating_sub(self.reported);
        if new > 0 && self.at.elapsed() >= interval {
            self.reported += new;
            self.at = Instant::now();
            note(format_args!("dropped {new} message{}", if new == 1 { "" } else { "s" }));
        }
    }
}

/// A message as JSON.
#[derive(Serialize)]
struct Line<'a> {
    topic: &'a str,
    publisher: u32,
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

fn print(out: &mut Out, args: &SubArgs, message: &Message) -> Result<(), Failure> {
    if args.json {
        let data = std::str::from_utf8(message.payload()).ok();
        let line = Line {
            topic: message.topic(),
            publisher: message.publisher(),
            sequence: message.sequence(),
            data,
            data_base64: data.is_none().then(|| STANDARD.encode(message.payload())),
        };
        // Strings and numbers always serialise.
        out.write(&serde_json::to_vec(&line).unwrap_or_default())?;
    } else {
        // The text of an event of the broker does not name the event: its topic does.
        if args.topics || !args.raw && message.topic().starts_with("$sys.") {
            out.write(message.topic().as_bytes())?;
            out.write(b" ")?;
        }
        out.write(message.payload())?;
    }
    if !args.raw {
        out.write(b"\n")?;
    }
    out.message_ends()
}

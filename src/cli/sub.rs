//! `sub`: prints what is published.
//!
//! The subscription drops its oldest messages when we are slow, and tells of it. The thread that tells of the
//! connection takes what arrives out of shared memory, also while stdout takes nothing: a pager that waits for a key
//! must not hold up the broker.

use super::args::{WaitOption, at_least_one};
use super::exit::Failure;
use super::logging::unhurried_stderr;
use super::output::{Out, leave_with_reader, note};
use super::place::Place;
use crate::client::{self, DeliveryPolicy, Message, Pattern, SubscribeOptions, Subscription};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde::Serialize;
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
pub(super) struct SubArgs {
    /// Which topics: `*` stands for one name, a final `>` for one or more
    pattern: String,
    /// Exit after N messages
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    count: Option<u64>,
    /// Print a JSON object a line: topic, publisher, sequence, and data or data_base64
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// Print the bytes as they are, and nothing between messages
    #[arg(long)]
    raw: bool,
    /// Print the topic and a space before each message; an event of the broker, below `$sys.`, always has them, but not
    /// with `--raw`
    #[arg(short, long, conflicts_with_all = ["json", "raw"])]
    topics: bool,
    #[command(flatten)]
    wait: WaitOption,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc sub 'lapce.>'
  lapce-ipc sub 'lapce.>' --topics
  lapce-ipc sub lapce.ai.completion --count 1 --raw >answer
  lapce-ipc sub '$sys.>' --json | jq .topic

`subscribed` on stderr says that the subscription is in force. When more arrives than is printed, the oldest messages \
are dropped, and stderr says how many. A broker that ends is waited for, and stderr says so.";

/// How often drops are reported while messages keep coming.
const REPORT: Duration = Duration::from_secs(1);

/// Prints messages until there were enough. A broker that ends is waited for.
///
/// # Errors
///
/// If there is no broker, it wants no more of us, or stdout fails.
pub(super) fn run(place: &Place, args: &SubArgs) -> Result<(), Failure> {
    Pattern::parse(&args.pattern).map_err(client::Error::from)?;
    let mut out = Out::new()?;
    unhurried_stderr()?;
    let client = place.connect_to_stay("sub", args.wait.wait)?;
    let options = SubscribeOptions { policy: DeliveryPolicy::DropOldest, ..SubscribeOptions::default() };
    let mut subscription = client.subscribe_with(&args.pattern, options)?;
    leave_with_reader();
    note(format_args!("subscribed"));

    let mut drops = Drops { told: 0, at: Instant::now() };
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let message = match subscription.try_next()? {
            Some(message) => message,
            None => {
                out.flush()?;
                drops.tell(&subscription, Duration::ZERO);
                let Some(message) = subscription.next().transpose()? else { break };
                message
            }
        };
        print(&mut out, args, &message)?;
        drops.tell(&subscription, REPORT);
        left -= 1;
    }
    out.flush()?;
    drops.tell(&subscription, Duration::ZERO);
    Ok(())
}

/// What was said about dropped messages.
struct Drops {
    told: u64,
    at: Instant,
}

impl Drops {
    /// Tells of new drops, if the last time was so long ago.
    fn tell(&mut self, subscription: &Subscription, interval: Duration) {
        let new = subscription.dropped().saturating_sub(self.told);
        if new > 0 && self.at.elapsed() >= interval {
            self.told += new;
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

//! `upstream`: the processes that the broker dials, and dialling one at once.

use super::failure::{Code, Failure};
use super::output::{Out, note, plain};
use super::status::table;
use super::target::BrokerTarget;
use crate::client::{ActorState, Client, UpstreamStatus, WaitStrategy, age};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::time::{Duration, Instant};

/// How long `dial` waits for the result of the attempt: longer than a handshake may take by default.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// The poll interval meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub(super) struct UpstreamArgs {
    #[command(subcommand)]
    action: Action,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show every upstream: whether it is connected, and why not
    List,
    /// Dial an upstream now instead of after its backoff, also one that was given up
    Dial {
        /// The name of the upstream in the configuration
        name: String,
    },
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc upstream list
  lapce-ipc upstream dial workspace     exit code 69 if it cannot be connected

Unknown name: exit code 1.";

/// Lists upstreams, or dials one and shows it.
///
/// # Errors
///
/// If there is no broker, it has no such upstream, or the upstream cannot be connected.
pub(super) fn run(target: &BrokerTarget, args: &UpstreamArgs) -> Result<(), Failure> {
    let client = target.connect("upstream", WaitStrategy::Block)?;
    match &args.action {
        Action::List => {
            let all = client.upstreams()?;
            print(&all, &all, args.json)
        }
        Action::Dial { name } => {
            let before = client.dial_upstream(name).map_err(|error| match error.is_unknown() {
                true => Failure::new(Code::ErrorReply, error.to_string()).hint("lapce-ipc upstream list shows them"),
                false => Failure::of_order(error),
            })?;
            let now = result(&client, before)?;
            print(&now, std::slice::from_ref(&now), args.json)?;
            if now.connection.is_some() {
                return Ok(());
            }
            let reason = plain(now.last_reason.as_deref().unwrap_or("no result yet"));
            Err(Failure::new(Code::Unavailable, format!("upstream {name} is not connected: {reason}")))
        }
    }
}

/// The state once the attempt has succeeded or failed, at most for a time.
fn result(client: &Client, before: UpstreamStatus) -> Result<UpstreamStatus, Failure> {
    let until = Instant::now() + DIAL_TIMEOUT;
    let mut now = before.clone();
    while now.connection.is_none() && now.restarts == before.restarts && Instant::now() < until {
        std::thread::sleep(POLL_INTERVAL);
        match client.upstreams()?.into_iter().find(|upstream| upstream.name == before.name) {
            Some(found) => now = found,
            None => note(format_args!("upstream {} is no longer configured", before.name)),
        }
    }
    Ok(now)
}

fn print(value: &(impl Serialize + ?Sized), upstreams: &[UpstreamStatus], json: bool) -> Result<(), Failure> {
    let mut out = Out::new()?;
    if json {
        // Strings and numbers always serialise.
        out.write(&serde_json::to_vec_pretty(value).unwrap_or_default())?;
        out.write(b"\n")?;
    } else {
        let mut text = String::new();
        table(&mut text, "upstreams", &HEAD, upstreams.iter().map(row).collect());
        out.write(text.trim_start().as_bytes())?;
    }
    out.flush()
}

const HEAD: [&str; 6] = ["name", "state", "connection", "restarts", "socket", "last reason"];

fn row(upstream: &UpstreamStatus) -> Vec<String> {
    let state = match (upstream.connection, upstream.state) {
        (Some(_), _) => "connected".to_owned(),
        (None, ActorState::Running) => "dialling".to_owned(),
        (None, ActorState::Restarting { next_in_ms }) => format!("redial in {}", age(next_in_ms)),
        (None, ActorState::GaveUp) => "gave up".to_owned(),
        (None, ActorState::Stopped) => "stopped".to_owned(),
    };
    vec![
        upstream.name.to_string(),
        state,
        upstream.connection.map_or_else(|| "-".to_owned(), |id| id.to_string()),
        upstream.restarts.to_string(),
        plain(&upstream.socket),
        upstream.last_reason.as_deref().map_or_else(|| "-".to_owned(), plain),
    ]
}

//! `breaker`: lists the services' circuit breakers, and forces one open or closed.

use super::failure::Failure;
use super::options::duration;
use super::output::Out;
use super::status::table;
use super::target::BrokerTarget;
use crate::client::{BreakerOrder, BreakerState, BreakerStatus, WaitStrategy, age};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct BreakerArgs {
    #[command(subcommand)]
    action: Action,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the breaker of each service that has or had a responder
    List,
    /// Reject every request
    Open(Forced),
    /// Admit every request, whatever its outcome
    Close(Forced),
    /// Return to automatic mode, starting closed
    Auto {
        /// The service
        service: String,
    },
}

#[derive(Debug, Args)]
struct Forced {
    /// The service
    service: String,
    /// Duration: 30s, 5m, 1h; until `auto` by default
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    time: Option<Duration>,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc breaker list
  lapce-ipc breaker open chat --for 5m  reject requests to `chat` for five minutes
  lapce-ipc breaker close chat          admit all requests until the next command
  lapce-ipc breaker auto chat           return to automatic mode
  lapce-ipc sub '$sys.breaker.>'        watch breakers change

Exits with 1 if the service has never been offered.";

/// Lists breakers, or sets one and shows it.
///
/// # Errors
///
/// If there is no broker, or it does not know the service.
pub(super) fn run(target: &BrokerTarget, args: &BreakerArgs) -> Result<(), Failure> {
    let client = target.connect("breaker", WaitStrategy::Block)?;
    let set = |service, order, time| client.set_breaker(service, order, time).map_err(Failure::of_order);
    let one = match &args.action {
        Action::List => {
            let all = client.breakers()?;
            return print(&all, &all, args.json);
        }
        Action::Open(Forced { service, time }) => set(service, BreakerOrder::Open, *time)?,
        Action::Close(Forced { service, time }) => set(service, BreakerOrder::Close, *time)?,
        Action::Auto { service } => set(service, BreakerOrder::Auto, None)?,
    };
    print(&one, std::slice::from_ref(&one), args.json)
}

fn print(value: &(impl Serialize + ?Sized), breakers: &[BreakerStatus], json: bool) -> Result<(), Failure> {
    let mut out = Out::new()?;
    if json {
        // Strings and numbers always serialise.
        out.write(&serde_json::to_vec_pretty(value).unwrap_or_default())?;
        out.write(b"\n")?;
    } else {
        out.write(text(breakers).as_bytes())?;
    }
    out.flush()
}

const HEAD: [&str; 8] = ["service", "state", "failures", "probes", "successes", "opened", "rejected", "ends in"];

fn text(breakers: &[BreakerStatus]) -> String {
    let mut text = String::new();
    table(&mut text, "breakers", &HEAD, breakers.iter().map(row).collect());
    // The title is the first line here.
    text.trim_start().to_owned()
}

/// A row of the table; numbers that have no meaning in a state are left out.
fn row(b: &BreakerStatus) -> Vec<String> {
    let of = |state, number, all| if b.state == state { format!("{number} of {all}") } else { "-".to_owned() };
    vec![
        b.service.as_str().to_owned(),
        b.state.as_str().to_owned(),
        of(BreakerState::Closed, b.failures, b.failure_threshold),
        of(BreakerState::HalfOpen, b.probes, b.half_open_max_requests),
        of(BreakerState::HalfOpen, b.successes, b.success_threshold),
        b.opened.to_string(),
        b.rejected.to_string(),
        b.ends_in_ms.map_or_else(|| "-".to_owned(), age),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_where_they_mean_something() {
        let breaker = |service: &str, state, ends_in_ms| BreakerStatus {
            service: service.parse().unwrap(),
            state,
            failures: 1,
            failed_trials: 0,
            probes: 2,
            successes: 1,
            ends_in_ms,
            opened: 3,
            rejected: 4,
            failure_threshold: 5,
            success_threshold: 2,
            half_open_max_requests: 3,
        };
        let text = text(&[
            breaker("a", BreakerState::Closed, None),
            breaker("bc", BreakerState::Open, Some(59_000)),
            breaker("d", BreakerState::HalfOpen, None),
        ]);
        assert_eq!(
            text,
            "breakers (3)\n\
             \x20 service  state      failures  probes  successes  opened  rejected  ends in\n\
             \x20 a        closed     1 of 5    -       -          3       4         -\n\
             \x20 bc       open       -         -       -          3       4         59 s\n\
             \x20 d        half_open  -         2 of 3  1 of 2     3       4         -\n"
        );
    }
}

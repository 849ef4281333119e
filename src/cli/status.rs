//! `status`: the broker's status report. It is requested over the control socket, so it works without HTTP.

use super::failure::Failure;
use super::output::{Out, plain};
use super::target::BrokerTarget;
use crate::broker;
use crate::client::{
    ActorState, ActorStatus, BreakerStatus, ConnectionStatus, HealthStatus, HoldingStatus, ServiceStatus,
};
use crate::client::{StatusReport, WaitStrategy, age};
use clap::Args;
use std::fmt::Write;

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print the whole report as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc status
  lapce-ipc status --json | jq '.connections[].name'";

/// Requests the status and prints it.
///
/// # Errors
///
/// If there is no broker.
pub(super) fn run(target: &BrokerTarget, args: &StatusArgs) -> Result<(), Failure> {
    let client = target.connect("status", WaitStrategy::Block)?;
    let (report, breakers) = (client.status()?, client.breakers()?);
    let mut out = Out::new()?;
    if args.json {
        // Strings and numbers always serialise.
        out.write(&serde_json::to_vec_pretty(&broker::status_json(&report, &breakers)).unwrap_or_default())?;
        out.write(b"\n")?;
    } else {
        out.write(text(&report, &breakers).as_bytes())?;
    }
    out.flush()
}

/// The breaker's state of a service; the broker's own have none.
fn breaker_of(service: &ServiceStatus, breakers: &[BreakerStatus]) -> Option<&'static str> {
    Some(breakers.iter().find(|breaker| breaker.service == service.name)?.state.as_str())
}

fn text(report: &StatusReport, breakers: &[BreakerStatus]) -> String {
    let mut text = String::new();
    let state = if report.draining { ", draining" } else { "" };
    let config = report.config_file.as_deref().map_or_else(|| "built-in defaults".to_owned(), plain);
    let head = [
        (
            "broker",
            format!("lapce-ipc {}, pid {}, up {}{state}", plain(&report.version), report.pid, age(report.uptime_ms)),
        ),
        ("socket", socket(report)),
        ("health", health(&report.health)),
        ("config", config),
        ("slots", format!("{} of {} leased", report.slots_used, report.slots_total)),
        ("topics", report.topics.to_string()),
        ("subscriptions", report.subscriptions.to_string()),
    ];
    for (name, value) in head {
        let _ = writeln!(text, "{name:<14} {value}");
    }
    if report.awaited_sessions > 0 {
        let _ = writeln!(
            text,
            "{:<14} publishes wait for {} sessions of the last broker",
            "waits", report.awaited_sessions
        );
    }
    table(&mut text, "actors", &ACTOR, report.actors.iter().map(actor).collect());
    table(&mut text, "users", &HOLDING, report.holdings.iter().map(holding).collect());
    let connections = report.connections.iter().map(connection).collect();
    table(&mut text, "connections", &CONNECTION, connections);
    let services = report.services.iter().map(|s| service(s, breaker_of(s, breakers))).collect();
    table(&mut text, "services", &SERVICE, services);
    let counters = report.counters.iter().map(|(name, value)| vec![plain(name), value.to_string()]).collect();
    table(&mut text, "counters", &["name", "value"], counters);
    text
}

/// The control socket, and its error.
fn socket(report: &StatusReport) -> String {
    let path = plain(&report.socket);
    report.socket_lost.as_ref().map_or(path.clone(), |reason| format!("{path}, lost: {}", plain(reason)))
}

/// The address of the endpoints, as an HTTP client takes it.
fn health(health: &HealthStatus) -> String {
    let endpoint = match (&health.address, &health.socket) {
        (Some(address), _) => format!("http://{}", plain(address)),
        (None, Some(path)) => format!("unix {}", plain(path)),
        (None, None) => format!("none: {}", plain(health.reason.as_deref().unwrap_or("unknown"))),
    };
    let token = health.token_file.as_deref().map(|file| format!(", token in {}", plain(file)));
    endpoint + &token.unwrap_or_default()
}

/// A text that may be absent.
fn or_dash(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), plain)
}

const ACTOR: [&str; 6] = ["name", "supervisor", "state", "restarts", "failures", "last reason"];

fn actor(a: &ActorStatus) -> Vec<String> {
    let state = match a.state {
        ActorState::Running => "running".to_owned(),
        ActorState::Restarting { next_in_ms } => format!("restarting in {}", age(next_in_ms)),
        ActorState::GaveUp => "gave up".to_owned(),
        ActorState::Stopped => "stopped".to_owned(),
    };
    vec![
        plain(&a.name),
        plain(&a.supervisor),
        state,
        a.restarts.to_string(),
        a.failures.to_string(),
        or_dash(a.last_reason.as_deref()),
    ]
}

const HOLDING: [&str; 6] = ["uid", "quota", "holds", "amount", "limit", "key"];

fn holding(holding: &HoldingStatus) -> Vec<String> {
    vec![
        holding.uid.to_string(),
        or_dash(holding.quota.as_deref()),
        plain(&holding.resource),
        holding.held.to_string(),
        holding.limit.to_string(),
        or_dash(holding.key.as_deref()),
    ]
}

const CONNECTION: [&str; 13] =
    ["id", "name", "pid", "uid", "quota", "age", "state", "subs", "services", "in", "out", "dropped", "backlog"];

fn connection(c: &ConnectionStatus) -> Vec<String> {
    let mut services: Vec<String> = c.services.iter().map(|name| name.as_str().to_owned()).collect();
    let more = (c.services_offered as usize).saturating_sub(services.len());
    services.extend((more > 0).then(|| format!("and {more} more")));
    vec![
        c.id.to_string(),
        c.name.as_str().to_owned(),
        if c.pid == 0 { "-".to_owned() } else { c.pid.to_string() },
        c.uid.to_string(),
        or_dash(c.quota.as_deref()),
        age(c.age_ms),
        c.state.as_str().to_owned(),
        c.subscriptions.to_string(),
        if services.is_empty() { "-".to_owned() } else { services.join(",") },
        c.messages_in.to_string(),
        c.messages_out.to_string(),
        c.dropped.to_string(),
        c.backlog_bytes.to_string(),
    ]
}

const SERVICE: [&str; 7] = ["name", "responders", "outstanding", "pending", "requests", "failures", "breaker"];

fn service(s: &ServiceStatus, breaker: Option<&str>) -> Vec<String> {
    vec![
        s.name.as_str().to_owned(),
        // The broker's own has none, and misses none.
        if s.name.as_str() == broker::ECHO { "-".to_owned() } else { s.responders.to_string() },
        s.outstanding.to_string(),
        s.pending.to_string(),
        s.requests.to_string(),
        s.failures.to_string(),
        breaker.unwrap_or("-").to_owned(),
    ]
}

/// A title with the number of rows, and the rows in columns as wide as they need.
pub(super) fn table(text: &mut String, title: &str, head: &[&str], rows: Vec<Vec<String>>) {
    let _ = writeln!(text, "\n{title} ({})", rows.len());
    if rows.is_empty() {
        return;
    }
    let head = head.iter().map(|name| (*name).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let columns = rows[0].len();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "  {}", cells.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need() {
        let mut text = String::new();
        table(
            &mut text,
            "things",
            &["id", "name"],
            vec![vec!["1".into(), "a".into()], vec!["100".into(), "bc".into()]],
        );
        assert_eq!(text, "\nthings (2)\n  id   name\n  1    a\n  100  bc\n");
    }
}

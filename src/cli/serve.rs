//! `serve`: the broker.

use super::failure::Failure;
use super::logging::{is_journal, log_to_stderr, value};
use super::output::{Out, note, plain};
use super::target::BrokerTarget;
use crate::broker::{self, supervision::resources};
use crate::client::{DEFAULT_SOCKET, HealthStatus};
use crate::config::{self, Config, ConfigError, Loaded};
use clap::Args;
use std::path::Path;

#[derive(Debug, Clone, Args)]
pub(super) struct ServeArgs {
    /// Address of the health endpoints; overrides the configuration
    #[arg(long, value_name = "HOST:PORT", value_parser = HealthAddr::parse)]
    health_addr: Option<HealthAddr>,
    /// Print every setting and its source, or the errors, and exit
    #[arg(long)]
    check_config: bool,
    /// Reload the running broker's configuration, as `lapce-ipc reload` does, and exit
    #[arg(long, conflicts_with = "check_config")]
    reload: bool,
}

pub(super) const NOTES: &str = "\
It listens until SIGTERM or SIGINT, then finishes outstanding work, removes the socket and exits with 0. A second \
signal ends it at once, with 143 or 130.

RUST_LOG, or else logging.level of the configuration, sets the log level, globally or per module: error, warn, info \
(the default), debug, trace, off.
  RUST_LOG=warn                                               less
  RUST_LOG=info,lapce_ipc::broker::session=off                no lines about single connections
  RUST_LOG=warn,lapce_ipc::broker::telemetry::events=info     more about routing

No level logs a line per message.";

/// An address as it is written; IPv6 in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HealthAddr {
    host: String,
    port: u16,
}

impl HealthAddr {
    fn parse(text: &str) -> Result<HealthAddr, String> {
        let wanted = || "expected HOST:PORT, as in 127.0.0.1:9090 or [::1]:9090".to_owned();
        let (host, port) = text.rsplit_once(':').ok_or_else(wanted)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(wanted)?,
            None if host.contains(':') => return Err(wanted()),
            None => host,
        };
        if host.is_empty() {
            return Err(wanted());
        }
        Ok(HealthAddr { host: host.to_owned(), port: port.parse().map_err(|_| wanted())? })
    }
}

/// Runs the broker.
///
/// # Errors
///
/// If its configuration is wrong, it cannot listen, or it fails.
pub(super) fn run(target: &BrokerTarget, args: &ServeArgs) -> Result<(), Failure> {
    if args.reload {
        return super::reload::run(target, false);
    }
    let loaded = load(target, args)?;
    if args.check_config {
        // What the broker would refuse at its start.
        loaded.health_token()?;
        let mut out = Out::new()?;
        out.write(config::explain(&loaded).to_string().as_bytes())?;
        return out.flush();
    }
    let log = log_to_stderr(&loaded.config.logging.level)?;
    let again = {
        let (target, args) = (target.clone(), args.clone());
        move || load(&target, &args)
    };
    Ok(broker::run(loaded, again, move |config| log.set_levels(&config.logging.level), banner)?)
}

/// The configuration, with what the options say.
fn load(target: &BrokerTarget, args: &ServeArgs) -> Result<Loaded, ConfigError> {
    let mut loaded = target.load()?;
    if let Some(HealthAddr { host, port }) = &args.health_addr {
        loaded.set_from_command_line("health_server.socket_path", "")?;
        loaded.set_from_command_line("health_server.host", host)?;
        loaded.set_from_command_line("health_server.port", &port.to_string())?;
    }
    Ok(loaded)
}

fn banner(loaded: &Loaded, health: &HealthStatus) {
    let Config { ipc, shared_memory, router, restart, health_server, .. } = &loaded.config;
    let path = |path: &Path| value(path.to_string_lossy());
    let config = loaded.source.as_deref().map_or_else(|| value("built-in defaults"), path);
    let endpoint = match health.address.as_ref().or(health.socket.as_ref()) {
        Some(address) => value(address),
        None => format!("none health_reason={}", value(health.reason.as_deref().unwrap_or_default())),
    };
    log::info!(
        "lapce-ipc {} listens socket={} config={config} health={endpoint}",
        env!("CARGO_PKG_VERSION"),
        path(&ipc.socket_path)
    );
    log::info!(
        "limits max_connections={} max_message_size={} slot_size={} num_slots={} permissions={:04o} allowed_uids={} \
         router_wait={} drain_timeout_ms={} max_restarts={} period_secs={} watchdog_abort_ms={} http_connections={} \
         descriptors={}",
        ipc.max_connections,
        ipc.max_message_size,
        shared_memory.slot_size,
        shared_memory.num_slots,
        shared_memory.permissions,
        value(ipc.allowed_uids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")),
        router.wait.as_str(),
        ipc.drain_timeout_ms,
        restart.max_restarts,
        restart.period_secs,
        restart.watchdog_abort_ms,
        health_server.max_connections,
        resources::describe(resources::Resource::RLIMIT_NOFILE),
    );
    if !is_journal() {
        let is_default = ipc.socket_path == Path::new(DEFAULT_SOCKET);
        let socket = if is_default { String::new() } else { format!("--socket {} ", shown(&ipc.socket_path)) };
        note(format_args!("hint: in another terminal: {} {socket}request echo hi", client_command()));
    }
}

/// A path as a shell takes it.
fn shown(path: &Path) -> String {
    let path = plain(&path.to_string_lossy());
    let is_word = |c: char| c.is_alphanumeric() || "/._-+:@%,".contains(c);
    if path.chars().all(is_word) { path } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

/// The command line that starts the client, as this process was started.
fn client_command() -> &'static str {
    match (std::env::var_os("CARGO"), cfg!(debug_assertions)) {
        (None, _) => "lapce-ipc",
        (Some(_), false) => "cargo run --release --bin lapce-ipc --",
        (Some(_), true) => "cargo run --bin lapce-ipc --",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let addr = |host: &str, port| Ok(HealthAddr { host: host.to_owned(), port });
        assert_eq!(HealthAddr::parse("127.0.0.1:9090"), addr("127.0.0.1", 9090));
        assert_eq!(HealthAddr::parse("[::1]:0"), addr("::1", 0));
        assert_eq!(HealthAddr::parse("localhost:65535"), addr("localhost", 65_535));
        for text in ["", "9090", ":9090", "host:", "host:65536", "::1:9090", "[::1:9090", "host:http"] {
            assert!(HealthAddr::parse(text).is_err(), "{text}");
        }
    }
}

//! The commands. Each command's own options stand beside its code, shared ones in `options`.

use super::failure::Code;
use super::target::{BrokerTarget, Trust};
use super::{bench, breaker, doctor, generate, publish, reload, reply, request, serve, status, sub, upstream};
#[cfg(feature = "editor")]
use super::{connect, lsp};
use clap::{Parser, Subcommand};

/// The broker of lapce-ipc: carries messages between the programs of one machine.
///
/// It listens on a Unix socket until SIGTERM or SIGINT, then finishes outstanding work and removes the socket.
#[derive(Debug, Parser)]
#[command(name = "ipc_server_main", version, after_help = SERVER_EXAMPLES.to_owned() + &exit_codes())]
pub(super) struct ServerCli {
    #[command(flatten)]
    pub(super) target: BrokerTarget,
    #[command(flatten)]
    pub(super) serve: serve::ServeArgs,
}

const SERVER_EXAMPLES: &str = "\
Examples:
  ipc_server_main                             listen at the default path
  ipc_server_main --socket /run/user/1000/my  listen at another path
  ipc_server_main --check-config              show every setting and its source

Configuration, the first that exists: --config; LAPCE_IPC_CONFIG; $XDG_CONFIG_HOME/lapce-ipc/config.toml; \
/etc/lapce-ipc/config.toml; built-in defaults. RUST_LOG sets the log level (default: info).

Socket lookup order: --socket; LAPCE_IPC_SOCKET; ipc.socket_path of the configuration; /tmp/lapce_ipc.sock.

";

/// One line per code.
fn exit_codes() -> String {
    let code = |code: &Code| format!("\n  {:<4} {}", *code as i32, code.meaning());
    format!("Exit codes:{}", Code::ALL.iter().map(code).collect::<String>())
}

/// Messages between the programs of one machine: publish and subscribe, requests and replies, streams.
///
/// Start a broker in one terminal, and connect to it from others. Data goes to stdout, everything else to stderr.
#[derive(Debug, Parser)]
#[command(name = "lapce-ipc", version, after_help = EXAMPLES.to_owned() + &exit_codes())]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) target: BrokerTarget,
    #[command(flatten)]
    pub(super) trust: Trust,
    #[command(subcommand)]
    pub(super) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  lapce-ipc serve                          run a broker
  lapce-ipc request echo hi                call the broker's own echo service
  lapce-ipc sub 'lapce.>'                  print all messages on topics below `lapce`
  lapce-ipc pub lapce.ai.completion hello  publish
  lapce-ipc reply upper -- tr a-z A-Z      offer a service

Socket lookup order of clients: --socket; LAPCE_IPC_SOCKET; ipc.socket_path of the file that --config names; \
$XDG_RUNTIME_DIR/lapce-ipc.sock if the current user owns it; /tmp/lapce_ipc.sock if the current user, root or a \
trusted user owns it; /run/lapce-ipc/ipc.sock. `serve` listens at --socket; LAPCE_IPC_SOCKET; ipc.socket_path of its \
configuration; /tmp/lapce_ipc.sock.

";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the broker, as `ipc_server_main` does
    #[command(after_help = serve::NOTES)]
    Serve(serve::ServeArgs),
    /// Publish a message on a topic
    #[command(after_help = publish::EXAMPLES)]
    Pub(publish::PubArgs),
    /// Subscribe, and print the messages
    #[command(after_help = sub::EXAMPLES)]
    Sub(sub::SubArgs),
    /// Send a request to a service and print its reply
    #[command(after_help = request::EXAMPLES)]
    Request(request::RequestArgs),
    /// Offer a service
    #[command(after_help = reply::EXAMPLES)]
    Reply(reply::ReplyArgs),
    /// Show the broker's connections, services and counters
    #[command(after_help = status::EXAMPLES)]
    Status(status::StatusArgs),
    /// Show the circuit breakers of services, or set one by hand
    #[command(after_help = breaker::EXAMPLES)]
    Breaker(breaker::BreakerArgs),
    /// Show the upstreams (processes that the broker dials), or dial one now
    #[command(after_help = upstream::EXAMPLES)]
    Upstream(upstream::UpstreamArgs),
    /// Reload the broker's configuration
    #[command(after_help = reload::NOTES)]
    Reload(reload::ReloadArgs),
    /// Measure latency, throughput and the cost of connections
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::BenchArgs),
    /// Exchange JSON lines with a program on stdin and stdout: publish, subscribe, request, serve
    #[cfg(feature = "editor")]
    #[command(after_help = connect::EXAMPLES)]
    Connect(connect::ConnectArgs),
    /// Serve inline completions to an editor, by the Language Server Protocol on stdin and stdout
    #[cfg(feature = "editor")]
    #[command(after_help = lsp::EXAMPLES)]
    Lsp(lsp::LspArgs),
    /// The broker that `lsp --start` starts
    #[cfg(feature = "editor")]
    #[command(hide = true)]
    ServeSession(serve::ServeArgs),
    /// Offer completions and chats of an AI engine as services
    #[cfg(feature = "editor")]
    #[command(after_help = super::engine::EXAMPLES)]
    Engine(super::engine::EngineArgs),
    /// Check this installation, and say what to do
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::DoctorArgs),
    /// Print the completions of a shell
    #[command(after_help = generate::EXAMPLES)]
    Completions(generate::CompletionsArgs),
    /// The man pages, for packages
    #[command(hide = true)]
    Man(generate::ManArgs),
    /// Serve OpenAI's HTTP API in front of services, for programs that speak no other
    #[cfg(feature = "editor")]
    #[command(after_help = super::gateway::EXAMPLES)]
    Gateway(super::gateway::GatewayArgs),
    /// One of the processes that `bench` starts
    #[command(hide = true)]
    BenchPart(bench::part::PartArgs),
    /// Messages for callgrind to count: see `.ci/instructions`
    #[command(hide = true)]
    BenchStepped(bench::stepped::SteppedArgs),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
        ServerCli::command().debug_assert();
    }
}

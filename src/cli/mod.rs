//! The command line: `ipc_server_main` and `lapce-ipc`. Layer 4; it may use everything below.
//!
//! Data goes to stdout, everything else to stderr; a closed reader is no error. A failed command returns a `Failure`:
//! an exit code that scripts can rely on, a line `error: …`, and often a line `hint: …`.
//!
//! | file | idea |
//! |---|---|
//! | `args`, `options` | the commands; options that several share |
//! | `target` | the broker to use; its configuration |
//! | `serve` | the broker, under either name |
//! | `publish`, `sub`, `request`, `reply`, `status`, `breaker`, `upstream`, `reload` | one command each |
//! | `connect/` | JSON lines for programs without a binding (feature `editor`) |
//! | `lsp/` | the language server for editors (feature `editor`) |
//! | `doctor/` | checks of an installation |
//! | `generate` | shell completions, man pages |
//! | `command` | running a program that produces a reply |
//! | `engine/` | services in front of AI engines (feature `editor`) |
//! | `gateway/` | the HTTP API of OpenAI in front of services (feature `editor`) |
//! | `bench/` | the measurements, and the processes that they need |
//! | `logging` | the log on stderr |
//! | `data` | `DATA`, `-`, `@FILE` |
//! | `output` | stdout and stderr |
//! | `start` | resets inherited signals and limits |
//! | `fim` | markers of models, for `lsp/` and `engine/` |
//! | `failure` | exit codes |
//! | `exit` | the end of the process: reports, signals |

mod args;
mod bench;
mod breaker;
mod command;
#[cfg(feature = "editor")]
mod connect;
mod data;
mod doctor;
#[cfg(feature = "editor")]
mod engine;
mod exit;
mod failure;
#[cfg(feature = "editor")]
mod fim;
#[cfg(feature = "editor")]
mod gateway;
mod generate;
mod logging;
#[cfg(feature = "editor")]
mod lsp;
mod options;
mod output;
mod publish;
mod reload;
mod reply;
mod request;
mod serve;
mod start;
mod status;
mod sub;
mod target;
mod upstream;

use crate::broker::processes::guard;
#[cfg(feature = "editor")]
use crate::broker::supervision::resources::forbid_dumps;
use args::{Cli, Command, ServerCli};
use clap::{CommandFactory, Parser};
use failure::{Code, Failure};
use std::process::ExitCode;

/// `ipc_server_main`: runs the broker.
#[must_use]
pub fn ipc_server_main() -> ExitCode {
    if let Err(failure) = start::start() {
        return exit::report(Err(failure));
    }
    if let Some(ended) = guarding() {
        return exit::report(ended);
    }
    match ServerCli::try_parse() {
        Ok(cli) => exit::report(serve::run(&cli.target, &cli.serve)),
        Err(error) => exit::of_clap(&error),
    }
}

/// `lapce-ipc`: the broker's clients, and the broker.
#[must_use]
pub fn lapce_ipc() -> ExitCode {
    if let Err(failure) = start::start() {
        return exit::report(Err(failure));
    }
    if let Some(ended) = guarding() {
        return exit::report(ended);
    }
    match Cli::try_parse() {
        Ok(cli) => {
            let ended = dispatch(&cli);
            target::close_connection();
            exit::report(ended)
        }
        Err(error) => exit::of_clap(&error),
    }
}

/// The hidden commands of the guard, which both programs have: their result, if this process is one.
fn guarding() -> Option<Result<(), Failure>> {
    guard::is_available();
    let mut args = std::env::args_os().skip(1);
    let (command, None) = (args.next()?, args.next()) else { return None };
    match command.to_str()? {
        guard::START => Some(guard::start().map_err(|error| Failure::new(Code::Unavailable, error.to_string()))),
        guard::GUARD => {
            guard::run();
            Some(Ok(()))
        }
        _ => None,
    }
}

fn dispatch(cli: &Cli) -> Result<(), Failure> {
    // They hold a session, or the key of an engine, for as long as an editor runs.
    #[cfg(feature = "editor")]
    if let Command::Engine(_) | Command::Gateway(_) | Command::Connect(_) | Command::Lsp(_) = &cli.command {
        forbid_dumps();
    }
    // The broker ends by signals in its own way, and wants to be alone when it sets the umask.
    match &cli.command {
        Command::Serve(args) => return serve::run(cli.target.serving(&cli.trust)?, args),
        #[cfg(feature = "editor")]
        Command::ServeSession(args) => return lsp::serve_in_session(cli.target.serving(&cli.trust)?, args),
        Command::BenchStepped(args) => return bench::stepped::run(args),
        // It ends in order at a signal.
        #[cfg(feature = "editor")]
        Command::Gateway(args) => return gateway::run(&cli.target.trusting(&cli.trust)?, args),
        #[cfg(feature = "editor")]
        Command::Engine(args) => return engine::run(&cli.target.trusting(&cli.trust)?, args),
        Command::BenchPart(part) => return bench::part::run(&cli.target.trusting(&cli.trust)?, part),
        _ => exit::exit_on_signals()?,
    }
    let target = &cli.target.trusting(&cli.trust)?;
    match &cli.command {
        Command::Serve(_) | Command::BenchPart(_) | Command::BenchStepped(_) => Ok(()),
        #[cfg(feature = "editor")]
        Command::ServeSession(_) => Ok(()),
        #[cfg(feature = "editor")]
        Command::Engine(_) | Command::Gateway(_) => Ok(()),
        #[cfg(feature = "editor")]
        Command::Connect(args) => connect::run(target, args),
        #[cfg(feature = "editor")]
        Command::Lsp(args) => lsp::run(target, args),
        Command::Pub(args) => publish::run(target, args),
        Command::Sub(args) => sub::run(target, args),
        Command::Request(args) => request::run(target, args),
        Command::Reply(args) => reply::run(target, args),
        Command::Status(args) => status::run(target, args),
        Command::Breaker(args) => breaker::run(target, args),
        Command::Upstream(args) => upstream::run(target, args),
        Command::Reload(args) => reload::run(target, args.is_json()),
        Command::Bench(args) => bench::run(target, args),
        Command::Doctor(args) => doctor::run(target, args),
        Command::Completions(args) => generate::completions(&Cli::command(), args),
        Command::Man(args) => generate::man(&ServerCli::command(), &Cli::command(), args),
    }
}

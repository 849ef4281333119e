//! `reply`: offers a service whose replies a command produces.

use super::command::{self, Program};
use super::exit::print_failure;
use super::failure::{Code, Failure};
use super::logging::queued_stderr;
use super::options::WaitOption;
use super::output::{note, plain};
use super::target::BrokerTarget;
use crate::broker::processes::children;
use crate::client::{self, Client, Name, Request};
use clap::{ArgGroup, Args};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
#[command(override_usage = USAGE)]
#[command(group = ArgGroup::new("how").required(true).args(["echo", "exec", "command"]))]
pub(super) struct ReplyArgs {
    /// Name of the service
    service: String,
    /// Reply with the request
    #[arg(long)]
    echo: bool,
    /// Reply with the output of a shell command line
    #[arg(long, value_name = "LINE")]
    exec: Option<OsString>,
    /// Reply with the output of a command
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Listen on this socket for brokers that dial: `[[upstream]]` in their configuration
    #[arg(long, value_name = "PATH")]
    listen: Option<PathBuf>,
    #[command(flatten)]
    wait: WaitOption,
}

const USAGE: &str = "lapce-ipc reply [OPTIONS] SERVICE (--echo | --exec LINE | -- COMMAND...)";

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc reply upper -- tr a-z A-Z
  lapce-ipc reply lines --exec 'sort | uniq -c'
  lapce-ipc reply mirror --echo
  lapce-ipc reply mirror --echo --listen /run/user/1000/mirror.sock

The command runs once per request, several at a time: the request is its stdin, the reply its stdout. A requester \
with --stream gets the reply as it is printed. If the command fails, the last line of its stderr is the error, and \
several failures in a row open the service's breaker; with exit code 65 it rejects a wrong request, which does not \
count. If the request is cancelled or its time is over, the command is killed.

`serving` on stderr: the service is offered. If the broker ends, the command reconnects and reports it on \
stderr.";

/// Serves requests, across restarts of the broker.
///
/// # Errors
///
/// If the service cannot be offered, or the broker closes the connection.
pub(super) fn run(target: &BrokerTarget, args: &ReplyArgs) -> Result<(), Failure> {
    queued_stderr()?;
    let program = match (&args.exec, &args.command[..]) {
        (Some(line), _) => Some(Program::shell(line)),
        (None, [command, args @ ..]) => Some(Program::new(command, args)),
        (None, []) => None,
    };
    if let (None, [command, ..]) = (&args.exec, &args.command[..])
        && !command::can_run(command)
    {
        let command = plain(&command.to_string_lossy());
        return Err(Failure::new(Code::Usage, format!("cannot run {command}: no such program")));
    }
    Name::parse(&args.service).map_err(client::Error::from)?;
    let serve_client = |client: &Client| match &program {
        Some(program) => serve(client, args, program),
        None => echo(client, &args.service),
    };
    match &args.listen {
        None => serve_client(&target.connect_persistent("reply", args.wait.wait)?),
        Some(path) => listen(path, target, args, serve_client),
    }
}

/// Serves each broker that dials, in a thread of its own.
fn listen(
    path: &Path,
    target: &BrokerTarget,
    args: &ReplyArgs,
    serve_client: impl Fn(&Client) -> Result<(), Failure> + Sync,
) -> Result<(), Failure> {
    let builder = target.builder_without_socket("reply", args.wait.wait)?;
    let unavailable = |error: client::Error| Failure::new(Code::Unavailable, error.to_string());
    let listener = builder.listen(path).map_err(unavailable)?;
    children::remove_at_exit(path);
    note(format_args!("listening"));
    let serve_client = &serve_client;
    std::thread::scope(|scope| {
        loop {
            let client = match listener.accept() {
                Ok(client) => client,
                Err(error) if error.is_listen() => return Err(unavailable(error)),
                Err(error) => {
                    // That peer was not a trusted broker; the next one may be.
                    note(format_args!("error: {error}"));
                    continue;
                }
            };
            let serve = move || match serve_client(&client) {
                Ok(()) => note(format_args!("the broker closed its connection")),
                Err(failure) => print_failure(failure),
            };
            if let Err(error) = std::thread::Builder::new().name("broker".to_owned()).spawn_scoped(scope, serve) {
                note(format_args!("error: cannot start a thread: {error}"));
            }
        }
    })
}

fn echo(client: &Client, service: &str) -> Result<(), Failure> {
    let mut service = client.serve(service)?;
    note(format_args!("serving"));
    service.run(|request: &mut Request| Ok::<_, std::convert::Infallible>(request.take_payload()))?;
    Ok(())
}

/// Runs the program for each request, in a thread of its own.
fn serve(client: &Client, args: &ReplyArgs, program: &Program) -> Result<(), Failure> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    // The broker's limit of outstanding requests bounds the threads; further requests go to other responders.
    let service = client.serve_up_to(&args.service, u32::try_from(cpus).unwrap_or(u32::MAX))?;
    let max = client.limits().max_message_size;
    note(format_args!("serving"));
    std::thread::scope(|scope| {
        let mut service = service;
        let ended = loop {
            let request = match service.next() {
                Some(Ok(request)) => request,
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(()),
            };
            let run = || {
                // An error means that the request is no longer outstanding.
                let _ = program.reply(request, max);
            };
            if let Err(error) = std::thread::Builder::new().name("reply".to_owned()).spawn_scoped(scope, run) {
                // The request was dropped with the closure, and fails with an error reply.
                note(format_args!("error: cannot start a thread: {error}"));
            }
        };
        // The outstanding requests of this connection have ended. (Other brokers' may continue.)
        if args.listen.is_none() {
            drop(children::clean_up());
        }
        ended
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::options::Wait;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        reply: ReplyArgs,
    }

    #[test]
    fn there_is_exactly_one_way_to_answer() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["reply", "x"], args].concat());
        assert!(parse(&["--echo"]).is_ok());
        assert!(parse(&["--exec", "a b"]).is_ok());
        assert_eq!(parse(&["--", "a", "--b"]).unwrap().reply.command, ["a", "--b"]);
        assert_eq!(parse(&["--echo"]).unwrap().reply.wait.wait, Wait::Adaptive);
        for wrong in [&[][..], &["--echo", "--exec", "a"], &["--echo", "--", "a"], &["a"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}

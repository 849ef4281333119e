//! `reply`: offers a service that a command answers.

use super::args::WaitOption;
use super::children;
use super::command::Program;
use super::exit::{Code, Failure};
use super::output::note;
use super::place::Place;
use crate::client::Request;
use clap::{ArgGroup, Args};
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("how").required(true).args(["echo", "exec", "command"]))]
pub(super) struct ReplyArgs {
    /// What the service is called
    service: String,
    /// Answer with what was asked
    #[arg(long)]
    echo: bool,
    /// Answer with what a line of shell prints
    #[arg(long, value_name = "SHELL LINE")]
    exec: Option<OsString>,
    /// Answer with what a command prints
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Answer on a socket of our own (not available yet)
    #[arg(long, value_name = "PATH")]
    listen: Option<PathBuf>,
    #[command(flatten)]
    wait: WaitOption,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  lapce-ipc reply upper -- tr a-z A-Z
  lapce-ipc reply lines --exec 'sort | uniq -c'
  lapce-ipc reply mirror --echo

The command runs once for each request, several at a time: the request is its stdin, its stdout the reply. Who asks with
--stream gets the reply as it is printed. If the command fails, the last line of its stderr is the error. If the request
is cancelled or its time is over, the command is killed. `serving` on stderr says that requests reach us. A broker that
ends is waited for, and stderr says so.";

/// Answers requests. A broker that ends is waited for.
///
/// # Errors
///
/// If the service cannot be offered, or the broker wants no more of us.
pub(super) fn run(place: &Place, args: &ReplyArgs) -> Result<(), Failure> {
    if args.listen.is_some() {
        return Err(Failure::new(Code::Usage, "--listen: not available yet"));
    }
    let program = match (&args.exec, &args.command[..]) {
        (Some(line), _) => Some(Program::shell(line)),
        (None, [command, args @ ..]) => Some(Program::new(command, args)),
        (None, []) => None,
    };
    match program {
        Some(program) => serve(place, args, &program),
        None => echo(place, args),
    }
}

fn echo(place: &Place, args: &ReplyArgs) -> Result<(), Failure> {
    let mut service = place.connect_to_stay("reply", args.wait.wait)?.serve(&args.service)?;
    note(format_args!("serving"));
    service.run(|request: &mut Request| Ok::<_, std::convert::Infallible>(request.payload().to_vec()))?;
    Ok(())
}

/// Runs the program for each request, in a thread of its own.
fn serve(place: &Place, args: &ReplyArgs, program: &Program) -> Result<(), Failure> {
    let client = place.connect_to_stay("reply", args.wait.wait)?;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    // The broker sends no more at a time, so there are no more threads; what we cannot take goes to others.
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
            let answer = || {
                // An error says that nobody waits for the answer any more.
                let _ = program.answer(request, max);
            };
            if let Err(error) = std::thread::Builder::new().name("answer".to_owned()).spawn_scoped(scope, answer) {
                // The request went with the closure, and is answered with an error.
                note(format_args!("error: cannot start a thread: {error}"));
            }
        };
        // Nobody waits for what still runs.
        children::put_away();
        ended
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Wait;
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

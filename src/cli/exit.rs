//! The end of the process: reports of failures, and signals.

use super::failure::{Code, Failure};
use super::output::{Out, note};
use super::target;
use crate::broker;
use crate::broker::processes::children;
use crate::broker::supervision::resources::can_watch_signals;
use crate::broker::telemetry::stderr;
use rustix::event::{PollFd, PollFlags, poll};
use std::io;
use std::process::ExitCode;
#[cfg(feature = "editor")]
use tokio::signal::unix::Signal;
use tokio::signal::unix::{SignalKind, signal};

/// Reports the failure of a command, and returns its exit code.
pub(super) fn report(result: Result<(), Failure>) -> ExitCode {
    children::block_if_exiting();
    let Err(failure) = result else {
        stderr::flush();
        return ExitCode::SUCCESS;
    };
    let code = failure.code;
    print_failure(failure);
    stderr::flush();
    ExitCode::from(code as u8)
}

/// Prints the failure.
pub(super) fn print_failure(failure: Failure) {
    // Several problems stand one on a line.
    for line in failure.message.lines() {
        note(format_args!("error: {line}"));
    }
    if let Some(hint) = failure.hint {
        note(format_args!("hint: {hint}"));
    }
}

/// The exit code of a command line that clap refused, or that asked for help.
pub(super) fn of_clap(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        // Without a stderr the exit code has to do.
        let _ = error.print();
        return ExitCode::from(Code::Usage as u8);
    }
    // Help and version are data: clap's own printing loses the error of a full disk.
    let text = error.render().to_string();
    report(Out::new().and_then(|mut out| {
        out.write(text.as_bytes())?;
        out.flush()
    }))
}

/// From now on SIGINT, SIGTERM, SIGQUIT and SIGHUP end the process at once, after what must not outlive it; SIGHUP
/// does not if it was ignored, as `nohup` does.
pub(super) fn exit_on_signals() -> Result<(), Failure> {
    can_watch_signals().map_err(no_signals)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(no_signals)?;
    // Here and not in the thread, so that no signal comes too early.
    let (mut interrupt, mut terminate, mut quit, mut hang_up) = {
        let _inside = runtime.enter();
        let caught = |kind| signal(kind).map_err(no_signals);
        let hang_up = (!broker::ignores_hang_up()).then(|| caught(SignalKind::hangup())).transpose()?;
        (caught(SignalKind::interrupt())?, caught(SignalKind::terminate())?, caught(SignalKind::quit())?, hang_up)
    };
    let wait = move || {
        let code = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => Code::Interrupted,
                _ = terminate.recv() => Code::Terminated,
                _ = quit.recv() => Code::Terminated,
                _ = async {
                    match &mut hang_up {
                        Some(hang_up) => hang_up.recv().await,
                        None => std::future::pending().await,
                    }
                } => Code::Terminated,
            }
        });
        exit_now(code)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(no_signals)?;
    Ok(())
}

/// SIGINT and SIGTERM for a command that ends in order.
#[cfg(feature = "editor")]
#[derive(Debug)]
pub(super) struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
}

#[cfg(feature = "editor")]
impl EndSignals {
    /// Watches from now on; within a runtime.
    ///
    /// # Errors
    ///
    /// If signals cannot be watched.
    pub(super) fn new() -> Result<EndSignals, Failure> {
        can_watch_signals().map_err(no_signals)?;
        let caught = |kind| signal(kind).map_err(no_signals);
        Ok(EndSignals { interrupt: caught(SignalKind::interrupt())?, terminate: caught(SignalKind::terminate())? })
    }

    /// Waits for one.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn no_signals(error: io::Error) -> Failure {
    Failure::new(Code::Unavailable, format!("cannot watch signals: {error}"))
}

/// Ends the process at once: the main thread may be blocked.
#[allow(clippy::disallowed_methods, reason = "a client owns no socket file; its children and folders are removed here")]
pub(super) fn exit_now(code: Code) -> ! {
    // Held to the end: else the main thread might be faster, and give the end of a child that was killed here, or of
    // the connection, as the reason.
    let _put_away = children::clean_up();
    target::close_connection();
    stderr::flush();
    std::process::exit(code as i32)
}

/// Ends the process when the reader of stdout closes it, also without output: `sub '>' | head -1` ends with
/// `head`, not with the next message.
pub(super) fn exit_with_reader() {
    let watch = || {
        let stdout = io::stdout();
        let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
        while poll(&mut fds, None) == Err(rustix::io::Errno::INTR) {}
        // A stdout that is not a pipe reports nothing, or an error: then there is no reader to watch.
        if fds[0].revents().contains(PollFlags::ERR) {
            exit_now(Code::Done);
        }
    };
    // Without the thread, the next write reports it.
    let _ = std::thread::Builder::new().name("reader".to_owned()).spawn(watch);
}

//! `EngineActor`: one process of an engine. `logic::supervision::program` decides; the actor waits, and sends signals.
//!
//! When the process has ended, what is left of its process group is killed, so a restart meets no grandchild of the
//! process before. What left the group (a daemon) is out of reach.

use super::output;
use super::start::{self, Started};
use crate::broker::clock::elapsed;
use crate::broker::processes::children::Running;
use crate::broker::supervision::supervisor::{Exit, Stop};
use crate::config;
use crate::logic::supervision::program::{Action, Event, Program};
use actix::prelude::*;
use rustix::process::Signal;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// Poll interval where the process has no pidfd.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long the last lines of an ended process may take.
const LAST_LINES: Duration = Duration::from_millis(200);

/// The actor of one process.
pub(super) struct EngineActor {
    engine: Arc<config::Engine>,
    socket: PathBuf,
    stop: Rc<Notify>,
    exit: Exit,
}

impl EngineActor {
    pub(super) fn new(engine: &Arc<config::Engine>, socket: &Path, exit: Exit) -> EngineActor {
        EngineActor { engine: engine.clone(), socket: socket.to_owned(), stop: Rc::default(), exit }
    }
}

impl Actor for EngineActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let run = run(self.engine.clone(), self.socket.clone(), self.stop.clone());
        ctx.spawn(run.into_actor(self).map(|failure, this, ctx| {
            if let Some(reason) = failure {
                this.exit.fail(reason);
            }
            ctx.stop();
        }));
    }
}

impl Handler<Stop> for EngineActor {
    type Result = ();

    fn handle(&mut self, _: Stop, _: &mut Self::Context) {
        self.stop.notify_one();
    }
}

/// Runs the process to its end. Returns why it ended, unless it was stopped.
async fn run(engine: Arc<config::Engine>, socket: PathBuf, stop: Rc<Notify>) -> Option<String> {
    let clock = Instant::now();
    let now = || elapsed(clock);
    let patience = Duration::from_millis(engine.stop_timeout_ms);
    let mut program = Program::new(u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX));
    // A start may wait for a file system.
    let mut starting = {
        let engine = engine.clone();
        tokio::task::spawn_blocking(move || start::start(&engine, &socket))
    };
    let mut process: Option<Process> = None;
    let mut output = None;
    let (mut reason, mut is_stopped) = (None, false);
    loop {
        let event = match &process {
            None => tokio::select! {
                started = &mut starting => match started.unwrap_or_else(|error| Err(error.to_string())) {
                    Ok(Started { running, pipe }) => {
                        log::info!("engine started engine={} pid={}", engine.name, running.pid().as_raw_nonzero());
                        output = Some(actix::spawn(output::log_lines(pipe, engine.name.clone())));
                        process = Some(Process::new(running));
                        Event::Started
                    }
                    Err(error) => {
                        reason = Some(error);
                        Event::NotStarted
                    }
                },
                () = stop.notified() => Event::Stop,
            },
            Some(process) => tokio::select! {
                () = process.ended() => Event::Ended,
                () = stop.notified() => Event::Stop,
                () = at(clock, program.wake_at()) => Event::Time,
            },
        };
        is_stopped |= event == Event::Stop;
        match program.on(event, now()) {
            Action::Wait => {}
            Action::Terminate => signal(&process, Signal::TERM),
            Action::Kill => {
                let ms = engine.stop_timeout_ms;
                log::warn!("engine killed engine={} reason=stop_timeout stop_timeout_ms={ms}", engine.name);
                signal(&process, Signal::KILL);
            }
            Action::Finish => break,
        }
    }
    if let Some(process) = process {
        reason = Some(process.finish());
    }
    if let Some(mut output) = output
        && tokio::time::timeout(LAST_LINES, &mut output).await.is_err()
    {
        output.abort();
    }
    if is_stopped {
        log::info!("engine stopped engine={} reason={:?}", engine.name, reason.unwrap_or_default());
        return None;
    }
    reason
}

fn signal(process: &Option<Process>, signal: Signal) {
    if let Some(running) = process.as_ref().and_then(|process| process.running.as_ref()) {
        running.signal_group(signal);
    }
}

async fn at(clock: Instant, time: Option<u64>) {
    match time {
        Some(time) => tokio::time::sleep_until((clock + Duration::from_nanos(time)).into()).await,
        None => std::future::pending().await,
    }
}

/// A running process. Dropping it kills it, without waiting for its end.
struct Process {
    running: Option<Running>,
    exit: Option<AsyncFd<OwnedFd>>,
}

impl Process {
    fn new(running: Running) -> Process {
        let exit = running.exit().and_then(|exit| exit.try_clone_to_owned().ok());
        // The deprecation warns of types that close their descriptor behind tokio's back; an `OwnedFd` cannot.
        #[allow(deprecated)]
        let exit = exit.and_then(|exit| AsyncFd::with_interest(exit, Interest::READABLE).ok());
        Process { running: Some(running), exit }
    }

    /// Returns when the process has ended. It is not reaped yet.
    async fn ended(&self) {
        if let Some(exit) = &self.exit
            && exit.readable().await.is_ok()
        {
            return;
        }
        while self.running.as_ref().is_some_and(|running| !running.has_ended()) {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Kills what is left of the group of the ended process, and returns how it ended.
    fn finish(mut self) -> String {
        let Some(running) = self.running.take() else { return String::new() };
        running.signal_group(Signal::KILL);
        end(running.finish())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.signal_group(Signal::KILL);
        // A process in an uninterruptible wait ends late: it is reaped elsewhere.
        let _ = std::thread::Builder::new().name("reaper".to_owned()).spawn(move || drop(running));
    }
}

/// How a process ended, as the reason of its restart.
fn end(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => status.to_string(),
        },
        Err(error) => format!("ended, its exit status is unknown: {error}"),
    }
}

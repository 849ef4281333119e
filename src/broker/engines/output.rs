//! What an engine prints: each line of stdout and stderr is a line of the log.
//!
//! The pipe is always read, so a chatty engine is not held up; lines beyond `logging.max_lines_per_second` of an engine
//! are counted instead of logged.

use crate::broker::telemetry::log_limit::{self, LogLimit};
use crate::logic::lines::Lines;
use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::time::Instant;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

/// The target of the lines, for the log levels.
const TARGET: &str = "lapce_ipc::engine";
/// The longest line in bytes; the rest of a longer one is dropped.
const LINE_MAX: usize = 2048;
/// The most that is read at a time.
const CHUNK: usize = 16 * 1024;

/// Reads the pipe to its end.
pub(super) async fn log_lines(pipe: PipeReader, engine: String) {
    let mut pipe = match Receiver::from_owned_fd(OwnedFd::from(pipe)) {
        Ok(pipe) => pipe,
        Err(error) => return log::warn!("engine output lost engine={engine} reason={:?}", error.to_string()),
    };
    let (mut lines, mut chunk) = (Lines::new(LINE_MAX), vec![0; CHUNK]);
    let mut log = Log { engine, limit: LogLimit::new() };
    loop {
        let read = pipe.read(&mut chunk);
        let read = match log.limit.kept_back {
            0 => read.await,
            _ => match tokio::time::timeout(LogLimit::PERIOD, read).await {
                Ok(read) => read,
                Err(_) => {
                    log.report_kept_back();
                    continue;
                }
            },
        };
        match read {
            Ok(0) | Err(_) => break,
            Ok(count) => lines.push(&chunk[..count], |line| log.line(line)),
        }
    }
    lines.finish(|line| log.line(line));
    log.report_kept_back();
}

struct Log {
    engine: String,
    limit: LogLimit,
}

impl Log {
    fn line(&mut self, line: &str) {
        if self.limit.may_log(Instant::now(), log_limit::limit()) {
            self.report_kept_back();
            log::info!(target: TARGET, "engine output engine={} line={line:?}", self.engine);
        }
    }

    fn report_kept_back(&mut self) {
        match std::mem::take(&mut self.limit.kept_back) {
            0 => {}
            count => log::warn!("log lines suppressed kind=engine_output engine={} count={count}", self.engine),
        }
    }
}

//! stdout for data, stderr for messages to the user.

use super::failure::{Code, Failure};
use crate::broker::telemetry::stderr;
use crate::shm::stdio::stdout_was_closed;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;

/// Writes a line to stderr; errors are ignored.
pub(super) fn note(line: fmt::Arguments<'_>) {
    // In one piece, so that lines of several processes do not mix.
    stderr::write(format!("{line}\n").as_bytes());
}

/// Foreign text on one line, with control characters escaped.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// stdout, with a buffer that its owner empties.
#[derive(Debug)]
pub(super) struct Out {
    writer: BufWriter<File>,
    is_terminal: bool,
}

const BUFFER: usize = 64 * 1024;

impl Out {
    /// Locks stdout.
    ///
    /// # Errors
    ///
    /// If it is closed.
    pub(super) fn new() -> Result<Out, Failure> {
        if stdout_was_closed() {
            return Err(Failure::new(Code::Output, "cannot write to stdout: it is closed"));
        }
        let stdout = io::stdout();
        let no_copy = |error| Failure::new(Code::Unavailable, format!("cannot duplicate stdout: {error}"));
        let file = File::from(stdout.as_fd().try_clone_to_owned().map_err(no_copy)?);
        Ok(Out { writer: BufWriter::with_capacity(BUFFER, file), is_terminal: stdout.is_terminal() })
    }

    /// Writes.
    ///
    /// # Errors
    ///
    /// If it cannot be written. A broken pipe is a silent one.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.writer.write_all(bytes).map_err(failed)
    }

    /// A message is complete: a person sees it at once.
    ///
    /// # Errors
    ///
    /// As [`Out::write`].
    pub(super) fn message_ends(&mut self) -> Result<(), Failure> {
        if self.is_terminal { self.flush() } else { Ok(()) }
    }

    /// Empties the buffer.
    ///
    /// # Errors
    ///
    /// As [`Out::write`].
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.writer.flush().map_err(failed)
    }
}

fn failed(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::silent(),
        _ => Failure::new(Code::Output, format!("cannot write to stdout: {error}")),
    }
}

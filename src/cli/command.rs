//! Running a program that produces the reply to a request.
//!
//! One loop feeds stdin and reads stdout and stderr as they are ready, so that no order in which the program reads and
//! writes can block this process, and checks at intervals whether the request is still outstanding.

use super::output::{note, plain};
use crate::broker::processes::children::Running;
use crate::broker::processes::path::{is_program, programs};
use crate::broker::telemetry::stderr;
use crate::client::{Reply, ReplyError, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

/// The interval of checks whether the request is still outstanding.
const POLL_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// The most that is read, or sent as one chunk, at a time.
const CHUNK: usize = 64 * 1024;
/// The longest line of stderr that becomes an error reply.
const LINE_MAX: usize = 1024;
/// The exit code with which a program rejects an invalid request: `EX_DATAERR` of `sysexits.h`.
const REJECTED: i32 = 65;

/// Whether a program of this name or path exists.
pub(super) fn can_run(name: &OsStr) -> bool {
    if name.as_encoded_bytes().contains(&b'/') {
        return is_program(Path::new(name));
    }
    // Without the variable the system has places of its own.
    std::env::var_os("PATH").is_none_or(|path| programs(name, &path).next().is_some())
}

/// The program that runs for each request.
#[derive(Debug)]
pub(super) struct Program {
    name: OsString,
    args: Vec<OsString>,
}

impl Program {
    pub(super) fn new(name: &OsStr, args: &[OsString]) -> Program {
        Program { name: name.to_owned(), args: args.to_vec() }
    }

    pub(super) fn shell(line: &OsStr) -> Program {
        Program { name: "sh".into(), args: vec!["-c".into(), line.to_owned()] }
    }

    fn shown(&self) -> String {
        plain(&self.name.to_string_lossy())
    }

    /// Replies to a request with the program's output. `max`: the longest reply.
    ///
    /// # Errors
    ///
    /// If the request is no longer outstanding; then the program has been killed.
    pub(super) fn reply(&self, request: Request, max: u32) -> Reply {
        match self.run(request, max) {
            Ok(sent) => sent,
            Err((request, error)) => {
                note(format_args!("error: {}", error.text()));
                if error.is_failure() { request.fail(error.text()) } else { request.refuse(error.text()) }
            }
        }
    }

    fn run(&self, mut request: Request, max: u32) -> Result<Reply, (Request, ReplyError)> {
        let failed = |request, why: String| Err((request, ReplyError::failed(why)));
        let mut command = Command::new(&self.name);
        command.args(&self.args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = match Running::start(&mut command) {
            Ok(running) => running,
            Err(error) => return failed(request, format!("cannot run {}: {error}", self.shown())),
        };
        let mut exchange = match Exchange::new(&mut running) {
            Ok(exchange) => exchange,
            Err(error) => return failed(request, format!("cannot exchange data with {}: {error}", self.shown())),
        };
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let mut chunk = vec![0; CHUNK.min(max)];
        let mut reply = Vec::new();
        while !exchange.is_over() {
            if request.is_cancelled() {
                return Ok(Ok(())); // dropping `running` kills it
            }
            match exchange.step(&running, request.payload(), &mut chunk) {
                Ok(0) => {}
                Ok(read) if request.wants_stream() => {
                    if let Err(error) = request.chunk(&chunk[..read]) {
                        return Ok(Err(error));
                    }
                }
                Ok(read) if reply.len() + read > max => {
                    return failed(request, format!("reply larger than max_message_size, {max} bytes"));
                }
                Ok(read) => reply.extend_from_slice(&chunk[..read]),
                Err(error) => return failed(request, format!("cannot exchange data with {}: {error}", self.shown())),
            }
        }
        exchange.read_stderr();
        match running.finish() {
            Ok(status) if status.success() && request.wants_stream() => Ok(request.finish()),
            Ok(status) if status.success() => Ok(request.reply(reply)),
            Ok(status) if status.code() == Some(REJECTED) => {
                let why = self.explain(status, &exchange.last_line());
                Err((request, ReplyError::rejected(why)))
            }
            Ok(status) => failed(request, self.explain(status, &exchange.last_line())),
            Err(error) => failed(request, format!("cannot wait for {}: {error}", self.shown())),
        }
    }

    fn explain(&self, status: ExitStatus, last_line: &str) -> String {
        match (last_line, status.code(), status.signal()) {
            ("", Some(code), _) => format!("{} exited with {code}", self.shown()),
            ("", None, Some(signal)) => format!("{} was killed by signal {signal}", self.shown()),
            ("", None, None) => format!("{} failed", self.shown()),
            (line, ..) => line.to_owned(),
        }
    }
}

/// The open pipes of a program, and the progress of the exchange.
struct Exchange {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    /// Bytes of the request that the program has.
    written: usize,
    has_ended: bool,
    /// The end of its stderr.
    tail: Vec<u8>,
}

impl Exchange {
    fn new(running: &mut Running) -> io::Result<Exchange> {
        let child = &mut running.child;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        // Our ends only: the program's are other open file descriptions.
        let fds = [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
        for fd in fds.into_iter().flatten() {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        Ok(Exchange { stdin, stdout, stderr, written: 0, has_ended: false, tail: Vec::new() })
    }

    /// The program has ended, and all that it, or what it left behind, could write to stdout is read.
    fn is_over(&self) -> bool {
        self.has_ended && self.stdout.is_none()
    }

    /// Waits a moment for something to do, and does it. Returns how much of stdout is in `chunk`.
    fn step(&mut self, running: &Running, request: &[u8], chunk: &mut [u8]) -> io::Result<usize> {
        if self.written == request.len() {
            self.stdin = None;
        }
        let [can_write, can_read, can_read_stderr, has_ended] = self.wait(running)?;
        self.has_ended |= has_ended;
        if can_write {
            self.write(&request[self.written..]);
        }
        if can_read_stderr {
            self.read_stderr();
        }
        match self.stdout.as_mut().filter(|_| can_read).map(|stdout| stdout.read(chunk)) {
            None => Ok(0),
            Some(Ok(0)) => {
                self.stdout = None;
                Ok(0)
            }
            Some(Ok(read)) => Ok(read),
            Some(Err(error)) if is_passing(&error) => Ok(0),
            Some(Err(error)) => Err(error),
        }
    }

    /// Which of stdin, stdout, stderr and the program's end are ready.
    fn wait(&self, running: &Running) -> io::Result<[bool; 4]> {
        let exit = if self.has_ended { None } else { running.exit() };
        let wanted = [
            self.stdin.as_ref().map(|fd| PollFd::new(fd, PollFlags::OUT)),
            self.stdout.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)),
            self.stderr.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)),
            exit.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)),
        ];
        let indices: Vec<usize> = (0..wanted.len()).filter(|index| wanted[*index].is_some()).collect();
        let mut fds: Vec<PollFd<'_>> = wanted.into_iter().flatten().collect();
        match poll(&mut fds, Some(&POLL_INTERVAL)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = [false; 4];
        for (index, fd) in indices.into_iter().zip(&fds) {
            ready[index] = !fd.revents().is_empty();
        }
        // Without a descriptor.
        ready[3] |= !self.has_ended && exit.is_none() && running.has_ended();
        Ok(ready)
    }

    fn write(&mut self, bytes: &[u8]) {
        match self.stdin.as_mut().map(|stdin| stdin.write(bytes)) {
            Some(Ok(written)) => self.written += written,
            Some(Err(error)) if is_passing(&error) => {}
            // It does not read all that it is given, and need not.
            Some(Err(_)) => self.stdin = None,
            None => {}
        }
    }

    /// Passes stderr on, and keeps its end.
    fn read_stderr(&mut self) {
        let mut bytes = [0; 4096];
        loop {
            match self.stderr.as_mut().map(|stderr| stderr.read(&mut bytes)) {
                Some(Ok(read)) if read > 0 => {
                    stderr::write_patiently(&bytes[..read]);
                    self.tail.extend_from_slice(&bytes[..read]);
                    let surplus = self.tail.len().saturating_sub(2 * LINE_MAX);
                    self.tail.drain(..surplus);
                }
                Some(Err(error)) if is_passing(&error) => return,
                Some(_) => self.stderr = None,
                None => return,
            }
        }
    }

    /// The last line of stderr that is not empty.
    fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.tail);
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        plain(line).chars().take(LINE_MAX).collect()
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

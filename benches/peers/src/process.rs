//! Child processes of the driver: their lines, their limits in time, and their end.

use crate::error::Result;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// The time that a process has to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(1);

/// A child that is ended, and waited for, when this is dropped.
pub(crate) struct Process {
    child: Child,
    name: &'static str,
    lines: Receiver<String>,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command`; its stderr goes to a file in `folder`.
    pub(crate) fn start(mut command: Command, name: &'static str, folder: &Path) -> Result<Self> {
        let stderr = folder.join(format!("{name}.stderr"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&stderr)?);
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().map_err(|error| format!("cannot start {program}: {error}"))?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let (sender, lines) = sync_channel(64);
        // It ends with the child's stdout. What the driver does not wait for, such as a broker's log, is dropped.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
                if let Err(TrySendError::Disconnected(_)) = sender.try_send(line) {
                    break;
                }
            }
        });
        Ok(Self { child, name, lines, stderr })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that begins with `word`, and returns its rest. Other lines are skipped.
    pub(crate) fn wait_for(&mut self, word: &str, deadline: Instant) -> Result<String> {
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(word) {
                        return Ok(rest.trim().to_owned());
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Err(format!("{}: no `{word}` in time", self.name).into()),
                Err(RecvTimeoutError::Disconnected) => return Err(self.failure(word)),
            }
        }
    }

    /// Whether it has ended, with the reason.
    pub(crate) fn check(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() { Err(self.failure("ready")) } else { Ok(()) }
    }

    fn failure(&mut self, word: &str) -> crate::error::Error {
        let text = fs::read_to_string(&self.stderr).unwrap_or_default();
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("ended without a word");
        format!("{} before `{word}`: {}", self.name, last.trim_start_matches("error: ")).into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let deadline = Instant::now() + GRACE;
        if let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            let is_running = matches!(self.child.try_wait(), Ok(None));
            if is_running {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

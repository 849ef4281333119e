//! Signals: SIGTERM and SIGINT end the broker, SIGHUP reloads the configuration, unless it says that the terminal that
//! the broker was started from has been closed.

use super::context::Broker;
use super::reload::reload;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use std::io::IsTerminal;
use tokio::signal::unix::Signal;

/// What was so at the start.
pub(super) struct Terminal {
    had_one: bool,
    ignored: bool,
}

impl Terminal {
    /// To be asked before SIGHUP is caught.
    pub(super) fn at_start() -> Terminal {
        let had_one = is_there() || std::io::stdin().is_terminal() || std::io::stderr().is_terminal();
        Terminal { had_one, ignored: ignores_hang_up() }
    }

    /// Whether a SIGHUP means the end: the terminal is closed, and the broker was not started to outlive that.
    pub(super) fn was_closed(&self) -> bool {
        self.had_one && !self.ignored && (!is_there() || hung_up(std::io::stdin()) || hung_up(std::io::stderr()))
    }
}

/// The next signal that ends the broker.
pub(super) async fn signalled(term: &mut Signal, int: &mut Signal) -> &'static str {
    tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    }
}

/// Reloads by each SIGHUP, until one says that the terminal is closed.
pub(super) async fn reload_until_closed(hang_up: &mut Signal, terminal: &Terminal, broker: &Broker) {
    while hang_up.recv().await.is_some() {
        if terminal.was_closed() {
            return;
        }
        // It is in the log.
        let _ = reload(broker, "SIGHUP").await;
    }
    std::future::pending().await
}

/// Whether SIGHUP was ignored by the process that started us, as `nohup` does. To be asked before it is caught.
pub(crate) fn ignores_hang_up() -> bool {
    const HANG_UP: u64 = 1;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & HANG_UP != 0)
}

/// Whether there is a controlling terminal.
fn is_there() -> bool {
    open("/dev/tty", OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK, Mode::empty()).is_ok()
}

/// Whether it is a terminal that was closed.
fn hung_up(stream: impl std::os::fd::AsFd) -> bool {
    let mut fds = [PollFd::new(&stream, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    // A pipe or socket whose other end is gone says the same, and is no terminal; a terminal that is gone is a device
    // still.
    let is_device = rustix::fs::fstat(&stream)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice);
    polled.is_ok() && is_device && fds[0].revents().contains(PollFlags::HUP)
}

//! Bounds how often lines of a kind are logged that peers can cause at will: a few in each second, then one that says
//! how many were kept back.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Kinds of lines. Each has a limit of its own, so that a flood of one does not hide another.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Opened,
    Closed,
    Lost,
    Refused,
    NotAccepted,
    NotResumed,
}

impl Kind {
    const ALL: [&str; 6] = ["opened", "closed", "lost", "refused", "not_accepted", "not_resumed"];
}

/// The log is one for the whole process, and so are these.
static LIMITS: [Mutex<LogLimit>; Kind::ALL.len()] = [const { Mutex::new(LogLimit::new()) }; Kind::ALL.len()];

/// Whether to log a line of this kind now. To be called where tasks can be spawned: if lines are kept back, a task
/// logs how many, a second later.
pub(super) fn may_log(kind: Kind) -> bool {
    let lock = move || LIMITS[kind as usize].lock().unwrap_or_else(PoisonError::into_inner);
    let mut limit = lock();
    if limit.may_log(Instant::now()) {
        return true;
    }
    if limit.kept_back == 1 {
        actix::spawn(async move {
            tokio::time::sleep(LogLimit::PERIOD).await;
            let count = std::mem::take(&mut lock().kept_back);
            log::warn!("log lines suppressed kind={} count={count}", Kind::ALL[kind as usize]);
        });
    }
    false
}

/// The limit of one kind.
#[derive(Debug)]
struct LogLimit {
    since: Option<Instant>,
    logged: u32,
    kept_back: u64,
}

impl LogLimit {
    const PERIOD: Duration = Duration::from_secs(1);
    const MOST: u32 = 50;

    const fn new() -> LogLimit {
        LogLimit { since: None, logged: 0, kept_back: 0 }
    }

    fn may_log(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= Self::PERIOD) {
            (self.since, self.logged) = (Some(now), 0);
        }
        if self.logged == Self::MOST {
            self.kept_back += 1;
            return false;
        }
        self.logged += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_the_same_line_is_logged_a_few_times() {
        let (mut limit, now) = (LogLimit::new(), Instant::now());
        let logged = (0..1000).filter(|_| limit.may_log(now)).count();
        assert_eq!((logged, limit.kept_back), (LogLimit::MOST as usize, 1000 - u64::from(LogLimit::MOST)));
        assert!(limit.may_log(now + LogLimit::PERIOD));
    }
}

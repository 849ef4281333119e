//! Rate limits for log lines that peers can cause at will: a few of each kind and user per second, then one line for
//! each user with the number of suppressed ones.

use crate::broker::clock::elapsed;
pub(in crate::broker) use crate::logic::line_shares::OTHERS;
use crate::logic::line_shares::{LineShares, Verdict};
use crate::logic::quotas::Quotas;
use crate::logic::shares::Principal;
use crate::sync::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Kinds of lines. Each has a limit of its own, so that a flood of one does not hide another.
#[derive(Clone, Copy, Debug)]
pub(in crate::broker) enum Kind {
    Opened,
    Closed,
    Lost,
    Refused,
    NotAccepted,
    NotResumed,
    Restarted,
    Denied,
    Evicted,
}

impl Kind {
    const ALL: [&str; 9] =
        ["opened", "closed", "lost", "refused", "not_accepted", "not_resumed", "restarted", "denied", "evicted"];
}

/// Lines of one kind in a second (`logging.max_lines_per_second`).
static MAX_LINES_PER_SECOND: AtomicU64 = AtomicU64::new(50);

/// Sets the limit of all kinds.
pub(in crate::broker) fn set_limit(most: u32) {
    MAX_LINES_PER_SECOND.store(most.into(), Ordering::Relaxed);
}

/// The names of quotas, for the lines that count suppressed ones.
static QUOTAS: Mutex<Option<Arc<Quotas>>> = Mutex::new(None);

/// Sets the quotas.
pub(in crate::broker) fn set_quotas(quotas: Arc<Quotas>) {
    *QUOTAS.lock().unwrap_or_else(PoisonError::into_inner) = Some(quotas);
}

/// The limit of all kinds.
pub(in crate::broker) fn limit() -> u64 {
    MAX_LINES_PER_SECOND.load(Ordering::Relaxed)
}

/// Global, like the log.
static LIMITS: [Mutex<LineShares>; Kind::ALL.len()] = [const { Mutex::new(LineShares::new()) }; Kind::ALL.len()];
static CLOCK: OnceLock<Instant> = OnceLock::new();

/// Whether to log a line of this kind now, which a client of `user` has caused ([`OTHERS`]: it is not known). Call it
/// where tasks can be spawned: a task logs the numbers of suppressed lines a second later.
pub(in crate::broker) fn may_log(kind: Kind, user: Principal) -> bool {
    let lock = move || LIMITS[kind as usize].lock().unwrap_or_else(PoisonError::into_inner);
    let now = elapsed(*CLOCK.get_or_init(Instant::now));
    let verdict = lock().add(now, user, usize::try_from(limit()).unwrap_or(usize::MAX));
    if verdict == Verdict::SuppressFirst {
        actix::spawn(async move {
            tokio::time::sleep(LogLimit::PERIOD).await;
            let (counts, kind) = (lock().take_counts(), Kind::ALL[kind as usize]);
            let quotas = QUOTAS.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default();
            for (user, count) in counts {
                match (user, quotas.name(user)) {
                    (OTHERS, _) => log::warn!("log lines suppressed kind={kind} uid=others count={count}"),
                    (user, None) => log::warn!("log lines suppressed kind={kind} uid={} count={count}", user.uid()),
                    (user, Some(quota)) => {
                        let uid = user.uid();
                        log::warn!("log lines suppressed kind={kind} uid={uid} quota={quota} count={count}");
                    }
                }
            }
        });
    }
    verdict == Verdict::Log
}

/// The limit of lines that no user but a program of the broker causes.
#[derive(Debug)]
pub(in crate::broker) struct LogLimit {
    since: Option<Instant>,
    logged: u32,
    pub(in crate::broker) kept_back: u64,
}

impl LogLimit {
    pub(in crate::broker) const PERIOD: Duration = Duration::from_secs(1);

    pub(in crate::broker) const fn new() -> LogLimit {
        LogLimit { since: None, logged: 0, kept_back: 0 }
    }

    pub(in crate::broker) fn may_log(&mut self, now: Instant, most: u64) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= Self::PERIOD) {
            (self.since, self.logged) = (Some(now), 0);
        }
        if u64::from(self.logged) >= most {
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
        let logged = (0..1000).filter(|_| limit.may_log(now, 50)).count();
        assert_eq!((logged, limit.kept_back), (50, 950));
        assert!(limit.may_log(now, 51), "a higher limit holds at once");
        assert!(limit.may_log(now + LogLimit::PERIOD, 50));
    }
}

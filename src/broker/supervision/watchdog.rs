//! The watchdog: a thread of its own that requests heartbeats from the others, and aborts the process when one is
//! stuck.
//!
//! A thread that spins or blocks for ever cannot be killed from inside; so the watchdog logs it and aborts, and
//! systemd restarts the broker. The watched threads sleep when there is nothing to do, so the watchdog does not
//! expect heartbeats but requests them: from the router by its bell, from the others by a task on their runtime.

use crate::logic::supervision::watch::{ThreadState, Watch};
use crate::sync::{AtomicU64, Ordering};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The delay after which a late thread is logged.
const WARN: Duration = Duration::from_secs(1);
/// The longest interval between two checks.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The shortest interval.
const SHORTEST: Duration = Duration::from_millis(1);

/// A watched thread.
pub(in crate::broker) struct Watched {
    pub(in crate::broker) name: String,
    /// Its heartbeat counter; `None` while the thread is absent.
    pub(in crate::broker) count: Box<dyn Fn() -> Option<u64> + Send>,
    /// Requests a heartbeat.
    pub(in crate::broker) ask: Box<dyn Fn() + Send>,
    /// Whether the process aborts when it is stuck.
    pub(in crate::broker) is_vital: bool,
}

/// A callback while no thread is stuck, and its interval.
pub(in crate::broker) struct Alive {
    pub(in crate::broker) every: Duration,
    pub(in crate::broker) tell: Box<dyn Fn() + Send>,
}

/// The heartbeat of a thread that sleeps in its runtime.
#[derive(Debug, Default)]
pub(in crate::broker) struct Pulse {
    count: AtomicU64,
    asked: Notify,
    /// Running heartbeat tasks.
    beating: AtomicU64,
}

/// A running heartbeat task.
struct Beats<'a>(&'a Pulse);

impl Drop for Beats<'_> {
    fn drop(&mut self) {
        self.0.beating.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pulse {
    /// Answers heartbeat requests. To be spawned on the watched thread.
    pub(in crate::broker) async fn beat(self: Arc<Pulse>) {
        self.beating.fetch_add(1, Ordering::Relaxed);
        let _beats = Beats(&self);
        loop {
            self.asked.notified().await;
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Watches the thread of this heartbeat.
    pub(in crate::broker) fn watched(self: Arc<Pulse>, name: String) -> Watched {
        let asked = self.clone();
        Watched {
            name,
            count: Box::new(move || Some(self.count.load(Ordering::Relaxed))),
            ask: Box::new(move || asked.asked.notify_one()),
            is_vital: true,
        }
    }

    /// Watches a thread that may be absent, and that is not vital.
    pub(in crate::broker) fn watched_non_vital(self: Arc<Pulse>, name: &str) -> Watched {
        let pulse = self.clone();
        let count = move || (pulse.beating.load(Ordering::Relaxed) > 0).then(|| pulse.count.load(Ordering::Relaxed));
        Watched { count: Box::new(count), is_vital: false, ..self.watched(name.to_owned()) }
    }
}

/// The watchdog; its thread ends with it.
#[derive(Debug)]
pub(in crate::broker) struct Watchdog {
    late: Arc<AtomicU64>,
    late_non_vital: Arc<AtomicU64>,
    _ends_it: SyncSender<()>,
}

impl Watchdog {
    /// Starts the watchdog. Calls `hangs` when a vital thread has been stuck for `abort_after`; in the broker that does
    /// not return.
    ///
    /// # Errors
    ///
    /// If the thread cannot be created.
    pub(in crate::broker) fn start(
        watched: Vec<Watched>,
        abort_after: Duration,
        alive: Option<Alive>,
        hangs: impl Fn() + Send + 'static,
    ) -> io::Result<Watchdog> {
        let (ends_it, ended) = sync_channel::<()>(0);
        let (late, late_non_vital) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let most = alive.as_ref().map_or(CHECK_INTERVAL, |alive| alive.every / 2);
        let every = (abort_after / 8).min(CHECK_INTERVAL).min(most).max(SHORTEST);
        let warn = WARN.min(abort_after / 2);
        let (clock, late_out, late_non_vital_out) = (Instant::now(), late.clone(), late_non_vital.clone());
        let watch = move || {
            let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            let watch = |is_vital: bool| {
                let abort = if is_vital { nanos(abort_after) } else { u64::MAX };
                Watch::new(nanos(warn), abort, nanos(every), nanos(clock.elapsed()))
            };
            let mut watched: Vec<_> = watched.into_iter().map(|it| (watch(it.is_vital), it)).collect();
            let mut told_alive = None;
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                for (watch, watched) in &mut watched {
                    look(watched, watch, nanos(clock.elapsed()), &hangs);
                }
                let late = |is_vital| {
                    watched.iter().filter(|(watch, it)| it.is_vital == is_vital && watch.is_late()).count() as u64
                };
                let vital = late(true);
                late_out.store(vital, Ordering::Relaxed);
                late_non_vital_out.store(late(false), Ordering::Relaxed);
                if let Some(alive) = alive.as_ref().filter(|_| vital == 0) {
                    // The next look may be too late, so half of one early.
                    let is_due = |at: Instant| at.elapsed() + every / 2 >= alive.every;
                    if told_alive.is_none_or(is_due) {
                        (alive.tell)();
                        told_alive = Some(Instant::now());
                    }
                }
            }
        };
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(watch)?;
        Ok(Watchdog { late, late_non_vital, _ends_it: ends_it })
    }

    /// Late vital threads: for `/live`.
    pub(in crate::broker) fn late(&self) -> Arc<AtomicU64> {
        self.late.clone()
    }

    /// Late threads of the endpoints.
    pub(in crate::broker) fn late_non_vital(&self) -> Arc<AtomicU64> {
        self.late_non_vital.clone()
    }
}

fn look(watched: &Watched, watch: &mut Watch, now: u64, hangs: &impl Fn()) {
    let (name, ms) = (&watched.name, |nanos: u64| nanos / 1_000_000);
    match watch.look((watched.count)(), now) {
        ThreadState::Alive => (watched.ask)(),
        ThreadState::Recovered(late) => {
            log::warn!("thread recovered thread={name} late_ms={}", ms(late));
            (watched.ask)();
        }
        ThreadState::Pending => {}
        ThreadState::Late(late) => log::error!("thread stuck thread={name} late_ms={}", ms(late)),
        ThreadState::Stuck(late) => {
            log::error!("thread stuck, aborting thread={name} late_ms={}", ms(late));
            hangs();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse() -> (Arc<Pulse>, Watched) {
        let pulse = Arc::new(Pulse::default());
        (pulse.clone(), pulse.watched("test".to_owned()))
    }

    #[test]
    fn a_thread_that_sleeps_answers_and_one_that_hangs_is_found() {
        let (turns, sleeping) = pulse();
        let (_hangs, hanging) = pulse();
        let runtime = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = turns.clone().beat() => {}
                    () = async {
                        while turns.count.load(Ordering::Relaxed) < 3 {
                            tokio::task::yield_now().await;
                        }
                    } => {}
                }
            });
            turns.count.load(Ordering::Relaxed)
        });
        let (found, hangs) = sync_channel(1);
        let on_hang = move || {
            let _ = found.try_send(());
        };
        let alive = Watchdog::start(vec![sleeping], Duration::from_secs(3600), None, || {}).unwrap();
        assert_eq!(runtime.join().unwrap(), 3);
        let dead = Watchdog::start(vec![hanging], Duration::from_millis(40), None, on_hang).unwrap();
        hangs.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(alive.late().load(Ordering::Relaxed), 0);
        drop(dead);
    }

    #[test]
    fn a_thread_beside_is_told_of_and_ends_nothing() {
        let (gone, hanging) = (Arc::new(Pulse::default()), Arc::new(Pulse::default()));
        hanging.beating.fetch_add(1, Ordering::Relaxed);
        let (pings, pinged) = sync_channel(1);
        let tell = Box::new(move || {
            let _ = pings.try_send(());
        });
        let watched = vec![gone.watched_non_vital("gone"), hanging.clone().watched_non_vital("hanging")];
        let alive = Alive { every: Duration::from_millis(1), tell };
        let hangs = || panic!("it is not vital");
        let watchdog = Watchdog::start(watched, Duration::from_millis(10), Some(alive), hangs).unwrap();
        while watchdog.late_non_vital().load(Ordering::Relaxed) < 1 {
            pinged.recv_timeout(Duration::from_secs(30)).unwrap();
        }
        // It is late for good, and the heartbeats to the manager continue.
        for _ in 0..20 {
            pinged.recv_timeout(Duration::from_secs(30)).unwrap();
        }
        assert_eq!(
            (watchdog.late_non_vital().load(Ordering::Relaxed), watchdog.late().load(Ordering::Relaxed)),
            (1, 0)
        );
        // It responds again.
        hanging.count.fetch_add(1, Ordering::Relaxed);
        while watchdog.late_non_vital().load(Ordering::Relaxed) > 0 {
            hanging.count.fetch_add(1, Ordering::Relaxed);
            pinged.recv_timeout(Duration::from_secs(30)).unwrap();
        }
    }

    #[test]
    fn nobody_hears_that_we_live_while_a_vital_thread_hangs() {
        let (_hangs, hanging) = pulse();
        let (pings, pinged) = sync_channel(1000);
        let tell = Box::new(move || {
            let _ = pings.try_send(());
        });
        let alive = Alive { every: Duration::from_millis(1), tell };
        let (found, hangs) = sync_channel(1000);
        let on_hang = move || {
            let _ = found.try_send(());
        };
        let watchdog = Watchdog::start(vec![hanging], Duration::from_millis(40), Some(alive), on_hang).unwrap();
        hangs.recv_timeout(Duration::from_secs(30)).unwrap();
        let _ = pinged.try_iter().count();
        for _ in 0..3 {
            hangs.recv_timeout(Duration::from_secs(30)).unwrap();
        }
        assert_eq!(pinged.try_iter().count(), 0);
        assert_eq!(watchdog.late().load(Ordering::Relaxed), 1);
    }
}

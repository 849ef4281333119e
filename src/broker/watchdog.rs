//! A watchdog: a thread of its own that asks the others for a sign of life, and ends the process when one hangs.
//!
//! A thread that spins or blocks for ever cannot be killed from inside; what is left is to say so, and to abort, so
//! that systemd starts the broker anew. The watched threads sleep when there is nothing to do, so the watchdog does not
//! expect signs of life but asks for them: the router by its bell, the others by a task on their runtime.

use crate::routing::watch::{Verdict, Watch};
use crate::sync::{AtomicU64, Ordering};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How late a thread may be before people are told.
const WARN: Duration = Duration::from_secs(1);
/// The longest between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// A thread that is watched.
pub(super) struct Watched {
    pub(super) name: String,
    /// What it counts when it turns; `None` while nobody is there to count.
    pub(super) count: Box<dyn Fn() -> Option<u64> + Send>,
    /// Asks it to count once more.
    pub(super) ask: Box<dyn Fn() + Send>,
}

/// The sign of life of a thread that sleeps in its runtime.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    count: AtomicU64,
    asked: Notify,
}

impl Pulse {
    /// Answers when asked. To be spawned on the thread that is watched.
    pub(super) async fn beat(self: Arc<Pulse>) {
        loop {
            self.asked.notified().await;
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The watch over it.
    pub(super) fn watched(self: Arc<Pulse>, name: String) -> Watched {
        let asked = self.clone();
        Watched {
            name,
            count: Box::new(move || Some(self.count.load(Ordering::Relaxed))),
            ask: Box::new(move || asked.asked.notify_one()),
        }
    }
}

/// The watchdog; its thread ends with it.
#[derive(Debug)]
pub(super) struct Watchdog {
    late: Arc<AtomicU64>,
    _ends_it: SyncSender<()>,
}

impl Watchdog {
    /// Watches from now on. Calls `hangs` when a thread has not turned for `abort_after`; the real one does not return.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub(super) fn start(
        watched: Vec<Watched>,
        abort_after: Duration,
        hangs: impl Fn() + Send + 'static,
    ) -> io::Result<Watchdog> {
        let (ends_it, ended) = sync_channel::<()>(0);
        let late = Arc::new(AtomicU64::new(0));
        let every = (abort_after / 8).min(LOOK);
        let warn = WARN.min(abort_after / 2);
        let (clock, told) = (Instant::now(), late.clone());
        let watch = move || {
            let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            let watch = || Watch::new(nanos(warn), nanos(abort_after), nanos(every), nanos(clock.elapsed()));
            let mut watched: Vec<_> = watched.into_iter().map(|watched| (watched, watch())).collect();
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                for (watched, watch) in &mut watched {
                    look(watched, watch, nanos(clock.elapsed()), &hangs);
                }
                told.store(watched.iter().filter(|(_, watch)| watch.is_late()).count() as u64, Ordering::Relaxed);
            }
        };
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(watch)?;
        Ok(Watchdog { late, _ends_it: ends_it })
    }

    /// How many threads are late: the count that `/live` is about.
    pub(super) fn late(&self) -> Arc<AtomicU64> {
        self.late.clone()
    }
}

fn look(watched: &Watched, watch: &mut Watch, now: u64, hangs: &impl Fn()) {
    let (name, ms) = (&watched.name, |nanos: u64| nanos / 1_000_000);
    match watch.look((watched.count)(), now) {
        Verdict::Turns => (watched.ask)(),
        Verdict::TurnsAgain(late) => {
            log::warn!("thread turns again thread={name} late_ms={}", ms(late));
            (watched.ask)();
        }
        Verdict::Waits => {}
        Verdict::Late(late) => log::error!("thread hangs thread={name} late_ms={}", ms(late)),
        Verdict::Hangs(late) => {
            log::error!("thread hangs, aborting thread={name} late_ms={}", ms(late));
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
        let alive = Watchdog::start(vec![sleeping], Duration::from_secs(3600), || {}).unwrap();
        assert_eq!(runtime.join().unwrap(), 3);
        let dead = Watchdog::start(vec![hanging], Duration::from_millis(40), on_hang).unwrap();
        hangs.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(alive.late().load(Ordering::Relaxed), 0);
        drop(dead);
    }
}

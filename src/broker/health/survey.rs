//! What is known of the router, without asking it more than need be: one question under way at most, and a new one a
//! tenth of a second after the last at the earliest, however many read. A router that hangs holds up nobody for longer
//! than they want to wait.

use super::super::router::{RouterHandle, Survey, Surveyed};
use crate::sync::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// How old an answer may be.
const FRESH: Duration = Duration::from_millis(100);

/// What the router said, and when.
#[derive(Clone, Debug)]
pub(in crate::broker) struct Seen {
    pub(super) at: Instant,
    pub(super) surveyed: Arc<Surveyed>,
}

/// Whoever wants to know; clones ask the same router.
#[derive(Clone, Debug)]
pub(super) struct Surveyor {
    seen: watch::Receiver<Option<Seen>>,
    wanted: Arc<Wanted>,
}

/// That somebody wants to know, and whether with the list of connections.
#[derive(Debug, Default)]
struct Wanted {
    /// 1 if so.
    connections: AtomicU64,
    notify: Notify,
}

impl Surveyor {
    /// What is known when it is fresh, or after `patience`: the last that is known, if anything, and whether it is
    /// fresh.
    pub(super) async fn look(&self, patience: Duration) -> (Option<Seen>, bool) {
        self.look_for(patience, true).await
    }

    /// The same, perhaps without the list of connections, which is what takes the router long if there are many.
    pub(super) async fn glance(&self, patience: Duration) -> (Option<Seen>, bool) {
        self.look_for(patience, false).await
    }

    async fn look_for(&self, patience: Duration, connections: bool) -> (Option<Seen>, bool) {
        // Not what was true before we were asked and a moment earlier.
        let since = Instant::now().checked_sub(FRESH);
        let is_fresh = |seen: &Option<Seen>| {
            seen.as_ref().is_some_and(|seen| {
                since.is_none_or(|since| seen.at >= since) && (seen.surveyed.has_connections || !connections)
            })
        };
        let mut seen = self.seen.clone();
        if !is_fresh(&seen.borrow_and_update()) {
            if connections {
                self.wanted.connections.store(1, Ordering::Relaxed);
            }
            // One that is under way without them is followed by one more.
            self.wanted.notify.notify_one();
            let _ = tokio::time::timeout(patience, seen.wait_for(is_fresh)).await;
        }
        let last = self.seen.borrow().clone();
        let fresh = is_fresh(&last);
        (last, fresh)
    }

    /// What is known, and nobody is asked.
    pub(super) fn last(&self) -> Option<Seen> {
        self.seen.borrow().clone()
    }
}

/// Who asks, and the task that does it until there will be no router any more.
pub(super) fn surveyor(router: RouterHandle) -> (Surveyor, impl Future<Output = ()>) {
    let ask = move |connections| {
        let router = router.clone();
        async move { router.send(Survey { connections }).await.ok() }
    };
    over(ask)
}

fn over<F: Future<Output = Option<Surveyed>>>(ask: impl Fn(bool) -> F) -> (Surveyor, impl Future<Output = ()>) {
    let (told, seen) = watch::channel(None);
    let wanted = Arc::new(Wanted::default());
    let surveyor = Surveyor { seen, wanted: wanted.clone() };
    let asks = async move {
        loop {
            wanted.notify.notified().await;
            let connections = wanted.connections.swap(0, Ordering::Relaxed) == 1;
            let Some(surveyed) = ask(connections).await else { return };
            // When it was told, not when it was asked: so whoever waits for it takes it.
            told.send_replace(Some(Seen { at: Instant::now(), surveyed: Arc::new(surveyed) }));
            tokio::time::sleep(FRESH).await;
        }
    };
    (surveyor, asks)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::cell::Cell;

    pub(in crate::broker::health) fn surveyed() -> Surveyed {
        Surveyed {
            report: crate::wire::control::StatusReport::default(),
            breakers: Vec::new(),
            figures: crate::broker::router::RouterFigures::default(),
            has_connections: true,
        }
    }

    #[actix::test]
    async fn many_readers_are_one_question_and_a_router_that_hangs_is_waited_for_once() {
        let (asked, hangs) = (Cell::new(0), Cell::new(false));
        let (asked, hangs) = (&asked, &hangs);
        let (surveyor, asks) = over(|_| async move {
            asked.set(asked.get() + 1);
            if hangs.get() {
                std::future::pending::<()>().await;
            }
            Some(surveyed())
        });
        let reads = async {
            let patience = Duration::from_secs(60);
            for (seen, fresh) in
                [surveyor.look(patience).await, surveyor.look(patience).await, surveyor.look(patience).await]
            {
                assert!(seen.is_some() && fresh);
            }
            // On a slow machine the second look may have been a tenth of a second after the first.
            let before = asked.get();
            assert!(before <= 3, "{before}");
            hangs.set(true);
            while surveyor.look(Duration::from_millis(1)).await.1 {}
            for _ in 0..20 {
                let (seen, fresh) = surveyor.look(Duration::from_millis(1)).await;
                assert!(seen.is_some() && !fresh, "what was known is known still");
            }
            assert!(surveyor.last().is_some());
            asked.get() - before
        };
        tokio::select! {
            more = reads => assert!(more <= 1, "{more} questions under way"),
            () = asks => unreachable!(),
        }
    }

    #[actix::test]
    async fn the_list_of_connections_is_asked_for_when_somebody_wants_it() {
        let asked = std::cell::RefCell::new(Vec::new());
        let (surveyor, asks) = over(|has_connections| {
            asked.borrow_mut().push(has_connections);
            async move { Some(Surveyed { has_connections, ..surveyed() }) }
        });
        let reads = async {
            let patience = Duration::from_secs(60);
            assert!(surveyor.glance(patience).await.1);
            assert!(asked.borrow().iter().all(|connections| !connections), "{asked:?}");
            // What is known is fresh, but not enough.
            let (seen, fresh) = surveyor.look(patience).await;
            assert!(fresh && seen.is_some_and(|seen| seen.surveyed.has_connections));
            assert!(surveyor.glance(patience).await.1, "more than enough");
            assert_eq!(asked.borrow().iter().filter(|connections| **connections).count(), 1, "{asked:?}");
        };
        tokio::select! {
            () = reads => {}
            () = asks => unreachable!(),
        }
    }
}

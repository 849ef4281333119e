//! Probes of the router with a bounded load: one at a time, and at most ten a second, for any number of readers. A
//! stuck router delays a reader by the reader's own timeout.

use super::super::router::{ProbeRouter, RouterHandle, RouterSnapshot};
use crate::sync::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// The age up to which a reply is fresh.
const FRESH: Duration = Duration::from_millis(100);

/// The last reply of the router, and when it came.
#[derive(Clone, Debug)]
pub(in crate::broker) struct LastReply {
    pub(super) at: Instant,
    pub(super) router_snapshot: Arc<RouterSnapshot>,
}

/// A handle for readers; clones share the probes.
#[derive(Clone, Debug)]
pub(super) struct RouterProbe {
    seen: watch::Receiver<Option<LastReply>>,
    demand: Arc<Demand>,
}

/// A reader's demand for a new probe.
#[derive(Debug, Default)]
struct Demand {
    /// 1 if with the list of connections.
    connections: AtomicU64,
    notify: Notify,
}

impl RouterProbe {
    /// The fresh reply, or after `timeout` the last one, if any; and whether it is fresh.
    pub(super) async fn query(&self, timeout: Duration) -> (Option<LastReply>, bool) {
        self.query_for(timeout, true).await
    }

    /// The same, perhaps without the list of connections, which is costly with many of them.
    pub(super) async fn query_brief(&self, timeout: Duration) -> (Option<LastReply>, bool) {
        self.query_for(timeout, false).await
    }

    async fn query_for(&self, timeout: Duration, connections: bool) -> (Option<LastReply>, bool) {
        // Fresh means: not much older than this call.
        let since = Instant::now().checked_sub(FRESH);
        let is_fresh = |seen: &Option<LastReply>| {
            seen.as_ref().is_some_and(|seen| {
                since.is_none_or(|since| seen.at >= since) && (seen.router_snapshot.has_connections || !connections)
            })
        };
        let mut seen = self.seen.clone();
        if !is_fresh(&seen.borrow_and_update()) {
            if connections {
                self.demand.connections.store(1, Ordering::Relaxed);
            }
            // A running probe without the list is followed by one with it.
            self.demand.notify.notify_one();
            let _ = tokio::time::timeout(timeout, seen.wait_for(is_fresh)).await;
        }
        let last = self.seen.borrow().clone();
        let fresh = is_fresh(&last);
        (last, fresh)
    }

    /// The last reply, without a probe.
    pub(super) fn last(&self) -> Option<LastReply> {
        self.seen.borrow().clone()
    }
}

/// The handle, and the task that probes until the router is gone for good.
pub(super) fn start(router: RouterHandle) -> (RouterProbe, impl Future<Output = ()>) {
    let ask = move |connections| {
        let router = router.clone();
        async move { router.send(ProbeRouter { connections }).await.ok() }
    };
    over(ask)
}

fn over<F: Future<Output = Option<RouterSnapshot>>>(
    ask: impl Fn(bool) -> F,
) -> (RouterProbe, impl Future<Output = ()>) {
    let (sender, seen) = watch::channel(None);
    let demand = Arc::new(Demand::default());
    let probe = RouterProbe { seen, demand: demand.clone() };
    let asks = async move {
        loop {
            demand.notify.notified().await;
            let connections = demand.connections.swap(0, Ordering::Relaxed) == 1;
            let Some(router_snapshot) = ask(connections).await else { return };
            // The time of the reply, not of the probe, so that all waiting readers accept it.
            sender.send_replace(Some(LastReply { at: Instant::now(), router_snapshot: Arc::new(router_snapshot) }));
            tokio::time::sleep(FRESH).await;
        }
    };
    (probe, asks)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::cell::Cell;

    pub(in crate::broker::health) fn router_snapshot() -> RouterSnapshot {
        RouterSnapshot {
            report: crate::wire::control::StatusReport::default(),
            breakers: Vec::new(),
            metrics: crate::broker::router::RouterMetrics::default(),
            has_connections: true,
            cost: 0,
        }
    }

    #[actix::test]
    async fn many_readers_are_one_question_and_a_router_that_hangs_is_waited_for_once() {
        let (asked, hangs) = (Cell::new(0), Cell::new(false));
        let (asked, hangs) = (&asked, &hangs);
        let (probe, asks) = over(|_| async move {
            asked.set(asked.get() + 1);
            if hangs.get() {
                std::future::pending::<()>().await;
            }
            Some(router_snapshot())
        });
        let reads = async {
            let timeout = Duration::from_secs(60);
            for (seen, fresh) in [probe.query(timeout).await, probe.query(timeout).await, probe.query(timeout).await] {
                assert!(seen.is_some() && fresh);
            }
            // On a slow machine the second look may have been a tenth of a second after the first.
            let before = asked.get();
            assert!(before <= 3, "{before}");
            hangs.set(true);
            while probe.query(Duration::from_millis(1)).await.1 {}
            for _ in 0..20 {
                let (seen, fresh) = probe.query(Duration::from_millis(1)).await;
                assert!(seen.is_some() && !fresh, "what was known is known still");
            }
            assert!(probe.last().is_some());
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
        let (probe, asks) = over(|has_connections| {
            asked.borrow_mut().push(has_connections);
            async move { Some(RouterSnapshot { has_connections, ..router_snapshot() }) }
        });
        let reads = async {
            let timeout = Duration::from_secs(60);
            assert!(probe.query_brief(timeout).await.1);
            assert!(asked.borrow().iter().all(|connections| !connections), "{asked:?}");
            // What is known is fresh, but not enough.
            let (seen, fresh) = probe.query(timeout).await;
            assert!(fresh && seen.is_some_and(|seen| seen.router_snapshot.has_connections));
            assert!(probe.query_brief(timeout).await.1, "more than enough");
            assert_eq!(asked.borrow().iter().filter(|connections| **connections).count(), 1, "{asked:?}");
        };
        tokio::select! {
            () = reads => {}
            () = asks => unreachable!(),
        }
    }
}

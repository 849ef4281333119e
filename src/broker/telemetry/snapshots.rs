//! The snapshots of the status that clients ask for over the control socket: one is made at a time, and shared
//! (`logic::snapshots` has the rules).
//!
//! A request for a first page waits for its turn, and then for a snapshot that was begun after it came; the one whose
//! turn it is makes it, in its own connection's task. A request for a further page never waits. What HTTP clients see
//! is probed apart (`health::probe`), so that a stuck thread of a connection cannot stop that.

use super::pages::Pages;
use crate::broker::clock::elapsed;
use crate::logic::snapshots::{KEPT_FOR, Made, Snapshots};
use crate::shm::segment::fill_random;
use crate::wire::control::{BreakerStatus, PageToken, StatusReport};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The state of the broker, and the router's time that it took to find it, in nanoseconds.
pub(in crate::broker) struct Found {
    pub(in crate::broker) report: StatusReport,
    pub(in crate::broker) breakers: Vec<BreakerStatus>,
    pub(in crate::broker) cost: u64,
}

/// The snapshots, shared by all connections.
#[derive(Debug)]
pub(in crate::broker) struct SharedSnapshots {
    kept: Mutex<Snapshots<Arc<Pages>>>,
    /// The number of the next snapshot. It is held by the request that makes one.
    turn: tokio::sync::Mutex<u64>,
    epoch: Instant,
}

impl SharedSnapshots {
    /// None yet. Numbers begin at random, so that a token of another broker is unknown here.
    pub(in crate::broker) fn new() -> io::Result<Arc<SharedSnapshots>> {
        let mut first = [0; 8];
        fill_random(&mut first)?;
        let turn = tokio::sync::Mutex::new(u64::from_le_bytes(first));
        Ok(Arc::new(SharedSnapshots { kept: Mutex::new(Snapshots::new()), turn, epoch: Instant::now() }))
    }

    /// A snapshot that was begun after this call. `find` looks at the broker, if this request has to; it is `None`
    /// when the router has ended.
    pub(in crate::broker) async fn take(
        self: &Arc<Self>,
        find: impl AsyncFnOnce() -> Option<Found>,
    ) -> Option<io::Result<Arc<Pages>>> {
        let asked = self.now();
        let mut turn = self.turn.lock().await;
        if let Some(pages) = self.kept().of_request(asked) {
            return Some(Ok(pages));
        }
        let next_at = self.kept().next_at();
        tokio::time::sleep_until((self.epoch + Duration::from_nanos(next_at)).into()).await;
        let (number, begun_at) = (*turn, self.now());
        *turn = number.wrapping_add(1);
        let Found { report, breakers, cost } = find().await?;
        let pages = match Pages::new(number, report, breakers) {
            Ok(pages) => Arc::new(pages),
            Err(error) => return Some(Err(io::Error::other(error))),
        };
        let has_pages = pages.has_more();
        self.kept().keep(Made { number, begun_at, cost, has_pages }, pages.clone(), self.now());
        if has_pages {
            let snapshots = self.clone();
            actix::spawn(async move {
                tokio::time::sleep(Duration::from_nanos(KEPT_FOR)).await;
                snapshots.kept().expire(snapshots.now());
            });
        }
        Some(Ok(pages))
    }

    /// A further page of a snapshot, if that is still kept.
    pub(in crate::broker) fn further(&self, token: PageToken, serial: u32) -> Option<Vec<u8>> {
        let pages = self.kept().find(token.snapshot)?;
        pages.frame(token.page, serial)
    }

    fn now(&self) -> u64 {
        elapsed(self.epoch)
    }

    fn kept(&self) -> MutexGuard<'_, Snapshots<Arc<Pages>>> {
        // No change panics half way.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::BrokerFrame;
    use std::cell::Cell;
    use std::rc::Rc;

    #[actix::test]
    async fn requests_that_come_at_the_same_time_share_a_snapshot_that_is_newer_than_they_are() {
        let snapshots = SharedSnapshots::new().unwrap();
        let (finds, done) = (Rc::new(Cell::new(0u32)), Rc::new(Cell::new(0u64)));
        let ask = |round: u64| {
            let (snapshots, finds, done) = (snapshots.clone(), finds.clone(), done.clone());
            actix::spawn(async move {
                done.set(done.get().max(round));
                let find = async || {
                    finds.set(finds.get() + 1);
                    let report = StatusReport { uptime_ms: done.get(), ..StatusReport::default() };
                    Some(Found { report, breakers: Vec::new(), cost: 1 })
                };
                let pages = snapshots.take(find).await.unwrap().unwrap();
                let frame = pages.frame(Pages::STATUS, 9).unwrap();
                match BrokerFrame::decode(&frame[4..]).unwrap() {
                    BrokerFrame::Status { serial: 9, report, next: None } => assert!(report.uptime_ms >= round),
                    other => panic!("{other:?}"),
                }
            })
        };
        for round in 1..=10 {
            let asked: Vec<_> = (0..50).map(|_| ask(round)).collect();
            for one in asked {
                one.await.unwrap();
            }
        }
        assert!((10..=20).contains(&finds.get()), "{} for 10 times 50 requests", finds.get());
    }
}

//! A child on its own, one-for-one, made at run time: a connection, an upstream. Nothing of it is left when it is over.

use super::incarnation::{End, Exit, Life, Stop};
use super::tree::{NodeId, Tree};
use super::{elapsed, random, report, sleep_until};
use crate::routing::restart::{Decision, Limits, Restart, Restarts};
use actix::prelude::*;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The shortest time between two starts of a child that is hurried.
const HURRIED_GAP: Duration = Duration::from_millis(20);

/// The specification of the child.
pub(in crate::broker) struct Child<'a> {
    pub(in crate::broker) name: &'a str,
    pub(in crate::broker) restart: Restart,
    pub(in crate::broker) limits: Limits,
    pub(in crate::broker) mailbox: usize,
    pub(in crate::broker) stop_within: Duration,
    pub(in crate::broker) tree: &'a Tree,
    pub(in crate::broker) node: NodeId,
    /// Each change ends the delay before a restart: what it failed of may be over.
    pub(in crate::broker) hurry: Option<&'a watch::Sender<u64>>,
}

/// How supervision ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::broker) enum Outcome {
    /// It ended, and its policy does not want it back.
    Done(End),
    /// It failed too often.
    GaveUp(End),
    /// It was stopped.
    Stopped,
}

/// Keeps a child running on this thread until its policy does not want it back, or it fails too often, or `stop`
/// comes. `id` names it in the log, as far as it has a name by then.
pub(in crate::broker) async fn supervise<A>(
    child: &Child<'_>,
    id: impl Fn() -> String,
    stop: impl Future<Output = ()>,
    mut factory: impl FnMut(Exit) -> A,
) -> Outcome
where
    A: Actor<Context = Context<A>> + Handler<Stop>,
{
    let clock = Instant::now();
    let mut restarts = Restarts::new(child.restart, child.limits);
    let mut stop = std::pin::pin!(stop);
    let mut hurry = child.hurry.map(watch::Sender::subscribe);
    loop {
        let started = Instant::now();
        if let Some(hurry) = &mut hurry {
            hurry.mark_unchanged();
        }
        restarts.started(elapsed(clock));
        child.tree.running(child.node);
        let end = match Life::start(child.mailbox, &mut factory) {
            Err(end) => end,
            Ok(mut life) => loop {
                tokio::select! {
                    // An end that follows from the stop is none to restart after.
                    biased;
                    () = &mut stop => {
                        // On the heap: what never stops does not pay for it.
                        Box::pin(life.stop(child.stop_within)).await;
                        child.tree.stopped(child.node);
                        return Outcome::Stopped;
                    }
                    end = life.ended() => break end,
                    () = sleep_until(clock, restarts.holds_at()) => {
                        if let Some(attempt) = restarts.held(elapsed(clock)) {
                            log::info!("actor stable actor={} id={} attempt={attempt}", child.name, id());
                        }
                    }
                }
            },
        };
        let decision = restarts.ended(end.is_failure(), elapsed(clock), random());
        report(child.name, &id(), &end, decision, restarts.period(), child.tree, child.node);
        match decision {
            Decision::Done => return Outcome::Done(end),
            Decision::GiveUp { .. } => return Outcome::GaveUp(end),
            Decision::Restart { delay, .. } => tokio::select! {
                () = tokio::time::sleep(Duration::from_nanos(delay)) => {}
                () = hurried(&mut hurry, started) => restarts.begin_again(),
                () = &mut stop => {
                    child.tree.stopped(child.node);
                    return Outcome::Stopped;
                }
            },
        }
    }
}

/// Until the child is hurried; never, if it cannot be.
async fn hurried(hurry: &mut Option<watch::Receiver<u64>>, started: Instant) {
    let Some(hurry) = hurry else { return std::future::pending().await };
    match hurry.changed().await {
        Ok(()) => tokio::time::sleep_until((started + HURRIED_GAP).into()).await,
        Err(_) => std::future::pending().await,
    }
}

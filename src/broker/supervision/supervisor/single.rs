//! A child on its own, one-for-one, made at run time: a connection, an upstream. Nothing of it is left when it is over.

use super::incarnation::{End, Exit, Life, Stop};
use super::tree::{NodeId, Tree};
use super::{elapsed, random, report, sleep_until};
use crate::broker::telemetry::log_limit::{Kind, may_log};
use crate::logic::restart::{Decision, Limits, Restart, Restarts};
use actix::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
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
    /// Whether there is something that the next incarnation is built over. `None`: it needs nothing.
    pub(in crate::broker) goes_on: Option<&'a dyn Fn() -> bool>,
    /// The lines of the log for ends that are no panic, which peers can cause at will, are limited.
    pub(in crate::broker) limited: Option<Kind>,
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
    let restarts = Rc::new(RefCell::new(Restarts::new(child.restart, child.limits)));
    let mut stop = std::pin::pin!(stop);
    let mut hurry = child.hurry.map(watch::Sender::subscribe);
    loop {
        let started = Instant::now();
        if let Some(hurry) = &mut hurry {
            hurry.mark_unchanged();
        }
        restarts.borrow_mut().started(elapsed(clock));
        child.tree.running(child.node);
        let end = match Life::start(child.mailbox, Some(restarts.clone()), &mut factory) {
            Err(end) => end,
            Ok(mut life) => loop {
                let holds_at = restarts.borrow().holds_at();
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
                    () = sleep_until(clock, holds_at) => {
                        if let Some(attempt) = restarts.borrow_mut().held(elapsed(clock)) {
                            log::info!("actor stable actor={} id={} attempt={attempt}", child.name, id());
                        }
                    }
                }
            },
        };
        let decision = match child.goes_on {
            Some(goes_on) if !goes_on() => Decision::Done,
            _ => restarts.borrow_mut().ended(end.is_failure(), elapsed(clock), random()),
        };
        let may = matches!(end, End::Panicked(_)) || child.limited.is_none_or(may_log);
        report(child.name, &id(), &end, decision, child.limits.period, child.tree, child.node, may);
        match decision {
            Decision::Done => return Outcome::Done(end),
            Decision::GiveUp { .. } => return Outcome::GaveUp(end),
            Decision::Restart { delay: 0, .. } => {}
            Decision::Restart { delay, .. } => tokio::select! {
                () = tokio::time::sleep(Duration::from_nanos(delay)) => {}
                () = hurried(&mut hurry, started) => restarts.borrow_mut().begin_again(),
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

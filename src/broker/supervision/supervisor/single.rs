//! One-for-one supervision of a child that is created at run time: a connection, an upstream.

use super::incarnation::{End, Exit, Incarnation, Stop};
use super::tree::{NodeId, Tree};
use super::{random, report, sleep_until};
use crate::broker::clock::elapsed;
use crate::broker::telemetry::log_limit::{Kind, may_log};
use crate::logic::shares::Principal;
use crate::logic::supervision::restart::{Decision, Limits, Restart, Restarts};
use actix::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The shortest time between two starts when the backoff is cut short.
const RETRY_GAP: Duration = Duration::from_millis(20);

/// The specification of the child.
pub(in crate::broker) struct Child<'a> {
    pub(in crate::broker) name: &'a str,
    pub(in crate::broker) restart: Restart,
    pub(in crate::broker) limits: Limits,
    pub(in crate::broker) mailbox: usize,
    pub(in crate::broker) stop_within: Duration,
    pub(in crate::broker) tree: &'a Tree,
    pub(in crate::broker) node: NodeId,
    /// Each change ends the delay before a restart: the cause of the failure may be gone.
    pub(in crate::broker) retry_now: Option<&'a watch::Sender<u64>>,
    /// Whether the next incarnation has a state to continue. `None`: it needs none.
    pub(in crate::broker) can_continue: Option<&'a dyn Fn() -> bool>,
    /// The rate limit of log lines for ends that a peer can cause at will, and its user; panics are not limited.
    pub(in crate::broker) limited: Option<(Kind, Principal)>,
}

/// How supervision ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::broker) enum Outcome {
    /// It ended, and its policy does not restart it.
    Done(End),
    /// It reached its restart limit.
    GaveUp(End),
    /// It was stopped.
    Stopped,
}

/// Keeps a child running on this thread until its policy does not restart it, it reaches its restart limit, or `stop`
/// completes. `id` is its id in the log.
///
/// One such future lives per connection: what it waits for rarely (the end of a delay, a stop) is boxed.
#[allow(clippy::manual_async_fn, reason = "an `async fn` holds its arguments twice")]
pub(in crate::broker) fn supervise<A>(
    child: &Child<'_>,
    id: impl Fn() -> String,
    mut stop: impl Future<Output = ()> + Unpin,
    mut factory: impl FnMut(Exit) -> A,
) -> impl Future<Output = Outcome>
where
    A: Actor<Context = Context<A>> + Handler<Stop>,
{
    async move {
        let clock = Instant::now();
        let restarts = Rc::new(RefCell::new(Restarts::new(child.restart, child.limits)));
        let mut retry_now = child.retry_now.map(watch::Sender::subscribe);
        loop {
            let started = Instant::now();
            if let Some(retry_now) = &mut retry_now {
                retry_now.mark_unchanged();
            }
            restarts.borrow_mut().started(elapsed(clock));
            child.tree.running(child.node);
            let end = match Incarnation::start(child.mailbox, Some(restarts.clone()), &mut factory) {
                Err(end) => end,
                Ok(mut incarnation) => loop {
                    let stable_at = restarts.borrow().stable_at();
                    tokio::select! {
                        // An end that follows from the stop is not restarted.
                        biased;
                        () = &mut stop => {
                            Box::pin(incarnation.stop(child.stop_within)).await;
                            child.tree.stopped(child.node);
                            return Outcome::Stopped;
                        }
                        end = incarnation.ended() => break end,
                        () = sleep_until(clock, stable_at) => {
                            if let Some(attempt) = restarts.borrow_mut().became_stable(elapsed(clock)) {
                                log::info!("actor stable actor={} id={} attempt={attempt}", child.name, id());
                            }
                        }
                    }
                },
            };
            let decision = match child.can_continue {
                Some(can_continue) if !can_continue() => Decision::Done,
                _ => restarts.borrow_mut().ended(end.is_failure(), elapsed(clock), random()),
            };
            let may = matches!(end, End::Panicked(_)) || child.limited.is_none_or(|(kind, user)| may_log(kind, user));
            report(child.name, &id(), &end, decision, child.limits.period, child.tree, child.node, may);
            match decision {
                Decision::Done => return Outcome::Done(end),
                Decision::GiveUp { .. } => return Outcome::GaveUp(end),
                Decision::Restart { delay: 0, .. } => {}
                Decision::Restart { delay, .. } => tokio::select! {
                    is_retry = Box::pin(delayed(delay, &mut retry_now, started)) => {
                        if is_retry {
                            restarts.borrow_mut().begin_again();
                        }
                    }
                    () = &mut stop => {
                        child.tree.stopped(child.node);
                        return Outcome::Stopped;
                    }
                },
            }
        }
    }
}

/// Waits for `delay` nanoseconds, or for a request to retry now. Returns whether there was a request.
async fn delayed(delay: u64, retry_now: &mut Option<watch::Receiver<u64>>, started: Instant) -> bool {
    tokio::select! {
        biased;
        () = tokio::time::sleep(Duration::from_nanos(delay)) => false,
        () = retry_requested(retry_now, started) => true,
    }
}

/// Waits for a request to retry now; for ever without a sender.
async fn retry_requested(retry_now: &mut Option<watch::Receiver<u64>>, started: Instant) {
    let Some(retry_now) = retry_now else { return std::future::pending().await };
    match retry_now.changed().await {
        Ok(()) => tokio::time::sleep_until((started + RETRY_GAP).into()).await,
        Err(_) => std::future::pending().await,
    }
}

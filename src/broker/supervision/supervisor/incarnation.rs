//! One incarnation of an actor, and its end, which is observed in every case.
//!
//! A panic in an actor (`started`, a handler, a timer, a future of its own) is caught where the actor is polled, and
//! the actor is dropped only after the unwinding is over: so `stopped()`, which actix calls then, may panic too without
//! aborting the process.

use super::tree::Cause;
use crate::broker::telemetry::stderr;
use crate::logic::supervision::restart::Restarts;
use actix::prelude::*;
use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Once;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;
use tokio::task::JoinHandle;

/// The longest reason, in characters: a panic message may have any length.
const REASON_MAX: usize = 300;

/// Asks an actor to end by itself.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
pub(in crate::broker) struct Stop;

/// How an incarnation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::broker) enum End {
    /// It stopped by itself.
    Normal,
    /// It stopped by itself, and left an error.
    Failed(String),
    /// It panicked.
    Panicked(String),
    /// It stopped when asked.
    Stopped,
    /// It did not stop in time, and was dropped.
    Dropped,
}

impl End {
    /// Whether something went wrong.
    pub(in crate::broker) fn is_failure(&self) -> bool {
        matches!(self, End::Failed(_) | End::Panicked(_))
    }

    /// The cause of the restart that follows.
    pub(super) fn cause(&self) -> Cause {
        match self {
            End::Panicked(_) => Cause::Panic,
            End::Failed(_) => Cause::Failure,
            End::Normal | End::Stopped | End::Dropped => Cause::Ended,
        }
    }

    /// The reason in logs and in the status.
    pub(in crate::broker) fn reason(&self) -> String {
        let reason = match self {
            End::Normal => "ended".to_owned(),
            End::Failed(reason) => reason.clone(),
            End::Panicked(message) => format!("panicked: {message}"),
            End::Stopped => "stopped".to_owned(),
            End::Dropped => "did not stop in time".to_owned(),
        };
        if reason.chars().count() > REASON_MAX {
            reason.chars().take(REASON_MAX).chain(['…']).collect()
        } else {
            reason
        }
    }
}

/// Through this an actor reports its error, and that it is stable.
#[derive(Clone, Debug, Default)]
pub(in crate::broker) struct Exit {
    reason: Rc<RefCell<Option<String>>>,
    /// Of a child with one-for-one supervision.
    restarts: Option<Rc<RefCell<Restarts>>>,
}

impl Exit {
    /// Makes the coming end a failure.
    pub(in crate::broker) fn fail(&self, reason: impl ToString) {
        *self.reason.borrow_mut() = Some(reason.to_string());
    }

    /// Reports that the actor is stable (for `UNTIL_TOLD`). Returns the number of attempts, after a restart.
    pub(in crate::broker) fn hold(&self) -> Option<u32> {
        self.restarts.as_ref()?.borrow_mut().mark_stable()
    }
}

/// A running actor.
pub(super) struct Incarnation<A: Actor> {
    pub(super) address: Addr<A>,
    pub(super) task: JoinHandle<End>,
}

impl<A: Actor<Context = Context<A>> + Handler<Stop>> Incarnation<A> {
    /// Builds an actor and starts it on this thread. Its address may be used at once: its mailbox has
    /// its size already.
    pub(super) fn start(
        mailbox: usize,
        restarts: Option<Rc<RefCell<Restarts>>>,
        factory: impl FnOnce(Exit) -> A,
    ) -> Result<Incarnation<A>, End> {
        let exit = Exit { reason: Rc::default(), restarts };
        let actor = supervised(|| factory(exit.clone())).map_err(End::Panicked)?;
        let mut context = Context::new();
        context.set_mailbox_capacity(mailbox);
        let address = context.address();
        let guarded = Guarded(Some(Box::pin(context.into_future(actor))));
        let task = actix::spawn(async move {
            match guarded.await {
                Err(message) => End::Panicked(message),
                Ok(()) => exit.reason.take().map_or(End::Normal, End::Failed),
            }
        });
        Ok(Incarnation { address, task })
    }

    /// Its end, when it has come. Cancelling the wait leaves the actor as it is.
    pub(super) async fn ended(&mut self) -> End {
        match (&mut self.task).await {
            Ok(end) => end,
            // Only this supervisor cancels the task, and panics are caught inside.
            Err(error) => End::Failed(error.to_string()),
        }
    }

    /// Asks it to stop, and drops it if it has not within `time`.
    pub(super) async fn stop(mut self, time: Duration) -> End {
        // An actor with a full mailbox does not read it.
        let _ = self.address.try_send(Stop);
        match tokio::time::timeout(time, self.ended()).await {
            Ok(end) if end.is_failure() => end,
            Ok(_) => End::Stopped,
            Err(_) => {
                self.task.abort();
                let _ = self.task.await;
                End::Dropped
            }
        }
    }
}

/// A future whose panic is its result.
struct Guarded<F>(Option<Pin<Box<F>>>);

impl<F: Future<Output = ()>> Future for Guarded<F> {
    type Output = Result<(), String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let Some(future) = self.0.as_mut() else { return Poll::Ready(Ok(())) };
        let polled = match supervised(|| future.as_mut().poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(())) => Ok(()),
            Err(message) => Err(message),
        };
        let future = self.0.take();
        let dropped = supervised(|| drop(future));
        // The first panic is the reason; a second one during the drop adds nothing.
        Poll::Ready(polled.and(dropped))
    }
}

std::thread_local! {
    /// Whether the running code is a supervised actor, and where it panicked.
    static SUPERVISED: Cell<bool> = const { Cell::new(false) };
    static PANICKED_AT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs code of an actor; a panic becomes an error, with its source location if known.
fn supervised<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    SUPERVISED.set(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    SUPERVISED.set(false);
    result.map_err(|payload| {
        let message = message(&*payload);
        match PANICKED_AT.take() {
            Some(place) => format!("{message} at {place}"),
            None => message,
        }
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// The text of the standard hook, which would wait for the reader of stderr.
fn panic_text(info: &PanicHookInfo<'_>, verbose: bool) -> String {
    let thread = std::thread::current();
    let backtrace = if verbose { format!("{}\n", Backtrace::force_capture()) } else { String::new() };
    format!("thread {:?} {info}\n{backtrace}", thread.name().unwrap_or("unnamed"))
}

/// Installs the panic hook. A supervised actor's panic is reported by its supervisor in one line, not by the panicking
/// thread: a blocked log must not stop the router. Other panics, and all with `RUST_BACKTRACE`, are reported as usual.
pub(in crate::broker) fn install_panic_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        let verbose = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
        std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            let supervised = SUPERVISED.try_with(Cell::get).unwrap_or(false);
            if supervised {
                let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
                // Borrowed only here and in `supervised`, which nothing interrupts while it does.
                let _ = PANICKED_AT.try_with(|at| at.replace(place));
            }
            if !supervised || verbose {
                match stderr::is_started() {
                    true => stderr::write(panic_text(info, verbose).as_bytes()),
                    false => before(info),
                }
            }
        }));
    });
}

//! Whose turn it is: the queue and the pauses of a busy engine, for tasks that wait.

use super::busy::Busy;
use super::queue::{Queue, Subject, Ticket};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The turns of requests at an engine.
#[derive(Debug)]
pub(super) struct Turns(Mutex<State>);

#[derive(Debug)]
struct State {
    queue: Queue,
    busy: Busy,
    signals: HashMap<Ticket, Signals>,
    /// A task that looks again at this time.
    alarm: Option<Instant>,
}

/// What a waiting or running request is told; each at most once.
#[derive(Clone, Debug, Default)]
pub(super) struct Signals {
    pub(super) turn: Arc<Notify>,
    pub(super) superseded: Arc<Notify>,
}

/// A request in the queue or at the engine; it leaves when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    ticket: Ticket,
    signals: Signals,
}

impl Turns {
    pub(super) fn new(slots: usize) -> Arc<Turns> {
        let queue = Queue::new(slots);
        let state = State { queue, busy: Busy::default(), signals: HashMap::new(), alarm: None };
        Arc::new(Turns(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place in the queue.
    pub(super) fn arrive(self: &Arc<Turns>, subject: Subject) -> Turn {
        let signals = Signals::default();
        let ticket = {
            let mut state = self.state();
            let (ticket, superseded) = state.queue.arrive(subject);
            for old in superseded.iter().filter_map(|old| state.signals.get(old)) {
                old.superseded.notify_one();
            }
            state.signals.insert(ticket, signals.clone());
            ticket
        };
        self.start();
        Turn { turns: self.clone(), ticket, signals }
    }

    /// Tells the requests whose turn it is.
    fn start(self: &Arc<Turns>) {
        let mut state = self.state();
        if let Some(until) = state.busy.until(Instant::now()) {
            if state.alarm != Some(until) {
                state.alarm = Some(until);
                let turns = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep_until(until.into()).await;
                    turns.start();
                });
            }
            return;
        }
        while let Some(ticket) = state.queue.start() {
            if let Some(signals) = state.signals.get(&ticket) {
                signals.turn.notify_one();
            }
        }
    }

    /// Requests at the engine, and requests that wait.
    pub(super) fn figures(&self) -> (usize, usize) {
        let state = self.state();
        (state.queue.in_flight(), state.queue.queued())
    }

    /// How long no request is sent.
    pub(super) fn pause(&self) -> Option<Duration> {
        let now = Instant::now();
        self.state().busy.until(now).map(|until| until - now)
    }
}

impl Turn {
    pub(super) fn signals(&self) -> &Signals {
        &self.signals
    }

    /// Waits for the turn.
    pub(super) async fn comes(&self) {
        self.signals.turn.notified().await;
    }

    /// The engine was busy: the request waits again, and no request is sent for a while. Returns for how long.
    pub(super) fn again(&self, retry_after: Option<Duration>, random: f64) -> Duration {
        let pause = self.turns.busy(retry_after, random);
        self.turns.state().queue.again(self.ticket);
        self.turns.start();
        pause
    }

    /// The engine took the request.
    pub(super) fn accepted(&self) {
        self.turns.state().busy.accepted();
    }
}

impl Turns {
    /// The engine was busy. Returns for how long no request is sent.
    pub(super) fn busy(&self, retry_after: Option<Duration>, random: f64) -> Duration {
        let now = Instant::now();
        let mut state = self.state();
        state.busy.refused(now, retry_after, random);
        state.busy.until(now).map_or(Duration::ZERO, |until| until - now)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.turns.state();
            state.queue.end(self.ticket);
            state.signals.remove(&self.ticket);
        }
        self.turns.start();
    }
}

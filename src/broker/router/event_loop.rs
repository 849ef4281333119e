//! The router's loop: work while there is work, spin while that can pay, then sleep.
//!
//! ```text
//!   ┌──► burst: timers, doorbells, steps; at most `turn_max` ──── did something: yield to the mailbox ──┐
//!   │        │ dry                                                                                      │
//!   │        ▼                                                                                          │
//!   │    spin: poll the quiet connections, look at the bells ──── something came ───────────────────────┤
//!   │        │ a client sleeps or shares our CPU, or the time is over                                   │
//!   │        ▼                                                                                          │
//!   │    sleep: arm every flag, look once more, wait for a bell or a timer ─────────────────────────────┤
//!   └───────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! No other actor uses the thread, so the loop sleeps on its doorbells and not in the runtime: a ring then costs one
//! system call. The sender of an actor message rings the router's own bell (see `RouterHandle`), and the loop yields to
//! the mailbox.

use super::connection::{CloseReason, CloseSender};
use super::egress::Flush;
use super::polling::Spinning;
use super::state::RouterState;
use crate::broker::clock::elapsed;
use crate::broker::supervision::fault;
use crate::config::WaitStrategy;
use crate::logic::spin::{Spin, SpinTime};
use crate::shm::peer::{current_cpu, yield_cpu};
use crate::sync::{AtomicU64, Ordering};
use crate::wire::control::ClosingCode;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The interval of looks at the bells while there is work, in nanoseconds.
const LOOK_EVERY_NS: u64 = 3_000;
/// Polls between two looks at the clock while spinning.
const POLLS: u32 = 16;

/// The state that an incarnation shares with its loop and leaves to the next incarnation. All run on one thread, and
/// none keeps a borrow across an await.
pub(crate) struct Shared {
    pub(super) state: RefCell<RouterState>,
    /// By the ids of connections.
    pub(super) on_close: RefCell<HashMap<u32, CloseSender>>,
    epoch: Instant,
}

impl Shared {
    /// Shares `state`; times count from `epoch`.
    pub(crate) fn new(state: RouterState, epoch: Instant) -> Rc<Shared> {
        Rc::new(Shared { state: RefCell::new(state), on_close: RefCell::default(), epoch })
    }

    pub(super) fn now(&self) -> u64 {
        elapsed(self.epoch)
    }

    /// Notifies the sessions whose connections the router has closed.
    pub(super) fn tell_ended(&self) {
        loop {
            let Some((info, close)) = self.state.borrow_mut().ended.pop() else { return };
            if let Some(on_close) = self.on_close.borrow_mut().remove(&info.id) {
                on_close.send(close);
            }
        }
    }
}

impl RouterState {
    /// The count of the loop's turns.
    pub(crate) fn turns(&self) -> Arc<AtomicU64> {
        self.turns.clone()
    }

    /// Counts a turn of the loop.
    #[inline]
    fn turned(&self) {
        self.turns.store(self.turns.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// Runs until its actor ends.
pub(super) async fn run(shared: Rc<Shared>) {
    let (wait, spin_max) = {
        let state = shared.state.borrow();
        (state.ports.settings.wait, state.ports.settings.spin_max)
    };
    let (mut spin, mut looked) = (SpinTime::new(spin_max), 0);
    loop {
        let worked = burst(&shared, &mut looked);
        shared.tell_ended();
        if worked || std::mem::take(&mut shared.state.borrow_mut().has_mail) {
            tokio::task::yield_now().await;
            continue;
        }
        match wait {
            WaitStrategy::Adaptive if spin_max > 0 => {
                let began = shared.state.borrow().ports.now;
                let Spin { time, explores } = spin.begin();
                if spin_for_work(&shared, Some(time), &mut looked) {
                    if explores {
                        spin.found(shared.now().saturating_sub(began));
                    }
                    continue;
                }
            }
            WaitStrategy::Busy => {
                if !spin_for_work(&shared, None, &mut looked) {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            WaitStrategy::Adaptive | WaitStrategy::Block => {}
        }
        let slept_at = shared.now();
        if sleep(&shared) {
            spin.slept(shared.now() - slept_at);
        }
    }
}

/// One step. Reads the clock before it, if the step is to be timed.
#[inline]
fn step(shared: &Shared, state: &mut RouterState) -> bool {
    if state.timings.wants_clock() && !state.ports.schedule.is_idle() {
        state.set_now(shared.now());
        state.timings.begins();
    }
    state.step()
}

/// Works until no work is left, or the turn is over. Returns whether work is left.
fn burst(shared: &Shared, looked: &mut u64) -> bool {
    let mut state = shared.state.borrow_mut();
    state.turned();
    let (started, turn_max) = (state.ports.now, state.ports.settings.turn_max);
    // A record that was found is routed before the clock is read: the read costs latency.
    let mut worked = step(shared, &mut state);
    let now = shared.now();
    state.advance(now);
    look_if_due(&mut state, looked);
    loop {
        worked |= step(shared, &mut state);
        let found = state.ports.poll_quiet();
        if !worked && !found {
            return false;
        }
        if std::mem::take(&mut worked) {
            state.ports.cool_longest_quiet();
        }
        state.set_now(shared.now());
        look_if_due(&mut state, looked);
        if state.ports.now - started > turn_max {
            return true;
        }
    }
}

/// Looks at the bells, unless the last look was within `LOOK_EVERY_NS`: a look is a system call.
fn look_if_due(state: &mut RouterState, looked: &mut u64) -> usize {
    if state.ports.now - *looked < LOOK_EVERY_NS {
        return 0;
    }
    *looked = state.ports.now;
    state.look()
}

/// Spins for up to `budget` nanoseconds, while that can pay; without a budget for one turn in any case. Returns whether
/// there is work.
fn spin_for_work(shared: &Shared, budget: Option<u64>, looked: &mut u64) -> bool {
    let mut state = shared.state.borrow_mut();
    let cpu = current_cpu();
    state.ports.publish_cpu(cpu);
    let (started, most) = (state.ports.now, budget.unwrap_or(state.ports.settings.turn_max));
    let mut yielded = false;
    loop {
        // Without a budget it spins in any case.
        let spinning = budget.map_or(Spinning::CanPay, |_| state.ports.spinning_can_pay(cpu));
        match spinning {
            Spinning::IsInTheWay if !yielded => {
                // A client that was just woken may reply within microseconds, so a yield is cheaper than a sleep.
                yielded = true;
                state.ports.egresses.flush(Flush::All);
                yield_cpu();
                state.set_now(shared.now());
                if state.look() > 0 {
                    return true;
                }
            }
            Spinning::CanPay => {}
            Spinning::IsInTheWay | Spinning::IsVain => return false,
        }
        for _ in 0..POLLS {
            if state.ports.poll_quiet() {
                return true;
            }
            std::hint::spin_loop();
        }
        state.set_now(shared.now());
        state.ports.egresses.flush_held();
        if look_if_due(&mut state, looked) > 0 {
            return true;
        }
        if state.ports.now - started > most {
            return false;
        }
    }
}

/// Arms every flag, looks once more, and sleeps until a bell rings or a timer is due. `false`: the last look found
/// work.
fn sleep(shared: &Shared) -> bool {
    let mut state = shared.state.borrow_mut();
    state.ports.publish_cpu(current_cpu());
    state.ports.egresses.flush(Flush::All);
    if !state.ports.cool_all() {
        return false;
    }
    let now = shared.now();
    let left = state.ports.wheel.next().map(|at| Duration::from_nanos(at.saturating_sub(now)));
    state.ports.counters.sleeps += 1;
    // A bell that rang meanwhile ends the wait at once.
    state.await_bells(left);
    // What a bell ends has waited until now, not until the router fell asleep.
    state.set_now(shared.now());
    state.take_bells();
    true
}

impl RouterState {
    /// Reads the doorbells that were rung. Returns their number.
    pub(super) fn look(&mut self) -> usize {
        let rang = self.await_bells(Some(Duration::ZERO));
        self.take_bells();
        rang
    }

    /// Waits up to `time` for a doorbell (`None`: without end). Returns the number of those that were rung, which
    /// `take_bells` handles.
    fn await_bells(&mut self, time: Option<Duration>) -> usize {
        self.ports.counters.looks += 1;
        let (rang, board, has_mail) = (&mut self.rang, &self.board, &mut self.has_mail);
        rang.clear();
        let looked = board.look(time, |key| match key {
            Some(key) => rang.push(key),
            None => *has_mail = true,
        });
        looked.unwrap_or(0)
    }

    fn take_bells(&mut self) {
        for at in 0..self.rang.len() {
            let key = self.rang[at];
            fault::point("router.bell", u64::from(key));
            self.rang_by(key);
        }
    }

    fn rang_by(&mut self, key: u32) {
        let (now, base) = (self.ports.now, self.ports.settings.geometry.base_cells());
        let most = self.ports.settings.max_rings_without_progress;
        // The router may have requested this ring while it waited for space; then it is no fault if it brings no
        // record.
        let asked = self.ports.egresses.has_made_space(key);
        let Some(ingress) = self.ports.ingress_mut(key) else { return };
        ingress.rings += u32::from(!asked);
        // Rings for records behind a parked one are no fault, either: their number is bounded by the cells of the lane.
        let behind = if ingress.parked.is_some() { base + ingress.bulk.window() } else { 0 };
        let most = most.saturating_add(behind);
        if ingress.rings > most {
            if now - ingress.rings_since < 1_000_000_000 {
                let reason = format!("{} doorbell rings in a second without a record", ingress.rings);
                self.ports.egresses.pending_close.push((key, CloseReason { code: ClosingCode::Overuse, reason }));
            } else {
                (ingress.rings, ingress.rings_since) = (0, now);
            }
        }
        self.ports.schedule.wake(key);
        if self.pubsub.pump(&mut self.ports, key) {
            self.ports.retry_waiters(key);
        }
        self.pubsub.tell_late_drops(&mut self.ports, key);
    }
}

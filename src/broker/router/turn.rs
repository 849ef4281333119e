//! The router's loop: work while there is work, spin while that can pay, then sleep.
//!
//! ```text
//!   ┌──► burst: timers, doorbells, steps; at most `turn_max` ──── did something: yield to the mailbox ──┐
//!   │        │ dry                                                                                      │
//!   │        ▼                                                                                          │
//!   │    spin: poll the quiet connections, look at the bells ──── something came ───────────────────────┤
//!   │        │ a client sleeps or shares our CPU, or the time is over                                   │
//!   │        ▼                                                                                          │
//!   │    nap: arm every flag, look once more, wait a moment for a bell ─────────────────────────────────┤
//!   │        │ none came                                                                                │
//!   │        ▼                                                                                          │
//!   │    sleep: wait for a bell, a message or a timer ──────────────────────────────────────────────────┤
//!   └───────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```

use super::Shared;
use super::state::RouterState;
use crate::config::WaitStrategy;
use crate::shm::peer::current_cpu;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How often the bells are looked at while there is work, in nanoseconds.
const LOOK_EVERY: u64 = 3_000;
/// The shortest time to spin, in nanoseconds.
const SPIN_MIN: u64 = 2_000;
/// Polls between two looks at the clock while spinning.
const POLLS: u32 = 16;
/// How long the thread sleeps on the bells alone before it goes to sleep in the runtime, which also hears the mailbox:
/// a client that answers at once finds a router that is one system call away. A message in the mailbox waits as long.
const NAP: Duration = Duration::from_micros(300);

/// Runs until the process ends.
///
/// # Errors
///
/// If the system refuses what the loop waits with.
pub(super) async fn run(shared: Rc<Shared>) -> io::Result<()> {
    let (board, wait, spin_max) = {
        let state = shared.state.borrow();
        (state.board().as_fd().try_clone_to_owned()?, state.settings.wait, state.settings.spin_max)
    };
    // The deprecation warns of types that close their descriptor behind tokio's back; an `OwnedFd` cannot.
    #[allow(deprecated)]
    let board = AsyncFd::with_interest(board, Interest::READABLE)?;
    let (mut spin, mut looked) = (spin_max, 0);
    loop {
        let worked = burst(&shared, &mut looked);
        shared.tell_ended();
        if worked {
            tokio::task::yield_now().await;
            continue;
        }
        match wait {
            WaitStrategy::Adaptive if spin_max > 0 && spin_for_work(&shared, Some(spin), &mut looked) => continue,
            WaitStrategy::Busy => {
                if !spin_for_work(&shared, None, &mut looked) {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            WaitStrategy::Adaptive | WaitStrategy::Block => {}
        }
        let slept_at = shared.now();
        match nap(&shared) {
            Nap::NotYet => continue,
            Nap::Woken => {}
            Nap::Over => {
                sleep(&shared, &board).await?;
                shared.state.borrow_mut().set_now(shared.now());
            }
        }
        // Work that came soon after we gave up says that spinning longer would have paid.
        spin = if shared.now() - slept_at < spin_max { spin * 2 } else { spin / 2 };
        spin = spin.clamp(SPIN_MIN.min(spin_max), spin_max);
    }
}

/// Works until there is nothing to do, or the turn is over. Answers whether the turn ended with work left.
fn burst(shared: &Shared, looked: &mut u64) -> bool {
    let mut state = shared.state.borrow_mut();
    let (started, turn_max) = (state.now, state.settings.turn_max);
    // What was found comes first, the clock after it.
    let mut worked = state.step();
    let now = shared.now();
    state.advance(now);
    look_if_due(&mut state, looked);
    loop {
        worked |= state.step();
        let found = state.poll_quiet();
        if !worked && !found {
            return false;
        }
        worked = false;
        state.set_now(shared.now());
        look_if_due(&mut state, looked);
        if state.now - started > turn_max {
            return true;
        }
    }
}

/// Looks at the bells, unless that was done a moment ago: it is a system call.
fn look_if_due(state: &mut RouterState, looked: &mut u64) -> usize {
    if state.now - *looked < LOOK_EVERY {
        return 0;
    }
    *looked = state.now;
    state.look()
}

/// Spins for up to `budget` nanoseconds, while it can pay; without a budget for the length of a turn, whether it pays or
/// not. Answers whether there is something to do.
fn spin_for_work(shared: &Shared, budget: Option<u64>, looked: &mut u64) -> bool {
    let mut state = shared.state.borrow_mut();
    let cpu = current_cpu();
    state.publish_cpu(cpu);
    let (started, most) = (state.now, budget.unwrap_or(state.settings.turn_max));
    while budget.is_none() || state.spinning_can_pay(cpu) {
        for _ in 0..POLLS {
            if state.poll_quiet() {
                return true;
            }
            std::hint::spin_loop();
        }
        state.set_now(shared.now());
        if look_if_due(&mut state, looked) > 0 {
            return true;
        }
        if state.now - started > most {
            return false;
        }
    }
    false
}

/// How a nap ended.
enum Nap {
    /// There was something before it came to that.
    NotYet,
    /// A client rang.
    Woken,
    /// Nobody did.
    Over,
}

/// Arms every flag, looks once more, and sleeps on the bells for a moment.
fn nap(shared: &Shared) -> Nap {
    let mut state = shared.state.borrow_mut();
    state.publish_cpu(current_cpu());
    if !state.cool_all() || state.look() > 0 {
        return Nap::NotYet;
    }
    state.counters.sleeps += 1;
    let rang = state.look_for(NAP);
    state.set_now(shared.now());
    if rang > 0 { Nap::Woken } else { Nap::Over }
}

/// Sleeps until there is something to do; nobody is polled meanwhile.
async fn sleep(shared: &Shared, board: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let next = shared.state.borrow().wheel.next();
    let until = next.map(|at| shared.epoch + Duration::from_nanos(at));
    let timer = async {
        match until {
            Some(until) => tokio::time::sleep_until(until.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ready = board.readable() => ready?.clear_ready(),
        () = shared.changed.notified() => {}
        () = timer => {}
    }
    Ok(())
}

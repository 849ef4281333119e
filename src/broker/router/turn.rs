//! The router's loop: work while there is work, spin while that can pay, then sleep.
//!
//! ```text
//!   ┌──► burst: timers, doorbells, steps; at most `turn_max` ──── did something: yield to the mailbox ──┐
//!   │        │ dry                                                                                      │
//!   │        ▼                                                                                          │
//!   │    spin: poll the quiet connections, look at the bells ──── something came ───────────────────────┤
//!   │        │ a client sleeps or shares our CPU, or the time is over                                   │
//!   │        ▼                                                                                          │
//!   │    sleep: arm every flag, look once more, wait for a bell, a message or a timer ──────────────────┤
//!   └───────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```

use super::Shared;
use super::core::Core;
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
/// Polls between two looks at clock and bells while spinning.
const POLLS: u32 = 16;

/// Runs until the process ends.
///
/// # Errors
///
/// If the system refuses what the loop waits with.
pub(super) async fn run(shared: Rc<Shared>) -> io::Result<()> {
    let (board, wait, spin_max) = {
        let core = shared.core.borrow();
        (core.board().as_fd().try_clone_to_owned()?, core.settings.wait, core.settings.spin_max)
    };
    // The deprecation warns of types that close their descriptor behind tokio's back; an `OwnedFd` cannot.
    #[allow(deprecated)]
    let board = AsyncFd::with_interest(board, Interest::READABLE)?;
    let mut spin = spin_max;
    loop {
        let worked = burst(&shared);
        shared.tell_ended();
        if worked || wait == WaitStrategy::Busy {
            tokio::task::yield_now().await;
            continue;
        }
        if wait == WaitStrategy::Adaptive && spin_max > 0 && spin_for_work(&shared, spin) {
            continue;
        }
        let slept_at = shared.now();
        if !sleep(&shared, &board).await? {
            continue;
        }
        // Work that came soon after we gave up says that spinning longer would have paid.
        spin = if shared.now() - slept_at < spin_max { spin * 2 } else { spin / 2 };
        spin = spin.clamp(SPIN_MIN.min(spin_max), spin_max);
    }
}

/// Works until there is nothing to do, or the turn is over. Answers whether the turn ended with work left.
fn burst(shared: &Shared) -> bool {
    let mut core = shared.core.borrow_mut();
    let started = shared.now();
    let (mut looked, turn_max) = (started, core.settings.turn_max);
    core.advance(started);
    core.look();
    loop {
        let worked = core.step();
        let found = core.poll_quiet();
        if !worked && !found {
            return false;
        }
        let now = shared.now();
        core.set_now(now);
        if now - looked > LOOK_EVERY {
            looked = now;
            core.look();
        }
        if now - started > turn_max {
            return true;
        }
    }
}

/// Spins for up to `budget` nanoseconds, while it can pay. Answers whether there is something to do.
fn spin_for_work(shared: &Shared, budget: u64) -> bool {
    let mut core = shared.core.borrow_mut();
    let cpu = current_cpu();
    core.publish_cpu(cpu);
    let started = shared.now();
    while core.spinning_can_pay(cpu) {
        for _ in 0..POLLS {
            if core.poll_quiet() {
                return true;
            }
            std::hint::spin_loop();
        }
        core.set_now(shared.now());
        if core.look() > 0 {
            return true;
        }
        if core.now - started > budget {
            return false;
        }
    }
    false
}

/// Sleeps until there is something to do. `false`: there was something before it came to that.
async fn sleep(shared: &Shared, board: &AsyncFd<OwnedFd>) -> io::Result<bool> {
    let next = {
        let mut core = shared.core.borrow_mut();
        core.publish_cpu(current_cpu());
        if !Core::cool_all(&mut core) || core.look() > 0 {
            return Ok(false);
        }
        core.counters.sleeps += 1;
        core.wheel.next()
    };
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
    Ok(true)
}

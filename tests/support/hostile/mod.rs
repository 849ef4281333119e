//! A hostile client, and the pair that is to notice nothing of it.
//!
//! ```text
//! stage.rs    a broker with users, and what is looked at beside the pair
//! pair.rs     the pair as the table sees it          members.rs   its processes
//! rows.rs     the rows of the table                  attack.rs    the hostile process
//! awake.rs    keeps the cores from sleeping in all rows
//! traffic.rs, names.rs, calls.rs, sessions.rs        the attacks, a few lines each
//! ```
//!
//! A hostile client stays within all limits as far as it can. When the broker ends it or refuses something, it comes
//! again. It is one thread, so it takes as much of the machine as the busy loop that it is compared with.

#![allow(unreachable_pub, reason = "pub is what a test may use")]

pub mod attack;
pub mod awake;
pub mod calls;
pub mod members;
pub mod names;
pub mod pair;
pub mod rows;
pub mod sessions;
pub mod stage;
pub mod traffic;

use std::time::Duration;

/// Lets others work for this time: between the steps of what is paced, and while the table measures.
pub fn pause(time: Duration) {
    crate::support::work_for(time);
}

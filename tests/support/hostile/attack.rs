//! The hostile process: plays an attack by its name until it is killed, or its time is over.

use super::{calls, names, pause, sessions, traffic};
use crate::raw::{Control, Raw, hello};
use crate::support::criteria::MEASURES;
use crate::support::load::raise_descriptor_limit;
use crate::support::role::tell;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long an attack goes on if the table does not end it.
const LIMIT: Duration = Duration::from_secs(180);

/// What an attack does. It returns when there is nothing left to do, and panics when the broker ends it: either way it
/// is begun again.
pub(crate) type Attack = fn(&Scene);

/// All attacks.
const ATTACKS: &[(&str, Attack)] = &[
    ("control", traffic::busy),
    ("block-once", traffic::block_once),
    ("block-again", traffic::block_again),
    ("block-again-20", traffic::block_again_20),
    ("forged-credit", traffic::forged_credit),
    ("many-subscriptions", traffic::many_subscriptions),
    ("many-subscriptions-10", traffic::many_subscriptions_10),
    ("waiting-publishers", traffic::waiting_publishers),
    ("budget", traffic::budget),
    ("ringers", traffic::ringers),
    ("subscribe-storm", names::subscribe_storm),
    ("intern-storm", names::intern_storm),
    ("intern-storm-690", names::intern_storm_690),
    ("services-all", names::services_all),
    ("topics-all", names::topics_all),
    ("routes-all", names::routes_all),
    ("offers", names::offers),
    ("status-size", names::status_size),
    ("half-requests", calls::half_requests),
    ("half-probes", calls::half_probes),
    ("no-credit", calls::no_credit),
    ("stopped-requester", calls::stopped_requester),
    ("tiny-deadlines", calls::tiny_deadlines),
    ("echo-unread", calls::echo_unread),
    ("status-loop", sessions::status_loop),
    ("come-and-go", sessions::come_and_go),
    ("connections-all", sessions::connections_all),
    ("garbage", sessions::garbage),
    ("refused", sessions::refused),
    ("half-frames", sessions::half_frames),
    ("linger", sessions::linger),
    ("http-pipelining", sessions::http_pipelining),
];

/// The attack with this name.
fn named(name: &str) -> Attack {
    let found = ATTACKS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no attack {name}")).1
}

/// Where an attack takes place.
pub(crate) struct Scene {
    pub(crate) socket: PathBuf,
    /// Of the HTTP endpoints.
    pub(crate) health: SocketAddr,
    until: Instant,
    is_in_force: AtomicBool,
    nonces: AtomicU32,
}

impl Scene {
    /// A client without the library. Each is an instance of its own.
    pub(crate) fn raw(&self, name: &str) -> Raw {
        let number = self.nonces.fetch_add(1, Relaxed);
        let mut control = Control::connect(&self.socket);
        control.say(&hello(&format!("{name}-{number}")));
        Raw::welcomed(control)
    }

    /// So many of them.
    pub(crate) fn raws(&self, count: usize, name: &str) -> Vec<Raw> {
        (0..count).map(|_| self.raw(name)).collect()
    }

    /// The attack is in force: from now on the pair is measured.
    pub(crate) fn in_force(&self) {
        if !self.is_in_force.swap(true, Relaxed) {
            tell("ready");
        }
    }

    /// Does something again and again, with `breath` in between.
    pub(crate) fn again(&self, breath: Duration, mut step: impl FnMut()) {
        self.in_force();
        while Instant::now() < self.until {
            step();
            if breath > Duration::ZERO {
                pause(breath);
            }
        }
    }

    /// Does nothing more, unless one of these connections is ended by the broker.
    pub(crate) fn hold(&self, raws: &[Raw]) {
        self.again(Duration::from_millis(100), || assert!(!raws.iter().any(Raw::has_ended), "put out"));
    }
}

/// As many as a release build takes, or a twentieth: a debug build is to be through soon.
pub(crate) fn many(count: usize) -> usize {
    if MEASURES { count } else { count.div_ceil(20) }
}

/// In the hostile process: plays `words`, the attack's name and the address of the endpoints.
pub(crate) fn play(words: &[&str]) {
    // That the broker ends it is what an attack expects: it is a note, no text on stderr.
    set_hook(Box::new(|_| ()));
    raise_descriptor_limit();
    let (attack, health) = (named(words[0]), words[1].parse().expect("an address"));
    let socket = std::env::var_os("LAPCE_IPC_SOCKET").expect("a broker").into();
    let (until, nonces) = (Instant::now() + LIMIT, AtomicU32::new(1));
    let scene = Scene { socket, health, until, is_in_force: AtomicBool::new(false), nonces };
    let mut times = 0u64;
    while Instant::now() < until {
        let ended = catch_unwind(AssertUnwindSafe(|| attack(&scene)));
        times += 1;
        if let Err(reason) = ended.as_ref() {
            let reason = reason.downcast_ref::<String>().map(String::as_str).or(reason.downcast_ref::<&str>().copied());
            if times < 4 {
                tell(&format!("note {}", reason.unwrap_or("ended").lines().next().unwrap_or_default()));
            }
        }
        // It cannot be more in force than it was.
        scene.in_force();
        pause(Duration::from_millis(20));
    }
}

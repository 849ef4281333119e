//! Engines (`[[engine]]`): programs that the broker starts beside itself once it listens, and stops with itself.
//!
//! | file | idea |
//! |---|---|
//! | `actor` | `EngineActor`: one process of an engine, from its start to its end |
//! | `start` | the program, its environment, and its start |
//! | `output` | what it prints, line by line into the log |
//!
//! They have a thread of their own, which is started with the first of them. An engine that is given up stays as it is
//! until a reload. While the broker drains, its engines serve on, and none is restarted; then they stop.

mod actor;
mod output;
mod start;

use super::context::{Broker, Phase};
use super::supervision::resources::{Refused, arbiter};
use super::supervision::supervisor::{self, Child, NodeId, supervise};
use crate::config::{self, Config};
use crate::logic::supervision::restart::{Limits, Restart};
use actix::prelude::*;
use actor::EngineActor;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Their supervisor in the tree: not the root, whose actors are vital.
const SUPERVISOR: &str = "engines";
/// The mailbox: one `Stop` per incarnation.
const MAILBOX: usize = 4;
/// How long a killed process may take to end.
const KILLED: Duration = Duration::from_secs(1);

/// An engine as it is configured.
#[derive(Clone, Debug, PartialEq)]
struct Spec {
    engine: config::Engine,
    limits: Limits,
}

impl Spec {
    fn all(config: &Config) -> Vec<Spec> {
        let spec = |engine: &config::Engine| Spec {
            limits: supervisor::limits(&config.engine_restart_for(&engine.name)),
            engine: engine.clone(),
        };
        config.engine.iter().map(spec).collect()
    }

    fn stop_within(&self) -> Duration {
        Duration::from_millis(self.engine.stop_timeout_ms) + KILLED
    }
}

/// How long the engines may take to stop.
pub(super) fn stop_within(config: &Config) -> Duration {
    Spec::all(config).iter().map(Spec::stop_within).max().unwrap_or_default()
}

/// An engine that was started.
struct Kept {
    spec: Spec,
    node: NodeId,
    /// Its supervisor stops when it receives `true`, and drops the receiver at its end.
    stop: watch::Sender<bool>,
}

impl Kept {
    /// Whether it runs as configured. One that was given up does not.
    fn is_current(&self, wanted: &[Spec]) -> bool {
        !self.stop.is_closed() && wanted.contains(&self.spec)
    }
}

/// Keeps the engines as they are configured, until the broker shuts down and they have ended.
pub(super) async fn keep(broker: Arc<Broker>) {
    let (mut config, mut phase) = (broker.config.subscribe(), broker.phase.clone());
    let (mut kept, mut thread) = (Vec::new(), None);
    loop {
        let wanted = Spec::all(&config.borrow_and_update());
        if let Err(error) = adopt(&mut kept, &wanted, &mut thread, &broker).await {
            log::error!("engines not started reason={:?}", error.to_string());
        }
        tokio::select! {
            Ok(()) = config.changed() => {}
            _ = phase.wait_for(Phase::is_ending) => break,
        }
    }
    // They follow the phase by themselves.
    for engine in &kept {
        engine.stop.closed().await;
    }
    if let Some(thread) = thread {
        thread.stop();
    }
}

/// Stops engines that are not `wanted` as they are, and starts those that are missing.
async fn adopt(
    kept: &mut Vec<Kept>,
    wanted: &[Spec],
    thread: &mut Option<Arbiter>,
    broker: &Arc<Broker>,
) -> Result<(), Refused> {
    let is_current = |engine: &Kept| engine.is_current(wanted);
    for engine in kept.iter().filter(|engine| !is_current(engine)) {
        engine.stop.send_replace(true);
    }
    for engine in kept.iter().filter(|engine| !is_current(engine)) {
        engine.stop.closed().await;
        broker.tree.remove(engine.node);
    }
    kept.retain(is_current);
    for spec in wanted {
        if kept.iter().any(|engine| engine.spec == *spec) {
            continue;
        }
        let thread = match thread {
            Some(thread) => thread,
            None => thread.insert(arbiter("the engines' thread")?),
        };
        let node = broker.tree.add(&format!("engine {}", spec.engine.name), SUPERVISOR, Some(spec.limits));
        let (stop, stopped) = watch::channel(false);
        let (engine, context) = (spec.clone(), broker.clone());
        thread.spawn_fn(move || {
            actix::spawn(run(engine, node, stopped, context));
        });
        kept.push(Kept { spec: spec.clone(), node, stop });
    }
    Ok(())
}

/// Runs an engine, and restarts it by its policy until it is given up, stopped, or the broker shuts down.
async fn run(spec: Spec, node: NodeId, mut stopped: watch::Receiver<bool>, broker: Arc<Broker>) {
    let (mut phase, ending) = (broker.phase.clone(), broker.phase.clone());
    let child = Child {
        name: "engine",
        restart: Restart::Permanent,
        limits: spec.limits,
        mailbox: MAILBOX,
        stop_within: spec.stop_within(),
        tree: &broker.tree,
        node,
        retry_now: None,
        can_continue: Some(&|| !ending.borrow().is_ending()),
        limited: None,
    };
    let stop = std::pin::pin!(async {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => {}
            _ = phase.wait_for(|phase| *phase == Phase::Closing) => {}
        }
    });
    let (engine, socket) = (Arc::new(spec.engine.clone()), broker.config().ipc.socket_path.clone());
    supervise(&child, || spec.engine.name.clone(), stop, |exit| EngineActor::new(&engine, &socket, exit)).await;
}

//! The root: starts the actors in order, waits for a signal, stops them in reverse.

use super::acceptor::Acceptor;
use super::connection::{Broker, Phase};
use super::events::Events;
use super::holder::{SessionTable, watch_sessions};
use super::router::{IsQuiescent, RouterHandle, RouterState, Settings, Shared, ShmRouter};
use super::socket::{self, Bound, SocketError};
use crate::config::Loaded;
use actix::prelude::*;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};

/// Why the broker ended otherwise than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// It could not listen.
    #[error("{0}")]
    Socket(#[from] SocketError),
    /// The sizes in the configuration do not go together.
    #[error("{0}")]
    Geometry(String),
    /// The system refused something that it needs.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The router ended, and with it everything.
    #[error("the router has ended; see the log")]
    RouterEnded,
}

/// How often a draining broker looks whether all is done.
const DRAIN_LOOK: Duration = Duration::from_millis(2);
/// How long closed connections may take to be told.
const CLOSE: Duration = Duration::from_secs(2);

/// Runs a broker until SIGTERM or SIGINT: stops accepting, finishes what is under way within `ipc.drain_timeout_ms`,
/// tells the clients, removes the socket. Calls `ready` once it listens.
///
/// # Errors
///
/// If it cannot listen, or the system refuses what it needs, or the router dies.
pub fn run(loaded: Loaded, ready: impl FnOnce(&Loaded)) -> Result<(), BrokerError> {
    let settings = Settings::new(&loaded.config).map_err(|error| BrokerError::Geometry(error.to_string()))?;
    raise_descriptor_limit(loaded.config.ipc.max_connections);
    // Before there are threads: it sets the umask for a moment.
    let (bound, listener) = socket::bind(&loaded.config.ipc.socket_path, loaded.config.shared_memory.permissions)?;
    System::new().block_on(serve(loaded, settings, bound, listener, ready))
}

async fn serve(
    loaded: Loaded,
    settings: Settings,
    bound: Bound,
    listener: UnixListener,
    ready: impl FnOnce(&Loaded),
) -> Result<(), BrokerError> {
    let started = Instant::now();
    // Before `ready` is called, so that no signal that follows it is lost.
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let events = Events::new();
    actix::spawn(events.clone().write());
    let state = RouterState::new(settings.clone(), events, 0)?;
    let (router_arbiter, bell) = (Arbiter::new(), state.own_bell()?);
    let (published, address) = watch::channel(None);
    let mut router_ended = published.subscribe();
    let router = RouterHandle::new(address, bell);
    router_arbiter.spawn_fn(move || {
        let shared = Shared::new(state, started);
        let context = Context::new();
        let _ = published.send(Some(context.address()));
        let end = actix::spawn(context.into_future(ShmRouter::new(shared)));
        actix::spawn(async move {
            let _ = end.await;
            drop(published);
        });
    });

    let workers: Vec<Arbiter> = (0..loaded.config.ipc.worker_threads).map(|_| Arbiter::new()).collect();
    let (phase, phase_seen) = watch::channel(Phase::Running);
    let (config, most) = (loaded.config.clone(), loaded.config.ipc.max_connections);
    let permits = Arc::new(Semaphore::new(most as usize));
    let broker = Arc::new(Broker {
        config,
        config_file: loaded.source.clone(),
        settings,
        router: router.clone(),
        phase: phase_seen,
        permits: permits.clone(),
        sessions: SessionTable::new(Duration::from_millis(loaded.config.restart.resume_window_ms)),
        started,
    });
    actix::spawn(watch_sessions(broker.clone()));
    let acceptor = Acceptor::new(listener, broker, workers.iter().map(Arbiter::handle).collect()).start();
    ready(&loaded);

    let ended = tokio::select! {
        _ = term.recv() => Ok("SIGTERM"),
        _ = int.recv() => Ok("SIGINT"),
        _ = router_ended.wait_for(|_| false) => Err(BrokerError::RouterEnded),
    };
    if let Ok(signal) = ended {
        let ms = loaded.config.ipc.drain_timeout_ms;
        log::info!("broker drains reason={signal} limit_ms={ms}");
        let _ = phase.send(Phase::Draining(u32::try_from(ms).unwrap_or(u32::MAX)));
        if tokio::time::timeout(Duration::from_millis(ms), quiescence(&router)).await.is_err() {
            log::warn!("broker ends with work under way limit_ms={ms}");
        }
    }
    let _ = phase.send(Phase::Closing);
    let _ = tokio::time::timeout(CLOSE, permits.acquire_many(most)).await;
    drop(acceptor);
    workers.iter().for_each(|worker| {
        worker.stop();
    });
    router_arbiter.stop();
    router.wake();
    drop(bound);
    log::info!("broker ended");
    ended.map(|_| ())
}

async fn quiescence(router: &RouterHandle) {
    while let Ok(false) = router.send(IsQuiescent).await {
        tokio::time::sleep(DRAIN_LOOK).await;
    }
}

/// Each connection takes six descriptors; a process gets 1,024 unless it asks for more.
fn raise_descriptor_limit(max_connections: u32) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::warn!("descriptor limit not raised reason={error:?}");
    }
    let needed = u64::from(max_connections) * 6 + 64;
    if let Some(maximum) = limit.maximum.filter(|maximum| *maximum < needed) {
        log::warn!("descriptor limit is low limit={maximum} needed={needed} max_connections={max_connections}");
    }
}

//! The root: supervises the actors in their order, waits for a signal, stops them in reverse.

use super::breaker::{self, BreakerActor, BreakerHandle};
use super::context::{Broker, Phase, Source};
use super::engines;
use super::health::{Endpoints, Health, HealthError, Pulses};
use super::listener::acceptor::Acceptor;
use super::listener::inherited::Inherited;
use super::listener::listening::Listening;
use super::listener::socket::{self, Bound, SocketError};
use super::processes::children as processes;
use super::router::{Announce, CloseLanes, IsQuiescent, RouterHandle, RouterState, Settings, Shared, ShmRouter};
use super::session::control_time::ControlAccounts;
use super::session::dialler;
use super::session::permits::ConnectionPermits;
use super::session::publishers::Publishers;
use super::session::roster::Roster;
use super::session::table::SessionTable;
use super::session::upstream::Upstream;
use super::signals::{Terminal, reload_until_closed, signalled};
use super::supervision::fault;
use super::supervision::resources::{
    Refused, arbiter, can_watch_signals, forbid_dumps, raise_descriptor_limit, refused,
};
use super::supervision::supervisor::{self, GaveUp, Spec, Supervisor, Tree, install_panic_hook};
use super::supervision::watchdog::{Alive, Pulse, Watchdog, Watched};
use super::telemetry::counters::Counters;
use super::telemetry::events::{Events, Queue, SystemEvent};
use super::telemetry::log_limit;
use super::telemetry::notify::Notify;
use super::telemetry::snapshots::SharedSnapshots;
use super::telemetry::stderr;
use crate::config::{Config, ConfigError, Loaded, WaitStrategy};
use crate::logic::supervision::group::ROOT;
use crate::logic::supervision::restart::Restart;
use crate::shm::peer;
use crate::sync::{AtomicU64, Ordering};
use crate::wire::control::HealthStatus;
use actix::prelude::*;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Why the broker failed.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// It could not listen.
    #[error("{0}")]
    Socket(#[from] SocketError),
    /// The health endpoints cannot start.
    #[error("{0}")]
    Health(#[from] HealthError),
    /// The sizes in the configuration are inconsistent.
    #[error("{0}")]
    Geometry(String),
    /// The fault injection settings are invalid.
    #[error("{0}")]
    Faults(String),
    /// The system refused a resource.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// An actor of the root reached its restart limit.
    #[error("{0}")]
    GaveUp(#[from] GaveUp),
    /// A required thread or descriptor cannot be created.
    #[error("{0}")]
    Refused(#[from] Refused),
    /// A second signal came before draining was complete.
    #[error("stopped at once by a second signal ({0})")]
    AtOnce(&'static str),
}

/// Interval of checks whether draining is complete.
const DRAIN_INTERVAL: Duration = Duration::from_millis(2);
/// How long closed connections may take to be notified.
const CLOSE: Duration = Duration::from_secs(2);
/// How long an actor of the root may take to stop.
const STOP: Duration = Duration::from_secs(1);

/// Runs a broker until SIGTERM or SIGINT: stops accepting, finishes what is under way within `ipc.drain_timeout_ms`,
/// tells the clients, removes the socket. A second signal ends it at once. Calls `ready` once it listens. SIGHUP reads
/// the configuration again by `load`, and `adopted` takes its part of it; or ends the broker, if the terminal that it
/// was started from is closed.
///
/// # Errors
///
/// If it cannot listen, or the system refuses what it needs, or an actor fails too often.
pub fn run(
    mut loaded: Loaded,
    load: impl Fn() -> Result<Loaded, ConfigError> + Send + Sync + 'static,
    adopted: impl Fn(&Config) + Send + Sync + 'static,
    ready: impl FnOnce(&Loaded, &HealthStatus),
) -> Result<(), BrokerError> {
    fault::check().map_err(BrokerError::Faults)?;
    let mut settings = Settings::new(&loaded.config).map_err(|error| BrokerError::Geometry(error.to_string()))?;
    install_panic_hook();
    log_limit::set_quotas(settings.quotas.clone());
    log_limit::set_limit(loaded.config.logging.max_lines_per_second);
    if settings.wait == WaitStrategy::Busy && peer::has_one_cpu() {
        log::warn!("busy waiting disabled reason=one_cpu wait=block");
        settings.wait = WaitStrategy::Block;
    }
    // Before there is a segment or a token.
    if !loaded.config.shared_memory.allow_dumps {
        forbid_dumps();
    }
    raise_descriptor_limit(&loaded.config);
    let Inherited { ipc, health } = Inherited::take()?;
    let has_inherited_socket = ipc.is_some();
    let listening = Listening::new(listen(ipc, &mut loaded)?);
    let (load, adopted) = (Box::new(load), Box::new(adopted));
    let notify = Notify::from_env()?;
    let manager = notify.clone();
    let tell = Box::new(move |begins| if begins { manager.reloading() } else { manager.reloaded() });
    let source = Source { load, adopted, tell, has_inherited_socket, turn: tokio::sync::Mutex::default() };
    let endpoints = Endpoints::new(&loaded, health)?;
    can_watch_signals().map_err(refused("the signal watcher"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(refused("the runtime"))?;
    System::with_tokio_rt(|| runtime).block_on(serve((loaded, source), settings, listening, endpoints, notify, ready))
}

/// The inherited socket, or a new one.
fn listen(
    inherited: Option<(UnixListener, PathBuf)>,
    loaded: &mut Loaded,
) -> Result<(Bound, UnixListener), SocketError> {
    let Some((listener, path)) = inherited else {
        return socket::bind(&loaded.config.ipc.socket_path, loaded.config.shared_memory.permissions);
    };
    let bound = socket::adopt(&path, &listener)?;
    match loaded.inherit_socket(&path) {
        Some(configured) => log::warn!(
            "inherited socket differs from the configuration listens={:?} configured={:?}",
            path.display().to_string(),
            configured.display().to_string()
        ),
        None => log::info!("socket inherited path={:?}", path.display().to_string()),
    }
    Ok((bound, listener))
}

async fn serve(
    (loaded, source): (Loaded, Source),
    settings: Settings,
    listening: Rc<Listening>,
    endpoints: Endpoints,
    notify: Notify,
    ready: impl FnOnce(&Loaded, &HealthStatus),
) -> Result<(), BrokerError> {
    let started = Instant::now();
    let terminal = Terminal::at_start();
    // Before `ready` is called, so that no signal that follows it is lost.
    let mut hang_up = signal(SignalKind::hangup())?;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let events = Events::new();
    actix::spawn(events.clone().write());
    actix::spawn(events.clone().forward());
    let bus = events.bus();
    let actor_events = events.actors();
    let tree = Arc::new(Tree::new(Some(events.clone())));
    let (all_running, is_whole) = watch::channel(false);
    let mut children = Supervisor::new(ROOT, tree.clone(), all_running);
    let limits = supervisor::limits(&loaded.config.restart);
    let permanent = |name, mailbox| Spec { name, restart: Restart::Permanent, limits, mailbox, stop_within: STOP };

    let mut state = RouterState::new(settings.clone(), events.clone(), 0)?;
    let grace = Duration::from_millis(loaded.config.restart.restart_grace_ms);
    let roster = Arc::new(Roster::open(&listening.path(), grace));
    let publishers = Publishers::open(&listening.path())?;
    if roster.awaited() > 0 {
        state.close_lanes(u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX));
    }
    let (router_arbiter, bell, turns) = (arbiter("the router's thread")?, state.router_waker()?, state.turns());
    let (published, address) = watch::channel(None);
    let router = RouterHandle::new(address, bell);
    let wake = router.clone();
    actix::spawn(publish(actor_events, router.clone()));
    actix::spawn(roster.clone().follow(router.clone()));
    let connections = settings.shares_of(settings.max_connections).total();
    // Outstanding messages: at most one per connection, two of the root, three of `BreakerActor`. So the mailbox is
    // never full.
    let seat = children.add(permanent("router", connections + 16), move || wake.wake());
    router_arbiter.spawn_fn(move || {
        let shared = Shared::new(state, started);
        actix::spawn(seat.host(published, move |_| ShmRouter::new(shared.clone())));
    });
    // Each connection has at most one outstanding order: so the mailbox is never full.
    let seat = children.add(permanent("breaker", connections + 16), || {});
    let (published, address) = watch::channel(None);
    let (rules, rules_seen) = watch::channel(settings.breakers.clone());
    let shared = breaker::Shared::new(router.clone(), events, rules_seen, started);
    actix::spawn(seat.host(published, move |_| BreakerActor::new(shared.clone())));
    let breaker = BreakerHandle::new(address, rules);

    let workers = (0..loaded.config.ipc.worker_threads).map(|_| arbiter("a worker's thread"));
    let workers = workers.collect::<Result<Vec<Arbiter>, Refused>>()?;
    let (phase, phase_seen) = watch::channel(Phase::Running);
    let config = loaded.config.clone();
    // The percentage stays that of the start, because so do the bounds of the mailboxes.
    let permits = ConnectionPermits::new(settings.max_connections, settings.user_share_percent);
    let acceptor = children.add(permanent("acceptor", 16), || {});
    let acceptor_number = acceptor.number();
    let mut watched = watched(&router, turns, &workers);
    let pulses = Pulses::default();
    watched.extend(pulses.watched());
    let alive = notify.alive_every().map(|every| {
        let notify = notify.clone();
        Alive { every, tell: Box::new(move || notify.alive()) }
    });
    let access = watch::Sender::new(endpoints.access.clone());
    let location = endpoints.location.clone();
    let watchdog = Watchdog::start(watched, Duration::from_millis(config.restart.watchdog_abort_ms), alive, abort);
    let watchdog = watchdog.map_err(refused("the watchdog's thread"))?;
    let upstreams = Upstream::all(&config, &tree);
    let broker = Arc::new(Broker {
        upstreams: upstreams.clone(),
        config: watch::Sender::new(Arc::new(config)),
        quotas: watch::Sender::new(settings.quotas.clone()),
        source,
        access,
        config_file: loaded.source.clone(),
        settings,
        router: router.clone(),
        breaker,
        phase: phase_seen,
        permits: permits.clone(),
        sessions: SessionTable::new(Duration::from_millis(loaded.config.restart.resume_window_ms)),
        roster: roster.clone(),
        publishers,
        started,
        connections: tree.add_many("connection", ROOT),
        tree: tree.clone(),
        counters: Counters::default(),
        snapshots: SharedSnapshots::new()?,
        control_accounts: ControlAccounts::new(),
        ready: is_whole,
        socket_lost: listening.lost(),
        late: watchdog.late(),
        late_non_vital: watchdog.late_non_vital(),
        location: location.clone(),
    });
    let follows = actix::spawn(notify.clone().follow(broker.clone()));
    for (upstream, worker) in upstreams.into_iter().zip(workers.iter().cycle()) {
        let broker = broker.clone();
        worker.spawn_fn(move || {
            actix::spawn(dialler::keep(upstream, broker));
        });
    }
    let reloaded = broker.clone();
    let health = Health::start(endpoints, broker.clone(), pulses, bus)?;
    let listens = listening.clone();
    let handles: Vec<_> = workers.iter().map(Arbiter::handle).collect();
    actix::spawn(acceptor.host(watch::Sender::new(None), move |exit| {
        Acceptor::new(listens.clone(), broker.clone(), handles.clone(), exit)
    }));
    ready(&loaded, &location.status());
    let engines = actix::spawn(engines::keep(reloaded.clone()));

    let ended = tokio::select! {
        signal = signalled(&mut term, &mut int) => Ok(signal),
        () = reload_until_closed(&mut hang_up, &terminal, &reloaded) => Ok("SIGHUP"),
        gave_up = children.run() => Err(BrokerError::GaveUp(gave_up)),
    };
    // Sessions that end from now on stay listed for the next broker.
    roster.freeze();
    // The log lines of the end are the last.
    follows.abort();
    let orderly = async {
        if let Ok(signal) = ended {
            let config = reloaded.config();
            let ms = config.ipc.drain_timeout_ms;
            notify.stopping(signal, Duration::from_millis(ms) + engines::stop_within(&config));
            log::info!("draining reason={signal} limit_ms={ms}");
            // First: an acceptor that is not running is no failure of a broker that drains.
            let _ = phase.send(Phase::Draining(u32::try_from(ms).unwrap_or(u32::MAX)));
            children.retire(acceptor_number).await;
            let drained = tokio::time::timeout(Duration::from_millis(ms), quiescence(&router));
            if beside(&mut children, drained).await.is_none_or(|drained| drained.is_err()) {
                log::warn!("drain timeout expired, outstanding work discarded limit_ms={ms}");
            }
        }
        if ended.is_err() {
            notify.stopping("an actor reached its restart limit", Duration::ZERO);
        }
        if !router.is_absent() {
            // Before a subscriber is gone: what is published from now on is for the next broker.
            let _ = beside(&mut children, tokio::time::timeout(CLOSE, router.send(CloseLanes))).await;
        }
        let _ = phase.send(Phase::Closing);
        let _ = beside(&mut children, tokio::time::timeout(CLOSE, permits.all_given_back())).await;
        let _ = tokio::time::timeout(CLOSE, children.retire(0)).await;
        let _ = engines.await;
    };
    let at_once = tokio::select! {
        () = orderly => None,
        signal = signalled(&mut term, &mut int) => Some(signal),
    };
    if let Some(signal) = at_once {
        log::warn!("stopping at once reason=second_signal signal={signal}");
        drop(processes::clean_up());
    }
    workers.iter().for_each(|worker| {
        worker.stop();
    });
    router_arbiter.stop();
    router.wake();
    roster.close();
    // With the acceptor and all that it had of it.
    listening.close();
    health.stop().await;
    log::info!("broker stopped");
    at_once.map_or(ended.map(|_| ()), |signal| Err(BrokerError::AtOnce(signal)))
}

/// Has the router publish what is said of actors, until there will be no router any more. What was said while there was
/// none comes when there is one again.
async fn publish(said: Queue<SystemEvent>, router: RouterHandle) {
    loop {
        said.came().await;
        let mut events = Vec::new();
        while let Some(SystemEvent { topic, text }) = said.pop() {
            events.push((topic, text));
        }
        if !events.is_empty() && router.send(Announce(events)).await.is_err() {
            return;
        }
        let missed = said.take_missed();
        if missed > 0 {
            log::warn!("actor events lost count={missed} reason=queue_full");
        }
    }
}

/// Waits for something while the children are kept running. `None` if one of them was given up before.
async fn beside<T>(children: &mut Supervisor, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        result = work => Some(result),
        _ = children.run() => None,
    }
}

/// All threads of actors, with their heartbeats.
fn watched(router: &RouterHandle, turns: Arc<AtomicU64>, workers: &[Arbiter]) -> Vec<Watched> {
    let (absent, bell) = (router.clone(), router.clone());
    let main = Arc::new(Pulse::default());
    actix::spawn(main.clone().beat());
    let mut watched = vec![
        main.watched("main".to_owned()),
        Watched {
            name: "router".to_owned(),
            // While there is none, it waits for its restart.
            count: Box::new(move || (!absent.is_absent()).then(|| turns.load(Ordering::Relaxed))),
            ask: Box::new(move || bell.wake()),
            is_vital: true,
        },
    ];
    for (number, worker) in workers.iter().enumerate() {
        let pulse = Arc::new(Pulse::default());
        worker.spawn(pulse.clone().beat());
        watched.push(pulse.watched(format!("worker-{number}")));
    }
    watched
}

/// A stuck thread cannot be stopped from inside: the process aborts, and the service manager restarts it.
fn abort() {
    stderr::flush();
    std::process::abort()
}

async fn quiescence(router: &RouterHandle) {
    while let Ok(false) = router.send(IsQuiescent).await {
        tokio::time::sleep(DRAIN_INTERVAL).await;
    }
}

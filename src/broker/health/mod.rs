//! `HealthActor`: the HTTP endpoints for operators, probes and Prometheus.
//!
//! It lives on its own thread, under its own supervisor, outside the tree that it reports: it responds while actors
//! are restarted, while the broker drains, and while the router is stuck. It only reads: the state that supervisors
//! and the watchdog publish, and one cached reply of the router.
//!
//! | file | idea |
//! |---|---|
//! | `listen` | the listener: bound before the broker starts, and retried if the port is taken |
//! | `location` | the bound address or the reason for none, and the files that belong to it |
//! | `token` | the token file that the broker creates |
//! | `error` | errors that keep the broker from starting |
//! | `access` | access control: Host header and token |
//! | `server` | the HTTP server over the listener |
//! | `pages` | the paths and their responses |
//! | `page` | the status page for browsers |
//! | `stream` | `/events`: events of the broker, and a snapshot a second |
//! | `probe` | the state of the router, with a bounded load on it |
//! | `connections` | the limits of HTTP connections and of unread bytes |
//! | `exchange` | one request at a time: the next is read when the response is written |
//! | `snapshot` | collects the state of the broker at one moment, which `logic::readiness` judges |
//! | `prometheus` | a snapshot as metrics |
//! | `process` | the kernel's data about this process |

mod access;
mod connections;
mod error;
mod exchange;
mod listen;
mod location;
mod page;
mod pages;
mod probe;
mod process;
mod prometheus;
mod server;
mod snapshot;
mod stream;
mod token;

pub(crate) use access::Access;
#[cfg(feature = "editor")]
pub(crate) use access::Refusal;
pub use error::HealthError;
pub(super) use listen::{Endpoints, Listener};
pub(super) use location::Location;
pub(super) use snapshot::snapshot;
#[cfg(feature = "editor")]
pub(crate) use token::TokenFile;

use super::context::Broker;
use crate::broker::supervision::fault;
use crate::broker::supervision::resources::{Refused, arbiter};
use crate::broker::supervision::supervisor::{self, Child, Exit, Stop, supervise};
use crate::broker::supervision::watchdog::{Pulse, Watched};
use crate::broker::telemetry::events::EventBus;
use crate::config::HealthServer;
use crate::logic::supervision::restart::{Limits, Restart};
use actix::prelude::*;
use actix_web::dev::ServerHandle;
use connections::Connections;
use listen::Socket;
use pages::Pages;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use stream::Streams;
use tokio::sync::oneshot;

/// It receives only `Stop`.
const MAILBOX: usize = 4;
/// How long it may take to stop.
const STOP: Duration = Duration::from_secs(1);
/// The shortest first delay: a taken port is rarely free at once.
const FIRST_DELAY: u64 = 100_000_000;
/// How long streams may take to send their last event.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long the summary in the log waits for the router.
const SUMMARY: Duration = Duration::from_secs(1);

/// The heartbeats of the endpoints' two threads.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulses {
    actor: Arc<Pulse>,
    http: Arc<Pulse>,
}

impl Pulses {
    /// Both, for the watchdog.
    pub(super) fn watched(&self) -> [Watched; 2] {
        [self.actor.clone().watched_non_vital("health"), self.http.clone().watched_non_vital("http")]
    }
}

/// The endpoints' actor.
struct HealthActor {
    pages: Arc<Pages>,
    socket: Rc<Socket>,
    pulse: Arc<Pulse>,
    server: Option<ServerHandle>,
    /// The last summary.
    summary: String,
    exit: Exit,
}

impl HealthActor {
    fn serve(&mut self, listener: io::Result<Listener>, ctx: &mut Context<Self>) {
        let server = match listener.and_then(|listener| server::server(listener, &self.pages, &self.pulse)) {
            Ok(server) => server,
            Err(error) => {
                self.exit.fail(error);
                return ctx.stop();
            }
        };
        self.server = Some(server.handle());
        // Outside of this actor, so that the server outlives a panic here and hears `Stop`.
        let served = actix::spawn(server);
        ctx.spawn(served.into_actor(self).map(|served, this, ctx| {
            let why = match served {
                Ok(Ok(())) => "the HTTP server ended".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            this.exit.fail(why);
            ctx.stop();
        }));
    }

    fn summarize(&mut self, ctx: &mut Context<Self>) {
        let pages = self.pages.clone();
        let look = async move { pages.query_brief(SUMMARY).await };
        ctx.spawn(look.into_actor(self).map(|(snapshot, seen), this, _| {
            let Some(seen) = seen.filter(|_| snapshot.router_responds) else { return };
            let restarts = snapshot.actors.iter().map(|actor| actor.restarts).sum();
            let report = &seen.router_snapshot.report;
            if let Some(line) = prometheus::summary(report, snapshot.connections, restarts, &mut this.summary) {
                log::info!("metrics {line}");
            }
        }));
    }
}

impl Actor for HealthActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        fault::point("health.started", 0);
        let socket = self.socket.clone();
        let listen = async move { socket.listener().await };
        ctx.spawn(listen.into_actor(self).map(|listener, this, ctx| this.serve(listener, ctx)));
        let metrics = self.pages.metrics();
        if metrics.enable {
            ctx.run_interval(Duration::from_secs(metrics.export_interval_secs), Self::summarize);
        }
    }
}

impl Handler<Stop> for HealthActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Drop for HealthActor {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            // The server stops in the background.
            drop(server.stop(false));
        }
    }
}

/// The running endpoints.
pub(super) struct Health {
    arbiter: Arbiter,
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
    streams: Streams,
    location: Arc<Location>,
}

impl Health {
    /// Starts them on a new thread.
    ///
    /// # Errors
    ///
    /// If the thread cannot be created.
    pub(super) fn start(
        endpoints: Endpoints,
        broker: Arc<Broker>,
        pulses: Pulses,
        bus: EventBus,
    ) -> Result<Health, Refused> {
        let arbiter = arbiter("the thread of the health endpoints")?;
        let (stop, stopped) = oneshot::channel::<()>();
        let (ends, ended) = oneshot::channel();
        // Outside the tree's supervisors, and without a restart limit.
        let node = broker.tree.add("health", "health", None);
        let streams = Streams::new(bus, broker.config().health_server.max_streams);
        let (streamed, streams_taken) = (streams.clone(), streams.clone());
        let location = endpoints.location.clone();
        arbiter.spawn_fn(move || {
            let limits = supervisor::limits(&broker.config().restart);
            // No restart limit: no supervisor is above it, and the broker works without it.
            let initial_delay = limits.initial_delay.max(FIRST_DELAY);
            let limits = Limits {
                initial_delay,
                max_delay: limits.max_delay.max(initial_delay),
                max_restarts: u32::MAX,
                ..limits
            };
            let (probe, asks) = probe::start(broker.router.clone());
            let socket = Rc::new(Socket::new(endpoints, limits, broker.tree.clone(), node));
            let HealthServer { max_connections, max_unread_bytes, .. } = broker.config().health_server;
            let connections = Connections::new(max_connections as usize, max_unread_bytes);
            let pages = Arc::new(Pages::new(broker.clone(), probe, streamed, connections));
            actix::spawn(asks);
            actix::spawn(pulses.actor.beat());
            let source = pages.clone();
            let take = async move |last: &mut _| pages::take(&source, last).await;
            actix::spawn(stream::take_snapshots(streams_taken, take));
            actix::spawn(async move {
                let child = Child {
                    name: "health",
                    restart: Restart::Permanent,
                    limits,
                    mailbox: MAILBOX,
                    stop_within: STOP,
                    tree: &broker.tree,
                    node,
                    retry_now: None,
                    can_continue: None,
                    limited: None,
                };
                let factory = |exit| HealthActor {
                    pages: pages.clone(),
                    socket: socket.clone(),
                    pulse: pulses.http.clone(),
                    server: None,
                    summary: String::new(),
                    exit,
                };
                let until = std::pin::pin!(async move {
                    let _ = stopped.await;
                });
                supervise(&child, || "-".to_owned(), until, factory).await;
                // The receiver may have timed out.
                let _ = ends.send(());
            });
        });
        Ok(Health { arbiter, stop, ended, streams, location })
    }

    /// Stops them, after all other actors.
    pub(super) async fn stop(self) {
        // The streams end when draining begins; let them send their last event.
        let _ = tokio::time::timeout(LAST_WORDS, self.streams.ended()).await;
        let _ = self.stop.send(());
        let _ = tokio::time::timeout(STOP, self.ended).await;
        self.arbiter.stop();
        self.location.close();
    }
}

//! `HealthActor`: people, probes and Prometheus see over HTTP how the broker is.
//!
//! It lives on a thread of its own, under a supervisor of its own, outside the tree that it tells of: it answers while
//! the rest is started again, while it drains, and while the router hangs. It only reads: what the supervisors and the
//! watchdog publish, and one cached answer of the router.
//!
//! | file | idea |
//! |---|---|
//! | `listen` | the address: bound before the broker starts, and tried again if it is taken |
//! | `access` | who may read |
//! | `pages` | what is answered to which path |
//! | `page` | the status page, which a browser shows |
//! | `stream` | what happens, as it happens, and a snapshot a second |
//! | `survey` | what is known of the router, without a burden on it |
//! | `connections` | who gives way when too many are connected |
//! | `facts` | where the facts come from |
//! | `judge` | live, ready, healthy: what is made of the facts |
//! | `figures` | the facts as metrics |
//! | `process` | what the kernel knows of this process |
//! | `error` | why the broker does not start without them |
//! | `location` | where they listen, for the status |
//! | `token` | the token file that the broker makes |

mod access;
mod connections;
mod error;
mod facts;
mod figures;
mod judge;
mod listen;
mod location;
mod page;
mod pages;
mod process;
mod stream;
mod survey;
mod token;

pub(super) use access::Access;
pub use error::HealthError;
pub(super) use judge::Facts;
pub(super) use listen::{Endpoints, Listener};
pub(super) use location::Location;

use super::connection::Broker;
use super::events::Newsroom;
use super::fault;
use super::supervisor::{self, Child, Exit, Stop, supervise};
use super::threads::{Refused, arbiter};
use super::watchdog::{Pulse, Watched};
use crate::routing::restart::{Limits, Restart};
use actix::prelude::*;
use actix_web::dev::ServerHandle;
use listen::Socket;
use pages::Pages;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use stream::Streams;
use tokio::sync::oneshot;

/// Nothing is sent to it but `Stop`.
const MAILBOX: usize = 4;
/// How long it may take to stop.
const STOP: Duration = Duration::from_secs(1);
/// The shortest first delay: a port that is taken stays so for a while.
const FIRST_DELAY: u64 = 100_000_000;
/// How long streams may take to send their last words.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long the summary in the log waits for the router.
const SUMMARY: Duration = Duration::from_secs(1);

/// The signs of life of the endpoints' two threads.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulses {
    actor: Arc<Pulse>,
    http: Arc<Pulse>,
}

impl Pulses {
    /// The watch over both.
    pub(super) fn watched(&self) -> [Watched; 2] {
        [self.actor.clone().watched_beside("health"), self.http.clone().watched_beside("http")]
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
        let server = match listener.and_then(|listener| pages::server(listener, self.pages.clone(), self.pulse.clone()))
        {
            Ok(server) => server,
            Err(error) => {
                self.exit.fail(error);
                return ctx.stop();
            }
        };
        self.server = Some(server.handle());
        // Not within this actor: it must be there to hear that it is to stop, also after a panic here.
        let served = actix::spawn(server);
        ctx.spawn(served.into_actor(self).map(|served, this, ctx| {
            let why = match served {
                Ok(Ok(())) => "the server has ended".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            this.exit.fail(why);
            ctx.stop();
        }));
    }

    fn summarize(&mut self, ctx: &mut Context<Self>) {
        let pages = self.pages.clone();
        let look = async move { pages.glance(SUMMARY).await };
        ctx.spawn(look.into_actor(self).map(|(facts, seen), this, _| {
            let Some(seen) = seen.filter(|_| facts.answers) else { return };
            let restarts = facts.actors.iter().map(|actor| actor.restarts).sum();
            let report = &seen.surveyed.report;
            if let Some(line) = figures::summary(report, facts.connections, restarts, &mut this.summary) {
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
            // It is told at once; nobody waits for it to have stopped.
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
    /// Starts them, on a thread of their own.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub(super) fn start(
        endpoints: Endpoints,
        broker: Arc<Broker>,
        pulses: Pulses,
        newsroom: Newsroom,
    ) -> Result<Health, Refused> {
        let arbiter = arbiter("the thread of the health endpoints")?;
        let (stop, stopped) = oneshot::channel::<()>();
        let (ends, ended) = oneshot::channel();
        // Supervised by nobody else, and never given up.
        let place = broker.tree.add("health", "health", None);
        let streams = Streams::new(newsroom, broker.config().health_server.max_streams);
        let streamed = streams.clone();
        let location = endpoints.location.clone();
        arbiter.spawn_fn(move || {
            let limits = supervisor::limits(&broker.config().restart);
            // It is never given up: nobody stands above it, and the broker works without it.
            let initial_delay = limits.initial_delay.max(FIRST_DELAY);
            let limits = Limits {
                initial_delay,
                max_delay: limits.max_delay.max(initial_delay),
                max_restarts: u32::MAX,
                ..limits
            };
            let (surveyor, asks) = survey::surveyor(broker.router.clone());
            let socket = Rc::new(Socket::new(endpoints, limits, broker.tree.clone(), place));
            let pages = Arc::new(Pages::new(broker.clone(), surveyor, streamed));
            actix::spawn(asks);
            actix::spawn(pulses.actor.beat());
            actix::spawn(stream::take_snapshots(pages.clone()));
            actix::spawn(async move {
                let child = Child {
                    name: "health",
                    restart: Restart::Permanent,
                    limits,
                    mailbox: MAILBOX,
                    stop_within: STOP,
                    tree: &broker.tree,
                    place,
                    hurry: None,
                };
                let factory = |exit| HealthActor {
                    pages: pages.clone(),
                    socket: socket.clone(),
                    pulse: pulses.http.clone(),
                    server: None,
                    summary: String::new(),
                    exit,
                };
                let until = async move {
                    let _ = stopped.await;
                };
                supervise(&child, || "-".to_owned(), until, factory).await;
                // Whoever waits may have given up.
                let _ = ends.send(());
            });
        });
        Ok(Health { arbiter, stop, ended, streams, location })
    }

    /// Stops them, the last of all.
    pub(super) async fn stop(self) {
        // They were told to end when the broker began to; who reads is not to miss the last word.
        let _ = tokio::time::timeout(LAST_WORDS, self.streams.ended()).await;
        let _ = self.stop.send(());
        let _ = tokio::time::timeout(STOP, self.ended).await;
        self.arbiter.stop();
        self.location.close();
    }
}

//! The paths and their responses.
//!
//! | path | response |
//! |---|---|
//! | `/live` | 503 when a thread is stuck; needs no other thread |
//! | `/ready` | 503 with the reasons while work should not be sent here |
//! | `/health` | the condition of each part; 503 if the broker is unhealthy |
//! | `/api/status` | the report of `lapce-ipc status --json` |
//! | `/metrics` | the metrics for Prometheus |
//! | `/events` | a stream of events and snapshots (`stream`) |
//! | `/` | the status page (`page`) |
//!
//! All take GET and HEAD without a body. Responses must not be cached, embedded or read by other origins.

use super::access::Refusal;
use super::connections::Connections;
use super::exchange::{Answer, Exchange};
use super::page;
use super::probe::{LastReply, RouterProbe};
use super::process::Usage;
use super::prometheus;
use super::snapshot::snapshot;
use super::stream::{self, Streams};
use crate::broker::context::{Broker, Phase};
use crate::broker::supervision::fault;
use crate::broker::telemetry::report;
use crate::config::{HealthServer, Metrics};
use crate::logic::readiness::{Condition, Snapshot};
use crate::metrics::{self, Samples};
use crate::sync::Ordering;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, Error, FromRequest, Handler, HttpMessage, HttpRequest, HttpResponse, Resource, Responder, web};
use serde::Serialize;
use serde_json::{Value, json as json_value};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// How long a client may take to close.
pub(super) const DISCONNECT: Duration = Duration::from_secs(1);
/// How long a reader waits for the router; a probe's own timeout is often a second.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The shared state of all handlers.
pub(super) struct Pages {
    broker: Arc<Broker>,
    probe: RouterProbe,
    streams: Streams,
    connections: Connections,
    /// When the broker started, in seconds since the epoch.
    started: f64,
}

impl Pages {
    pub(super) fn new(broker: Arc<Broker>, probe: RouterProbe, streams: Streams, connections: Connections) -> Pages {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let started = since_epoch.saturating_sub(broker.started.elapsed()).as_secs_f64();
        Pages { broker, probe, streams, connections, started }
    }

    pub(super) fn metrics(&self) -> Metrics {
        self.broker.config().metrics.clone()
    }

    /// Whether no thread is stuck.
    fn is_live(&self) -> bool {
        self.broker.late.load(Ordering::Relaxed) == 0
    }

    /// A snapshot; waits for the router for `timeout` at most.
    pub(super) async fn snapshot(&self, timeout: Duration) -> (Snapshot, Option<LastReply>) {
        self.snapshot_of(self.probe.query(timeout)).await
    }

    /// The same, perhaps without the list of connections.
    pub(super) async fn query_brief(&self, timeout: Duration) -> (Snapshot, Option<LastReply>) {
        self.snapshot_of(self.probe.query_brief(timeout)).await
    }

    async fn snapshot_of(
        &self,
        look: impl Future<Output = (Option<LastReply>, bool)>,
    ) -> (Snapshot, Option<LastReply>) {
        // A stuck router is not probed.
        let (seen, router_responds) = if self.is_live() { look.await } else { (self.probe.last(), false) };
        let snapshot = snapshot(&self.broker, seen.as_ref(), router_responds);
        (snapshot, seen)
    }

    /// The broker's status, with the last reply of the router.
    pub(super) fn status(&self, seen: &LastReply) -> Value {
        let mut report = seen.router_snapshot.report.clone();
        report::complete(&mut report, &self.broker);
        report::status_json(&report, &seen.router_snapshot.breakers)
    }

    /// The metrics.
    fn samples(&self, snapshot: &Snapshot, seen: Option<&LastReply>) -> Samples {
        let counts = (&self.broker.tree.restarts_by_cause()[..], &self.broker.counters.values());
        prometheus::samples(snapshot, counts, seen, Usage::read(), self.started)
    }

    /// The configuration of the endpoints.
    pub(super) fn config(&self) -> HealthServer {
        self.broker.config().health_server.clone()
    }

    /// All connections.
    pub(super) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// The phase of the broker's life.
    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.broker.phase.clone()
    }
}

/// The application: paths and middleware.
pub(super) fn app(
    pages: web::Data<Pages>,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<impl MessageBody>,
        Error = Error,
        InitError = (),
    >,
> {
    App::new()
        .app_data(pages)
        .wrap(from_fn(guard))
        .service(page("/live", live))
        .service(page("/ready", ready))
        .service(page("/health", health))
        .service(page("/api/status", status))
        .service(page("/metrics", exposition))
        .service(page("/events", events))
        .service(page("/", page::index))
        .service(page("/style.css", page::style))
        .service(page("/script.js", page::script))
        .default_service(web::to(|| async { text(StatusCode::NOT_FOUND, "not found\n") }))
}

/// The user at the other end of a Unix socket; `None` if the system does not say.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) Option<u32>);

fn page<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args, Output: Responder + 'static>,
    Args: FromRequest + 'static,
{
    let other = || async {
        HttpResponse::MethodNotAllowed()
            .insert_header((header::ALLOW, "GET, HEAD"))
            .content_type(header::ContentType::plaintext())
            .body("only GET and HEAD are allowed\n")
    };
    // `App::route` would return 404 for HEAD.
    web::resource(path).get(handler.clone()).route(web::head().to(handler)).default_service(web::to(other))
}

/// Middleware: access control before the handler, security headers after it.
async fn guard(mut request: ServiceRequest, next: Next<BoxBody>) -> Result<ServiceResponse<BoxBody>, Error> {
    fault::point("health.asked", 0);
    let exchange = request.conn_data::<Rc<Exchange>>().cloned();
    let serves = exchange.as_ref().and_then(|exchange| exchange.connection.clone().serves());
    let mut response = match refusal(&request) {
        Some(refusal) => {
            // While a clone of the body exists, the library closes the connection after the response; otherwise it
            // would wait for the end of a chunked one, without limit.
            let body = request.take_payload();
            actix_web::rt::spawn(async move {
                tokio::time::sleep(DISCONNECT).await;
                drop(body);
            });
            request.into_response(refusal)
        }
        None => next.call(request).await?,
    };
    // The page sets its own policy.
    let has_policy = response.headers().contains_key(header::CONTENT_SECURITY_POLICY);
    let policy = (!has_policy).then_some((header::CONTENT_SECURITY_POLICY, "default-src 'none'"));
    for (name, value) in policy.into_iter().chain([
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
    ]) {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    drop(serves);
    Ok(response.map_body(|_, body| match exchange {
        Some(exchange) => Answer::new(body, exchange).boxed(),
        None => body,
    }))
}

/// The response to a refused request.
fn refusal(request: &ServiceRequest) -> Option<HttpResponse> {
    let headers = request.headers();
    let has_body = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if has_body || headers.contains_key(header::TRANSFER_ENCODING) {
        // The body is not read, so the next request on this connection could not be delimited.
        if let Some(exchange) = request.conn_data::<Rc<Exchange>>() {
            exchange.refuse_body();
        }
        return Some(
            HttpResponse::PayloadTooLarge()
                .force_close()
                .content_type(header::ContentType::plaintext())
                .body("request bodies are not accepted\n"),
        );
    }
    let pages = request.app_data::<web::Data<Pages>>()?;
    // Over a Unix socket only users that may connect to the broker are served, whatever the socket's mode.
    if let Some(Peer(uid)) = request.conn_data::<Peer>()
        && !uid.is_some_and(|uid| pages.broker.may_connect(uid))
    {
        return Some(text(StatusCode::FORBIDDEN, "user not allowed (ipc.allowed_uids)\n"));
    }
    // A Host that is not text is not allowed.
    let named = headers.get_all(header::HOST).map(|host| host.to_str().unwrap_or_default());
    let hosts: Vec<&str> = named.chain(request.uri().authority().map(|authority| authority.as_str())).collect();
    let authorization = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    match pages.broker.access.borrow().check(&hosts, authorization, request.path()) {
        Ok(()) => None,
        Err(Refusal::NoHost) => Some(text(StatusCode::BAD_REQUEST, "the Host header is missing\n")),
        Err(Refusal::ForeignHost) => {
            Some(text(StatusCode::MISDIRECTED_REQUEST, "unknown Host header; add it to health_server.allowed_hosts\n"))
        }
        Err(Refusal::NoToken) => Some(
            HttpResponse::Unauthorized()
                .insert_header((header::WWW_AUTHENTICATE, "Bearer"))
                .content_type(header::ContentType::plaintext())
                .body("token required; lapce-ipc status shows its file\n"),
        ),
    }
}

fn text(status: StatusCode, text: &'static str) -> HttpResponse {
    HttpResponse::build(status).content_type(header::ContentType::plaintext()).body(text)
}

fn json(is_good: bool, body: &impl Serialize) -> HttpResponse {
    let status = if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    HttpResponse::build(status).json(body)
}

async fn live(pages: web::Data<Pages>) -> HttpResponse {
    let live = pages.is_live();
    json(live, &json_value!({ "live": live }))
}

async fn ready(pages: web::Data<Pages>) -> HttpResponse {
    let reasons = pages.query_brief(TIMEOUT).await.0.unready();
    json(reasons.is_empty(), &json_value!({ "ready": reasons.is_empty(), "reasons": reasons }))
}

async fn health(pages: web::Data<Pages>) -> HttpResponse {
    let health = pages.query_brief(TIMEOUT).await.0.evaluate();
    pages.connections.room().await;
    json(health.status != Condition::Unhealthy, &health)
}

async fn status(pages: web::Data<Pages>) -> HttpResponse {
    let (snapshot, seen) = pages.snapshot(TIMEOUT).await;
    let Some(seen) = seen.filter(|_| snapshot.router_responds) else {
        return json(false, &json_value!({ "error": "the router does not respond" }));
    };
    pages.connections.room().await;
    json(true, &pages.status(&seen))
}

async fn exposition(pages: web::Data<Pages>) -> HttpResponse {
    if !pages.metrics().enable {
        return text(StatusCode::NOT_FOUND, "metrics are disabled (metrics.enable)\n");
    }
    // If the router does not respond, its last metrics are shown: that is when they are needed.
    let (snapshot, seen) = pages.query_brief(TIMEOUT).await;
    pages.connections.room().await;
    match pages.samples(&snapshot, seen.as_ref()).render() {
        Ok(text) => HttpResponse::Ok().content_type(metrics::CONTENT_TYPE).body(text),
        Err(error) => {
            log::error!("cannot encode metrics reason={:?}", error.to_string());
            text(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode the metrics\n")
        }
    }
}

/// The state now, for streams; if the router does not respond, with the `last` full reply.
pub(super) async fn take(pages: &Pages, last: &mut Option<LastReply>) -> Value {
    let (snapshot, seen) = pages.snapshot(TIMEOUT).await;
    if snapshot.router_responds || last.is_none() {
        last.clone_from(&seen);
    }
    let heartbeat_age_ms = last.as_ref().map(|seen| report::ms_since(seen.at));
    let process = Usage::read().map(|usage| {
        json_value!({
            "memory_bytes": usage.memory.map(|memory| memory.rss),
            "cpu_seconds": usage.cpu_seconds,
            "threads": usage.threads,
            "descriptors": usage.descriptors,
            "descriptors_limit": usage.descriptors_limit,
        })
    });
    json_value!({
        "router_responds": snapshot.router_responds,
        "router_heartbeat_age_ms": heartbeat_age_ms,
        // When the router counted, by the broker's clock: rates are differences of counters over differences of this.
        "counted_at_ms": heartbeat_age_ms.map(|ago| snapshot.uptime_ms.saturating_sub(ago)),
        "threads_late": snapshot.late,
        "health": snapshot.evaluate(),
        "status": last.as_ref().map(|seen| pages.status(seen)),
        "process": process,
        "streams": { "now": pages.streams.now(), "limit": pages.streams.max },
    })
}

/// The handler of `/events`.
async fn events(request: HttpRequest, pages: web::Data<Pages>) -> HttpResponse {
    if request.method() == Method::HEAD {
        return HttpResponse::Ok().content_type(stream::CONTENT_TYPE).finish();
    }
    let phase = pages.phase();
    if phase.borrow().is_ending() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the broker is shutting down\n");
    }
    match pages.streams.begin(phase, pages.connections.clone()) {
        Some(body) => HttpResponse::Ok().content_type(stream::CONTENT_TYPE).body(body),
        None => text(
            StatusCode::SERVICE_UNAVAILABLE,
            "all event streams are taken (health_server.max_streams); try again later\n",
        ),
    }
}

//! The HTTP server: access, paths, and one request of each.

use super::error::ApiError;
use super::input::{self, Asked};
use super::output::{Kind, Style, models};
use super::relay::{Body, Reply};
use crate::broker::Access;
use crate::broker::supervision::resources::can_start;
use crate::client::asynchronous::AsyncClient;
use crate::sync::{AtomicU64, Ordering};
use crate::wire::typed::Message;
use actix_web::dev::Server;
use actix_web::http::Method;
use actix_web::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use actix_web::web::{self, Data, Payload};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use serde_json::Value;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the headers of a request may take.
const HEADERS: Duration = Duration::from_secs(5);
/// How long an idle connection stays open.
const IDLE: Duration = Duration::from_secs(60);
/// How long a connection that ends may take.
const DISCONNECT: Duration = Duration::from_secs(1);

/// What the requests share.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) client: AsyncClient,
    pub(super) access: Access,
    pub(super) service: String,
    pub(super) chat_service: String,
    pub(super) max_body: usize,
    pub(super) next_id: AtomicU64,
}

/// A socket to listen on.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The server; it runs when it is polled.
///
/// # Errors
///
/// If the system refuses a thread or the socket.
pub(super) fn server(gateway: Gateway, listener: Listener, max_connections: usize, drain: u64) -> io::Result<Server> {
    // One acceptor and one worker: the library panics without them.
    can_start(2)?;
    let gateway = Data::new(gateway);
    let app = move || App::new().app_data(gateway.clone()).default_service(web::to(handle));
    let server = HttpServer::new(app)
        .workers(1)
        .worker_max_blocking_threads(1)
        .max_connections(max_connections)
        .client_request_timeout(HEADERS)
        .keep_alive(IDLE)
        .client_disconnect_timeout(DISCONNECT)
        // A client that closes its side no longer waits: its request is cancelled.
        .h1_allow_half_closed(false)
        .shutdown_timeout(drain)
        .disable_signals();
    let server = match listener {
        Listener::Tcp(listener) => server.listen(listener)?,
        Listener::Unix(listener) => server.listen_uds(listener)?,
    };
    Ok(server.run())
}

async fn handle(request: HttpRequest, payload: Payload, gateway: Data<Gateway>) -> HttpResponse {
    gateway.route(&request, payload).await.unwrap_or_else(|error| {
        log::debug!("request failed path={:?} status={} reason={:?}", request.path(), error.status, error.message);
        error.response()
    })
}

impl Gateway {
    async fn route(&self, request: &HttpRequest, payload: Payload) -> Result<HttpResponse, ApiError> {
        self.check(request)?;
        match (request.method(), request.path()) {
            (&Method::GET, "/v1/models") => Ok(json(&models(&self.model().await))),
            (&Method::POST, "/v1/completions") => {
                let asked = input::completion(&self.body(request, payload).await?, self.id())?;
                let typed = Message::CompletionRequest(asked.request.clone());
                self.pass_on(Kind::Completion, &self.service, asked.request.id, &typed, asked).await
            }
            (&Method::POST, "/v1/chat/completions") => {
                let asked = input::chat(&self.body(request, payload).await?, self.id())?;
                let typed = Message::ChatRequest(asked.request.clone());
                self.pass_on(Kind::Chat, &self.chat_service, asked.request.id, &typed, asked).await
            }
            (_, "/v1/models" | "/v1/completions" | "/v1/chat/completions") => {
                Err(ApiError::new(405, format!("method {} is not allowed", request.method())))
            }
            (_, path) => Err(ApiError::new(404, format!("no such path: {path}"))),
        }
    }

    /// The Host must be this machine's, so that no page of a browser reaches the gateway under its own name.
    fn check(&self, request: &HttpRequest) -> Result<(), ApiError> {
        let hosts: Vec<&str> = request.headers().get_all(HOST).map(|host| host.to_str().unwrap_or_default()).collect();
        let authorization = request.headers().get(AUTHORIZATION).map(actix_web::http::header::HeaderValue::as_bytes);
        match self.access.check(&hosts, authorization, request.path()) {
            Ok(()) => Ok(()),
            Err(crate::broker::Refusal::NoToken) => Err(ApiError::new(401, "missing or wrong token")),
            Err(_) => Err(ApiError::new(403, "the Host header is missing or names another host")),
        }
    }

    async fn body(&self, request: &HttpRequest, payload: Payload) -> Result<web::Bytes, ApiError> {
        // A page of a browser cannot send this type without asking first.
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
            return Err(ApiError::new(415, "content type must be application/json"));
        }
        match payload.to_bytes_limited(self.max_body).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(error)) => Err(ApiError::invalid(format!("cannot read the body: {error}"))),
            Err(_) => Err(ApiError::new(413, format!("the body is larger than {} bytes", self.max_body))),
        }
    }

    fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The model that the engine names in its status, or else the service.
    async fn model(&self) -> String {
        let status = self.client.request(&format!("{}.status", self.service), b"").await.ok();
        let status: Option<Value> = status.and_then(|status| serde_json::from_slice(&status).ok());
        let model = status.as_ref().and_then(|status| status.get("model")?.as_str());
        model.unwrap_or(&self.service).to_owned()
    }

    /// Sends a request to its service. The response begins with the first part of the reply: an error before it has
    /// the status that fits.
    async fn pass_on<T>(
        &self,
        kind: Kind,
        service: &str,
        id: u64,
        typed: &Message,
        asked: Asked<T>,
    ) -> Result<HttpResponse, ApiError> {
        let payload = typed.encode().map_err(|error| ApiError::invalid(error.to_string()))?;
        let stream = self.client.request_stream(service, payload).await;
        let stream = stream.map_err(|error| ApiError::of_outcome(&error, service))?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let style = Style { kind, id, created, model: asked.model, include_usage: asked.include_usage };
        let mut reply = Reply::new(stream, service);
        let mut part = reply.next().await?;
        if asked.stream {
            let mut response = HttpResponse::Ok();
            response.content_type("text/event-stream").insert_header(("Cache-Control", "no-cache"));
            return Ok(response.streaming(Body::new(part, reply, style)));
        }
        while !part.is_last() {
            part.append(reply.next().await?);
        }
        Ok(json(&style.whole(&part)))
    }
}

fn json(value: &Value) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(value.to_string())
}

//! An OpenAI-compatible endpoint over HTTP: requests, the streams of their replies, and the time limits.

use super::event::{self, Event, Piece};
use super::fault::Fault;
use super::key::Key;
use crate::cli::failure::{Code, Failure};
use crate::cli::output::plain;
use actix_web::http::header::HttpDate;
use actix_web::web::Bytes;
use futures_core::Stream;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Response, Url};
use serde_json::Value;
use sse_stream::SseByteStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, timeout_at};

/// The most bytes of a streamed reply.
const STREAM_MAX: usize = 64 * 1024 * 1024;
/// The most bytes of a reply that is no stream.
const BODY_MAX: usize = 8 * 1024 * 1024;
/// The longest message of an engine in an error text.
const MESSAGE_MAX: usize = 200;
/// How long to wait for the rest of a stream that has said that it is finished.
const REST: Duration = Duration::from_secs(1);
/// How long an idle connection is kept: shorter than servers do, or a request would meet one that is being closed.
const IDLE: Duration = Duration::from_secs(3);
/// How long the end of a complete reply may take before its connection is closed.
const SETTLE: Duration = Duration::from_millis(50);

/// The time limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// To connect.
    pub(super) connect: Duration,
    /// To the first token.
    pub(super) first_token: Duration,
    /// Between tokens.
    pub(super) token: Duration,
}

/// What is behind the base URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    Models,
    Completions,
    Chat,
    /// llama.cpp's, beside `/v1`.
    Infill,
}

/// An endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    http: reqwest::Client,
    /// With `/v1`, without a slash at the end.
    base: String,
    key: Option<Key>,
    times: Times,
}

/// The base URL as requests use it: with the path `/v1` if it has none.
///
/// # Errors
///
/// If it is no URL of an HTTP server, or contains what must not be logged.
pub(super) fn base_url(text: &str) -> Result<Url, String> {
    if !["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)) {
        return Err(format!("invalid URL: {text:?} must begin with http:// or https://"));
    }
    let mut url = Url::parse(text).map_err(|error| format!("invalid URL: {error}"))?;
    let authority = text.split('/').nth(2).unwrap_or_default();
    if authority.ends_with(':') {
        return Err(format!("invalid URL: {authority:?} has no port after the colon"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("invalid URL: user, password, query and fragment are not allowed; use --api-key-file".to_owned());
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(if path.is_empty() { "/v1" } else { &path });
    Ok(url)
}

impl Endpoint {
    /// Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// If there is no TLS.
    pub(super) fn new(base: &Url, key: Option<Key>, times: Times) -> Result<Endpoint, Failure> {
        // An error: there is one already, which does as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .connect_timeout(times.connect)
            .tcp_nodelay(true)
            .pool_idle_timeout(IDLE)
            // A key must not follow a redirect.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("lapce-ipc/", env!("CARGO_PKG_VERSION")));
        if is_loopback(base) {
            http = http.no_proxy();
        }
        let failed = |error: reqwest::Error| Failure::new(Code::Unavailable, format!("cannot use HTTP: {error}"));
        Ok(Endpoint { http: http.build().map_err(failed)?, base: base.to_string(), key, times })
    }

    fn url(&self, path: Path) -> String {
        match path {
            Path::Models => format!("{}/models", self.base),
            Path::Completions => format!("{}/completions", self.base),
            Path::Chat => format!("{}/chat/completions", self.base),
            Path::Infill => format!("{}/infill", self.base.strip_suffix("/v1").unwrap_or(&self.base)),
        }
    }

    /// The owner of the models, which tells the servers apart; `None`: it does not say.
    ///
    /// # Errors
    ///
    /// If the endpoint cannot be reached, or is not ready: llama.cpp answers 503 while it loads the model.
    pub(super) async fn owner(&self) -> Result<Option<String>, Fault> {
        let until = Instant::now() + self.times.connect;
        let url = self.url(Path::Models);
        let response = match timeout_at(until, self.with_key(self.http.get(&url)).send()).await {
            Ok(response) => response.map_err(|error| self.unsent(&url, &error))?,
            Err(_) => return Ok(None),
        };
        if !response.status().is_success() && ![404, 405].contains(&response.status().as_u16()) {
            return Err(self.refused(&url, response, until).await);
        }
        let body = timeout_at(until, read(response)).await.ok().and_then(Result::ok);
        let json: Option<Value> = body.and_then(|body| serde_json::from_str(&body).ok());
        let owner = json.as_ref().and_then(|json| json.pointer("/data/0/owned_by"));
        Ok(owner.and_then(Value::as_str).map(str::to_owned))
    }

    /// Sends a request for a stream. Dropping the future or the stream closes the connection.
    ///
    /// # Errors
    ///
    /// If the endpoint cannot be reached, refuses, or takes too long.
    pub(super) async fn post(&self, path: Path, body: &Value) -> Result<Events<'_>, Fault> {
        let url = self.url(path);
        let until = Instant::now() + self.times.first_token;
        let request = self.http.post(&url).header(CONTENT_TYPE, "application/json").body(body.to_string());
        let Ok(response) = timeout_at(until, self.with_key(request).send()).await else {
            return Err(self.late(&url));
        };
        let response = response.map_err(|error| self.unsent(&url, &error))?;
        if !response.status().is_success() {
            return Err(self.refused(&url, response, until).await);
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let source = if kind.starts_with("application/json") {
            let body = timeout_at(until, read(response)).await.map_err(|_| self.late(&url))?;
            Source::Whole(Some(body.map_err(|why| Fault::engine(self.line(&url, "reply", &why)))?))
        } else if kind.is_empty() || kind.starts_with("text/event-stream") || kind.starts_with("text/plain") {
            let bytes = Limited { inner: Box::pin(response.bytes_stream()), left: STREAM_MAX, has_ended: false };
            Source::Stream(Box::new(SseByteStream::new(bytes)))
        } else {
            let why = format!("content type {kind}, expected text/event-stream");
            return Err(Fault::engine(self.line(&url, "reply", &why)));
        };
        Ok(Events { endpoint: self, url, source, until: Some(until), is_finished: false })
    }

    fn with_key(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        let Some(key) = &self.key else { return request };
        let Ok(mut value) = HeaderValue::from_str(&key.bearer()) else { return request };
        // Not in any log of the library's.
        value.set_sensitive(true);
        request.header(AUTHORIZATION, value)
    }

    /// The fault that a response with an error status is.
    async fn refused(&self, url: &str, response: Response, until: Instant) -> Fault {
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| time_of(value, SystemTime::now()));
        let body = timeout_at(until, read(response)).await.ok().and_then(Result::ok).unwrap_or_default();
        let text = self.line(url, &status.to_string(), &event::message_of(&body));
        Fault::of_status(status.as_u16(), retry_after, text)
    }

    fn unsent(&self, url: &str, error: &reqwest::Error) -> Fault {
        let (what, why) = match (error.is_connect(), error.is_timeout()) {
            (true, true) => ("cannot connect", format!("no connection within {:?}", self.times.connect)),
            (true, false) => ("cannot connect", cause(error)),
            (false, _) => ("no reply", cause(error)),
        };
        Fault { is_unreached: error.is_connect(), ..Fault::engine(self.line(url, what, &why)) }
    }

    fn late(&self, url: &str) -> Fault {
        Fault::engine(self.line(url, "timeout", &format!("no first token within {:?}", self.times.first_token)))
    }

    /// `URL: WHAT: WHY`, on one line and without the key.
    fn line(&self, url: &str, what: &str, why: &str) -> String {
        let hidden = self.key.as_ref().map_or_else(|| why.to_owned(), |key| key.hide_in(why));
        let why: String = hidden.trim().chars().take(MESSAGE_MAX).collect();
        let colon = if why.is_empty() { "" } else { ": " };
        plain(&format!("{url}: {what}{colon}{why}"))
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The time of a `Retry-After`: seconds or a date; of a date that has passed, none is left.
fn time_of(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => {
            let date: HttpDate = text.parse().ok()?;
            Some(SystemTime::from(date).duration_since(now).unwrap_or_default())
        }
    }
}

/// The body of a response that is no stream.
async fn read(mut response: Response) -> Result<String, String> {
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(|error| cause(&error))? {
        if body.len() + bytes.len() > BODY_MAX {
            return Err(format!("longer than {BODY_MAX} bytes"));
        }
        body.extend_from_slice(&bytes);
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// A reply as it arrives.
#[derive(Debug)]
pub(super) struct Events<'a> {
    endpoint: &'a Endpoint,
    url: String,
    source: Source,
    /// Until when the first token must be here; `None`: it is.
    until: Option<Instant>,
    /// Whether the engine has said why it stopped.
    is_finished: bool,
}

enum Source {
    Stream(Box<SseByteStream<Limited>>),
    /// `None`: it has been read.
    Whole(Option<String>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Source")
    }
}

impl Events<'_> {
    /// The next piece; `None` at the end of a reply that is whole.
    ///
    /// # Errors
    ///
    /// If the engine reports an error, sends what is no event, ends too early, or takes too long.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, Fault> {
        let now = Instant::now();
        let until = match self.until {
            _ if self.is_finished => now + REST,
            Some(first) => first,
            None => now + self.endpoint.times.token,
        };
        loop {
            let event = match timeout_at(until, self.event()).await {
                // What follows the end is of no interest.
                Err(_) | Ok(Err(_)) if self.is_finished => return Ok(None),
                Err(_) if self.until.is_some() => return Err(self.endpoint.late(&self.url)),
                Err(_) => {
                    let why = format!("no token within {:?}", self.endpoint.times.token);
                    return Err(self.fault("timeout", &why));
                }
                Ok(event) => event?,
            };
            match event {
                None | Some(Event::Done) => return Ok(None),
                Some(Event::Error(why)) => return Err(self.fault("error", &why)),
                Some(Event::Empty) => {}
                Some(Event::Piece(piece)) => {
                    self.is_finished |= piece.finish.is_some();
                    if piece.is_progress {
                        self.until = None;
                    }
                    // A piece without progress is a sign of life of a model that has begun.
                    if self.until.is_none() || piece.usage.is_some() {
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }

    async fn event(&mut self) -> Result<Option<Event>, Fault> {
        let (kind, data) = match &mut self.source {
            Source::Whole(body) => match body.take() {
                Some(body) => (None, body),
                None => return self.ended(),
            },
            Source::Stream(stream) => {
                let next = std::future::poll_fn(|context| Pin::new(&mut **stream).poll_next(context));
                match next.await {
                    None => return self.ended(),
                    Some(Ok(event)) => (event.event, event.data.unwrap_or_default()),
                    Some(Err(sse_stream::Error::Body(why))) => {
                        return Err(self.fault("stream failed", &why.to_string()));
                    }
                    Some(Err(why)) => return Err(self.fault("invalid event", &why.to_string())),
                }
            }
        };
        event::parse(kind.as_deref(), &data).map(Some).map_err(|why| self.fault("reply", &why))
    }

    /// The end of the stream: a reply that is not whole is none.
    fn ended(&self) -> Result<Option<Event>, Fault> {
        if self.is_finished {
            return Ok(None);
        }
        Err(self.fault("stream ended early", "neither finish_reason nor [DONE]"))
    }

    fn fault(&self, what: &str, why: &str) -> Fault {
        Fault::engine(self.endpoint.line(&self.url, what, why))
    }
}

/// The bytes of a stream, up to a limit. At an orderly end come two line ends, for an engine that left out the last.
struct Limited {
    inner: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    left: usize,
    has_ended: bool,
}

#[derive(Debug, thiserror::Error)]
enum BodyError {
    #[error("{0}")]
    Http(String),
    #[error("longer than {STREAM_MAX} bytes")]
    TooLong,
}

impl Stream for Limited {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        let item = match ready!(this.inner.as_mut().poll_next(context)) {
            Some(Ok(bytes)) if bytes.len() > this.left => Err(BodyError::TooLong),
            Some(Ok(bytes)) => {
                this.left -= bytes.len();
                Ok(bytes)
            }
            Some(Err(error)) => Err(BodyError::Http(cause(&error))),
            None => {
                this.has_ended = true;
                Ok(Bytes::from_static(b"\n\n"))
            }
        };
        Poll::Ready(Some(item))
    }
}

/// Reads a reply that is complete to its end: then its connection can be used again, and the engine is free.
pub(super) async fn read_rest(mut events: Events<'_>) {
    let rest = async { while let Ok(Some(_)) = events.event().await {} };
    let _ = tokio::time::timeout(SETTLE, rest).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    #[test]
    fn base_urls_get_a_version_and_contain_no_secret() {
        for (text, url) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1"),
            ("http://localhost:11434/v1/", "http://localhost:11434/v1"),
            ("https://example.com/api/openai", "https://example.com/api/openai"),
        ] {
            assert_eq!(base_url(text).unwrap().as_str(), url);
        }
        for text in ["localhost:8080", "ftp://a", "http://user@a", "http://u:p@a", "http://a?key=b", "http://a#b", ""] {
            assert!(base_url(text).unwrap_err().starts_with("invalid URL"), "{text}");
        }
    }

    #[test]
    fn infill_is_beside_the_version() {
        let times = Times { connect: REST, first_token: REST, token: REST };
        let endpoint = Endpoint::new(&base_url("http://[::1]:8080").unwrap(), None, times).unwrap();
        assert_eq!(endpoint.url(Path::Infill), "http://[::1]:8080/infill");
        assert_eq!(endpoint.url(Path::Chat), "http://[::1]:8080/v1/chat/completions");
        assert!(is_loopback(&base_url("http://[::1]:8080").unwrap()));
        assert!(!is_loopback(&base_url("http://10.0.0.1").unwrap()));
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_date() {
        let now = SystemTime::from(HttpDate::from_str("Wed, 21 Oct 2015 07:28:00 GMT").unwrap());
        let read = |text: &'static str| time_of(&HeaderValue::from_static(text), now);
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("Wed, 21 Oct 2015 07:29:30 GMT"), Some(Duration::from_secs(90)));
        assert_eq!(read("Tue, 20 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        for text in ["-1", "", "tomorrow", "nan", "1e99"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}

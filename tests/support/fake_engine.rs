//! An OpenAI-compatible HTTP server that streams tokens at a settable pace, counts, and misbehaves on purpose.
//!
//! HTTP/1.1 over plain sockets, two threads a connection, so that each byte goes out when and how a mode wants it.
//! Endpoints: `/v1/models`, `/v1/completions`, `/v1/chat/completions`, `/infill`, `/counts`, `/mode/NAME` (switches).
//!
//! | mode | what it does |
//! |---|---|
//! | `ok` | streams the tokens, `finish_reason`, `[DONE]` |
//! | `crlf` | the same with CRLF |
//! | `split` | the same, one byte a write, so that lines and characters are split anywhere |
//! | `comments` | comments, empty events and unknown fields between the tokens |
//! | `usage` | a usage-only chunk with empty `choices` before and after `finish_reason` |
//! | `done-only` | `[DONE]` without `finish_reason` |
//! | `finish-open` | `finish_reason`, then the stream stays open without `[DONE]` |
//! | `whole` | one JSON body, not a stream |
//! | `no-finish` | an orderly end without `finish_reason` and `[DONE]` |
//! | `cut` | the connection is closed in the middle of an event |
//! | `error-open` | two tokens, an error object, and the stream stays open |
//! | `error-200` | status 200 with an error object as its body |
//! | `error-event` | status 200, an event of type `error` |
//! | `no-suffix` | status 400 for a request with `suffix`; `/infill` is 404 |
//! | `llama` | ignores `suffix`; `/infill` works; the model is owned by `llamacpp` |
//! | `infill-501` | as `llama`, but `/infill` is 501 |
//! | `busy` | status 503 for the first two requests |
//! | `retry-after` | status 429 with `Retry-After: 1` for the first request |
//! | `full` | status 503 for each request |
//! | `loading` | `/v1/models` is 503, as of llama.cpp while it loads its model |
//! | `hang` | `/v1/models` is 200, a generator sends nothing, not even a status |
//! | `hang-open` | status 200, then nothing |
//! | `pings` | status 200, then only comments and empty deltas |
//! | `stall` | two tokens, then nothing |
//! | `400`, `401`, `403`, `404`, `429`, `500` | that status; 401 repeats the key in its error |
//! | `garbage` | bytes that are not HTTP |
//! | `garbage-event` | events that are not JSON |
//! | `not-utf8` | an event that is not UTF-8 |
//! | `endless-line` | an event without an end |
//! | `markers` | FIM markers, split over tokens, in the text |
//! | `deaf` | goes on generating after a disconnect |
//! | `tools` | a chat that calls a tool, its arguments in pieces |

#![allow(dead_code, reason = "each program uses its part")]
#![allow(unreachable_pub, reason = "pub is what a test may use")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The tokens that are streamed, unless others are set.
pub const TOKENS: [&str; 5] = ["println!", "(\"", "grüße ✓", "\"", ");"];

/// The figures of an engine.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests for text.
    pub requests: AtomicU64,
    /// Connections that are open.
    pub open: AtomicU64,
    /// Requests for text that are being replied to.
    pub running: AtomicU64,
    /// The most of them at a time.
    pub running_max: AtomicU64,
    /// Tokens sent, or tried to send.
    pub tokens: AtomicU64,
    /// Of those, after the client closed the connection.
    pub tokens_after_disconnect: AtomicU64,
    /// Connections that the client closed before the reply was whole.
    pub disconnects: AtomicU64,
}

/// What a test may set and see.
#[derive(Debug)]
struct Shared {
    counts: Counts,
    settings: Mutex<Settings>,
    /// The requests for text: path and body.
    seen: Mutex<Vec<(String, String)>>,
    /// When clients closed connections before the reply was whole.
    closed_at: Mutex<Vec<Instant>>,
    is_stopped: AtomicBool,
}

#[derive(Clone, Debug)]
struct Settings {
    mode: String,
    pace: Duration,
    tokens: Vec<String>,
    /// Requests since the mode was set.
    since: u64,
}

/// A running engine. Its threads end with the process.
#[derive(Debug)]
pub struct FakeEngine {
    address: SocketAddr,
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeEngine {
    /// Starts one in this process. `port` 0: a free one.
    ///
    /// # Panics
    ///
    /// If the port is taken.
    pub fn start(mode: &str, port: u16) -> FakeEngine {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let tokens = TOKENS.iter().map(|token| (*token).to_owned()).collect();
        let settings = Settings { mode: mode.to_owned(), pace: Duration::from_millis(2), tokens, since: 0 };
        let shared = Arc::new(Shared {
            counts: Counts::default(),
            settings: Mutex::new(settings),
            seen: Mutex::default(),
            closed_at: Mutex::default(),
            is_stopped: AtomicBool::new(false),
        });
        let engine = FakeEngine { address, shared: shared.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.is_stopped.load(Ordering::SeqCst) {
                    return;
                }
                let shared = shared.clone();
                std::thread::spawn(move || {
                    shared.counts.open.fetch_add(1, Ordering::SeqCst);
                    let _ = serve(&shared, &stream);
                    shared.counts.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        engine
    }

    /// Listens no more; its port is free when another one can listen there.
    pub fn stop(&self) {
        self.shared.is_stopped.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the mode for the requests to come.
    pub fn set_mode(&self, mode: &str) {
        self.shared.set_mode(mode);
    }

    /// Changes the time before each token.
    pub fn set_pace(&self, pace: Duration) {
        lock(&self.shared.settings).pace = pace;
    }

    /// Changes the tokens.
    pub fn set_tokens(&self, tokens: &[&str]) {
        lock(&self.shared.settings).tokens = tokens.iter().map(|token| (*token).to_owned()).collect();
    }

    /// The figures.
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// The requests for text so far: path and body.
    pub fn seen(&self) -> Vec<(String, String)> {
        lock(&self.shared.seen).clone()
    }

    /// When clients closed connections before the reply was whole.
    pub fn closed_at(&self) -> Vec<Instant> {
        lock(&self.shared.closed_at).clone()
    }
}

impl Shared {
    fn set_mode(&self, mode: &str) {
        let mut settings = lock(&self.settings);
        mode.clone_into(&mut settings.mode);
        settings.since = 0;
    }

    fn counts_json(&self) -> String {
        let Counts { requests, open, running, running_max, tokens, tokens_after_disconnect, disconnects } =
            &self.counts;
        let figures = [
            ("requests", requests),
            ("open", open),
            ("running", running),
            ("running_max", running_max),
            ("tokens", tokens),
            ("tokens_after_disconnect", tokens_after_disconnect),
            ("disconnects", disconnects),
        ];
        let members = figures.map(|(name, figure)| format!("\"{name}\":{}", figure.load(Ordering::SeqCst)));
        format!("{{{}}}", members.join(","))
    }
}

/// One request of a connection; each reply closes it.
fn serve(shared: &Arc<Shared>, stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let (mut length, mut key) = (0, String::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim_end().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap_or(0),
                "authorization" => value.trim().clone_into(&mut key),
                _ => {}
            }
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    if let Some(mode) = path.strip_prefix("/mode/") {
        shared.set_mode(mode);
        return plain(stream, "200 OK", "", "{}");
    }
    match path.as_str() {
        "/counts" => plain(stream, "200 OK", "", &shared.counts_json()),
        "/v1/models" => {
            let mode = lock(&shared.settings).mode.clone();
            if mode == "loading" {
                return plain(stream, "503 Service Unavailable", "", "{\"error\":{\"message\":\"Loading model\"}}");
            }
            let owner = if ["llama", "infill-501"].contains(&mode.as_str()) { "llamacpp" } else { "fake" };
            let model = format!("{{\"id\":\"fake\",\"object\":\"model\",\"owned_by\":\"{owner}\"}}");
            plain(stream, "200 OK", "", &format!("{{\"object\":\"list\",\"data\":[{model}]}}"))
        }
        "/v1/completions" | "/v1/chat/completions" | "/infill" => {
            let body = String::from_utf8_lossy(&body).into_owned();
            generate(shared, stream, &path, body, &key)
        }
        _ => plain(stream, "404 Not Found", "", "{\"error\":{\"message\":\"no such path\"}}"),
    }
}

fn plain(mut stream: &TcpStream, status: &str, headers: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Content-Length: {length}\r\nConnection: close\
         \r\n\r\n{body}"
    )
}

/// A reply that is being generated, on a thread of its own; the connection's thread watches for a disconnect.
fn generate(shared: &Arc<Shared>, stream: &TcpStream, path: &str, body: String, key: &str) -> std::io::Result<()> {
    let (settings, since) = {
        let mut settings = lock(&shared.settings);
        settings.since += 1;
        (settings.clone(), settings.since)
    };
    let counts = &shared.counts;
    lock(&shared.seen).push((path.to_owned(), body.clone()));
    counts.requests.fetch_add(1, Ordering::SeqCst);
    let running = counts.running.fetch_add(1, Ordering::SeqCst) + 1;
    counts.running_max.fetch_max(running, Ordering::SeqCst);
    let (gone, whole) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let reply = Reply {
        shared: shared.clone(),
        settings,
        since,
        stream: stream.try_clone()?,
        gone: gone.clone(),
        is_done: AtomicBool::new(false),
        path: path.to_owned(),
        body,
        key: key.to_owned(),
    };
    let is_whole = whole.clone();
    let generator = std::thread::spawn(move || {
        let _ = reply.send();
        is_whole.store(true, Ordering::SeqCst);
        let _ = reply.stream.shutdown(std::net::Shutdown::Write);
        reply.done();
    });
    // No further request comes on this connection: what can be read is its end.
    let mut stream = stream;
    let _ = stream.read(&mut [0; 64]);
    if !whole.load(Ordering::SeqCst) {
        lock(&shared.closed_at).push(Instant::now());
        counts.disconnects.fetch_add(1, Ordering::SeqCst);
    }
    gone.store(true, Ordering::SeqCst);
    let _ = generator.join();
    Ok(())
}

struct Reply {
    shared: Arc<Shared>,
    settings: Settings,
    since: u64,
    stream: TcpStream,
    gone: Arc<AtomicBool>,
    is_done: AtomicBool,
    path: String,
    body: String,
    key: String,
}

impl Reply {
    fn send(&self) -> std::io::Result<()> {
        let error = |message: &str| format!("{{\"error\":{{\"message\":\"{message}\",\"type\":\"fake\"}}}}");
        let has_suffix = self.body.contains("\"suffix\"");
        let is_infill = self.path == "/infill";
        match (self.settings.mode.as_str(), self.since) {
            ("no-suffix", _) if is_infill => return self.plain("404 Not Found", "", &error("no such path")),
            ("no-suffix", _) if has_suffix => {
                return self.plain("400 Bad Request", "", &error("suffix is not currently supported"));
            }
            ("infill-501", _) if is_infill => {
                return self.plain("501 Not Implemented", "", &error("infill is not supported by this model"));
            }
            ("full", _) | ("busy", 1 | 2) => {
                return self.plain("503 Service Unavailable", "", &error("server busy, maximum pending requests"));
            }
            ("retry-after", 1) => {
                return self.plain("429 Too Many Requests", "Retry-After: 1\r\n", &error("slow down"));
            }
            ("400", _) => return self.plain("400 Bad Request", "", &error("prompt is too long")),
            ("401", _) => {
                let text = format!("wrong key: {}", self.key);
                return self.plain("401 Unauthorized", "", &error(&text));
            }
            ("403", _) => return self.plain("403 Forbidden", "", &error("not for you")),
            ("404", _) => return self.plain("404 Not Found", "", &error("model not found")),
            ("429", _) => {
                return self.plain("429 Too Many Requests", "Retry-After: 120\r\n", &error("slow down"));
            }
            ("500", _) => return self.plain("500 Internal Server Error", "", &error("out of memory")),
            ("error-200", _) => return self.plain("200 OK", "", &error("no slot available")),
            ("garbage", _) => return (&self.stream).write_all(b"\x00\x01garbage\r\n\r\n"),
            ("hang", _) => {
                self.wait_for_the_end();
                return Ok(());
            }
            ("whole", _) => {
                let text = self.settings.tokens.concat();
                return self.plain("200 OK", "", &self.event_data(&text, Some("stop")));
            }
            _ => {}
        }
        self.raw(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\
              Connection: close\r\n\r\n",
        )?;
        self.events()?;
        self.done();
        self.raw(b"0\r\n\r\n")
    }

    /// A whole reply that is no stream.
    fn plain(&self, status: &str, headers: &str, body: &str) -> std::io::Result<()> {
        self.done();
        plain(&self.stream, status, headers, body)
    }

    /// The work is done: noted before the client can know.
    fn done(&self) {
        if !self.is_done.swap(true, Ordering::SeqCst) {
            self.shared.counts.running.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn events(&self) -> std::io::Result<()> {
        let mode = self.settings.mode.as_str();
        let is_chat = self.path.ends_with("/chat/completions");
        if is_chat {
            self.event("{\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}")?;
        }
        let tokens: Vec<String> = match mode {
            "markers" => ["fn a", "() {}", "<|fi", "m_mid", "dle|>", "leaked"].map(str::to_owned).into(),
            "hang-open" => {
                self.wait_for_the_end();
                return Ok(());
            }
            "pings" => {
                while !self.is_gone() {
                    self.chunk(": ping\n\n")?;
                    self.event(&self.event_data("", None))?;
                    std::thread::sleep(Duration::from_millis(20));
                }
                return Ok(());
            }
            "endless-line" => {
                self.chunk("data: ")?;
                let piece = "x".repeat(64 * 1024);
                while !self.is_gone() {
                    self.chunk(&piece)?;
                }
                return Ok(());
            }
            "error-event" => return self.chunk("event: error\ndata: {\"message\":\"out of memory\"}\n\n"),
            "not-utf8" => return self.bytes(b"data: {\"choices\":[{\"text\":\"\xff\xfe\"}]}\n\n"),
            "tools" if is_chat => return self.tool_call(),
            _ => self.settings.tokens.clone(),
        };
        for (index, token) in tokens.iter().enumerate() {
            self.produce(token)?;
            match (mode, index) {
                ("comments", _) => {
                    self.chunk(": keep-alive\n\n:\n\n")?;
                    self.chunk("id: 7\nretry: 100\nunknown: x\nno-colon\n\n")?;
                    self.chunk("data:\n\n")?;
                }
                ("cut", 1) => {
                    self.chunk("data: {\"choices\":[{\"te")?;
                    let _ = self.stream.shutdown(std::net::Shutdown::Both);
                    return Ok(());
                }
                ("error-open", 1) => {
                    self.event("{\"error\":{\"message\":\"slot unavailable\",\"code\":500}}")?;
                    self.wait_for_the_end();
                    return Ok(());
                }
                ("garbage-event", 1) => self.event("{\"choices\": not json")?,
                ("stall", 1) => {
                    self.wait_for_the_end();
                    return Ok(());
                }
                ("usage", 1) => self.usage()?,
                _ => {}
            }
        }
        if mode == "no-finish" {
            return Ok(());
        }
        if mode != "done-only" {
            self.event(&self.event_data("", Some("stop")))?;
        }
        if mode == "usage" || self.body.contains("include_usage") {
            self.usage()?;
        }
        if mode == "finish-open" {
            self.wait_for_the_end();
            return Ok(());
        }
        if self.path != "/infill" { self.event("[DONE]") } else { Ok(()) }
    }

    /// A token at its time; an error if the client is gone.
    fn produce(&self, token: &str) -> std::io::Result<()> {
        std::thread::sleep(self.settings.pace);
        let counts = &self.shared.counts;
        let is_deaf = self.settings.mode == "deaf";
        if self.is_gone() && !is_deaf {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        counts.tokens.fetch_add(1, Ordering::SeqCst);
        if self.is_gone() {
            counts.tokens_after_disconnect.fetch_add(1, Ordering::SeqCst);
        }
        let sent = self.event(&self.event_data(token, None));
        if is_deaf { Ok(()) } else { sent }
    }

    fn usage(&self) -> std::io::Result<()> {
        self.event("{\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5,\"total_tokens\":12}}")
    }

    fn tool_call(&self) -> std::io::Result<()> {
        let delta = |call: &str| format!("{{\"choices\":[{{\"index\":0,\"delta\":{{\"tool_calls\":[{call}]}}}}]}}");
        self.event(&delta(
            "{\"index\":0,\"id\":\"call_1\",\"type\":\"function\",\"function\":{\"name\":\"read\",\"arguments\":\"\"}}",
        ))?;
        for piece in ["{\\\"pa", "th\\\":\\\"a.rs\\\"}"] {
            self.event(&delta(&format!("{{\"index\":0,\"function\":{{\"arguments\":\"{piece}\"}}}}")))?;
        }
        self.event("{\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"tool_calls\"}]}")?;
        self.event("[DONE]")
    }

    /// The JSON of a token, in the form of the endpoint.
    fn event_data(&self, text: &str, finish: Option<&str>) -> String {
        let text = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"));
        if self.path == "/infill" {
            let end = if finish.is_some() { "true,\"stop_type\":\"eos\"" } else { "false" };
            return format!("{{\"index\":0,\"content\":{text},\"stop\":{end}}}");
        }
        let finish = finish.map_or("null".to_owned(), |finish| format!("\"{finish}\""));
        let member = match (self.path.as_str(), self.settings.mode.as_str()) {
            ("/v1/chat/completions", "whole") => format!("\"message\":{{\"role\":\"assistant\",\"content\":{text}}}"),
            ("/v1/chat/completions", _) => format!("\"delta\":{{\"content\":{text}}}"),
            _ => format!("\"text\":{text}"),
        };
        format!("{{\"id\":\"x\",\"choices\":[{{\"index\":0,{member},\"finish_reason\":{finish}}}]}}")
    }

    fn event(&self, data: &str) -> std::io::Result<()> {
        let end = if self.settings.mode == "crlf" { "\r\n" } else { "\n" };
        self.chunk(&format!("data: {data}{end}{end}"))
    }

    fn chunk(&self, text: &str) -> std::io::Result<()> {
        self.bytes(text.as_bytes())
    }

    fn bytes(&self, bytes: &[u8]) -> std::io::Result<()> {
        let pieces = if self.settings.mode == "split" { 1 } else { bytes.len().max(1) };
        for piece in bytes.chunks(pieces) {
            let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
            chunk.extend_from_slice(piece);
            chunk.extend_from_slice(b"\r\n");
            self.raw(&chunk)?;
        }
        Ok(())
    }

    fn raw(&self, bytes: &[u8]) -> std::io::Result<()> {
        (&self.stream).write_all(bytes)
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    fn wait_for_the_end(&self) {
        while !self.is_gone() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

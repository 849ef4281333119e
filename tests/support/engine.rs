//! A broker, `lapce-ipc engine openai` and a fake endpoint.

use super::fake_engine::FakeEngine;
use super::{Broker, Process, wait_until};
use lapce_ipc::client::{Client, Error, RequestOptions};
use lapce_ipc::wire::typed::{
    ChatMessage, ChatRequest, ChatResponse, CompletionRequest, FinishReason, Message, Position, Role,
};
use std::time::Duration;

/// The completion service.
pub const SERVICE: &str = "ai.inline-completion";
/// The chat service.
pub const CHAT: &str = "ai.chat";

/// The three of them.
#[derive(Debug)]
pub struct Engine {
    /// The adapter.
    pub process: Process,
    /// The endpoint.
    pub fake: FakeEngine,
    /// The broker.
    pub broker: Broker,
}

/// A completion, or the error.
pub type Completed = Result<(String, FinishReason), Error>;

impl Engine {
    /// Starts them. The breaker does not open; the time limits are generous.
    #[track_caller]
    pub fn start(mode: &str, args: &[&str]) -> Engine {
        Engine::start_with(mode, args, &[("circuit_breaker.failure_threshold", "1000000")])
    }

    /// The same, with keys of the broker.
    #[track_caller]
    pub fn start_with(mode: &str, args: &[&str], keys: &[(&str, &str)]) -> Engine {
        let (broker, fake) = (Broker::start_with(keys), FakeEngine::start(mode, 0));
        let process = Engine::adapter(&broker, &fake.url(), args);
        Engine { process, fake, broker }
    }

    /// An adapter in front of an endpoint, when it serves.
    #[track_caller]
    pub fn adapter(broker: &Broker, url: &str, args: &[&str]) -> Process {
        let base = ["engine", "openai", "--base-url", url, "--model", "qwen-fake"];
        let mut command = broker.command(&[&base, args].concat());
        command.env("LAPCE_TEST_KEY", "sk-very-secret");
        let mut process = Process::start(command);
        process.wait_for("serving service=");
        process
    }

    /// Connects.
    #[track_caller]
    pub fn client(&self) -> Client {
        self.broker.client()
    }

    /// A completion, streamed, between `prefix` and `suffix`.
    pub fn complete(&self, client: &Client, request: &CompletionRequest) -> Completed {
        let payload = Message::CompletionRequest(request.clone()).encode().expect("a valid request");
        let mut text = String::new();
        for (index, chunk) in client.request_stream_with(SERVICE, payload, patient())?.enumerate() {
            let Ok(Message::CompletionChunk(chunk)) = Message::decode(&chunk?) else { panic!("not a chunk") };
            assert_eq!((chunk.id, chunk.index as usize), (request.id, index));
            text += &chunk.text;
            if let Some(finish) = chunk.finish {
                return Ok((text, finish));
            }
        }
        panic!("a stream without a finish, after {text:?}");
    }

    /// The text of the error with which a completion fails.
    #[track_caller]
    pub fn failure(&self, client: &Client, what: &str) -> String {
        match self.complete(client, &request(what)) {
            Ok(completed) => panic!("{what}: {completed:?}"),
            Err(error) => error.reply_text().unwrap_or_else(|| panic!("{what}: {error}")).to_owned(),
        }
    }

    /// The status that the adapter reports.
    #[track_caller]
    pub fn status(&self, client: &Client) -> serde_json::Value {
        let reply = client.request(&format!("{SERVICE}.status"), b"").expect("a status");
        serde_json::from_slice(&reply).expect("JSON")
    }

    /// A chat that is not streamed.
    pub fn chat(&self, client: &Client, request: &ChatRequest) -> Result<ChatResponse, Error> {
        let payload = Message::ChatRequest(request.clone()).encode().expect("a valid request");
        let reply = client.request(CHAT, payload)?;
        match Message::decode(&reply) {
            Ok(Message::ChatResponse(response)) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the endpoint generates nothing any more.
    #[track_caller]
    pub fn is_quiet(&self) {
        let running = &self.fake.counts().running;
        wait_until("the endpoint to be quiet", || running.load(std::sync::atomic::Ordering::SeqCst) == 0);
    }
}

/// A stream that may take as long as a busy machine needs.
pub fn patient() -> RequestOptions {
    let long = Some(Duration::from_secs(25));
    RequestOptions { first_chunk: long, idle: long, ..RequestOptions::default() }
}

/// A completion request for a document.
pub fn request(document: &str) -> CompletionRequest {
    CompletionRequest {
        id: 7,
        document: document.to_owned(),
        language: "rust".to_owned(),
        prefix: "fn main() {".to_owned(),
        suffix: "}".to_owned(),
        cursor: Position { line: 0, column: 11 },
        max_tokens: 64,
        temperature: Some(0.2),
        stop: Vec::new(),
    }
}

/// A chat request.
pub fn question(stream: bool) -> ChatRequest {
    ChatRequest {
        id: 9,
        messages: vec![ChatMessage::new(Role::User, "why?")],
        model: "any".to_owned(),
        temperature: None,
        max_tokens: Some(100),
        tools: Vec::new(),
        system_prompt: Some("be brief".to_owned()),
        stream,
    }
}

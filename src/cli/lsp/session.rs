//! The life of the server from `initialize` to `exit`, and which message is for what. Pure, as `completions` is.

use super::completions::{Action, Completions, Failure, Kind, Link, Part, Settings};
use super::positions::Encoding;
use super::protocol::{
    CancelParams, CompletionOptions, CompletionParams, DidChange, DidOpen, Incoming, Initialize, InitializeResult,
    OfDocument, ServerCapabilities, SyncOptions, error, params,
};
use lsp_server::{ErrorCode, Message, RequestId, Response, ResponseError};
use serde_json::Value;
use serde_json::value::RawValue;
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before `initialize`.
    New,
    Running,
    /// After `shutdown`.
    ShutDown,
}

/// The server.
#[derive(Debug)]
pub(super) struct Session {
    phase: Phase,
    completions: Completions,
}

impl Session {
    pub(super) fn new(settings: Settings) -> Session {
        Session { phase: Phase::New, completions: Completions::new(settings) }
    }

    /// A message of the client.
    pub(super) fn message(&mut self, now: Instant, body: &[u8]) {
        let incoming: Incoming<'_> = match serde_json::from_slice(body) {
            Ok(incoming) => incoming,
            Err(problem) => return self.not_understood(&format!("invalid message: {problem}")),
        };
        match (incoming.id, incoming.method.as_deref()) {
            (Some(id), Some(method)) => self.request(now, id, method, incoming.params),
            (None, Some(method)) => self.notification(method, incoming.params),
            // A response: this server requests nothing.
            (Some(_), None) => {}
            (None, None) => self.not_understood("invalid message: neither id nor method"),
        }
    }

    /// A message that was skipped, because it has too many bytes.
    pub(super) fn too_long(&mut self, length: u64, max: u64) {
        self.not_understood(&format!("the message has {length} bytes, the limit is {max}"));
    }

    /// It may have been a change of any document.
    fn not_understood(&mut self, problem: &str) {
        self.completions.lose_sync(None, problem);
        self.completions.act(Action::SendUnidentified(error(ErrorCode::ParseError, problem)));
    }

    fn request(&mut self, now: Instant, id: RequestId, method: &str, raw: Option<&RawValue>) {
        let completion = |kind| params::<CompletionParams>(raw).map(|params| (kind, params));
        let listed = self.completions.settings().completion;
        let result = match (self.phase, method) {
            (Phase::New, "initialize") => self.initialize(raw),
            (Phase::New, _) => Err(error(ErrorCode::ServerNotInitialized, format!("{method} before initialize"))),
            (Phase::ShutDown, _) => Err(error(ErrorCode::InvalidRequest, format!("{method} after shutdown"))),
            (Phase::Running, "initialize") => Err(error(ErrorCode::InvalidRequest, "initialize was sent before")),
            (Phase::Running, "shutdown") => {
                self.phase = Phase::ShutDown;
                self.completions.lose_sync(None, "shutdown");
                Ok(Value::Null)
            }
            (Phase::Running, "textDocument/inlineCompletion") => match completion(Kind::Inline) {
                Ok((kind, params)) => return self.completions.request(now, id, kind, &params),
                Err(problem) => Err(error(ErrorCode::InvalidParams, problem)),
            },
            (Phase::Running, "textDocument/completion") if listed => match completion(Kind::Listed) {
                Ok((kind, params)) => return self.completions.request(now, id, kind, &params),
                Err(problem) => Err(error(ErrorCode::InvalidParams, problem)),
            },
            (Phase::Running, _) => Err(error(ErrorCode::MethodNotFound, format!("unknown method {method:?}"))),
        };
        self.completions.act(Action::Send(Message::Response(Response { id, response_result: result })));
    }

    fn initialize(&mut self, raw: Option<&RawValue>) -> Result<Value, ResponseError> {
        let initialize: Initialize = params(raw).map_err(|problem| error(ErrorCode::InvalidParams, problem))?;
        let offered = initialize.capabilities.general.and_then(|general| general.position_encodings);
        let encoding = Encoding::negotiate(&offered.unwrap_or_default());
        self.completions.set_encoding(encoding);
        self.phase = Phase::Running;
        let result = InitializeResult {
            capabilities: ServerCapabilities {
                position_encoding: encoding.name(),
                text_document_sync: SyncOptions { open_close: true, change: 2 },
                inline_completion_provider: true,
                completion_provider: self.completions.settings().completion.then_some(CompletionOptions {}),
            },
            server_info: [("name", "lapce-ipc"), ("version", env!("CARGO_PKG_VERSION"))].into(),
        };
        serde_json::to_value(result).map_err(|problem| error(ErrorCode::InternalError, problem.to_string()))
    }

    fn notification(&mut self, method: &str, raw: Option<&RawValue>) {
        match (self.phase, method) {
            (phase, "exit") => self.completions.act(Action::Exit { in_order: phase == Phase::ShutDown }),
            // The protocol says that they are dropped.
            (Phase::New | Phase::ShutDown, _) => {}
            (Phase::Running, "$/cancelRequest") => {
                // Without a valid id there is nothing to cancel.
                if let Ok(CancelParams { id }) = params(raw) {
                    self.completions.cancel(&id);
                }
            }
            (Phase::Running, "textDocument/didOpen") => match params::<DidOpen>(raw) {
                Ok(opened) => self.completions.open(opened.text_document),
                Err(problem) => self.document_not_understood(raw, &problem),
            },
            (Phase::Running, "textDocument/didChange") => match params::<DidChange>(raw) {
                Ok(DidChange { text_document, content_changes }) => {
                    let version = text_document.version.unwrap_or_default();
                    self.completions.change(&text_document.uri, version, &content_changes);
                }
                Err(problem) => self.document_not_understood(raw, &problem),
            },
            (Phase::Running, "textDocument/didClose") => {
                if let Ok(OfDocument { text_document }) = params(raw) {
                    self.completions.close(&text_document.uri);
                }
            }
            (Phase::Running, _) => {}
        }
    }

    /// A document has a text that this server could not read.
    fn document_not_understood(&mut self, raw: Option<&RawValue>, problem: &str) {
        let document = params::<OfDocument>(raw).ok();
        self.completions.lose_sync(document.as_ref().map(|of| of.text_document.uri.as_str()), problem);
    }

    pub(super) fn set_link(&mut self, now: Instant, link: Link) {
        self.completions.set_link(now, link);
    }

    pub(super) fn part(&mut self, call: u64, part: &Part) {
        self.completions.part(call, part);
    }

    pub(super) fn failed(&mut self, call: u64, failure: &Failure) {
        self.completions.failed(call, failure);
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.completions.due()
    }

    pub(super) fn tick(&mut self, now: Instant) {
        self.completions.tick(now);
    }

    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        self.completions.take_actions()
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

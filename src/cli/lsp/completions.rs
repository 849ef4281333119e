//! The requests for completions, from arrival to reply. Pure: time is an argument, and what is to be done is a list of
//! [`Action`]s.
//!
//! ```text
//!             typed through: reply at once
//!  request ──────────────────────────────────────────────► reply
//!     │  automatic: debounce        finish: clean, fit       ▲
//!     └──────────► Waiting ──────────► Called ───────────────┤
//!                     │ the document changes, a newer        │
//!                     │ request, $/cancelRequest      error ─┘
//!                     └────────────────────► error, and the call is cancelled
//! ```
//!
//! 1. A document has at most one request; a newer one supersedes it. All documents together have [`OUTSTANDING_MAX`].
//! 2. A change of the document ends its request at once. So no reply is for an older text.
//! 3. A superseded request gets an error, never an empty list: an editor could take that as the reply.
//! 4. A failure is told to the user once per kind, until a completion succeeds.

use super::documents::{Change, Documents, Edit};
use super::positions::{Encoding, Position, Range, offset, start_of_line};
use super::protocol::{
    AUTOMATIC, CompletionItem, CompletionList, CompletionParams, InlineCompletionItem, InlineCompletionList,
    OpenedDocument, ShowMessage, TextEdit, error,
};
use super::suggestion::{Known, clean, fit};
use crate::wire::typed::{self, CompletionRequest, FinishReason};
use lsp_server::{ErrorCode, Message, Notification, RequestId, Response, ResponseError};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Requests under way, of all documents. The oldest gives way.
const OUTSTANDING_MAX: usize = 16;

/// The longest completion. An engine that writes more does not stop by itself.
const TEXT_BYTES_MAX: usize = 256 * 1024;

/// What the command line says.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) service: String,
    pub(super) debounce: Duration,
    pub(super) max_tokens: u32,
    pub(super) prefix_bytes: usize,
    pub(super) suffix_bytes: usize,
    pub(super) documents_bytes: usize,
    /// Whether `textDocument/completion` is served, too.
    pub(super) completion: bool,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    /// Send a message to the client.
    Send(Message),
    /// Send an error about a message whose id is not known.
    SendUnidentified(ResponseError),
    /// Call the service.
    Start { call: u64, request: CompletionRequest },
    /// Cancel a call; nothing more of it is of use.
    Cancel { call: u64 },
    /// End the process.
    Exit { in_order: bool },
}

/// The connection to the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// The first attempt is not over: requests wait for it.
    Connecting,
    Up,
    Away(String),
}

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// No connection to a broker.
    Broker,
    /// The breaker is open.
    Breaker,
    /// The service has no responder.
    NoEngine,
    /// The engine failed, or its reply is not understood.
    Engine,
}

/// The failure of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    pub(super) fn new(kind: FailureKind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), retry_after: None }
    }
}

/// A part of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) text: String,
    pub(super) finish: Option<FinishReason>,
}

/// What kind of completion is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Inline,
    /// `textDocument/completion`.
    Listed,
}

#[derive(Debug)]
enum Stage {
    /// For the debounce, or for the first connection.
    Waiting(Instant),
    Called {
        call: u64,
        text: String,
    },
}

#[derive(Debug)]
struct Pending {
    id: RequestId,
    kind: Kind,
    uri: String,
    revision: u64,
    position: Position,
    cursor: usize,
    stage: Stage,
}

/// The documents, and the requests for completions in them.
#[derive(Debug)]
pub(super) struct Completions {
    settings: Settings,
    encoding: Encoding,
    documents: Documents,
    link: Link,
    /// In the order of their arrival.
    pending: Vec<Pending>,
    known: Option<Known>,
    calls: u64,
    /// The kinds of failures that the user was told of.
    told: Vec<FailureKind>,
    actions: Vec<Action>,
}

impl Completions {
    pub(super) fn new(settings: Settings) -> Completions {
        let documents = Documents::new(settings.documents_bytes);
        Completions {
            settings,
            encoding: Encoding::default(),
            documents,
            link: Link::Connecting,
            pending: Vec::new(),
            known: None,
            calls: 0,
            told: Vec::new(),
            actions: Vec::new(),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn set_encoding(&mut self, encoding: Encoding) {
        self.encoding = encoding;
    }

    /// What is to be done since the last call of this.
    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    // ------------------------------------------------------------------------------------------------- documents

    pub(super) fn open(&mut self, document: OpenedDocument) {
        let OpenedDocument { uri, language_id, version, text } = document;
        self.changed(&uri);
        self.forget(&uri);
        self.documents.open(&uri, language_id, version, text);
    }

    pub(super) fn change(&mut self, uri: &str, version: i64, changes: &[Change]) {
        self.changed(uri);
        let known = &mut self.known;
        let follow = |edit: &Edit<'_>| {
            let holds = |known: &mut Known| known.uri != uri || known.follow(edit.start, edit.end, edit.inserted);
            if known.as_mut().is_some_and(|known| !holds(known)) {
                *known = None;
            }
        };
        self.documents.change(uri, version, changes, self.encoding, follow);
    }

    pub(super) fn close(&mut self, uri: &str) {
        self.changed(uri);
        self.forget(uri);
        self.documents.close(uri);
    }

    /// A message was not understood; it changed this document, or any if none is named.
    pub(super) fn lose_sync(&mut self, uri: Option<&str>, reason: &str) {
        match uri {
            Some(uri) => {
                self.changed(uri);
                self.forget(uri);
                self.documents.lose_sync(uri, reason);
            }
            None => {
                self.end_all(|_| true, ErrorCode::ContentModified, "the document may have changed");
                self.known = None;
                self.documents.lose_sync_of_all(reason);
            }
        }
    }

    fn changed(&mut self, uri: &str) {
        self.end_all(|pending| pending.uri == uri, ErrorCode::ContentModified, "the document has changed");
    }

    fn forget(&mut self, uri: &str) {
        self.known.take_if(|known| known.uri == uri);
    }

    // -------------------------------------------------------------------------------------------------- requests

    /// A request for a completion.
    pub(super) fn request(&mut self, now: Instant, id: RequestId, kind: Kind, params: &CompletionParams) {
        let uri = &params.text_document.uri;
        self.end_all(|pending| pending.uri == *uri, ErrorCode::ContentModified, "superseded by a newer request");
        let found = self.locate(uri, params.position);
        let (revision, cursor, rest) = match found {
            Ok(found) => found,
            Err(error) => return self.reply(id, Err(error)),
        };
        if let Some(rest) = rest {
            return self.reply(id, Ok(result(kind, params.position, &rest)));
        }
        if let Link::Away(reason) = &self.link {
            let failure = Failure::new(FailureKind::Broker, reason.clone());
            return self.fail(id, &failure);
        }
        if self.pending.len() == OUTSTANDING_MAX {
            let oldest = self.pending.remove(0);
            self.end(oldest, ErrorCode::ServerCancelled, "too many requests under way");
        }
        let is_automatic = params.context.as_ref().is_some_and(|context| context.trigger_kind == AUTOMATIC);
        let due = if is_automatic { now + self.settings.debounce } else { now };
        let (uri, position) = (uri.clone(), params.position);
        self.pending.push(Pending { id, kind, uri, revision, position, cursor, stage: Stage::Waiting(due) });
        self.tick(now);
    }

    /// Revision and offset of a place, and what is left there of the last suggestion.
    fn locate(&mut self, uri: &str, position: Position) -> Result<(u64, usize, Option<String>), ResponseError> {
        let failed = |message: String| error(ErrorCode::RequestFailed, message);
        let Some(document) = self.documents.get(uri) else {
            return Err(failed(format!("the document is not open, or was forgotten to save memory: {uri:?}")));
        };
        let text = document.text().map_err(|reason| failed(reason.to_owned()))?;
        let cursor = offset(text, position, self.encoding)
            .map_err(|problem| error(ErrorCode::InvalidParams, problem.to_string()))?;
        let known = self.known.as_ref().filter(|known| known.uri == uri);
        let rest = known.and_then(|known| known.rest(cursor)).map(|rest| fit(rest, &text[cursor..]).to_owned());
        Ok((document.revision, cursor, rest.filter(|rest| !rest.is_empty())))
    }

    /// The client no longer wants this one.
    pub(super) fn cancel(&mut self, id: &RequestId) {
        self.end_all(|pending| pending.id == *id, ErrorCode::RequestCanceled, "cancelled by the client");
    }

    /// When [`Completions::tick`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let waits = |pending: &Pending| match pending.stage {
            Stage::Waiting(due) if self.link == Link::Up => Some(due),
            _ => None,
        };
        self.pending.iter().filter_map(waits).min()
    }

    /// Starts what is due.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.link != Link::Up {
            return;
        }
        for at in 0..self.pending.len() {
            if matches!(self.pending[at].stage, Stage::Waiting(due) if due <= now) {
                self.calls += 1;
                let call = self.calls;
                if let Some(request) = self.completion_request(call, at) {
                    self.pending[at].stage = Stage::Called { call, text: String::new() };
                    self.actions.push(Action::Start { call, request });
                }
            }
        }
    }

    fn completion_request(&mut self, call: u64, at: usize) -> Option<CompletionRequest> {
        let Pending { uri, cursor, position, .. } = &self.pending[at];
        let document = self.documents.get(uri)?;
        let text = document.text().ok()?;
        let (before, after) = text.split_at_checked(*cursor)?;
        let wanted = before.len().saturating_sub(self.settings.prefix_bytes);
        let start = (wanted..=before.len()).find(|at| before.is_char_boundary(*at))?;
        let wanted = after.len().min(self.settings.suffix_bytes);
        let end = (0..=wanted).rev().find(|at| after.is_char_boundary(*at))?;
        let column = u32::try_from(cursor - start_of_line(text, *cursor)).unwrap_or(u32::MAX);
        Some(CompletionRequest {
            id: call,
            document: uri.clone(),
            language: document.language.clone(),
            prefix: before[start..].to_owned(),
            suffix: after[..end].to_owned(),
            cursor: typed::Position { line: position.line, column },
            max_tokens: self.settings.max_tokens,
            temperature: None,
            stop: Vec::new(),
        })
    }

    // ------------------------------------------------------------------------------------------ broker and engine

    /// The connection to the broker has changed.
    pub(super) fn set_link(&mut self, now: Instant, link: Link) {
        self.link = link;
        if let Link::Away(reason) = &self.link {
            let failure = Failure::new(FailureKind::Broker, reason.clone());
            for pending in std::mem::take(&mut self.pending) {
                self.cancel_call(&pending);
                self.fail(pending.id, &failure);
            }
        }
        self.tick(now);
    }

    /// The engine has sent a part of its reply.
    pub(super) fn part(&mut self, call: u64, part: &Part) {
        let Some(at) = self.position_of(call) else { return };
        let Stage::Called { text, .. } = &mut self.pending[at].stage else { return };
        text.push_str(&part.text);
        let length = text.len();
        if length > TEXT_BYTES_MAX {
            let message = format!("the completion has {length} bytes, the limit is {TEXT_BYTES_MAX}");
            self.actions.push(Action::Cancel { call });
            return self.failed(call, &Failure::new(FailureKind::Engine, message));
        }
        match part.finish {
            None => {}
            Some(FinishReason::Cancelled) => {
                let pending = self.pending.remove(at);
                let cancelled = error(ErrorCode::ServerCancelled, "cancelled by the engine");
                self.reply(pending.id, Err(cancelled));
            }
            Some(_) => {
                let pending = self.pending.remove(at);
                self.finish(pending);
            }
        }
    }

    /// The call has failed.
    pub(super) fn failed(&mut self, call: u64, failure: &Failure) {
        if let Some(at) = self.position_of(call) {
            let pending = self.pending.remove(at);
            self.fail(pending.id, failure);
        }
    }

    fn finish(&mut self, pending: Pending) {
        let Pending { id, kind, uri, revision, position, cursor, stage } = pending;
        let Stage::Called { text: raw, .. } = stage else { return };
        self.told.clear();
        let document = self.documents.get(&uri).filter(|document| document.revision == revision);
        let Some(after) = document.and_then(|document| document.text().ok()?.get(cursor..)) else {
            return self.reply(id, Err(error(ErrorCode::ContentModified, "the document has changed")));
        };
        let crlf = document.and_then(|document| document.text().ok()).is_some_and(has_crlf);
        let text = clean(&raw, crlf);
        let result = result(kind, position, fit(&text, after));
        self.known = Some(Known::new(uri, cursor, text));
        self.reply(id, Ok(result));
    }

    fn position_of(&self, call: u64) -> Option<usize> {
        let is_it = |pending: &Pending| matches!(pending.stage, Stage::Called { call: c, .. } if c == call);
        self.pending.iter().position(is_it)
    }

    // --------------------------------------------------------------------------------------------------- replies

    fn end_all(&mut self, which: impl Fn(&Pending) -> bool, code: ErrorCode, reason: &str) {
        let (ended, others) = std::mem::take(&mut self.pending).into_iter().partition(which);
        self.pending = others;
        let ended: Vec<Pending> = ended;
        for pending in ended {
            self.end(pending, code, reason);
        }
    }

    fn end(&mut self, pending: Pending, code: ErrorCode, reason: &str) {
        self.cancel_call(&pending);
        self.reply(pending.id, Err(error(code, reason)));
    }

    fn cancel_call(&mut self, pending: &Pending) {
        if let Stage::Called { call, .. } = pending.stage {
            self.actions.push(Action::Cancel { call });
        }
    }

    fn fail(&mut self, id: RequestId, failure: &Failure) {
        if !self.told.contains(&failure.kind) {
            self.told.push(failure.kind);
            let message = format!("lapce-ipc: no completions: {}", failure.message);
            let shown = ShowMessage { kind: 2, message: &message };
            self.act(Action::Send(Notification::new("window/showMessage".to_owned(), shown).into()));
        }
        let mut response = error(ErrorCode::RequestFailed, failure.message.clone());
        response.data = failure.retry_after.map(|delay| json!({ "retryAfterMs": delay.as_millis() as u64 }));
        self.reply(id, Err(response));
    }

    fn reply(&mut self, id: RequestId, result: Result<Value, ResponseError>) {
        self.act(Action::Send(Message::Response(Response { id, response_result: result })));
    }
}

fn has_crlf(text: &str) -> bool {
    text.find('\n').is_some_and(|at| text[..at].ends_with('\r'))
}

/// The reply with a text at a position. An empty text is an empty list for an inline completion; for the other kind it
/// is null, because a client may hide the lists of other servers behind an empty one.
fn result(kind: Kind, position: Position, text: &str) -> Value {
    let range = Range { start: position, end: position };
    let value = match kind {
        Kind::Inline => {
            let items =
                if text.is_empty() { Vec::new() } else { vec![InlineCompletionItem { insert_text: text, range }] };
            serde_json::to_value(InlineCompletionList { items })
        }
        Kind::Listed if text.trim().is_empty() => Ok(Value::Null),
        Kind::Listed => {
            let label = text.trim_start().lines().next().unwrap_or_default();
            let item = CompletionItem { label, detail: "lapce-ipc", text_edit: TextEdit { range, new_text: text } };
            serde_json::to_value(CompletionList { is_incomplete: true, items: [item] })
        }
    };
    value.unwrap_or_default()
}

#[cfg(test)]
#[path = "completions_tests.rs"]
mod tests;

//! The part of the Language Server Protocol that this server has, and what it tells the client.

use super::positions::{Position, Range};
use lsp_server::{ErrorCode, RequestId, ResponseError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashMap;

/// A message of the client: a request (id and method), a notification (method) or a response (neither is read).
#[derive(Debug, Deserialize)]
pub(super) struct Incoming<'a> {
    #[serde(default)]
    pub(super) id: Option<RequestId>,
    #[serde(borrow, default)]
    pub(super) method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) params: Option<&'a RawValue>,
}

/// The parameters of a message.
///
/// # Errors
///
/// What is wrong with them.
pub(super) fn params<'a, T: Deserialize<'a>>(params: Option<&'a RawValue>) -> Result<T, String> {
    serde_json::from_str(params.map_or("null", RawValue::get)).map_err(|error| format!("invalid params: {error}"))
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Initialize {
    #[serde(default)]
    pub(super) capabilities: ClientCapabilities,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct ClientCapabilities {
    #[serde(default)]
    pub(super) general: Option<General>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct General {
    #[serde(default)]
    pub(super) position_encodings: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DidOpen {
    pub(super) text_document: OpenedDocument,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OpenedDocument {
    pub(super) uri: String,
    #[serde(default)]
    pub(super) language_id: String,
    #[serde(default)]
    pub(super) version: i64,
    pub(super) text: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DidChange {
    pub(super) text_document: ChangedDocument,
    pub(super) content_changes: Vec<super::documents::Change>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ChangedDocument {
    pub(super) uri: String,
    #[serde(default)]
    pub(super) version: Option<i64>,
}

/// Of any message about a document: which one.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OfDocument {
    pub(super) text_document: DocumentId,
}

#[derive(Debug, Deserialize)]
pub(super) struct DocumentId {
    pub(super) uri: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct CancelParams {
    pub(super) id: RequestId,
}

/// A request for a completion of either kind.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CompletionParams {
    pub(super) text_document: DocumentId,
    pub(super) position: Position,
    #[serde(default)]
    pub(super) context: Option<CompletionContext>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CompletionContext {
    #[serde(default)]
    pub(super) trigger_kind: u32,
}

/// `InlineCompletionTriggerKind.Automatic`.
pub(super) const AUTOMATIC: u32 = 2;

/// The items of an inline completion. It has room for more than text at the cursor, such as a next edit.
#[derive(Debug, Serialize)]
pub(super) struct InlineCompletionList<'a> {
    pub(super) items: Vec<InlineCompletionItem<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InlineCompletionItem<'a> {
    /// A plain string: Lapce takes no snippet.
    pub(super) insert_text: &'a str,
    pub(super) range: Range,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CompletionList<'a> {
    pub(super) is_incomplete: bool,
    pub(super) items: [CompletionItem<'a>; 1],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CompletionItem<'a> {
    pub(super) label: &'a str,
    pub(super) detail: &'static str,
    pub(super) text_edit: TextEdit<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TextEdit<'a> {
    pub(super) range: Range,
    pub(super) new_text: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InitializeResult {
    pub(super) capabilities: ServerCapabilities,
    pub(super) server_info: HashMap<&'static str, &'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServerCapabilities {
    pub(super) position_encoding: &'static str,
    pub(super) text_document_sync: SyncOptions,
    pub(super) inline_completion_provider: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) completion_provider: Option<CompletionOptions>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SyncOptions {
    pub(super) open_close: bool,
    /// `TextDocumentSyncKind.Incremental` is 2.
    pub(super) change: u8,
}

#[derive(Debug, Serialize)]
pub(super) struct CompletionOptions {}

#[derive(Debug, Serialize)]
pub(super) struct ShowMessage<'a> {
    /// 2 is a warning.
    #[serde(rename = "type")]
    pub(super) kind: u8,
    pub(super) message: &'a str,
}

/// An error for the client.
pub(super) fn error(code: ErrorCode, message: impl Into<String>) -> ResponseError {
    ResponseError { code: code as i32, message: message.into(), data: None }
}

//! Messages between an editor and its AI engines and tools.
//!
//! The broker carries any bytes. Programs without a schema of their own can put one [`Message`] into the payload of a
//! publish, a request, a reply or a chunk of a streamed reply:
//!
//! | request | replies |
//! |---|---|
//! | [`CompletionRequest`] | [`CompletionChunk`]s, the last with a [`FinishReason`] |
//! | [`ChatRequest`] with `stream` | [`ChatChunk`]s, the last with a [`FinishReason`] |
//! | [`ChatRequest`] without | one [`ChatResponse`] |
//! | [`ToolCall`] | one [`ToolResult`] |
//! | any | [`ErrorMessage`] in place of the reply |
//!
//! [`Cancel`] and [`Heartbeat`] are for topics. To cancel an outstanding request, a requester cancels it at the broker,
//! which notifies the responder without a message of this kind.
//!
//! # Layout
//!
//! [`TYPED_VERSION`] as a `u16`, then the [`Message`] as in [`codec`]: the number of the variant as a `u32`, then its
//! fields in order. A reader of another version returns an error and decodes nothing. A heartbeat, all 22 bytes of it:
//!
//! ```
//! use lapce_ipc::wire::typed::{Heartbeat, Message};
//!
//! let bytes = Message::Heartbeat(Heartbeat { sequence: 7, sent_ms: 256 }).encode()?;
//! assert_eq!(bytes, [
//!     1, 0, // version
//!     8, 0, 0, 0, // variant: Heartbeat
//!     7, 0, 0, 0, 0, 0, 0, 0, // sequence
//!     0, 1, 0, 0, 0, 0, 0, 0, // sent_ms
//! ]);
//! # Ok::<(), lapce_ipc::wire::typed::TypedError>(())
//! ```
//!
//! With the feature `json` (part of `broker`) a message exists as JSON text, too: see `Form`.
//!
//! Both sides refuse values out of range: a sender gets the error before it sends, and a receiver need not check again.
//! Texts of a model or a user are not restricted.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::codec::{self, CodecError};

/// The version of the messages in this module; at the start of each.
pub const TYPED_VERSION: u16 = 1;

/// The highest temperature of a request.
pub const TEMPERATURE_MAX: f32 = 2.0;

/// The highest token limit of a request.
pub const COMPLETION_TOKENS_MAX: u32 = 16 * 1024 * 1024;

const VERSION_BYTES: usize = 2;

/// Why bytes are no message, or why a message cannot be sent.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum TypedError {
    /// The message has another version than [`TYPED_VERSION`].
    #[error("typed message has version {found}, supported is {TYPED_VERSION}")]
    Version {
        /// The version of the message.
        found: u16,
    },
    /// A field is out of its range.
    #[error("invalid typed message: {field} {problem}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// The error and the value.
        problem: String,
    },
    /// The bytes are no message of this module, or too long.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The JSON text is no message of this module.
    #[error("invalid typed message: {problem}")]
    Json {
        /// The error, with its line and column.
        problem: String,
    },
}

/// One message. The order of variants and fields is the wire format.
///
/// ```
/// use lapce_ipc::wire::typed::{ChatMessage, ChatRequest, Message, Role};
///
/// let message = Message::ChatRequest(ChatRequest {
///     id: 1,
///     messages: vec![ChatMessage::new(Role::User, "What does this function do?")],
///     model: "local".into(),
///     temperature: Some(0.2),
///     max_tokens: Some(512),
///     tools: vec![],
///     system_prompt: None,
///     stream: true,
/// });
/// let payload = message.encode()?;
/// assert_eq!(Message::decode(&payload)?, message);
/// # Ok::<(), lapce_ipc::wire::typed::TypedError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// See [`CompletionRequest`].
    CompletionRequest(CompletionRequest),
    /// See [`CompletionChunk`].
    CompletionChunk(CompletionChunk),
    /// See [`ChatRequest`].
    ChatRequest(ChatRequest),
    /// See [`ChatChunk`].
    ChatChunk(ChatChunk),
    /// See [`ChatResponse`].
    ChatResponse(ChatResponse),
    /// See [`ToolCall`].
    ToolCall(ToolCall),
    /// See [`ToolResult`].
    ToolResult(ToolResult),
    /// See [`Cancel`].
    Cancel(Cancel),
    /// See [`Heartbeat`].
    Heartbeat(Heartbeat),
    /// See [`ErrorMessage`].
    Error(ErrorMessage),
}

impl Message {
    /// The payload that carries this message.
    ///
    /// # Errors
    /// [`TypedError::Invalid`] for a field out of range, [`TypedError::Codec`] beyond [`codec::HARD_LIMIT`].
    pub fn encode(&self) -> Result<Vec<u8>, TypedError> {
        self.validate()?;
        Ok(codec::encode(&(TYPED_VERSION, self))?)
    }

    /// Reads a message out of a payload.
    ///
    /// ```
    /// use lapce_ipc::wire::typed::{Message, TypedError};
    ///
    /// let error = Message::decode(&[9, 0, 1, 2, 3]).unwrap_err();
    /// assert_eq!(error, TypedError::Version { found: 9 });
    /// ```
    ///
    /// # Errors
    /// A [`TypedError`] with the reason why this is no valid message of this version.
    pub fn decode(payload: &[u8]) -> Result<Self, TypedError> {
        let Some((version, body)) = payload.split_first_chunk::<VERSION_BYTES>() else {
            return Err(CodecError::Truncated { found: payload.len() }.into());
        };
        match u16::from_le_bytes(*version) {
            TYPED_VERSION => {}
            found => return Err(TypedError::Version { found }),
        }
        let message: Self = codec::decode(body)?;
        message.validate()?;
        Ok(message)
    }

    /// Checks all ranges, as [`encode`](Self::encode) and [`decode`](Self::decode) do.
    ///
    /// # Errors
    /// [`TypedError::Invalid`], naming the field.
    pub fn validate(&self) -> Result<(), TypedError> {
        match self {
            Self::CompletionRequest(request) => {
                some_text("document", &request.document)?;
                token_count(Some(request.max_tokens))?;
                temperature(request.temperature)
            }
            Self::ChatRequest(request) => {
                if request.messages.is_empty() {
                    return Err(TypedError::Invalid { field: "messages", problem: "must not be empty".into() });
                }
                some_text("model", &request.model)?;
                request.messages.iter().flat_map(|message| &message.tool_calls).try_for_each(tool_call)?;
                request.tools.iter().try_for_each(|tool| some_text("tools.name", &tool.name))?;
                token_count(request.max_tokens)?;
                temperature(request.temperature)
            }
            Self::ChatChunk(chunk) => chunk.tool_calls.iter().try_for_each(tool_call),
            Self::ChatResponse(response) => response.message.tool_calls.iter().try_for_each(tool_call),
            Self::ToolCall(call) => tool_call(call),
            Self::ToolResult(result) => some_text("call", &result.call),
            Self::CompletionChunk(_) | Self::Cancel(_) | Self::Heartbeat(_) | Self::Error(_) => Ok(()),
        }
    }
}

fn some_text(field: &'static str, text: &str) -> Result<(), TypedError> {
    if text.is_empty() {
        return Err(TypedError::Invalid { field, problem: "must not be empty".into() });
    }
    Ok(())
}

fn token_count(count: Option<u32>) -> Result<(), TypedError> {
    match count {
        Some(count) if !(1..=COMPLETION_TOKENS_MAX).contains(&count) => Err(TypedError::Invalid {
            field: "max_tokens",
            problem: format!("is {count}, must be 1 to {COMPLETION_TOKENS_MAX}"),
        }),
        _ => Ok(()),
    }
}

/// A NaN is in no range.
fn temperature(temperature: Option<f32>) -> Result<(), TypedError> {
    match temperature {
        Some(value) if !(0.0..=TEMPERATURE_MAX).contains(&value) => Err(TypedError::Invalid {
            field: "temperature",
            problem: format!("is {value}, must be 0 to {TEMPERATURE_MAX}"),
        }),
        _ => Ok(()),
    }
}

fn tool_call(call: &ToolCall) -> Result<(), TypedError> {
    some_text("tool_calls.id", &call.id)?;
    some_text("tool_calls.name", &call.name)
}

/// Requests text at a position in a document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompletionRequest {
    /// The requester's number for this request; repeated in every reply.
    pub id: u64,
    /// The URI of the document; not empty.
    pub document: String,
    /// The language, as in the Language Server Protocol: `rust`, `python`.
    #[serde(default)]
    pub language: String,
    /// The text before the cursor, as much as the editor sends.
    pub prefix: String,
    /// The text after the cursor.
    #[serde(default)]
    pub suffix: String,
    /// The position of the cursor.
    #[serde(default)]
    pub cursor: Position,
    /// The limit of generated tokens; 1 to [`COMPLETION_TOKENS_MAX`].
    pub max_tokens: u32,
    /// From 0 to [`TEMPERATURE_MAX`]; none leaves it to the engine.
    #[serde(default)]
    pub temperature: Option<f32>,
    /// Texts that end the completion where they would appear.
    #[serde(default)]
    pub stop: Vec<String>,
}

/// A position in a document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The line, counted from 0.
    pub line: u32,
    /// The column in UTF-8 bytes, counted from 0.
    pub column: u32,
}

/// A piece of a completion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionChunk {
    /// The request's number.
    pub id: u64,
    /// Counts the chunks of a completion from 0.
    #[serde(default)]
    pub index: u32,
    /// The text to append.
    pub text: String,
    /// Present in the last chunk only.
    #[serde(default)]
    pub finish: Option<FinishReason>,
}

/// Why a model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model was done.
    Stop,
    /// The token limit was reached.
    Length,
    /// The model waits for the results of tools.
    ToolCalls,
    /// The request was cancelled.
    Cancelled,
    /// A filter stopped the model.
    Filtered,
}

/// Requests the next turn of a conversation from a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatRequest {
    /// The requester's number for this request; repeated in every reply.
    pub id: u64,
    /// The conversation so far; not empty.
    pub messages: Vec<ChatMessage>,
    /// The name of the model; not empty.
    pub model: String,
    /// From 0 to [`TEMPERATURE_MAX`]; none leaves it to the engine.
    #[serde(default)]
    pub temperature: Option<f32>,
    /// The limit of generated tokens, 1 to [`COMPLETION_TOKENS_MAX`]; none leaves it to the engine.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// Tools that the model may call.
    #[serde(default)]
    pub tools: Vec<ToolDefinition>,
    /// Instructions that stand above the conversation.
    #[serde(default)]
    pub system_prompt: Option<String>,
    /// Whether to reply in [`ChatChunk`]s instead of one [`ChatResponse`].
    #[serde(default)]
    pub stream: bool,
}

/// A turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// The author.
    pub role: Role,
    /// The text.
    pub content: String,
    /// For [`Role::Assistant`]: the tools that it called.
    #[serde(default)]
    pub tool_calls: Vec<ToolCall>,
    /// For [`Role::Tool`]: the id of the call whose result this is.
    #[serde(default)]
    pub answers: Option<String>,
}

impl ChatMessage {
    /// A turn that is text only.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), tool_calls: Vec::new(), answers: None }
    }
}

/// The author of a message of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Instructions.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// The result of a tool.
    Tool,
}

/// A tool that a model may call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolDefinition {
    /// Its name in a [`ToolCall`]; not empty.
    pub name: String,
    /// Its description, for the model.
    pub description: String,
    /// The JSON schema of its arguments, as text.
    pub parameters: String,
}

/// A chunk of a streamed reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatChunk {
    /// The request's number.
    pub id: u64,
    /// Counts the chunks of a reply from 0.
    #[serde(default)]
    pub index: u32,
    /// The text to append.
    pub delta: String,
    /// Calls that became complete with this chunk.
    #[serde(default)]
    pub tool_calls: Vec<ToolCall>,
    /// Present in the last chunk only.
    #[serde(default)]
    pub finish: Option<FinishReason>,
    /// Present in the last chunk only, if the engine counts.
    #[serde(default)]
    pub usage: Option<Usage>,
}

/// A complete reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatResponse {
    /// The request's number.
    pub id: u64,
    /// The turn to append to the conversation.
    pub message: ChatMessage,
    /// Why the model stopped.
    pub finish: FinishReason,
    /// The usage, if the engine counts.
    #[serde(default)]
    pub usage: Option<Usage>,
}

/// The cost of a reply, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the request.
    pub prompt_tokens: u32,
    /// Tokens of the reply.
    pub completion_tokens: u32,
}

/// A model's request to run a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The id of this call, unique in the conversation; not empty.
    pub id: String,
    /// The name of the tool; not empty.
    pub name: String,
    /// The arguments as JSON text. Models err, so the program that runs the tool must check them.
    pub arguments: String,
}

/// The result of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolResult {
    /// The id of the [`ToolCall`]; not empty.
    pub call: String,
    /// The result, or the error.
    pub content: String,
    /// Whether it is an error.
    #[serde(default)]
    pub is_error: bool,
}

/// Cancels a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The request's number.
    pub id: u64,
    /// The reason, for users.
    #[serde(default)]
    pub reason: Option<String>,
}

/// A sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counts the sender's heartbeats.
    pub sequence: u64,
    /// When it was sent, in milliseconds since the Unix epoch.
    pub sent_ms: u64,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorMessage {
    /// The number of the request that failed, if it is about one.
    #[serde(default)]
    pub id: Option<u64>,
    /// The kind of error.
    pub code: ErrorCode,
    /// The message, for users.
    pub message: String,
    /// How many milliseconds to wait before a retry, if a retry may help.
    #[serde(default)]
    pub retry_after_ms: Option<u32>,
}

/// The kinds of errors in an [`ErrorMessage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is invalid.
    InvalidRequest,
    /// The model, tool or document does not exist.
    NotFound,
    /// The engine refuses this requester.
    NotAllowed,
    /// Too many requests.
    RateLimited,
    /// The request took too long.
    Timeout,
    /// The engine failed.
    Internal,
    /// The engine is not available.
    Unavailable,
}

#[cfg(feature = "json")]
mod json;
#[cfg(feature = "json")]
pub use json::Form;
#[cfg(test)]
mod tests;

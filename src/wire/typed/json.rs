//! The JSON form of the typed messages.

use super::{Message, TypedError};

/// How a message is written in a payload.
///
/// JSON, so that a program in any language can read and write it: an object with one member, named after the variant.
/// [`Message::decode_any`] reads both forms and returns which one it was; a responder replies in the form of the
/// request. The first byte tells them apart: it is `{` or white space in JSON, and the low byte of the version
/// otherwise. Members that may be left out: those that are optional, lists, `language`, `suffix`, `cursor`, `index`,
/// `is_error` and `stream`. Unknown members are ignored.
///
/// ```json
/// {"completion_request": {"id": 1, "document": "file:///a.rs", "language": "rust", "prefix": "fn main() {",
///   "suffix": "}", "cursor": {"line": 0, "column": 11}, "max_tokens": 64}}
/// {"completion_chunk": {"id": 1, "index": 0, "text": "\n    println!"}}
/// {"completion_chunk": {"id": 1, "index": 1, "text": "(\"hi\");\n", "finish": "stop"}}
/// {"error": {"code": "unavailable", "message": "the model is being loaded", "retry_after_ms": 2000}}
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The layout that [`super`] describes.
    Binary,
    /// JSON text.
    Json,
}

impl Form {
    /// The form of a payload, by its first byte.
    ///
    /// ```
    /// use lapce_ipc::wire::typed::Form;
    ///
    /// assert_eq!(Form::of(b" {\"heartbeat\": "), Form::Json);
    /// assert_eq!(Form::of(&[1, 0, 8]), Form::Binary);
    /// ```
    #[must_use]
    pub fn of(payload: &[u8]) -> Form {
        match payload.first() {
            Some(b'{' | b' ' | b'\t' | b'\r' | b'\n') => Form::Json,
            _ => Form::Binary,
        }
    }

    /// The media type, as HTTP and editors name it.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Form::Binary => "application/x-lapce-ipc",
            Form::Json => "application/json",
        }
    }
}

impl Message {
    /// The payload that carries this message in a form.
    ///
    /// ```
    /// use lapce_ipc::wire::typed::{Cancel, Form, Message};
    ///
    /// let message = Message::Cancel(Cancel { id: 7, reason: None });
    /// assert_eq!(message.encode_as(Form::Json)?, br#"{"cancel":{"id":7,"reason":null}}"#);
    /// # Ok::<(), lapce_ipc::wire::typed::TypedError>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Message::encode`]; [`TypedError::Json`] if a text cannot be written.
    pub fn encode_as(&self, form: Form) -> Result<Vec<u8>, TypedError> {
        match form {
            Form::Binary => self.encode(),
            Form::Json => {
                self.validate()?;
                serde_json::to_vec(self).map_err(|error| json(&error))
            }
        }
    }

    /// Reads a message in either form, and says in which it was.
    ///
    /// ```
    /// use lapce_ipc::wire::typed::{Form, Message};
    ///
    /// let (message, form) = Message::decode_any(br#"{"cancel": {"id": 7}}"#)?;
    /// assert!(matches!(message, Message::Cancel(cancel) if cancel.id == 7));
    /// assert_eq!(form, Form::Json);
    ///
    /// let error = Message::decode_any(br#"{"cancel": {"id": "x"}}"#).unwrap_err();
    /// assert!(error.to_string().starts_with("invalid typed message: invalid type: string"));
    /// # Ok::<(), lapce_ipc::wire::typed::TypedError>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Message::decode`], and [`TypedError::Json`] with line and column.
    pub fn decode_any(payload: &[u8]) -> Result<(Message, Form), TypedError> {
        let form = Form::of(payload);
        let message = match form {
            Form::Binary => Message::decode(payload)?,
            Form::Json => {
                let message: Message = serde_json::from_slice(payload).map_err(|error| json(&error))?;
                message.validate()?;
                message
            }
        };
        Ok((message, form))
    }
}

fn json(error: &serde_json::Error) -> TypedError {
    TypedError::Json { problem: error.to_string() }
}

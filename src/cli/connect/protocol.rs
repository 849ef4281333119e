//! The lines: operations of the program, and events for it.

use super::super::options::Policy;
use crate::client::{Error, ErrorDetail, FailedCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// What a program calls an operation: a number or a text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Id {
    Number(i64),
    Text(String),
}

impl fmt::Display for Id {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Id::Number(number) => write!(to, "{number}"),
            Id::Text(text) => write!(to, "{text:?}"),
        }
    }
}

/// A payload in one of three members.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Payload(pub(super) Option<Vec<u8>>);

/// An operation.
#[derive(Debug, PartialEq)]
pub(super) enum Op {
    Pub { id: Option<Id>, topic: String, payload: Vec<u8> },
    Sub { id: Id, pattern: String, policy: Policy },
    Request { id: Id, service: String, payload: Vec<u8>, stream: bool, timeout_ms: Option<u64> },
    Serve { id: Id, service: String, max_in_flight: u32 },
    Chunk { call: u64, payload: Vec<u8> },
    Reply { call: u64, payload: Payload },
    Fail { call: u64, message: String },
    Refuse { call: u64, message: String },
    Cancel { id: Id },
}

/// A line as it is written: every member that some operation has.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    op: String,
    id: Option<Id>,
    call: Option<u64>,
    topic: Option<String>,
    pattern: Option<String>,
    service: Option<String>,
    policy: Option<Policy>,
    data: Option<String>,
    data_base64: Option<String>,
    #[serde(default, deserialize_with = "present")]
    json: Option<Value>,
    stream: Option<bool>,
    timeout_ms: Option<u64>,
    max_in_flight: Option<u32>,
    message: Option<String>,
}

/// `"json": null` is the value null, not a missing member.
fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

/// Why a line is no operation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    pub(super) id: Option<Id>,
    pub(super) message: String,
}

/// The id of a line that is JSON and no operation: its writer waits for a reply with it.
fn id_in(text: &[u8]) -> Option<Id> {
    let line: Value = serde_json::from_slice(text).ok()?;
    serde_json::from_value(line.get("id")?.clone()).ok()
}

impl Op {
    /// Reads a line.
    pub(super) fn parse(text: &[u8]) -> Result<Op, Invalid> {
        let invalid = |error: serde_json::Error| Invalid { id: id_in(text), message: error.to_string() };
        let mut line: Line = serde_json::from_slice(text).map_err(invalid)?;
        let (op, id) = (std::mem::take(&mut line.op), line.id.clone());
        let parsed = line.operation(&op).and_then(|(parsed, line)| line.without_rest(&op).map(|()| parsed));
        parsed.map_err(|message| Invalid { id, message })
    }
}

impl Line {
    fn operation(mut self, op: &str) -> Result<(Op, Line), String> {
        let line = &mut self;
        let parsed = match op {
            "pub" => {
                Op::Pub { id: line.id.take(), topic: need(&mut line.topic, "topic", op)?, payload: line.payload()? }
            }
            "sub" => Op::Sub {
                id: need(&mut line.id, "id", op)?,
                pattern: need(&mut line.pattern, "pattern", op)?,
                policy: line.policy.take().unwrap_or_default(),
            },
            "request" => Op::Request {
                id: need(&mut line.id, "id", op)?,
                service: need(&mut line.service, "service", op)?,
                payload: line.payload()?,
                stream: line.stream.take().unwrap_or_default(),
                timeout_ms: line.timeout_ms.take(),
            },
            "serve" => Op::Serve {
                id: need(&mut line.id, "id", op)?,
                service: need(&mut line.service, "service", op)?,
                max_in_flight: line.max_in_flight.take().unwrap_or_default(),
            },
            "chunk" => Op::Chunk { call: need(&mut line.call, "call", op)?, payload: line.payload()? },
            "reply" => {
                Op::Reply { call: need(&mut line.call, "call", op)?, payload: Payload(line.optional_payload()?) }
            }
            "fail" => {
                Op::Fail { call: need(&mut line.call, "call", op)?, message: need(&mut line.message, "message", op)? }
            }
            "refuse" => {
                Op::Refuse { call: need(&mut line.call, "call", op)?, message: need(&mut line.message, "message", op)? }
            }
            "cancel" => Op::Cancel { id: need(&mut line.id, "id", op)? },
            other => {
                return Err(format!(
                    "op is {other:?}, must be pub, sub, request, serve, chunk, reply, fail, refuse or cancel"
                ));
            }
        };
        Ok((parsed, self))
    }

    fn payload(&mut self) -> Result<Vec<u8>, String> {
        Ok(self.optional_payload()?.unwrap_or_default())
    }

    fn optional_payload(&mut self) -> Result<Option<Vec<u8>>, String> {
        match (self.data.take(), self.data_base64.take(), self.json.take()) {
            (None, None, None) => Ok(None),
            (Some(text), None, None) => Ok(Some(text.into_bytes())),
            (None, Some(text), None) => {
                STANDARD.decode(text).map(Some).map_err(|error| format!("data_base64 is invalid: {error}"))
            }
            (None, None, Some(value)) => Ok(Some(value.to_string().into_bytes())),
            _ => Err("more than one of data, data_base64 and json".to_owned()),
        }
    }

    /// What the operation did not take does not belong to it.
    fn without_rest(&self, op: &str) -> Result<(), String> {
        let rest = [
            ("id", self.id.is_some()),
            ("call", self.call.is_some()),
            ("topic", self.topic.is_some()),
            ("pattern", self.pattern.is_some()),
            ("service", self.service.is_some()),
            ("policy", self.policy.is_some()),
            ("data", self.data.is_some()),
            ("data_base64", self.data_base64.is_some()),
            ("json", self.json.is_some()),
            ("stream", self.stream.is_some()),
            ("timeout_ms", self.timeout_ms.is_some()),
            ("max_in_flight", self.max_in_flight.is_some()),
            ("message", self.message.is_some()),
        ];
        match rest.iter().find(|(_, is_there)| *is_there) {
            Some((name, _)) => Err(format!("{op} has no member {name}")),
            None => Ok(()),
        }
    }
}

fn need<T>(member: &mut Option<T>, name: &str, op: &str) -> Result<T, String> {
    member.take().ok_or_else(|| format!("{op} needs {name}"))
}

/// An event.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct Event {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    publisher: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requester: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

impl Event {
    /// An event of the connection.
    pub(super) fn new(event: &'static str) -> Event {
        Event { event, ..Event::default() }
    }

    /// An event of an operation.
    pub(super) fn of(event: &'static str, id: &Id) -> Event {
        Event { event, id: Some(id.clone()), ..Event::default() }
    }

    pub(super) fn error(id: Option<&Id>, code: &'static str, message: impl fmt::Display) -> Event {
        Event {
            event: "error",
            id: id.cloned(),
            code: Some(code),
            message: Some(message.to_string()),
            ..Event::default()
        }
    }

    pub(super) fn failed(id: Option<&Id>, error: &Error) -> Event {
        let text = error.reply_text().map_or_else(|| error.to_string(), str::to_owned);
        Event::error(id, code(error), text)
    }

    pub(super) fn at_line(self, line: u64) -> Event {
        Event { line: Some(line), ..self }
    }

    pub(super) fn of_call(self, call: u64) -> Event {
        Event { call: Some(call), ..self }
    }

    pub(super) fn request(self, requester: u32, stream: bool) -> Event {
        Event { requester: Some(requester), stream: Some(stream), ..self }
    }

    pub(super) fn counts(self, count: u64) -> Event {
        Event { count: Some(count), ..self }
    }

    pub(super) fn published(self, topic: &str, publisher: u32, sequence: u64) -> Event {
        Event { topic: Some(topic.to_owned()), publisher: Some(publisher), sequence: Some(sequence), ..self }
    }

    pub(super) fn with(self, payload: Vec<u8>) -> Event {
        match String::from_utf8(payload) {
            Ok(text) => Event { data: Some(text), ..self },
            Err(error) => Event { data_base64: Some(STANDARD.encode(error.as_bytes())), ..self },
        }
    }

    /// The line, with its end.
    pub(super) fn line(&self) -> Vec<u8> {
        // Texts and numbers always serialise.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// The name of an error for programs.
fn code(error: &Error) -> &'static str {
    match error.detail() {
        ErrorDetail::Outcome { outcome, .. } => outcome.as_str(),
        ErrorDetail::ErrorReply(_) => "error_reply",
        ErrorDetail::TooLarge { .. } => "too_large",
        ErrorDetail::Name(_) => "invalid_name",
        ErrorDetail::InvalidOption(_) => "invalid_option",
        ErrorDetail::Evicted { .. } => "evicted",
        ErrorDetail::Failed { code: FailedCode::Limit, .. } => "limit_reached",
        ErrorDetail::Failed { .. } => "refused",
        _ if error.is_disconnected() => "disconnected",
        _ => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Op, String> {
        Op::parse(text.as_bytes()).map_err(|invalid| invalid.message)
    }

    #[test]
    fn operations_are_read() {
        let id = || Id::Number(1);
        let table = [
            (r#"{"op":"pub","topic":"t"}"#, Op::Pub { id: None, topic: "t".into(), payload: vec![] }),
            (
                r#"{"op":"pub","topic":"t","id":"x","data_base64":"/wA="}"#,
                Op::Pub { id: Some(Id::Text("x".into())), topic: "t".into(), payload: vec![255, 0] },
            ),
            (
                r#"{"op":"sub","id":1,"pattern":"a.>","policy":"drop-oldest"}"#,
                Op::Sub { id: id(), pattern: "a.>".into(), policy: Policy::DropOldest },
            ),
            (
                r#"{"op":"request","id":1,"service":"s","json":{"a":[1]},"stream":true,"timeout_ms":5}"#,
                Op::Request {
                    id: id(),
                    service: "s".into(),
                    payload: br#"{"a":[1]}"#.to_vec(),
                    stream: true,
                    timeout_ms: Some(5),
                },
            ),
            (r#"{"op":"serve","id":1,"service":"s"}"#, Op::Serve { id: id(), service: "s".into(), max_in_flight: 0 }),
            (r#"{"op":"chunk","call":7,"data":"x"}"#, Op::Chunk { call: 7, payload: b"x".to_vec() }),
            (r#"{"op":"reply","call":7}"#, Op::Reply { call: 7, payload: Payload(None) }),
            (r#"{"op":"reply","call":7,"json":null}"#, Op::Reply { call: 7, payload: Payload(Some(b"null".to_vec())) }),
            (r#"{"op":"fail","call":7,"message":"m"}"#, Op::Fail { call: 7, message: "m".into() }),
            (r#"{"op":"refuse","call":7,"message":"m"}"#, Op::Refuse { call: 7, message: "m".into() }),
            (r#"{"op":"cancel","id":1}"#, Op::Cancel { id: id() }),
        ];
        for (text, op) in table {
            assert_eq!(parse(text), Ok(op), "{text}");
        }
    }

    #[test]
    fn what_is_no_operation_says_what_is_wrong() {
        let table = [
            ("", "EOF while parsing a value at line 1 column 0"),
            ("[]", "invalid length 0, expected struct Line"),
            (r#"{"id":1}"#, "missing field `op`"),
            (r#"{"op":"sub","pattern":"a"}"#, "sub needs id"),
            (r#"{"op":"pub","id":1}"#, "pub needs topic"),
            (r#"{"op":"fly","id":1}"#, r#"op is "fly", must be pub"#),
            (r#"{"op":"pub","topic":"t","data":"a","json":1}"#, "more than one of data, data_base64 and json"),
            (r#"{"op":"pub","topic":"t","data_base64":"?"}"#, "data_base64 is invalid"),
            (r#"{"op":"cancel","id":1,"data":"x"}"#, "cancel has no member data"),
            (r#"{"op":"cancel","ids":1}"#, "unknown field `ids`"),
            (r#"{"op":"cancel","id":[1]}"#, "did not match any variant"),
        ];
        for (text, expected) in table {
            let message = parse(text).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
        let invalid = Op::parse(br#"{"op":"sub","id":"mine"}"#).unwrap_err();
        assert_eq!(invalid.id, Some(Id::Text("mine".into())), "the event names the operation");
        let invalid = Op::parse(br#"{"op":"request","id":6,"service":"s","data":1}"#).unwrap_err();
        assert_eq!(invalid.id, Some(Id::Number(6)), "also of a line with a member of another type");
    }

    #[test]
    fn payloads_of_events_are_text_or_base64() {
        let line = |payload: &[u8]| String::from_utf8(Event::of("reply", &Id::Number(3)).with(payload.to_vec()).line());
        assert_eq!(line(b"h\n").unwrap(), "{\"event\":\"reply\",\"id\":3,\"data\":\"h\\n\"}\n");
        assert_eq!(line(&[255, 0]).unwrap(), "{\"event\":\"reply\",\"id\":3,\"data_base64\":\"/wA=\"}\n");
    }
}

//! The events of a stream: those of OpenAI's completions and chats, and those of llama.cpp's `/infill`.

use crate::wire::typed::{FinishReason, ToolCall, Usage};
use serde::Deserialize;
use serde_json::Value;

/// An event.
#[derive(Debug, PartialEq)]
pub(super) enum Event {
    /// `[DONE]`.
    Done,
    /// Nothing of interest.
    Empty,
    /// A piece of the reply.
    Piece(Piece),
    /// An error, in the engine's words.
    Error(String),
}

/// A piece of a reply.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    /// Parts of tool calls.
    pub(super) calls: Vec<CallPart>,
    pub(super) finish: Option<FinishReason>,
    pub(super) usage: Option<Usage>,
    /// Whether it shows that the model generates: text, also of its reasoning, a part of a call, or the end.
    pub(super) is_progress: bool,
}

/// A part of a tool call: the parts with an index belong together.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct CallPart {
    pub(super) index: usize,
    pub(super) id: Option<String>,
    pub(super) function: FunctionPart,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct FunctionPart {
    pub(super) name: Option<String>,
    pub(super) arguments: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    choices: Vec<Choice>,
    usage: Option<UsagePart>,
    error: Option<Value>,
    /// llama.cpp's own form.
    content: Option<String>,
    stop: Option<bool>,
    stop_type: Option<String>,
    stopped_limit: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
    /// Of a body that is no stream.
    message: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Vec<CallPart>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct UsagePart {
    prompt_tokens: u32,
    completion_tokens: u32,
}

/// Reads the data of an event. `kind`: its type.
///
/// # Errors
///
/// If it is not JSON of the expected form.
pub(super) fn parse(kind: Option<&str>, data: &str) -> Result<Event, String> {
    let data = data.trim();
    if data == "[DONE]" {
        return Ok(Event::Done);
    }
    if kind == Some("error") {
        return Ok(Event::Error(message_of(data)));
    }
    if data.is_empty() {
        return Ok(Event::Empty);
    }
    let body: Body = serde_json::from_str(data).map_err(|error| format!("invalid event: {error}"))?;
    if let Some(error) = body.error.filter(|error| !error.is_null()) {
        return Ok(Event::Error(words_of(&error).unwrap_or_else(|| error.to_string())));
    }
    let usage = body
        .usage
        .map(|usage| Usage { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens });
    let piece = match (body.choices.into_iter().next(), body.content) {
        (Some(choice), _) => of_choice(choice, usage),
        (None, Some(text)) => {
            let is_limit = body.stop_type.as_deref() == Some("limit") || body.stopped_limit == Some(true);
            let reason = if is_limit { FinishReason::Length } else { FinishReason::Stop };
            let finish = (body.stop == Some(true)).then_some(reason);
            Piece { is_progress: !text.is_empty() || finish.is_some(), text, finish, ..Piece::default() }
        }
        (None, None) if usage.is_some() => Piece { usage, ..Piece::default() },
        (None, None) => return Ok(Event::Empty),
    };
    Ok(Event::Piece(piece))
}

fn of_choice(choice: Choice, usage: Option<Usage>) -> Piece {
    let delta = choice.delta.or(choice.message).unwrap_or_default();
    let is_some = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let reasons = is_some(&delta.reasoning_content) || is_some(&delta.reasoning);
    let text = choice.text.or(delta.content).unwrap_or_default();
    let calls = delta.tool_calls.unwrap_or_default();
    let finish = choice.finish_reason.as_deref().filter(|reason| !reason.is_empty()).map(|reason| match reason {
        "length" => FinishReason::Length,
        "tool_calls" | "function_call" => FinishReason::ToolCalls,
        "content_filter" => FinishReason::Filtered,
        _ => FinishReason::Stop,
    });
    let is_progress = reasons || !text.is_empty() || !calls.is_empty() || finish.is_some();
    Piece { text, calls, finish, usage, is_progress }
}

/// The error message in a body, which is JSON of any form, or not.
pub(super) fn message_of(body: &str) -> String {
    let json: Option<Value> = serde_json::from_str(body).ok();
    let found = json.as_ref().and_then(|json| words_of(json.get("error").unwrap_or(json)));
    found.unwrap_or_else(|| body.lines().next().unwrap_or_default().to_owned())
}

fn words_of(error: &Value) -> Option<String> {
    if let Some(text) = error.as_str() {
        return Some(text.to_owned());
    }
    let member = ["message", "detail", "error"].iter().find_map(|name| error.get(name))?;
    Some(member.as_str().map_or_else(|| member.to_string(), str::to_owned))
}

/// Tool calls out of their parts.
#[derive(Debug, Default)]
pub(super) struct Calls(Vec<ToolCall>);

impl Calls {
    /// The most calls of a reply.
    const MAX: usize = 128;

    /// Takes a part.
    ///
    /// # Errors
    ///
    /// If there are too many calls.
    pub(super) fn push(&mut self, part: CallPart) -> Result<(), String> {
        if part.index >= Calls::MAX {
            return Err(format!("tool call index {} exceeds {}", part.index, Calls::MAX - 1));
        }
        while self.0.len() <= part.index {
            self.0.push(ToolCall { id: String::new(), name: String::new(), arguments: String::new() });
        }
        let call = &mut self.0[part.index];
        call.id += part.id.as_deref().unwrap_or_default();
        call.name += part.function.name.as_deref().unwrap_or_default();
        call.arguments += part.function.arguments.as_deref().unwrap_or_default();
        Ok(())
    }

    /// The calls. Those without a name are not passed on; one without an id gets one.
    pub(super) fn take(&mut self) -> Vec<ToolCall> {
        let mut calls = std::mem::take(&mut self.0);
        calls.retain(|call| !call.name.is_empty());
        for (index, call) in calls.iter_mut().enumerate() {
            if call.id.is_empty() {
                call.id = format!("call_{index}");
            }
        }
        calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(data: &str) -> Piece {
        match parse(None, data) {
            Ok(Event::Piece(piece)) => piece,
            other => panic!("{data}: {other:?}"),
        }
    }

    #[test]
    fn pieces_of_each_endpoint_are_read() {
        let found = piece(r#"{"choices":[{"index":0,"text":"a","finish_reason":null}],"model":"x"}"#);
        assert_eq!((found.text.as_str(), found.finish, found.is_progress), ("a", None, true));
        let found = piece(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#);
        assert_eq!((found.text.as_str(), found.is_progress), ("", false));
        let found = piece(r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#);
        assert_eq!((found.text.as_str(), found.is_progress), ("", true));
        let found = piece(r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#);
        assert_eq!(found.finish, Some(FinishReason::Length));
        let found = piece(r#"{"content":"b","stop":false}"#);
        assert_eq!((found.text.as_str(), found.finish), ("b", None));
        let found = piece(r#"{"content":"","stop":true,"stop_type":"limit"}"#);
        assert_eq!(found.finish, Some(FinishReason::Length));
        let found = piece(r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}"#);
        assert_eq!(found.usage, Some(Usage { prompt_tokens: 7, completion_tokens: 5 }));
        assert!(!found.is_progress);
    }

    #[test]
    fn errors_are_found_in_every_form() {
        for (kind, data) in [
            (None, r#"{"error":{"message":"no slot","code":500}}"#),
            (None, r#"{"error":"no slot"}"#),
            (None, r#"{"choices":[],"error":{"detail":"no slot"}}"#),
            (Some("error"), r#"{"message":"no slot"}"#),
            (Some("error"), "no slot"),
        ] {
            assert_eq!(parse(kind, data), Ok(Event::Error("no slot".to_owned())), "{data}");
        }
        assert!(matches!(parse(None, r#"{"error":null,"choices":[{"text":"a"}]}"#), Ok(Event::Piece(_))));
    }

    #[test]
    fn what_is_no_event_is_an_error_and_what_is_unknown_is_ignored() {
        for data in ["{", "garbage", "[1]", r#"{"choices":7}"#] {
            assert!(parse(None, data).unwrap_err().starts_with("invalid event: "), "{data}");
        }
        for data in ["", "  ", r#"{"type":"ping"}"#, r#"{"choices":[]}"#] {
            assert_eq!(parse(None, data), Ok(Event::Empty), "{data}");
        }
        assert_eq!(parse(None, " [DONE] "), Ok(Event::Done));
    }

    #[test]
    fn tool_calls_are_joined_from_their_parts() {
        let mut calls = Calls::default();
        for data in [
            r#"{"choices":[{"delta":{"tool_calls":[{"id":"c1","function":{"name":"read","arguments":""}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":1,"function":{"name":"list"}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\""}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]}}]}"#,
        ] {
            piece(data).calls.into_iter().for_each(|part| calls.push(part).unwrap());
        }
        assert!(calls.push(CallPart { index: usize::MAX, ..CallPart::default() }).is_err());
        let calls = calls.take();
        assert_eq!(
            (calls[0].id.as_str(), calls[0].name.as_str(), calls[0].arguments.as_str()),
            ("c1", "read", "{\"a\":1}")
        );
        assert_eq!((calls[1].id.as_str(), calls[1].name.as_str()), ("call_1", "list"));
    }

    #[test]
    fn messages_are_found_in_any_body() {
        for (body, message) in [
            (r#"{"error":{"message":"a"}}"#, "a"),
            (r#"{"object":"error","message":"b"}"#, "b"),
            (r#"{"detail":[{"loc":1}]}"#, "[{\"loc\":1}]"),
            ("<html>\n", "<html>"),
            ("", ""),
        ] {
            assert_eq!(message_of(body), message);
        }
    }
}

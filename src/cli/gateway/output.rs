//! Typed replies as the API's JSON. Pure.

use super::error::ApiError;
use crate::wire::typed::{FinishReason, Message, ToolCall, Usage};
use serde_json::{Value, json};

/// The end of a stream.
pub(super) const DONE: &str = "[DONE]";

/// A piece of a reply of any kind.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Part {
    text: String,
    calls: Vec<ToolCall>,
    finish: Option<FinishReason>,
    usage: Option<Usage>,
}

impl Part {
    /// Reads a reply or a chunk of one.
    ///
    /// # Errors
    ///
    /// If it is an error, or nothing that an engine may reply.
    pub(super) fn read(payload: &[u8]) -> Result<Part, ApiError> {
        let unexpected = |why: &str| ApiError::new(502, format!("the engine sent an invalid reply: {why}"));
        let (message, _) = Message::decode_any(payload).map_err(|error| unexpected(&error.to_string()))?;
        Ok(match message {
            Message::CompletionChunk(chunk) => Part { text: chunk.text, finish: chunk.finish, ..Part::default() },
            Message::ChatChunk(chunk) => {
                Part { text: chunk.delta, calls: chunk.tool_calls, finish: chunk.finish, usage: chunk.usage }
            }
            Message::ChatResponse(response) => Part {
                text: response.message.content,
                calls: response.message.tool_calls,
                finish: Some(response.finish),
                usage: response.usage,
            },
            Message::Error(error) => return Err(ApiError::of_message(error)),
            _ => return Err(unexpected("not a completion or chat")),
        })
    }

    /// Whether it is the last.
    pub(super) fn is_last(&self) -> bool {
        self.finish.is_some()
    }

    /// Appends the next piece.
    pub(super) fn append(&mut self, next: Part) {
        self.text += &next.text;
        self.calls.extend(next.calls);
        self.finish = next.finish.or(self.finish);
        self.usage = next.usage.or(self.usage);
    }
}

/// What the reply is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Completion,
    Chat,
}

/// How a reply is written.
#[derive(Clone, Debug)]
pub(super) struct Style {
    pub(super) kind: Kind,
    pub(super) id: u64,
    /// Seconds since the Unix epoch.
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) include_usage: bool,
}

impl Style {
    /// The events of a part. `is_first`: of the reply.
    pub(super) fn events(&self, part: &Part, is_first: bool) -> Vec<Value> {
        let mut events = Vec::new();
        let finish = |reason: Option<FinishReason>| reason.map_or(Value::Null, |reason| reason_of(reason).into());
        match self.kind {
            Kind::Completion => events.push(self.choice(json!({
                "index": 0, "text": part.text, "logprobs": null, "finish_reason": finish(part.finish),
            }))),
            Kind::Chat => {
                let mut delta = json!({});
                if is_first {
                    delta["role"] = "assistant".into();
                }
                if is_first || !part.text.is_empty() {
                    delta["content"] = part.text.as_str().into();
                }
                if !part.calls.is_empty() {
                    delta["tool_calls"] = calls(&part.calls);
                }
                events.push(self.choice(json!({ "index": 0, "delta": delta, "finish_reason": finish(part.finish) })));
            }
        }
        if let (true, Some(usage)) = (part.is_last() && self.include_usage, part.usage) {
            let mut event = self.head("chunk");
            event["choices"] = json!([]);
            event["usage"] = usage_of(usage);
            events.push(event);
        }
        events
    }

    fn choice(&self, choice: Value) -> Value {
        let mut event = self.head("chunk");
        event["choices"] = json!([choice]);
        event
    }

    /// A reply in one piece.
    pub(super) fn whole(&self, part: &Part) -> Value {
        let mut body = self.head("whole");
        let reason = reason_of(part.finish.unwrap_or(FinishReason::Stop));
        body["choices"] = match self.kind {
            Kind::Completion => json!([{
                "index": 0, "text": part.text, "logprobs": null, "finish_reason": reason,
            }]),
            Kind::Chat => {
                let mut message = json!({ "role": "assistant", "content": part.text });
                if !part.calls.is_empty() {
                    message["tool_calls"] = calls(&part.calls);
                }
                json!([{ "index": 0, "message": message, "finish_reason": reason }])
            }
        };
        if let Some(usage) = part.usage {
            body["usage"] = usage_of(usage);
        }
        body
    }

    fn head(&self, form: &str) -> Value {
        let (prefix, object) = match (self.kind, form) {
            (Kind::Completion, _) => ("cmpl", "text_completion"),
            (Kind::Chat, "chunk") => ("chatcmpl", "chat.completion.chunk"),
            (Kind::Chat, _) => ("chatcmpl", "chat.completion"),
        };
        json!({
            "id": format!("{prefix}-{}", self.id), "object": object, "created": self.created, "model": self.model,
        })
    }
}

fn reason_of(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop | FinishReason::Cancelled => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::Filtered => "content_filter",
    }
}

fn calls(calls: &[ToolCall]) -> Value {
    let call = |(index, call): (usize, &ToolCall)| {
        json!({
            "index": index, "id": call.id, "type": "function",
            "function": { "name": call.name, "arguments": call.arguments },
        })
    };
    calls.iter().enumerate().map(call).collect()
}

fn usage_of(usage: Usage) -> Value {
    let total = u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens);
    json!({
        "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens, "total_tokens": total,
    })
}

/// The list of models.
pub(super) fn models(model: &str) -> Value {
    json!({
        "object": "list",
        "data": [{ "id": model, "object": "model", "created": 0, "owned_by": "lapce-ipc" }],
    })
}

/// An event of a stream.
pub(super) fn event(data: &str) -> String {
    format!("data: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::typed::{ChatChunk, CompletionChunk, Form, Heartbeat};

    fn style(kind: Kind) -> Style {
        Style { kind, id: 5, created: 1, model: "m".to_owned(), include_usage: true }
    }

    #[test]
    fn chunks_of_a_completion_are_events() {
        let chunk = |text: &str, finish| {
            let chunk = CompletionChunk { id: 5, index: 0, text: text.to_owned(), finish };
            Part::read(&Message::CompletionChunk(chunk).encode().unwrap()).unwrap()
        };
        let events = style(Kind::Completion).events(&chunk("a\nb", None), true);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0]["choices"][0]["text"], "a\nb");
        assert_eq!(events[0]["choices"][0]["finish_reason"], Value::Null);
        assert!(!event(&events[0].to_string()).trim_end().contains('\n'), "a line end of the text is escaped");
        let events = style(Kind::Completion).events(&chunk("", Some(FinishReason::Length)), false);
        assert_eq!(events[0]["choices"][0]["finish_reason"], "length");
        let mut whole = chunk("a", None);
        whole.append(chunk("b", Some(FinishReason::Stop)));
        assert_eq!(style(Kind::Completion).whole(&whole)["choices"][0]["text"], "ab");
    }

    #[test]
    fn chunks_of_a_chat_are_events_with_role_calls_and_usage() {
        let calls = vec![ToolCall { id: "c".to_owned(), name: "f".to_owned(), arguments: "{}".to_owned() }];
        let chunk = ChatChunk {
            id: 5,
            index: 0,
            delta: "a".to_owned(),
            tool_calls: calls,
            finish: Some(FinishReason::ToolCalls),
            usage: Some(Usage { prompt_tokens: 2, completion_tokens: 3 }),
        };
        let part = Part::read(&Message::ChatChunk(chunk).encode_as(Form::Json).unwrap()).unwrap();
        let events = style(Kind::Chat).events(&part, true);
        let delta = &events[0]["choices"][0]["delta"];
        assert_eq!((&delta["role"], &delta["content"]), (&"assistant".into(), &"a".into()));
        assert_eq!(delta["tool_calls"][0]["function"]["name"], "f");
        assert_eq!((&events[1]["usage"]["total_tokens"], &events[1]["choices"]), (&5.into(), &json!([])));
        let whole = style(Kind::Chat).whole(&part);
        assert_eq!((&whole["object"], &whole["usage"]["total_tokens"]), (&"chat.completion".into(), &5.into()));
    }

    #[test]
    fn what_is_no_reply_of_an_engine_is_an_error_of_it() {
        let heartbeat = Message::Heartbeat(Heartbeat { sequence: 1, sent_ms: 1 }).encode().unwrap();
        for payload in [&b"text"[..], b"", b"{}", &heartbeat] {
            assert_eq!(Part::read(payload).unwrap_err().status, 502);
        }
        let error = br#"{"error":{"code":"rate_limited","message":"slow down"}}"#;
        assert_eq!(Part::read(error).unwrap_err().status, 429);
    }
}

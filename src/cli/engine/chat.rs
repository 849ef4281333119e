//! One turn of a conversation, from the request to the reply.

use super::endpoint::{Events, Path};
use super::event::Calls;
use super::fault::Fault;
use super::model::Model;
use super::outgoing::{Outgoing, Stop};
use crate::wire::typed::{
    ChatChunk, ChatMessage, ChatRequest, ChatResponse, FinishReason, Message, Role, ToolCall, ToolDefinition, Usage,
};
use serde_json::{Value, json};

/// Streams a turn, or collects it. Returns the last message, and the rest of the stream.
///
/// # Errors
///
/// Why there is none.
pub(super) async fn run<'a>(
    model: &'a Model,
    chat: &ChatRequest,
    out: &mut Outgoing,
) -> Result<(Message, Option<Events<'a>>), Stop> {
    let body = body(model, chat)?;
    let mut events = out.unless_stopped(model.endpoint.post(Path::Chat, &body)).await??;
    let is_stream = chat.stream && out.wants_stream();
    let (mut text, mut index, mut calls) = (String::new(), 0, Calls::default());
    let (mut finish, mut usage): (Option<FinishReason>, Option<Usage>) = (None, None);
    // To the end: the usage comes after the reason.
    while let Some(piece) = out.unless_stopped(events.next()).await?? {
        usage = piece.usage.or(usage);
        if finish.is_some() {
            if usage.is_some() {
                break;
            }
            continue;
        }
        finish = piece.finish;
        text += &piece.text;
        for part in piece.calls {
            calls.push(part).map_err(Fault::engine)?;
        }
        if is_stream && finish.is_none() && !text.is_empty() {
            let delta = std::mem::take(&mut text);
            let chunk = ChatChunk { id: chat.id, index, delta, tool_calls: Vec::new(), finish: None, usage: None };
            out.send(&Message::ChatChunk(chunk)).await?;
            index += 1;
        }
    }
    let (id, tool_calls) = (chat.id, calls.take());
    let finish = match finish {
        Some(finish) => finish,
        None if tool_calls.is_empty() => FinishReason::Stop,
        None => FinishReason::ToolCalls,
    };
    let last = if is_stream {
        Message::ChatChunk(ChatChunk { id, index, delta: text, tool_calls, finish: Some(finish), usage })
    } else {
        let message = ChatMessage { tool_calls, ..ChatMessage::new(Role::Assistant, text) };
        Message::ChatResponse(ChatResponse { id, message, finish, usage })
    };
    Ok((last, Some(events)))
}

fn body(model: &Model, chat: &ChatRequest) -> Result<Value, Fault> {
    let system = chat.system_prompt.iter().map(|text| json!({ "role": "system", "content": text }));
    let messages: Vec<Value> = system.chain(chat.messages.iter().map(message)).collect();
    let mut body = json!({
        "model": model.name,
        "messages": messages,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    let mut set = |name: &str, value: Value| _ = body.as_object_mut().map(|body| body.insert(name.to_owned(), value));
    if let Some(temperature) = chat.temperature {
        // As it was written: 0.2 as an f32 is a little more as an f64.
        set("temperature", temperature.to_string().parse::<f64>().map_or(Value::Null, Value::from));
    }
    if let Some(max) = chat.max_tokens {
        set("max_tokens", max.into());
    }
    if !chat.tools.is_empty() {
        let tools = chat.tools.iter().map(tool).collect::<Result<Vec<_>, _>>()?;
        set("tools", tools.into());
    }
    Ok(body)
}

fn message(message: &ChatMessage) -> Value {
    let role = match message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    let mut json = json!({ "role": role, "content": message.content });
    if !message.tool_calls.is_empty() {
        json["tool_calls"] = message.tool_calls.iter().map(call).collect();
    }
    if let Some(id) = &message.answers {
        json["tool_call_id"] = id.as_str().into();
    }
    json
}

fn call(call: &ToolCall) -> Value {
    json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": call.arguments } })
}

fn tool(tool: &ToolDefinition) -> Result<Value, Fault> {
    let parameters: Value = serde_json::from_str(&tool.parameters)
        .map_err(|error| Fault::request(format!("tool {}: parameters are not JSON: {error}", tool.name)))?;
    Ok(json!({
        "type": "function",
        "function": { "name": tool.name, "description": tool.description, "parameters": parameters },
    }))
}

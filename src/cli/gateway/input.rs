//! Requests of the API as typed messages. Pure.

use super::error::ApiError;
use crate::wire::typed::{ChatMessage, ChatRequest, CompletionRequest, Position, Role, ToolCall, ToolDefinition};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The most tokens of a completion, if a request does not say.
const MAX_TOKENS: u32 = 128;

/// A request, and how its reply is to be written.
#[derive(Debug, PartialEq)]
pub(super) struct Asked<T> {
    pub(super) request: T,
    pub(super) model: String,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// A text, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or an array of texts for prompt or stop")]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    fn all(self) -> Vec<String> {
        match self {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        }
    }
}

#[derive(Debug, Deserialize)]
struct CompletionBody {
    prompt: Texts,
    suffix: Option<String>,
    model: Option<String>,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    stop: Option<Texts>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
    best_of: Option<u32>,
    echo: Option<bool>,
}

/// Reads the body of `/v1/completions`. `id`: the number of the request.
///
/// # Errors
///
/// If it is invalid, or asks for what there is not.
pub(super) fn completion(body: &[u8], id: u64) -> Result<Asked<CompletionRequest>, ApiError> {
    let body: CompletionBody = read(body)?;
    one("n", body.n)?;
    one("best_of", body.best_of)?;
    if body.echo == Some(true) {
        return Err(ApiError::invalid("echo is not supported"));
    }
    let Ok([prefix]) = <[String; 1]>::try_from(body.prompt.all()) else {
        return Err(ApiError::invalid("prompt must be one text"));
    };
    let request = CompletionRequest {
        id,
        // Requests of different programs must not supersede each other; a program cancels by closing its connection.
        document: format!("gateway:{id}"),
        language: String::new(),
        prefix,
        suffix: body.suffix.unwrap_or_default(),
        cursor: Position::default(),
        max_tokens: body.max_tokens.unwrap_or(MAX_TOKENS),
        temperature: body.temperature,
        stop: body.stop.map(Texts::all).unwrap_or_default(),
    };
    Ok(asked(request, body.model, body.stream, body.stream_options))
}

#[derive(Debug, Deserialize)]
struct ChatBody {
    messages: Vec<MessageBody>,
    model: Option<String>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    tools: Option<Vec<ToolBody>>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct MessageBody {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Vec<CallBody>>,
    tool_call_id: Option<String>,
}

/// The text of a message, or its parts.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<PartBody>),
}

#[derive(Debug, Deserialize)]
struct PartBody {
    r#type: String,
    text: Option<String>,
}

#[derive(Debug, Deserialize)]
struct CallBody {
    id: String,
    function: CalledBody,
}

#[derive(Debug, Deserialize)]
struct CalledBody {
    name: String,
    arguments: String,
}

#[derive(Debug, Deserialize)]
struct ToolBody {
    function: FunctionBody,
}

#[derive(Debug, Deserialize)]
struct FunctionBody {
    name: String,
    #[serde(default)]
    description: String,
    parameters: Option<Value>,
}

/// Reads the body of `/v1/chat/completions`.
///
/// # Errors
///
/// As [`completion`].
pub(super) fn chat(body: &[u8], id: u64) -> Result<Asked<ChatRequest>, ApiError> {
    let body: ChatBody = read(body)?;
    one("n", body.n)?;
    let messages = body.messages.into_iter().map(message).collect::<Result<_, _>>()?;
    let tool = |tool: ToolBody| ToolDefinition {
        name: tool.function.name,
        description: tool.function.description,
        parameters: tool.function.parameters.map_or_else(|| "{}".to_owned(), |parameters| parameters.to_string()),
    };
    let request = ChatRequest {
        id,
        messages,
        model: body.model.clone().filter(|model| !model.is_empty()).unwrap_or_else(|| "default".to_owned()),
        temperature: body.temperature,
        max_tokens: body.max_completion_tokens.or(body.max_tokens),
        tools: body.tools.unwrap_or_default().into_iter().map(tool).collect(),
        system_prompt: None,
        // Also for a reply in one piece: a stream has limits of the time between chunks, not of the whole.
        stream: true,
    };
    Ok(asked(request, body.model, body.stream, body.stream_options))
}

fn message(body: MessageBody) -> Result<ChatMessage, ApiError> {
    let role = match body.role.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" | "function" => Role::Tool,
        role => return Err(ApiError::invalid(format!("messages: unknown role {role:?}"))),
    };
    let text = |part: PartBody| match (part.r#type.as_str(), part.text) {
        ("text", Some(text)) => Ok(text),
        (kind, _) => Err(ApiError::invalid(format!("messages: content of type {kind:?} is not supported"))),
    };
    let content = match body.content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => parts.into_iter().map(text).collect::<Result<String, _>>()?,
    };
    let call = |call: CallBody| ToolCall { id: call.id, name: call.function.name, arguments: call.function.arguments };
    let tool_calls = body.tool_calls.unwrap_or_default().into_iter().map(call).collect();
    Ok(ChatMessage { role, content, tool_calls, answers: body.tool_call_id })
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::invalid(format!("invalid request: {error}")))
}

fn one(field: &str, count: Option<u32>) -> Result<(), ApiError> {
    match count {
        None | Some(1) => Ok(()),
        Some(count) => Err(ApiError::invalid(format!("{field} is {count}, only 1 is supported"))),
    }
}

fn asked<T>(request: T, model: Option<String>, stream: Option<bool>, options: Option<StreamOptions>) -> Asked<T> {
    Asked {
        request,
        model: model.unwrap_or_else(|| "default".to_owned()),
        stream: stream == Some(true),
        include_usage: options.and_then(|options| options.include_usage) == Some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_is_read() {
        let body = br#"{"model":"m","prompt":["fn "],"suffix":"}","max_tokens":9,"stop":"\n","stream":true,"seed":7}"#;
        let asked = completion(body, 3).unwrap();
        assert_eq!((asked.model.as_str(), asked.stream, asked.include_usage), ("m", true, false));
        let request = asked.request;
        assert_eq!((request.prefix.as_str(), request.suffix.as_str(), request.max_tokens), ("fn ", "}", 9));
        assert_eq!((request.document.as_str(), request.stop), ("gateway:3", vec!["\n".to_owned()]));
        let least = completion(br#"{"prompt":"","suffix":null,"stop":null,"temperature":null}"#, 4).unwrap();
        assert_eq!((least.request.max_tokens, least.stream), (MAX_TOKENS, false));
    }

    #[test]
    fn what_is_invalid_or_not_supported_is_refused() {
        for (body, why) in [
            ("", "invalid request: EOF"),
            ("{}", "missing field `prompt`"),
            (r#"{"prompt":["a","b"]}"#, "prompt must be one text"),
            (r#"{"prompt":[1,2]}"#, "invalid request"),
            (r#"{"prompt":"a","n":2}"#, "n is 2, only 1 is supported"),
            (r#"{"prompt":"a","echo":true}"#, "echo is not supported"),
        ] {
            let error = completion(body.as_bytes(), 1).unwrap_err();
            assert!(error.status == 400 && error.message.contains(why), "{body}: {error:?}");
        }
        for (body, why) in [
            (r#"{"messages":[{"role":"king","content":"a"}]}"#, "unknown role \"king\""),
            (r#"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#, "type \"image_url\" is not"),
        ] {
            let error = chat(body.as_bytes(), 1).unwrap_err();
            assert!(error.status == 400 && error.message.contains(why), "{body}: {error:?}");
        }
    }

    #[test]
    fn a_chat_is_read_with_parts_calls_and_tools() {
        let body = br#"{"messages":[
            {"role":"developer","content":"brief"},
            {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
            {"role":"assistant","content":null,
             "tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},
            {"role":"tool","tool_call_id":"c","content":"done"}],
            "tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],
            "max_tokens":1,"max_completion_tokens":2,"stream":true,"stream_options":{"include_usage":true}}"#;
        let asked = chat(body, 1).unwrap();
        assert!(asked.stream && asked.include_usage && asked.model == "default");
        let request = asked.request;
        let [system, user, assistant, tool] = &request.messages[..] else { panic!("{request:?}") };
        assert_eq!((system.role, user.content.as_str()), (Role::System, "ab"));
        assert_eq!((assistant.content.as_str(), assistant.tool_calls[0].name.as_str()), ("", "f"));
        assert_eq!((tool.role, tool.answers.as_deref()), (Role::Tool, Some("c")));
        assert_eq!((request.max_tokens, request.tools[0].parameters.as_str()), (Some(2), r#"{"type":"object"}"#));
    }
}

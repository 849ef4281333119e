//! Messages survive the way over the wire, and what is out of range never gets onto it or off it.

use proptest::prelude::*;

use super::*;

fn chat() -> ChatRequest {
    ChatRequest {
        id: 1,
        messages: vec![ChatMessage::new(Role::User, "hi")],
        model: "m".into(),
        temperature: None,
        max_tokens: None,
        tools: vec![],
        system_prompt: None,
        stream: false,
    }
}

fn call(id: &str, name: &str) -> ToolCall {
    ToolCall { id: id.into(), name: name.into(), arguments: "{}".into() }
}

/// Both directions must refuse it, and say the same.
fn refused(message: &Message) -> String {
    let sent = message.encode().unwrap_err();
    let received = Message::decode(&codec::encode(&(TYPED_VERSION, message)).unwrap()).unwrap_err();
    assert_eq!(sent.to_string(), received.to_string());
    sent.to_string()
}

#[test]
fn ranges_hold_in_both_directions() {
    for (value, shown) in [(-0.1, "-0.1"), (2.1, "2.1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let message = Message::ChatRequest(ChatRequest { temperature: Some(value), ..chat() });
        let expected = format!("invalid typed message: temperature is {shown}, must be 0 to 2");
        assert_eq!(refused(&message), expected);
    }
    for value in [0.0, 2.0] {
        assert!(Message::ChatRequest(ChatRequest { temperature: Some(value), ..chat() }).encode().is_ok());
    }
    for count in [0, COMPLETION_TOKENS_MAX + 1] {
        let message = Message::ChatRequest(ChatRequest { max_tokens: Some(count), ..chat() });
        assert!(refused(&message).contains(&format!("max_tokens is {count}, must be 1 to 16777216")));
    }
    let completion = CompletionRequest {
        id: 1,
        document: "file:///a.rs".into(),
        language: "rust".into(),
        prefix: "fn ".into(),
        suffix: "()".into(),
        cursor: Position { line: 0, column: 3 },
        max_tokens: 1,
        temperature: None,
        stop: vec![],
    };
    assert!(Message::CompletionRequest(completion.clone()).encode().is_ok());
    for (message, field) in [
        (Message::CompletionRequest(CompletionRequest { document: String::new(), ..completion.clone() }), "document"),
        (Message::CompletionRequest(CompletionRequest { max_tokens: 0, ..completion.clone() }), "max_tokens"),
        (Message::CompletionRequest(CompletionRequest { temperature: Some(3.0), ..completion }), "temperature"),
        (Message::ChatRequest(ChatRequest { messages: vec![], ..chat() }), "messages"),
        (Message::ChatRequest(ChatRequest { model: String::new(), ..chat() }), "model"),
        (Message::ToolCall(call("", "a")), "tool_calls.id"),
        (Message::ToolCall(call("a", "")), "tool_calls.name"),
        (Message::ToolResult(ToolResult { call: String::new(), content: String::new(), is_error: false }), "call"),
    ] {
        let error = refused(&message);
        assert!(error.starts_with(&format!("invalid typed message: {field} ")), "{error}");
    }
    let mut request = chat();
    request.messages[0].tool_calls.push(call("", "a"));
    assert!(refused(&Message::ChatRequest(request)).contains("tool_calls.id"));
    let tool = ToolDefinition { name: String::new(), description: String::new(), parameters: "{}".into() };
    assert!(refused(&Message::ChatRequest(ChatRequest { tools: vec![tool], ..chat() })).contains("tools.name"));
}

#[test]
fn another_version_is_a_clear_error() {
    let mut bytes = Message::ChatRequest(chat()).encode().unwrap();
    bytes[0] = 2;
    assert_eq!(Message::decode(&bytes).unwrap_err().to_string(), "typed message has version 2, supported is 1");
    for cut in [0, 1] {
        assert_eq!(Message::decode(&bytes[..cut]), Err(CodecError::Truncated { found: cut }.into()));
    }
    bytes[0] = 1;
    bytes.push(0);
    assert_eq!(Message::decode(&bytes), Err(CodecError::TrailingBytes { count: 1 }.into()));
}

fn message() -> impl Strategy<Value = Message> {
    let finish = prop::option::of(Just(FinishReason::ToolCalls));
    let usage = prop::option::of(
        any::<(u32, u32)>().prop_map(|(prompt_tokens, completion_tokens)| Usage { prompt_tokens, completion_tokens }),
    );
    let calls = || prop::collection::vec((".{1,9}", ".{1,9}").prop_map(|(id, name)| call(&id, &name)), 0..3);
    let turn = || {
        (prop::sample::select(vec![Role::System, Role::User, Role::Assistant, Role::Tool]), ".*", calls()).prop_map(
            |(role, content, tool_calls)| ChatMessage { role, content, tool_calls, answers: Some("x".into()) },
        )
    };
    prop_oneof![
        (any::<[u32; 2]>(), ".{1,9}", ".*", prop::option::of(0.0f32..=2.0)).prop_map(
            |([line, column], document, prefix, temperature)| Message::CompletionRequest(CompletionRequest {
                id: 3,
                document,
                language: "rust".into(),
                prefix,
                suffix: String::new(),
                cursor: Position { line, column },
                max_tokens: 9,
                temperature,
                stop: vec!["\n".into()],
            })
        ),
        (prop::collection::vec(turn(), 1..4), prop::option::of(1..=COMPLETION_TOKENS_MAX), any::<bool>()).prop_map(
            |(messages, max_tokens, stream)| {
                Message::ChatRequest(ChatRequest { messages, max_tokens, stream, ..chat() })
            }
        ),
        (any::<(u64, u32)>(), ".*", calls(), finish, usage).prop_map(
            |((id, index), delta, tool_calls, finish, usage)| {
                Message::ChatChunk(ChatChunk { id, index, delta, tool_calls, finish, usage })
            }
        ),
        (any::<u64>(), turn()).prop_map(|(id, message)| {
            Message::ChatResponse(ChatResponse { id, message, finish: FinishReason::Stop, usage: None })
        }),
        (any::<u64>(), prop::option::of(".*")).prop_map(|(id, reason)| Message::Cancel(Cancel { id, reason })),
    ]
}

proptest! {
    #[test]
    fn messages_survive_and_tampering_is_noticed_or_harmless(
        message in message(),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let mut bytes = message.encode().unwrap();
        prop_assert_eq!(&Message::decode(&bytes).unwrap(), &message);
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert_eq!(message.encode().unwrap(), bytes.clone());
        }
        bytes.truncate(at);
        prop_assert!(Message::decode(&bytes).is_err());
    }

    #[cfg(feature = "json")]
    #[test]
    fn both_forms_say_the_same(message in message()) {
        for form in [Form::Json, Form::Binary] {
            let bytes = message.encode_as(form).unwrap();
            prop_assert_eq!(Message::decode_any(&bytes).unwrap(), (message.clone(), form));
        }
    }

    #[test]
    fn any_bytes_are_survived(variant in 0u8..11, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Message::decode(&bytes);
        #[cfg(feature = "json")]
        let _ = Message::decode_any(&bytes);
        let _ = Message::decode(&[&[1, 0, variant, 0, 0, 0], &bytes[..]].concat());
    }
}

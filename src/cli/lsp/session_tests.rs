//! Messages in, actions out.

use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::time::Duration;

fn session(completion: bool) -> Session {
    Session::new(Settings {
        service: "ai".into(),
        debounce: Duration::ZERO,
        max_tokens: 10,
        prefix_bytes: 100,
        suffix_bytes: 100,
        documents_bytes: 10_000,
        completion,
    })
}

fn send(session: &mut Session, message: &Value) -> Vec<Action> {
    session.message(Instant::now(), message.to_string().as_bytes());
    session.take_actions()
}

/// The only reply: its result, or its error's code.
fn reply(session: &mut Session, message: &Value) -> Result<Value, i32> {
    let actions = send(session, message);
    match &actions[..] {
        [Action::Send(Message::Response(Response { id, response_result }))] => {
            assert_eq!(json!(id), message["id"]);
            response_result.clone().map_err(|error| error.code)
        }
        other => panic!("{message} got {other:?}"),
    }
}

fn initialize(session: &mut Session, capabilities: &Value) -> Value {
    let params = json!({ "processId": null, "rootUri": null, "capabilities": capabilities });
    reply(session, &json!({ "id": 0, "method": "initialize", "params": params })).expect("it is initialized")
}

fn request(id: i32, method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
}

fn notification(method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "method": method, "params": params })
}

fn open(session: &mut Session, uri: &str, text: &str) {
    let document = json!({ "uri": uri, "languageId": "rust", "version": 1, "text": text });
    assert!(send(session, &notification("textDocument/didOpen", &json!({ "textDocument": document }))).is_empty());
}

fn at(uri: &str, character: u32) -> Value {
    json!({ "textDocument": { "uri": uri }, "position": { "line": 0, "character": character } })
}

#[test]
fn nothing_is_served_before_initialize_and_nothing_is_sent() {
    let mut session = session(false);
    for method in ["textDocument/inlineCompletion", "shutdown", "nonsense"] {
        assert_eq!(reply(&mut session, &request(1, method, &at("a", 0))), Err(-32002), "{method}");
    }
    assert!(send(&mut session, &notification("initialized", &json!({}))).is_empty());
    session.set_link(Instant::now(), Link::Away("no broker".into()));
    assert!(session.take_actions().is_empty());
    let result = initialize(&mut session, &json!({}));
    assert_eq!(result["capabilities"]["inlineCompletionProvider"], true);
    assert_eq!(result["capabilities"]["positionEncoding"], "utf-16");
    assert_eq!(result["capabilities"]["textDocumentSync"], json!({ "openClose": true, "change": 2 }));
    assert_eq!(result["capabilities"]["completionProvider"], Value::Null);
}

#[test]
fn an_encoding_is_negotiated() {
    let capabilities = json!({ "general": { "positionEncodings": ["utf-8", "utf-16"] } });
    assert_eq!(initialize(&mut session(false), &capabilities)["capabilities"]["positionEncoding"], "utf-8");
}

#[test]
fn the_listed_completion_is_there_on_demand_only() {
    let (mut without, mut with) = (session(false), session(true));
    initialize(&mut without, &json!({}));
    assert_eq!(initialize(&mut with, &json!({}))["capabilities"]["completionProvider"], json!({}));
    let message = request(1, "textDocument/completion", &at("a", 0));
    assert_eq!(reply(&mut without, &message), Err(-32601));
    assert_eq!(reply(&mut with, &message), Err(-32803), "the document is not open");
}

#[test]
fn wrong_messages_get_their_errors() {
    let mut session = session(false);
    initialize(&mut session, &json!({}));
    let cases = [
        (request(1, "initialize", &json!({ "capabilities": {} })), -32600),
        (request(2, "workspace/nonsense", &json!({})), -32601),
        (request(3, "textDocument/inlineCompletion", &json!({ "position": 7 })), -32602),
        (json!({ "id": 4, "method": "textDocument/inlineCompletion" }), -32602),
        (request(5, "textDocument/inlineCompletion", &at("unknown", 0)), -32803),
        (json!({ "id": "text", "method": "nonsense" }), -32601),
    ];
    for (message, code) in cases {
        assert_eq!(reply(&mut session, &message), Err(code), "{message}");
    }
    assert!(send(&mut session, &notification("$/nonsense", &json!({}))).is_empty());
    assert!(send(&mut session, &notification("$/cancelRequest", &json!({ "id": 99 }))).is_empty());
    assert!(send(&mut session, &json!({ "id": 6, "result": null })).is_empty(), "a response to no request");
}

#[test]
fn what_is_no_message_is_an_error_without_an_id_and_ends_the_sync() {
    let texts: [&[u8]; 6] = [b"garbage", b"[]", b"{}", b"{\"id\": 1.5, \"method\": \"x\"}", b"\"\xff\"", b""];
    for text in texts {
        let mut session = session(false);
        initialize(&mut session, &json!({}));
        open(&mut session, "a", "text");
        session.message(Instant::now(), text);
        let actions = session.take_actions();
        assert!(matches!(&actions[..], [Action::SendUnidentified(error)] if error.code == -32700), "{actions:?}");
        let asked = request(1, "textDocument/inlineCompletion", &at("a", 0));
        assert_eq!(reply(&mut session, &asked), Err(-32803), "the text may be an old one");
        open(&mut session, "a", "text");
        session.set_link(Instant::now(), Link::Up);
        assert!(matches!(&send(&mut session, &asked)[..], [Action::Start { .. }]));
    }
}

#[test]
fn a_change_that_is_not_understood_ends_the_sync_of_its_document() {
    let mut session = session(false);
    initialize(&mut session, &json!({}));
    session.set_link(Instant::now(), Link::Up);
    open(&mut session, "a", "text");
    open(&mut session, "b", "text");
    // A surrogate that has no pair, which no text can hold.
    let text = r#"{"method": "textDocument/didChange", "params": {"textDocument": {"uri": "a", "version": 2},
        "contentChanges": [{"text": "\ud800"}]}}"#;
    session.message(Instant::now(), text.as_bytes());
    assert!(session.take_actions().is_empty());
    assert_eq!(reply(&mut session, &request(1, "textDocument/inlineCompletion", &at("a", 0))), Err(-32803));
    let other = send(&mut session, &request(2, "textDocument/inlineCompletion", &at("b", 0)));
    assert!(matches!(&other[..], [Action::Start { .. }]), "{other:?}");
}

#[test]
fn request_id_0_is_served_and_cancelled() {
    let mut session = session(false);
    initialize(&mut session, &json!({}));
    session.set_link(Instant::now(), Link::Up);
    open(&mut session, "a", "text");
    assert!(matches!(
        &send(&mut session, &request(0, "textDocument/inlineCompletion", &at("a", 0)))[..],
        [Action::Start { .. }]
    ));
    let actions = send(&mut session, &notification("$/cancelRequest", &json!({ "id": 0 })));
    let [Action::Cancel { call: 1 }, Action::Send(Message::Response(response))] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(response.id, RequestId::from(0));
}

#[test]
fn shutdown_and_exit() {
    let mut first = session(false);
    initialize(&mut first, &json!({}));
    assert_eq!(reply(&mut first, &json!({ "id": 1, "method": "shutdown" })), Ok(Value::Null));
    assert_eq!(reply(&mut first, &request(2, "textDocument/inlineCompletion", &at("a", 0))), Err(-32600));
    let exit = notification("exit", &Value::Null);
    assert!(matches!(&send(&mut first, &exit)[..], [Action::Exit { in_order: true }]));
    assert!(matches!(&send(&mut session(false), &exit)[..], [Action::Exit { in_order: false }]));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,80}") {
        let mut session = session(true);
        session.message(Instant::now(), &bytes);
        let _ = session.take_actions();
        initialize(&mut session, &json!({}));
        session.message(Instant::now(), &bytes);
        session.message(Instant::now(), text.as_bytes());
    }
}

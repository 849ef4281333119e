//! Requests, step by step.

use super::*;
use crate::cli::lsp::protocol::{CompletionContext, DocumentId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const URI: &str = "file:///a.rs";

struct Scene {
    completions: Completions,
    now: Instant,
    version: i64,
}

/// What an action is, in short.
fn short(action: &Action) -> String {
    match action {
        Action::Send(Message::Response(Response { id, response_result })) => match response_result {
            Ok(value) => match value["items"][0]["insertText"].as_str() {
                Some(text) => format!("{id}: {text}"),
                None => format!("{id}: {value}"),
            },
            Err(error) => format!("{id}: error {}", error.code),
        },
        Action::Send(Message::Notification(shown)) => format!("shown {}", shown.params["message"]),
        Action::Send(other) => format!("{other:?}"),
        Action::SendUnidentified(error) => format!("error {}", error.code),
        Action::Start { call, request } => format!("start {call} {:?}|{:?}", request.prefix, request.suffix),
        Action::Cancel { call } => format!("cancel {call}"),
        Action::Exit { .. } => "exit".to_owned(),
    }
}

impl Scene {
    fn new(debounce_ms: u64, text: &str) -> Scene {
        let settings = Settings {
            service: "ai".into(),
            debounce: Duration::from_millis(debounce_ms),
            max_tokens: 10,
            prefix_bytes: 8,
            suffix_bytes: 4,
            documents_bytes: 100_000,
            completion: false,
        };
        let mut completions = Completions::new(settings);
        let now = Instant::now();
        completions.set_link(now, Link::Up);
        let mut scene = Scene { completions, now, version: 1 };
        scene.open(URI, text);
        scene
    }

    fn open(&mut self, uri: &str, text: &str) {
        let document = OpenedDocument { uri: uri.into(), language_id: "rust".into(), version: 1, text: text.into() };
        self.completions.open(document);
    }

    fn ask(&mut self, id: i32, uri: &str, character: u32, trigger_kind: u32) -> Vec<String> {
        let params = CompletionParams {
            text_document: DocumentId { uri: uri.into() },
            position: Position { line: 0, character },
            context: Some(CompletionContext { trigger_kind }),
        };
        self.completions.request(self.now, id.into(), Kind::Inline, &params);
        self.actions()
    }

    /// An explicit request.
    fn request(&mut self, id: i32, character: u32) -> Vec<String> {
        self.ask(id, URI, character, 1)
    }

    fn insert(&mut self, character: u32, text: &str) -> Vec<String> {
        let position = Position { line: 0, character };
        self.version += 1;
        let change = Change { range: Some(Range { start: position, end: position }), text: text.into() };
        self.completions.change(URI, self.version, &[change]);
        self.actions()
    }

    fn part(&mut self, call: u64, text: &str, finish: Option<FinishReason>) -> Vec<String> {
        self.completions.part(call, &Part { text: text.into(), finish });
        self.actions()
    }

    fn finish(&mut self, call: u64, text: &str) -> Vec<String> {
        self.part(call, text, Some(FinishReason::Stop))
    }

    fn after(&mut self, ms: u64) -> Vec<String> {
        self.now += Duration::from_millis(ms);
        self.completions.tick(self.now);
        self.actions()
    }

    fn actions(&mut self) -> Vec<String> {
        self.completions.take_actions().iter().map(short).collect()
    }
}

#[test]
fn a_completion_is_collected_and_its_text_fitted() {
    let mut scene = Scene::new(0, "fn main()\n");
    assert_eq!(scene.request(0, 8), ["start 1 \"fn main(\"|\")\\n\""]);
    assert!(scene.part(1, "a: ", None).is_empty());
    assert_eq!(scene.finish(1, "u8)"), ["0: a: u8"]);
    assert!(scene.finish(1, "late").is_empty());
}

#[test]
fn prefix_and_suffix_have_a_limit_and_end_at_characters() {
    let mut scene = Scene::new(0, "0123456é89ü12345");
    assert_eq!(scene.request(1, 10), ["start 1 \"3456é89\"|\"ü12\""]);
}

#[test]
fn a_newer_request_supersedes_and_cancels() {
    let mut scene = Scene::new(0, "abc");
    scene.request(1, 3);
    assert_eq!(scene.request(2, 3), ["cancel 1", "1: error -32801", "start 2 \"abc\"|\"\""]);
    assert_eq!(scene.finish(2, "x"), ["2: x"]);
}

#[test]
fn a_change_ends_the_request_at_once() {
    let mut scene = Scene::new(0, "abc");
    scene.request(1, 3);
    scene.part(1, "x", None);
    assert_eq!(scene.insert(0, "y"), ["cancel 1", "1: error -32801"]);
    assert!(scene.finish(1, "z").is_empty(), "what comes late is dropped");
}

#[test]
fn requests_of_other_documents_go_on() {
    let mut scene = Scene::new(0, "abc");
    scene.open("file:///b", "b");
    scene.request(1, 3);
    assert_eq!(scene.ask(2, "file:///b", 1, 1), ["start 2 \"b\"|\"\""]);
    assert_eq!(scene.finish(1, "x"), ["1: x"]);
    assert_eq!(scene.finish(2, "y"), ["2: y"]);
}

#[test]
fn the_oldest_gives_way_at_the_limit() {
    let mut scene = Scene::new(0, "abc");
    for n in 0..=OUTSTANDING_MAX as i32 {
        let uri = format!("file:///{n}");
        scene.open(&uri, "x");
        let actions = scene.ask(n, &uri, 1, 1);
        let expected = if n < OUTSTANDING_MAX as i32 { 1 } else { 3 };
        assert_eq!(actions.len(), expected, "{actions:?}");
        assert_eq!(actions[0] == "cancel 1", expected == 3);
    }
}

#[test]
fn automatic_requests_are_debounced_and_others_are_not() {
    let mut scene = Scene::new(50, "abc");
    assert!(scene.ask(1, URI, 3, AUTOMATIC).is_empty());
    assert_eq!(scene.completions.due(), Some(scene.now + Duration::from_millis(50)));
    assert!(scene.after(49).is_empty());
    assert_eq!(scene.ask(2, URI, 3, AUTOMATIC), ["1: error -32801"], "it was never started");
    assert!(scene.after(49).is_empty());
    assert_eq!(scene.after(1), ["start 1 \"abc\"|\"\""]);
    assert_eq!(scene.completions.due(), None);
    assert_eq!(scene.request(3, 3), ["cancel 1", "2: error -32801", "start 2 \"abc\"|\"\""]);
}

#[test]
fn typing_through_is_answered_without_the_engine_and_without_debounce() {
    let mut scene = Scene::new(50, "fn ");
    scene.request(1, 3);
    scene.finish(1, "main() {}");
    assert!(scene.insert(3, "m").is_empty());
    assert_eq!(scene.ask(2, URI, 4, AUTOMATIC), ["2: ain() {}"]);
    scene.insert(4, "ain");
    assert_eq!(scene.ask(3, URI, 7, AUTOMATIC), ["3: () {}"]);
    // Another key than the suggested one.
    scene.insert(7, "x");
    assert!(scene.ask(4, URI, 8, AUTOMATIC).is_empty());
    assert_eq!(scene.after(50).len(), 1);
}

#[test]
fn all_typed_or_elsewhere_goes_to_the_engine() {
    let mut scene = Scene::new(0, "ab");
    scene.request(1, 2);
    scene.finish(1, "c");
    assert_eq!(scene.request(2, 1), ["start 2 \"a\"|\"b\""]);
    scene.finish(2, "z");
    scene.insert(1, "z");
    assert_eq!(scene.request(3, 2), ["start 3 \"az\"|\"b\""]);
}

#[test]
fn a_suggestion_is_forgotten_with_its_document() {
    let mut scene = Scene::new(0, "ab");
    scene.request(1, 2);
    scene.finish(1, "c");
    scene.open(URI, "ab");
    assert_eq!(scene.request(2, 2), ["start 2 \"ab\"|\"\""]);
}

#[test]
fn the_client_cancels() {
    let mut scene = Scene::new(0, "abc");
    scene.request(1, 3);
    scene.completions.cancel(&RequestId::from(2));
    assert!(scene.actions().is_empty());
    scene.completions.cancel(&RequestId::from(1));
    assert_eq!(scene.actions(), ["cancel 1", "1: error -32800"]);
}

#[test]
fn invalid_places_are_errors() {
    let mut scene = Scene::new(0, "a😀");
    assert_eq!(scene.ask(1, "file:///other", 0, 1), ["1: error -32803"]);
    assert_eq!(scene.request(2, 2), ["2: error -32602"], "inside a surrogate pair");
    let params = CompletionParams {
        text_document: DocumentId { uri: URI.into() },
        position: Position { line: 7, character: 0 },
        context: None,
    };
    scene.completions.request(scene.now, 3.into(), Kind::Inline, &params);
    assert_eq!(scene.actions(), ["3: error -32602"]);
    assert_eq!(scene.request(4, 99), ["start 1 \"a😀\"|\"\""], "behind the end of the line is its end");
}

#[test]
fn requests_wait_for_the_first_connection_only() {
    let mut scene = Scene::new(0, "abc");
    scene.completions.link = Link::Connecting;
    assert!(scene.request(1, 3).is_empty());
    scene.completions.set_link(scene.now, Link::Up);
    assert_eq!(scene.actions(), ["start 1 \"abc\"|\"\""]);
    scene.completions.set_link(scene.now, Link::Away("gone".into()));
    let shown = "shown \"lapce-ipc: no completions: gone\"";
    assert_eq!(scene.actions(), ["cancel 1", shown, "1: error -32803"]);
    assert_eq!(scene.request(2, 3), ["2: error -32803"], "the user is told once");
    scene.completions.set_link(scene.now, Link::Up);
    scene.request(3, 3);
    scene.finish(2, "x");
    scene.insert(3, "y");
    scene.completions.set_link(scene.now, Link::Away("gone".into()));
    assert_eq!(scene.request(4, 4), [shown, "4: error -32803"], "told again after a success");
}

#[test]
fn each_kind_of_failure_is_told_once() {
    let mut scene = Scene::new(0, "abc");
    let open = Failure { retry_after: Some(Duration::from_millis(1500)), ..Failure::new(FailureKind::Breaker, "open") };
    let mut fail = |call: u64, failure: &Failure| {
        scene.request(1, 3);
        scene.completions.failed(call, failure);
        let actions = scene.completions.take_actions();
        let Some(Action::Send(Message::Response(response))) = actions.last() else { panic!("{actions:?}") };
        (actions.len(), response.response_result.clone().unwrap_err())
    };
    let (count, error) = fail(1, &open);
    assert_eq!((count, error.code, error.data), (2, -32803, Some(json!({ "retryAfterMs": 1500 }))));
    assert_eq!(fail(2, &open).0, 1);
    assert_eq!(fail(3, &Failure::new(FailureKind::NoEngine, "no engine")).0, 2);
}

#[test]
fn an_endless_completion_is_cancelled() {
    let mut scene = Scene::new(0, "abc");
    scene.request(1, 3);
    assert!(scene.part(1, &"x".repeat(TEXT_BYTES_MAX), None).is_empty());
    let actions = scene.part(1, "x", None);
    assert_eq!((actions[0].as_str(), actions[2].as_str()), ("cancel 1", "1: error -32803"));
}

#[test]
fn no_text_is_an_empty_list_and_in_the_other_list_null() {
    assert_eq!(result(Kind::Inline, Position { line: 0, character: 1 }, ""), json!({ "items": [] }));
    assert_eq!(result(Kind::Listed, Position { line: 0, character: 1 }, " "), Value::Null);
    let listed = result(Kind::Listed, Position { line: 0, character: 1 }, "  foo\nbar");
    assert_eq!(listed["items"][0]["label"], "foo");
    assert_eq!(listed["items"][0]["textEdit"]["newText"], "  foo\nbar");
}

#[test]
fn a_carriage_return_document_gets_its_line_ends() {
    let mut scene = Scene::new(0, "x\r\ny");
    scene.request(1, 1);
    assert_eq!(scene.finish(1, " {\n}"), ["1:  {\r\n}"]);
}

/// What a client, an engine and the broker may do in any order.
#[derive(Clone, Debug)]
enum Step {
    Open(u8),
    Insert(u8),
    Close(u8),
    LoseSync,
    Request(u8, bool),
    Cancel(prop::sample::Index),
    Part(prop::sample::Index, bool),
    Fail(prop::sample::Index),
    Wait(u8),
    Link(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        2 => (0u8..3).prop_map(Step::Open),
        3 => (0u8..3).prop_map(Step::Insert),
        1 => (0u8..3).prop_map(Step::Close),
        1 => Just(Step::LoseSync),
        6 => (0u8..3, any::<bool>()).prop_map(|(document, automatic)| Step::Request(document, automatic)),
        1 => index().prop_map(Step::Cancel),
        5 => (index(), any::<bool>()).prop_map(|(call, is_last)| Step::Part(call, is_last)),
        1 => index().prop_map(Step::Fail),
        3 => (0u8..100).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Link),
    ]
}

/// What is outstanding: a reply for each request, an end for each call.
#[derive(Default)]
struct Ledger {
    /// Requests without a reply, with their document and its changes at that time.
    open: BTreeMap<i32, (u8, u64)>,
    replied: BTreeSet<i32>,
    calls: BTreeSet<u64>,
    changes: [u64; 3],
}

impl Ledger {
    fn read(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(Message::Response(Response { id, response_result })) => {
                    let id: i32 = id.to_string().parse().expect("a number");
                    assert!(self.replied.insert(id), "a second reply to {id}");
                    let (document, changes) = self.open.remove(&id).expect("a reply to no request");
                    let is_stale = self.changes[document as usize] != changes;
                    assert!(response_result.is_err() || !is_stale, "a stale reply to {id}");
                }
                Action::Start { call, .. } => assert!(self.calls.insert(call)),
                Action::Cancel { call } => assert!(self.calls.remove(&call), "no call {call}"),
                _ => {}
            }
            assert!(self.calls.len() <= self.open.len(), "a call without a request");
        }
    }

    fn call(&self, index: prop::sample::Index) -> Option<u64> {
        (!self.calls.is_empty()).then(|| *index.get(&self.calls.iter().copied().collect::<Vec<_>>()))
    }
}

proptest! {
    #[test]
    fn each_request_gets_one_reply_none_is_stale_and_no_call_is_left(steps in prop::collection::vec(step(), 0..80)) {
        let mut scene = Scene::new(50, "");
        let (mut ledger, mut next) = (Ledger::default(), 0);
        let uri = |document: u8| format!("file:///{document}");
        for step in steps {
            let touched = match step {
                Step::Open(document) | Step::Insert(document) | Step::Close(document) => Some(document),
                _ => None,
            };
            if let Some(document) = touched {
                ledger.changes[document as usize] += 1;
            }
            match step {
                Step::Open(document) => scene.open(&uri(document), "text"),
                Step::Insert(document) => {
                    let at = Position { line: 0, character: 99 };
                    let change = Change { range: Some(Range { start: at, end: at }), text: "x".into() };
                    scene.completions.change(&uri(document), 1, &[change]);
                }
                Step::Close(document) => scene.completions.close(&uri(document)),
                Step::LoseSync => {
                    ledger.changes.iter_mut().for_each(|changes| *changes += 1);
                    scene.completions.lose_sync(None, "a test");
                }
                Step::Request(document, automatic) => {
                    next += 1;
                    ledger.open.insert(next, (document, ledger.changes[document as usize]));
                    let params = CompletionParams {
                        text_document: DocumentId { uri: uri(document) },
                        position: Position { line: 0, character: 99 },
                        context: Some(CompletionContext { trigger_kind: if automatic { AUTOMATIC } else { 1 } }),
                    };
                    scene.completions.request(scene.now, next.into(), Kind::Inline, &params);
                }
                Step::Cancel(index) if !ledger.open.is_empty() => {
                    let ids: Vec<i32> = ledger.open.keys().copied().collect();
                    scene.completions.cancel(&(*index.get(&ids)).into());
                }
                Step::Part(index, is_last) => if let Some(call) = ledger.call(index) {
                    if is_last {
                        ledger.calls.remove(&call);
                    }
                    let finish = is_last.then_some(FinishReason::Stop);
                    scene.completions.part(call, &Part { text: "xyz".into(), finish });
                },
                Step::Fail(index) => if let Some(call) = ledger.call(index) {
                    ledger.calls.remove(&call);
                    scene.completions.failed(call, &Failure::new(FailureKind::Engine, "a test"));
                },
                Step::Wait(ms) => {
                    scene.now += Duration::from_millis(ms.into());
                    scene.completions.tick(scene.now);
                }
                Step::Link(is_up) => {
                    let link = if is_up { Link::Up } else { Link::Away("a test".into()) };
                    scene.completions.set_link(scene.now, link);
                }
                Step::Cancel(_) => {}
            }
            ledger.read(scene.completions.take_actions());
        }
        scene.completions.set_link(scene.now, Link::Away("the end".into()));
        ledger.read(scene.completions.take_actions());
        prop_assert!(ledger.open.is_empty() && ledger.calls.is_empty(), "{:?} {:?}", ledger.open, ledger.calls);
    }
}

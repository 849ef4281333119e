//! A client of the Language Server Protocol, as raw as the tests need it: it starts `lapce-ipc lsp`, frames JSON by
//! itself, and keeps a document whose text is known at any time.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(unreachable_pub, reason = "pub is what a test may use")]

use super::support::{Broker, DEADLINE, LAPCE_IPC, command, wait_until};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// The document that the tests edit.
pub const URI: &str = "file:///work/a.rs";

/// A language server process, and this side of its pipes.
pub struct Lsp {
    child: Child,
    stdin: Option<ChildStdin>,
    incoming: Receiver<Value>,
    /// Received, but not what was waited for.
    kept: VecDeque<Value>,
    next_id: i64,
    version: i64,
    /// The text of [`URI`], which is one line.
    pub text: String,
}

impl Lsp {
    /// Starts one at a broker, with further arguments, and initializes it.
    #[track_caller]
    pub fn start(broker: &Broker, args: &[&str]) -> Lsp {
        let mut lsp = Lsp::spawn(broker.command(&[&["lsp"], args].concat()));
        lsp.initialize();
        lsp
    }

    /// Starts a command that is one.
    #[track_caller]
    pub fn spawn(mut command: Command) -> Lsp {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("the program starts");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("a pipe"));
        let (sender, incoming) = sync_channel(100_000);
        std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            while let Some(message) = read(&mut stdout) {
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        Lsp { child, stdin, incoming, kept: VecDeque::new(), next_id: 0, version: 0, text: String::new() }
    }

    /// One without a broker's socket of its own, for `--start`.
    pub fn command(args: &[&str]) -> Command {
        let mut command = command(LAPCE_IPC);
        command.arg("lsp").args(args);
        command
    }

    /// Initializes it; returns the capabilities. The request's id is 0, as Lapce's is.
    #[track_caller]
    pub fn initialize(&mut self) -> Value {
        let id = self.request("initialize", &json!({ "processId": null, "rootUri": null, "capabilities": {} }));
        let reply = self.reply(id);
        self.notify("initialized", &json!({}));
        reply["result"]["capabilities"].clone()
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes bytes as they are. A server that has ended takes none.
    pub fn write(&mut self, bytes: &[u8]) {
        if let Some(stdin) = &mut self.stdin {
            let _ = stdin.write_all(bytes).and_then(|()| stdin.flush());
        }
    }

    pub fn send(&mut self, message: &Value) {
        self.send_text(&message.to_string());
    }

    pub fn send_text(&mut self, text: &str) {
        self.write(format!("Content-Length: {}\r\n\r\n{text}", text.len()).as_bytes());
    }

    /// Sends a request; returns its id.
    pub fn request(&mut self, method: &str, params: &Value) -> i64 {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }));
        id
    }

    pub fn notify(&mut self, method: &str, params: &Value) {
        self.send(&json!({ "jsonrpc": "2.0", "method": method, "params": params }));
    }

    /// Opens [`URI`].
    pub fn open(&mut self, text: &str) {
        self.open_as(URI, text);
        self.text = text.to_owned();
    }

    pub fn open_as(&mut self, uri: &str, text: &str) {
        self.version += 1;
        let document = json!({ "uri": uri, "languageId": "rust", "version": self.version, "text": text });
        self.notify("textDocument/didOpen", &json!({ "textDocument": document }));
    }

    /// Types at the end of the text.
    pub fn type_text(&mut self, text: &str) {
        self.version += 1;
        let at = json!({ "line": 0, "character": self.text.encode_utf16().count() });
        let change = json!({ "range": { "start": at, "end": at }, "text": text });
        let document = json!({ "uri": URI, "version": self.version });
        self.notify("textDocument/didChange", &json!({ "textDocument": document, "contentChanges": [change] }));
        self.text += text;
    }

    /// Requests a completion at the end of the text, as a key does (`trigger_kind` 2) or a command (1).
    pub fn complete(&mut self, trigger_kind: u32) -> i64 {
        let character = self.text.encode_utf16().count();
        self.complete_at(URI, character, trigger_kind)
    }

    pub fn complete_at(&mut self, uri: &str, character: usize, trigger_kind: u32) -> i64 {
        let params = json!({
            "textDocument": { "uri": uri },
            "position": { "line": 0, "character": character },
            "context": { "triggerKind": trigger_kind },
        });
        self.request("textDocument/inlineCompletion", &params)
    }

    /// The next message, if one comes within `timeout`.
    pub fn next_within(&mut self, timeout: Duration) -> Option<Value> {
        if let Some(message) = self.kept.pop_front() {
            return Some(message);
        }
        self.incoming.recv_timeout(timeout).ok()
    }

    /// The first message for which `wanted` holds; the others are kept.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.kept.iter().position(&wanted) {
            return self.kept.remove(at).expect("it is there");
        }
        let until = Instant::now() + DEADLINE;
        loop {
            match self.incoming.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(message) if wanted(&message) => return message,
                Ok(message) => self.kept.push_back(message),
                Err(RecvTimeoutError::Timeout) => panic!("waited {DEADLINE:?} for {what}; got {:?}", self.kept),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended without {what}; got {:?}", self.kept),
            }
        }
    }

    /// The reply to a request.
    #[track_caller]
    pub fn reply(&mut self, id: i64) -> Value {
        self.wait_for(&format!("a reply to {id}"), |message| message["id"] == id && message["method"].is_null())
    }

    /// The text of a completion; panics if it is an error.
    #[track_caller]
    pub fn text_of(&mut self, id: i64) -> String {
        let reply = self.reply(id);
        let items = reply["result"]["items"].as_array().unwrap_or_else(|| panic!("no items: {reply}"));
        let text = |item: &Value| item["insertText"].as_str().expect("a text").to_owned();
        items.first().map(text).unwrap_or_default()
    }

    /// The code of an error; panics if it is a result.
    #[track_caller]
    pub fn code_of(&mut self, id: i64) -> i64 {
        let reply = self.reply(id);
        reply["error"]["code"].as_i64().unwrap_or_else(|| panic!("no error: {reply}"))
    }

    /// The messages to the user so far.
    pub fn shown(&mut self) -> Vec<String> {
        while let Ok(message) = self.incoming.try_recv() {
            self.kept.push_back(message);
        }
        let shown = self.kept.iter().filter(|message| message["method"] == "window/showMessage");
        shown.map(|message| message["params"]["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Ends its input.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        wait_until("the language server to end", || self.child.try_wait().expect("its status").is_some());
        self.child.wait().expect("its status")
    }
}

impl Drop for Lsp {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a message; none at the end.
fn read(input: &mut impl BufRead) -> Option<Value> {
    let mut length = None;
    loop {
        let mut line = String::new();
        if input.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end().split_once(": ") {
            Some(("Content-Length", value)) => length = value.parse::<usize>().ok(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length.expect("a Content-Length")];
    input.read_exact(&mut body).ok()?;
    Some(serde_json::from_slice(&body).expect("JSON"))
}

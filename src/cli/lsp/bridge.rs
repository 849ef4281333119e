//! The loop of the server: messages of the client, events of the broker, and the time.
//!
//! The client's messages come first: what has arrived is read before a reply is written, so that no reply is for a text
//! that is known to be old.

use super::super::failure::{Code, Failure};
use super::super::output::Out;
use super::broker::{self, Event};
use super::completions::{Action, Failure as CallFailure, FailureKind, Settings};
use super::framing::{Frame, read_frame};
use super::session::Session;
use super::start::Starter;
use crate::client::asynchronous::AsyncClient;
use crate::client::{Builder, RequestOptions};
use crate::wire::typed::{CompletionRequest, Form, Message as TypedMessage};
use lsp_server::{Message, ResponseError};
use serde_json::json;
use std::collections::{HashMap, VecDeque};
use std::io::{self, BufReader};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::AbortHandle;

/// Messages read ahead. Each may be long, so there are few; the pipe holds what comes behind them.
const READ_AHEAD: usize = 8;
/// Messages and events that wait to be written or handled.
const QUEUE: usize = 256;
/// The longest message of a client.
const MESSAGE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How long the last messages may take to be written after the end of input.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A message to the client.
enum Outgoing {
    Message(Message),
    /// An error about a message without a known id.
    Unidentified(ResponseError),
}

/// The server, with its connections.
pub(super) struct Bridge {
    session: Session,
    service: String,
    options: RequestOptions,
    client: Option<AsyncClient>,
    calls: HashMap<u64, AbortHandle>,
}

impl Bridge {
    pub(super) fn new(settings: Settings, options: RequestOptions) -> Bridge {
        let service = settings.service.clone();
        Bridge { session: Session::new(settings), service, options, client: None, calls: HashMap::new() }
    }

    /// Serves until the end of input or `exit`.
    ///
    /// # Errors
    ///
    /// If the client breaks the framing, or ends without `shutdown`.
    pub(super) async fn run(mut self, builder: Builder, starter: Option<Starter>) -> Result<(), Failure> {
        let (out, written) = write_messages(Out::new()?)?;
        let mut incoming = read_messages()?;
        let (events, mut occurred) = channel(QUEUE);
        let connection = tokio::spawn(broker::keep_connected(builder, starter, events.clone()));
        let ended = loop {
            let due = self.session.due();
            tokio::select! {
                biased;
                frame = incoming.recv() => match frame {
                    Some(Ok(Frame::Message(body))) => self.session.message(Instant::now(), &body),
                    Some(Ok(Frame::TooLong { length })) => self.session.too_long(length, MESSAGE_BYTES_MAX),
                    Some(Err(error)) => break Err(broken(&error)),
                    None => break Ok(()),
                },
                Some(event) = occurred.recv() => self.event(event),
                () = sleep_until(due) => self.session.tick(Instant::now()),
            }
            if let Some(ended) = self.perform(&events, &out).await {
                break ended;
            }
        };
        connection.abort();
        for call in self.calls.values() {
            call.abort();
        }
        drop(out);
        let _ = tokio::time::timeout(LAST_WORDS, written).await;
        if let Some(client) = self.client {
            client.close();
        }
        ended
    }

    fn event(&mut self, event: Event) {
        let now = Instant::now();
        if let Some(link) = event.link() {
            self.session.set_link(now, link);
        }
        match event {
            Event::Up(client) => self.client = Some(client),
            Event::Away(_) => {}
            Event::Part { call, part } => {
                if part.finish.is_some() {
                    self.calls.remove(&call);
                }
                self.session.part(call, &part);
            }
            Event::Failed { call, failure } => {
                self.calls.remove(&call);
                self.session.failed(call, &failure);
            }
        }
    }

    /// Does what the session wants; `Some`: the server ends.
    async fn perform(&mut self, events: &Sender<Event>, out: &Sender<Outgoing>) -> Option<Result<(), Failure>> {
        let mut actions = VecDeque::from(self.session.take_actions());
        while let Some(action) = actions.pop_front() {
            let message = match action {
                Action::Send(message) => Outgoing::Message(message),
                Action::SendUnidentified(error) => Outgoing::Unidentified(error),
                Action::Start { call, request } => {
                    self.start(call, request, events);
                    actions.extend(self.session.take_actions());
                    continue;
                }
                Action::Cancel { call } => {
                    if let Some(running) = self.calls.remove(&call) {
                        running.abort();
                    }
                    continue;
                }
                Action::Exit { in_order: true } => return Some(Ok(())),
                Action::Exit { in_order: false } => {
                    return Some(Err(Failure::new(Code::ErrorReply, "the client sent exit without shutdown")));
                }
            };
            if out.send(message).await.is_err() {
                // The client does not read any more.
                return Some(Ok(()));
            }
        }
        None
    }

    fn start(&mut self, call: u64, request: CompletionRequest, events: &Sender<Event>) {
        let Some(client) = self.client.clone() else { return };
        match TypedMessage::CompletionRequest(request).encode_as(Form::Json) {
            Ok(payload) => {
                let running = broker::call(client, self.service.clone(), self.options, call, payload, events.clone());
                self.calls.insert(call, running);
            }
            Err(error) => self.session.failed(call, &CallFailure::new(FailureKind::Engine, error.to_string())),
        }
    }
}

fn broken(error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::InvalidData { Code::Protocol } else { Code::Unavailable };
    Failure::new(code, format!("cannot read from the client: {error}"))
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

fn no_thread(error: io::Error) -> Failure {
    Failure::new(Code::Unavailable, format!("cannot start a thread: {error}"))
}

/// Reads stdin in a thread; the channel ends with the input, or after an error.
fn read_messages() -> Result<Receiver<io::Result<Frame>>, Failure> {
    let (sender, receiver) = channel(READ_AHEAD);
    let read = move || {
        let mut input = BufReader::with_capacity(64 * 1024, io::stdin());
        while let Some(frame) = read_frame(&mut input, MESSAGE_BYTES_MAX).transpose() {
            let is_last = frame.is_err();
            if sender.blocking_send(frame).is_err() || is_last {
                return;
            }
        }
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read).map_err(no_thread)?;
    Ok(receiver)
}

/// Writes to stdout in a thread. The second channel ends when all is written.
fn write_messages(mut out: Out) -> Result<(Sender<Outgoing>, tokio::sync::oneshot::Receiver<()>), Failure> {
    let (sender, mut receiver) = channel::<Outgoing>(QUEUE);
    let (done, written) = tokio::sync::oneshot::channel();
    let write = move || {
        let _done = done;
        while let Some(message) = receiver.blocking_recv() {
            let mut bytes = Vec::new();
            let made = match message {
                Outgoing::Message(message) => message.write(&mut bytes),
                Outgoing::Unidentified(error) => {
                    let text = json!({ "jsonrpc": "2.0", "id": null, "error": error }).to_string();
                    io::Write::write_fmt(&mut bytes, format_args!("Content-Length: {}\r\n\r\n{text}", text.len()))
                }
            };
            if made.is_err() || out.write(&bytes).and_then(|()| out.flush()).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("stdout".to_owned()).spawn(write).map_err(no_thread)?;
    Ok((sender, written))
}

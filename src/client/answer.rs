//! Answering: what a request is to who answers it, and how its answer goes out.

use super::error::{Kind, Result};
use super::inner::{Inner, Table, deadline, lock};
use super::lane::part_flags;
use crate::shm::layout::cells_for;
use crate::wire::record::{Flags, Header, Kind as RecordKind, Outcome};
use std::borrow::Cow;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The end of an answer that is an error of the responder's own.
const FAILED: Flags = Flags::END.with(Flags::ERROR).with(Flags::FAILURE);
/// What a requester is told when nobody answers. One cell.
const DROPPED: &[u8] = b"the responder dropped the request without an answer";
const _: () = assert!(cells_for(DROPPED.len() as u32) == 1);

/// A call that is to be answered, as the reader sees it.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) call: u64,
    /// In which of the client's sessions it came.
    pub(super) session: u64,
    requester: u32,
    deadline: Option<Instant>,
    stream: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    body: Vec<u8>,
    owed: u32,
    /// Cells of answer that may be sent.
    credit: u32,
    ended: Option<Outcome>,
}

impl Incoming {
    pub(super) fn new(header: &Header, session: u64, credit: u32) -> Incoming {
        Incoming {
            call: header.seq,
            session,
            requester: header.origin,
            deadline: (header.nanos > 0).then(|| deadline(Some(Duration::from_nanos(header.nanos)))).flatten(),
            stream: header.flags.has(Flags::STREAM),
            state: Mutex::new(State { body: Vec::new(), owed: 0, credit, ended: None }),
        }
    }

    /// A record of the body. Answers how much credit is to be given back.
    pub(super) fn append(&self, cells: u32, last: bool, step: u32, append: impl FnOnce(&mut Vec<u8>)) -> u32 {
        let mut state = lock(&self.state);
        append(&mut state.body);
        state.owed += cells;
        if !last && state.owed >= step { std::mem::take(&mut state.owed) } else { 0 }
    }

    pub(super) fn add_credit(&self, cells: u32) {
        let mut state = lock(&self.state);
        state.credit = state.credit.saturating_add(cells);
    }

    pub(super) fn end(&self, outcome: Outcome) {
        lock(&self.state).ended = Some(outcome);
    }
}

/// A request to be answered. Dropped without an answer, or before its answer is whole, it is answered with an error.
#[derive(Debug)]
pub struct Request {
    inner: Arc<Inner>,
    call: Arc<Incoming>,
    payload: Vec<u8>,
    is_answered: bool,
}

/// The outcome of sending a part of an answer: an error says that nobody waits for it any more.
pub type Reply = Result<()>;

impl Request {
    /// The request that a call brings, if anybody waits for its answer still.
    pub(super) fn of(inner: &Arc<Inner>, call: Arc<Incoming>) -> Option<Request> {
        let payload = {
            let mut state = lock(&call.state);
            if state.ended.is_some() {
                return None;
            }
            std::mem::take(&mut state.body)
        };
        Some(Request { inner: inner.clone(), call, payload, is_answered: false })
    }

    /// What was sent.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// What was sent, without a copy; [`Request::payload`] is empty from then on. The request itself is still to be
    /// answered, which is why this does not consume it.
    ///
    /// ```
    /// # #[cfg(feature = "broker")]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use lapce_ipc::{broker, client::Client, config::{Env, Loaded}};
    /// # let folder = tempfile::tempdir()?;
    /// # let socket = folder.path().join("ipc.sock");
    /// # let mut loaded = Loaded::default();
    /// # loaded.settle_socket(Some(socket.as_os_str()), &Env::default())?;
    /// # let (listens, is_listening) = std::sync::mpsc::sync_channel(1);
    /// # std::thread::spawn(move || broker::run(loaded, || Ok(Loaded::default()), |_| listens.send(()).unwrap()));
    /// # is_listening.recv()?;
    /// # let client = Client::builder().socket(&socket).connect()?;
    /// let mut service = client.serve("upper")?;
    /// let mut stream = client.request_stream("upper", "hello")?;
    ///
    /// let mut request = service.next().expect("a request")?;
    /// let mut text = request.take_payload();
    /// text.make_ascii_uppercase();
    /// request.reply(text)?;
    ///
    /// assert_eq!(stream.next().expect("a reply")?, b"HELLO");
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "broker"))]
    /// # fn main() {}
    /// ```
    #[must_use]
    pub fn take_payload(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.payload)
    }

    /// The id of the connection that asks.
    #[must_use]
    pub fn requester(&self) -> u32 {
        self.call.requester
    }

    /// Until when an answer is waited for; `None`: a stream without a total, which goes on as long as each chunk comes
    /// in time after the one before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.call.deadline
    }

    /// Whether the requester expects a stream of chunks. Others take them too, joined.
    #[must_use]
    pub fn wants_stream(&self) -> bool {
        self.call.stream
    }

    /// Whether nobody waits for the answer any more, as far as is known: it learns of a cancel while anybody in this
    /// process waits for messages, or when a chunk is sent.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        lock(&self.call.state).ended.is_some()
    }

    /// Sends a chunk of a streamed answer. It waits while the requester has no room for it.
    ///
    /// # Errors
    ///
    /// If the requester has cancelled or its time is over ([`Error::is_cancelled`](super::Error::is_cancelled),
    /// [`Error::is_deadline_exceeded`](super::Error::is_deadline_exceeded)), the chunk is too large, or the connection
    /// has ended.
    pub fn chunk(&mut self, payload: impl AsRef<[u8]>) -> Reply {
        let chunk = Answer::chunk(&self.inner, payload.as_ref())?;
        self.send(chunk)
    }

    /// Ends a streamed answer.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub fn finish(mut self) -> Reply {
        self.send(Answer::finish())
    }

    /// Answers: the whole of it, or the last chunk.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub fn reply(mut self, payload: impl AsRef<[u8]>) -> Reply {
        let reply = Answer::reply(&self.inner, payload.as_ref());
        self.send(reply)
    }

    /// Answers with an error that is the question's fault: unlike [`Request::fail`] it does not count at the breaker.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub fn refuse(mut self, text: &str) -> Reply {
        let refusal = Answer::refuse(&self.inner, text);
        self.send(refusal)
    }

    /// Answers with an error: the service has failed. Several in a row open its breaker.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub fn fail(mut self, text: &str) -> Reply {
        let failure = Answer::fail(&self.inner, text);
        self.send(failure)
    }

    fn send(&mut self, mut answer: Answer<'_>) -> Reply {
        self.inner.check_fork()?;
        // Learns of a cancel even if nobody in this process waits.
        self.inner.sort_now();
        match answer.step(self) {
            Some(sent) => sent,
            None => {
                let inner = self.inner.clone();
                inner.wait_until(None, || answer.step(self))?
            }
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.is_answered && self.inner.is_ours() {
            give_up(&self.inner, &mut lock(&self.inner.table), &self.call);
        }
    }
}

/// The sending of one message of an answer, part by part.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    payload: Cow<'a, [u8]>,
    flags: Flags,
    /// Bytes that were sent.
    at: usize,
    /// What its sender is told when it is sent.
    told: Reply,
}

impl<'a> Answer<'a> {
    fn new(payload: Cow<'a, [u8]>, flags: Flags, told: Reply) -> Answer<'a> {
        Answer { payload, flags, at: 0, told }
    }

    pub(super) fn chunk(inner: &Inner, payload: &'a [u8]) -> Result<Answer<'a>> {
        inner.check_size(payload.len())?;
        Ok(Answer::new(payload.into(), Flags::default(), Ok(())))
    }

    pub(super) fn finish() -> Answer<'static> {
        Answer::new(Cow::Borrowed(&[]), Flags::END.with(Flags::STREAM), Ok(()))
    }

    pub(super) fn reply(inner: &Inner, payload: &'a [u8]) -> Answer<'a> {
        Answer::last(inner, payload, Flags::END)
    }

    pub(super) fn refuse(inner: &Inner, text: &'a str) -> Answer<'a> {
        Answer::last(inner, text.as_bytes(), Flags::END.with(Flags::ERROR))
    }

    pub(super) fn fail(inner: &Inner, text: &'a str) -> Answer<'a> {
        Answer::last(inner, text.as_bytes(), FAILED)
    }

    fn last(inner: &Inner, payload: &'a [u8], flags: Flags) -> Answer<'a> {
        match inner.check_size(payload.len()) {
            Ok(_) => Answer::new(payload.into(), flags, Ok(())),
            // The requester is told now, not by its deadline.
            Err(error) => Answer::new(error.to_string().into_bytes().into(), FAILED, Err(error)),
        }
    }

    /// Sends what credit and space allow. `None`: it is not whole yet.
    pub(super) fn step(&mut self, request: &mut Request) -> Option<Reply> {
        let (inner, call) = (&request.inner, &request.call);
        loop {
            let (at, total) = (self.at, self.payload.len());
            let part = &self.payload[at..total.min(at + inner.limits.slot_size() as usize)];
            let flags = self.flags.with(part_flags(at, part.len(), total));
            let (seq, total) = (call.call, total as u32);
            let header = Header { flags, total, seq, ..Header::new(RecordKind::Response) };
            {
                let mut state = lock(&call.state);
                if let Some(outcome) = state.ended {
                    return Some(Err(Kind::Outcome { outcome, retry_after: None }.into()));
                }
                // Credit is spent with the record, not before: whoever gives up in between has not lost it.
                let left = state.credit.checked_sub(cells_for(part.len() as u32))?;
                match inner.try_express(call.session, &header, part) {
                    Ok(true) => state.credit = left,
                    Ok(false) => return None,
                    Err(error) => return Some(Err(error)),
                }
            }
            self.at += part.len();
            if !flags.has(Flags::LAST) {
                continue;
            }
            if flags.has(Flags::END) {
                request.is_answered = true;
                lock(&inner.table).take_call(call);
            }
            return Some(std::mem::replace(&mut self.told, Ok(())));
        }
    }
}

#[cfg(feature = "tokio")]
impl Answer<'_> {
    pub(super) fn is_begun(&self) -> bool {
        self.at > 0
    }

    /// Whether it goes as one record, so that nothing can come between its parts.
    pub(super) fn is_one_record(&self, inner: &Inner) -> bool {
        self.payload.len() <= inner.limits.slot_size() as usize
    }

    pub(super) fn into_owned(self) -> Answer<'static> {
        Answer { payload: self.payload.into_owned().into(), ..self }
    }
}

impl Table {
    /// A call is over for us. Answers whether it was still to be answered.
    fn take_call(&mut self, call: &Arc<Incoming>) -> bool {
        // By its number there may be another, in another session.
        let is_here = self.calls.get(&call.call).is_some_and(|here| Arc::ptr_eq(here, call));
        is_here && self.calls.remove(&call.call).is_some()
    }
}

/// Nobody answers this call, or goes on with its answer: it ends as an error. Never waits.
pub(super) fn give_up(inner: &Inner, table: &mut Table, call: &Arc<Incoming>) {
    if !table.take_call(call) {
        return;
    }
    // An error of one cell needs no credit, and may come in the middle of a message (see `wire::record`).
    let (flags, total) = (FAILED.with(Flags::WHOLE), DROPPED.len() as u32);
    let header = Header { flags, total, seq: call.call, ..Header::new(RecordKind::Response) };
    inner.post(call.session, &header, DROPPED);
}

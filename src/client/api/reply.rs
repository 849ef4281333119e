//! Replying: a request as its responder sees it, and the sending of its reply.

use crate::client::connection::calls::{self, FAILED};
use crate::client::connection::shared::Connection;
use crate::client::data::incoming_call::IncomingCall;
use crate::client::data::lock::lock;
use crate::client::engine::wait;
use crate::client::error::Result;
use crate::shm::layout::cells_for;
use crate::wire::record::{Flags, Header, Kind as RecordKind};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

/// A request to a service. Dropping it before its reply is complete rejects it with an error.
#[derive(Debug)]
pub struct Request {
    connection: Arc<Connection>,
    call: Arc<IncomingCall>,
    payload: Vec<u8>,
    is_answered: bool,
}

/// The result of sending a part of a reply: an error means that the requester no longer waits.
pub type Reply = Result<()>;

impl Request {
    /// The request of a call, if the call has not ended.
    pub(crate) fn of(connection: &Arc<Connection>, call: Arc<IncomingCall>) -> Option<Request> {
        let payload = call.take_body()?;
        Some(Request { connection: connection.clone(), call, payload, is_answered: false })
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The payload, without a copy; [`Request::payload`] is empty afterwards. The request is not consumed: it still
    /// expects a reply.
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
    /// # let ready = move |_: &Loaded, _: &_| listens.send(()).unwrap();
    /// # std::thread::spawn(move || broker::run(loaded, || Ok(Loaded::default()), |_| {}, ready));
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

    /// The id of the connection that sent the request.
    #[must_use]
    pub fn requester(&self) -> u32 {
        self.call.requester
    }

    /// The deadline of the request; `None`: a stream without a total limit, whose chunks have time limits only.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.call.deadline
    }

    /// Whether the requester expects a stream of chunks. For other requesters the chunks are joined.
    #[must_use]
    pub fn wants_stream(&self) -> bool {
        self.call.stream
    }

    /// Whether the requester no longer waits. A cancel is detected while a thread of this process waits for messages,
    /// or when a chunk is sent.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.call.is_ended()
    }

    /// Sends a chunk of a streamed reply. Waits for credit of the requester.
    ///
    /// # Errors
    ///
    /// If the requester has cancelled or its deadline has passed
    /// ([`Error::is_cancelled`](crate::client::Error::is_cancelled),
    /// [`Error::is_deadline_exceeded`](crate::client::Error::is_deadline_exceeded)), the chunk is too large, or the
    /// connection has ended.
    pub fn chunk(&mut self, payload: impl AsRef<[u8]>) -> Reply {
        let chunk = ReplyParts::chunk(&self.connection, payload.as_ref())?;
        self.send(chunk)
    }

    /// Ends a streamed reply.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub fn finish(mut self) -> Reply {
        self.send(ReplyParts::finish())
    }

    /// Sends the complete reply, or the last chunk. Waits for credit of the requester, at most until the deadline of
    /// the request; [`Service::reply`](crate::client::Service::reply) does not wait.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub fn reply(mut self, payload: impl AsRef<[u8]>) -> Reply {
        let reply = ReplyParts::reply(&self.connection, payload.as_ref());
        self.send(reply)
    }

    /// Rejects an invalid request with an error reply. Unlike [`Request::fail`] it does not count towards the breaker.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub fn refuse(mut self, text: &str) -> Reply {
        let refusal = ReplyParts::refuse(&self.connection, text);
        self.send(refusal)
    }

    /// Replies with an error of the service. Consecutive failures open its breaker.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub fn fail(mut self, text: &str) -> Reply {
        let failure = ReplyParts::fail(&self.connection, text);
        self.send(failure)
    }

    /// What ends the call if its requester does not take the reply.
    #[cfg(feature = "cli")]
    pub(crate) fn end_untaken(&self) -> impl FnOnce() + Send + use<> {
        let (connection, call) = (self.connection.clone(), self.call.clone());
        move || calls::end_untaken(&connection, &mut lock(&connection.table), &call)
    }

    fn send(&mut self, mut answer: ReplyParts<'_>) -> Reply {
        self.connection.check_fork()?;
        // Notices a cancel even if no thread of this process waits.
        wait::sort_pending(&self.connection);
        match answer.step(self) {
            Some(sent) => sent,
            None => {
                let connection = self.connection.clone();
                wait::for_record(&connection, None, || answer.step(self))?
            }
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.is_answered && self.connection.is_ours() {
            calls::reject(&self.connection, &mut lock(&self.connection.table), &self.call);
        }
    }
}

/// The sending of one message of a reply, part by part.
#[derive(Debug)]
pub(crate) struct ReplyParts<'a> {
    payload: Cow<'a, [u8]>,
    flags: Flags,
    /// Bytes that were sent.
    at: usize,
    /// The result of the call that sends it.
    result: Reply,
}

impl<'a> ReplyParts<'a> {
    fn new(payload: Cow<'a, [u8]>, flags: Flags, result: Reply) -> ReplyParts<'a> {
        ReplyParts { payload, flags, at: 0, result }
    }

    pub(crate) fn chunk(connection: &Connection, payload: &'a [u8]) -> Result<ReplyParts<'a>> {
        connection.check_size(payload.len())?;
        Ok(ReplyParts::new(payload.into(), Flags::default(), Ok(())))
    }

    pub(crate) fn finish() -> ReplyParts<'static> {
        ReplyParts::new(Cow::Borrowed(&[]), Flags::END.with(Flags::STREAM), Ok(()))
    }

    pub(crate) fn reply(connection: &Connection, payload: &'a [u8]) -> ReplyParts<'a> {
        ReplyParts::last(connection, payload, Flags::END)
    }

    pub(crate) fn refuse(connection: &Connection, text: &'a str) -> ReplyParts<'a> {
        ReplyParts::last(connection, text.as_bytes(), Flags::END.with(Flags::ERROR))
    }

    pub(crate) fn fail(connection: &Connection, text: &'a str) -> ReplyParts<'a> {
        ReplyParts::last(connection, text.as_bytes(), FAILED)
    }

    fn last(connection: &Connection, payload: &'a [u8], flags: Flags) -> ReplyParts<'a> {
        match connection.check_size(payload.len()) {
            Ok(_) => ReplyParts::new(payload.into(), flags, Ok(())),
            // The requester gets the error now, not at its deadline.
            Err(error) => ReplyParts::new(error.to_string().into_bytes().into(), FAILED, Err(error)),
        }
    }

    /// Sends what credit and space allow. `None`: it is not whole yet.
    pub(crate) fn step(&mut self, request: &mut Request) -> Option<Reply> {
        let (connection, call) = (&request.connection, &request.call);
        loop {
            let (at, total) = (self.at, self.payload.len());
            let part = &self.payload[at..total.min(at + connection.limits.slot_size() as usize)];
            let flags = self.flags.with(Flags::fragment(at, part.len(), total));
            let (seq, total) = (call.call, total as u32);
            let header = Header { flags, total, seq, ..Header::new(RecordKind::Response) };
            let place = || calls::place(connection, call.session, &header, part);
            if let Err(error) = call.send(cells_for(part.len() as u32), place)? {
                return Some(Err(error));
            }
            self.at += part.len();
            if !flags.has(Flags::LAST) {
                continue;
            }
            if flags.has(Flags::END) {
                request.is_answered = true;
                lock(&connection.table).take_call(call);
            }
            return Some(std::mem::replace(&mut self.result, Ok(())));
        }
    }
}

impl ReplyParts<'_> {
    pub(crate) fn into_owned(self) -> ReplyParts<'static> {
        ReplyParts { payload: self.payload.into_owned().into(), ..self }
    }
}

#[cfg(feature = "tokio")]
impl ReplyParts<'_> {
    pub(crate) fn is_begun(&self) -> bool {
        self.at > 0
    }

    /// Whether it goes as one record, so that nothing can come between its parts.
    pub(crate) fn is_one_record(&self, connection: &Connection) -> bool {
        self.payload.len() <= connection.limits.slot_size() as usize
    }
}

/// The end of a reply, on its way to its requester without a thread that waits for it. Dropped before it is whole, it
/// ends the call with an error that does not count against the service.
#[derive(Debug)]
pub(crate) struct KeptReply {
    request: Request,
    /// A chunk that has begun. It goes first.
    rest: Option<ReplyParts<'static>>,
    last: ReplyParts<'static>,
    /// Bytes that were sent before `last`.
    before: usize,
}

impl KeptReply {
    pub(crate) fn new(request: Request, rest: Option<ReplyParts<'static>>, last: ReplyParts<'_>) -> KeptReply {
        KeptReply { request, rest, last: last.into_owned(), before: 0 }
    }

    /// How many bytes of it were sent, and are in memory.
    pub(crate) fn size(&self) -> (usize, usize) {
        let rest = self.rest.as_ref().map_or((0, 0), |rest| (rest.at, rest.payload.len()));
        (self.before + rest.0 + self.last.at, rest.1 + self.last.payload.len())
    }

    /// Sends what credit and space allow. Returns how many bytes were sent so far; `None`: it is whole, or no requester
    /// waits for it.
    pub(crate) fn step(&mut self) -> Option<usize> {
        if let Some(rest) = &mut self.rest {
            match rest.step(&mut self.request) {
                Some(Ok(())) => self.before = rest.at,
                Some(Err(_)) => return None,
                None => return Some(self.size().0),
            }
            self.rest = None;
        }
        match self.last.step(&mut self.request) {
            Some(_) => None,
            None => Some(self.size().0),
        }
    }
}

impl Drop for KeptReply {
    fn drop(&mut self) {
        let Request { connection, call, is_answered, .. } = &self.request;
        if !is_answered && connection.is_ours() {
            calls::end_untaken(connection, &mut lock(&connection.table), call);
        }
    }
}

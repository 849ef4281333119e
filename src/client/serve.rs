//! Serving: requests come as an iterator, or to a handler.

use super::asked::Asked;
use super::error::{Error, Kind, Result};
use super::inner::{Inner, deadline, lock, unexpected};
use super::lane::part_flags;
use super::{Client, Name};
use crate::shm::layout::cells_for;
use crate::sync::{AtomicU64, Ordering};
use crate::wire::control::{BrokerFrame, ClientFrame};
use crate::wire::record::{Flags, Header, Kind as RecordKind, Outcome};
use std::collections::VecDeque;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The end of an answer that is an error of the responder's own.
pub(super) const FAILED: Flags = Flags::END.with(Flags::ERROR).with(Flags::FAILURE);

/// A call that is to be answered, as the reader sees it.
#[derive(Debug)]
pub(super) struct Incoming {
    call: u64,
    /// In which of the client's sessions it came.
    session: u64,
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
            deadline: deadline(Some(Duration::from_nanos(header.nanos))),
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

/// What arrives for a service.
#[derive(Debug)]
pub(super) enum Arrived {
    Request(Arc<Incoming>),
    /// So much credit is to be given back for the body of this call.
    Grant(Arc<Incoming>, u32),
}

/// What waits for whoever serves.
#[derive(Debug)]
pub(super) struct Inbox {
    arrived: Mutex<VecDeque<Arrived>>,
    pub(super) offer: Offer,
    /// The broker's number for it, in the present session.
    pub(super) number: AtomicU64,
    /// Nobody serves any more.
    pub(super) is_dropped: AtomicU64,
}

/// What a service is offered as: again, if the broker is another.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) service: Name,
    pub(super) max_in_flight: u32,
}

impl Inbox {
    pub(super) fn new(offer: Offer) -> Inbox {
        Inbox { arrived: Mutex::default(), offer, number: AtomicU64::new(0), is_dropped: AtomicU64::new(0) }
    }

    pub(super) fn push(&self, arrived: Arrived) {
        lock(&self.arrived).push_back(arrived);
    }

    fn number(&self) -> u32 {
        self.number.load(Ordering::Relaxed) as u32
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.arrived).len()
    }
}

/// A service that this client offers: an iterator of requests, which waits for the next one. Several clients may offer
/// the same service; they share its requests. Dropped, it offers no more.
#[derive(Debug)]
pub struct Service {
    inner: Arc<Inner>,
    inbox: Arc<Inbox>,
    failed: bool,
}

impl Client {
    /// Offers `service`. When it returns, requests reach us.
    ///
    /// # Errors
    ///
    /// If the name is invalid or the broker's own, this client offers it already, or the connection has ended.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// for request in client.serve("upper")? {
    ///     let request = request?;
    ///     let reply = request.payload().to_ascii_uppercase();
    ///     // An error here says that this requester no longer waits: no reason to stop.
    ///     let _ = request.reply(reply);
    /// }
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn serve(&self, service: &str) -> Result<Service> {
        self.serve_up_to(service, 0)
    }

    /// Offers `service`, and takes at most `max_in_flight` requests at a time (0: what the broker allows). Further
    /// ones go to other responders, or fail as overloaded.
    ///
    /// # Errors
    ///
    /// As [`Client::serve`].
    pub fn serve_up_to(&self, service: &str, max_in_flight: u32) -> Result<Service> {
        let (asked, service) = start(&self.inner, service, max_in_flight)?;
        let answer = self.inner.wait_for_bell(|| asked.answer())?;
        finish(service, &answer)
    }
}

/// Asks to serve. Whenever what this gives is dropped, no offer stays behind at the broker.
pub(super) fn start<'a>(inner: &'a Arc<Inner>, service: &str, max_in_flight: u32) -> Result<(Asked<'a>, Service)> {
    let service = Name::parse(service)?;
    let inbox = Arc::new(Inbox::new(Offer { service: service.clone(), max_in_flight }));
    let asked = inner.start_ask(|serial| {
        lock(&inner.table).serving.insert(serial, inbox.clone());
        ClientFrame::Serve { serial, service, max_in_flight }
    })?;
    Ok((asked, Service { inner: inner.clone(), inbox, failed: false }))
}

pub(super) fn finish(service: Service, answer: &BrokerFrame) -> Result<Service> {
    match answer {
        BrokerFrame::Serving { .. } => Ok(service),
        _ => Err(unexpected(answer)),
    }
}

impl Service {
    /// Answers every request with what `handler` returns, until the connection ends. An error or a panic of the handler
    /// becomes an error reply.
    ///
    /// # Errors
    ///
    /// Why the connection ended.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// client.serve("upper")?.run(|request| {
    ///     let text = std::str::from_utf8(request.payload())?;
    ///     Ok::<_, std::str::Utf8Error>(text.to_uppercase())
    /// })?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn run<R: AsRef<[u8]>, E: Display>(
        &mut self,
        mut handler: impl FnMut(&mut Request) -> std::result::Result<R, E>,
    ) -> Result<()> {
        loop {
            let mut request = self.receive(None)?;
            let answered = match catch_unwind(AssertUnwindSafe(|| handler(&mut request))) {
                Ok(Ok(reply)) => request.reply(reply),
                Ok(Err(error)) => request.fail(&error.to_string()),
                Err(panic) => request.fail(&format!("the responder panicked: {}", panic_text(&*panic))),
            };
            // The requester may be gone, have cancelled, or its time be over: nobody is there to be told. Only the end
            // of our own connection is ours, too.
            if answered.is_err()
                && let Some(closed) = self.inner.closed()
            {
                return Err(closed);
            }
        }
    }

    /// Waits for the next request, at most for `timeout`; `Ok(None)`: none came.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Request>> {
        match self.receive(Some(timeout)) {
            Ok(request) => Ok(Some(request)),
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self, timeout: Option<Duration>) -> Result<Request> {
        let inner = self.inner.clone();
        inner.wait_until(deadline(timeout), || self.poll())
    }

    /// The next request if it is there; on the way it gives credit back for bodies that are coming in.
    pub(super) fn poll(&mut self) -> Option<Request> {
        loop {
            let arrived = lock(&self.inbox.arrived).pop_front()?;
            match arrived {
                Arrived::Request(call) => {
                    let payload = std::mem::take(&mut lock(&call.state).body);
                    // Cancelled before it was looked at: nobody waits for it.
                    if lock(&call.state).ended.is_none() {
                        return Some(Request { inner: self.inner.clone(), call, payload, is_answered: false });
                    }
                }
                Arrived::Grant(call, cells) => {
                    let credit = Header { seq: call.call, arg: cells, ..Header::new(RecordKind::BodyCredit) };
                    if !self.inner.try_express(call.session, &credit, &[]).unwrap_or(true) {
                        lock(&self.inbox.arrived).push_front(Arrived::Grant(call, cells));
                        return None;
                    }
                }
            }
        }
    }
}

impl Iterator for Service {
    type Item = Result<Request>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let received = self.receive(None);
        self.failed = received.is_err();
        Some(received)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.inner.tell(|table, serial| {
            // Under one lock, for the number is another in the next session, or is not known yet.
            self.inbox.is_dropped.store(1, Ordering::Relaxed);
            let service = self.inbox.number();
            let is_ours = table.inboxes.get(&service).is_some_and(|inbox| Arc::ptr_eq(inbox, &self.inbox));
            is_ours.then(|| {
                table.inboxes.remove(&service);
                ClientFrame::Unserve { serial, service }
            })
        });
        // Requests that nobody will look at are answered, not left to their deadline.
        let waiting = std::mem::take(&mut *lock(&self.inbox.arrived));
        for arrived in waiting {
            if let Arrived::Request(call) = arrived {
                drop(Request { inner: self.inner.clone(), call, payload: Vec::new(), is_answered: false });
            }
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// A request to be answered. Dropped without an answer, it is answered with an error.
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
    /// # std::thread::spawn(move || broker::run(loaded, |_| listens.send(()).unwrap()));
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

    /// Until when an answer is waited for.
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
    /// If the requester has cancelled or its time is over ([`Error::is_cancelled`], [`Error::is_deadline_exceeded`]),
    /// the chunk is too large, or the connection has ended.
    pub fn chunk(&mut self, payload: impl AsRef<[u8]>) -> Reply {
        self.send(payload.as_ref(), Flags::default())
    }

    /// Ends a streamed answer.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub fn finish(mut self) -> Reply {
        self.is_answered = true;
        self.send(&[], Flags::END.with(Flags::STREAM))
    }

    /// Answers: the whole of it, or the last chunk.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub fn reply(mut self, payload: impl AsRef<[u8]>) -> Reply {
        self.is_answered = true;
        if let Err(error) = self.inner.check_size(payload.as_ref().len()) {
            // The requester is told now, not by its deadline.
            self.send(error.to_string().as_bytes(), FAILED)?;
            return Err(error);
        }
        self.send(payload.as_ref(), Flags::END)
    }

    /// Answers with an error that is the question's fault: unlike [`Request::fail`] it does not count at the breaker.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub fn refuse(mut self, text: &str) -> Reply {
        self.is_answered = true;
        self.send(text.as_bytes(), Flags::END.with(Flags::ERROR))
    }

    /// Answers with an error: the service has failed. Several in a row open its breaker.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub fn fail(mut self, text: &str) -> Reply {
        self.is_answered = true;
        self.send(text.as_bytes(), FAILED)
    }

    #[cfg(feature = "tokio")]
    pub(super) fn set_answered(&mut self) {
        self.is_answered = true;
    }

    fn send(&self, payload: &[u8], flags: Flags) -> Reply {
        self.inner.check_size(payload.len())?;
        let mut answer = Answer::new(self, payload.len(), flags);
        // Learns of a cancel even if nobody in this process waits.
        self.inner.sort_now();
        while let Some((at, end)) = answer.next_part() {
            let part = &payload[at..end];
            match answer.step(self, part) {
                Some(sent) => sent?,
                None => self.inner.wait_until(None, || answer.step(self, part))??,
            }
        }
        Ok(())
    }
}

/// The sending of one message of an answer, part by part.
pub(super) struct Answer {
    header: Header,
    total: usize,
    at: usize,
    part: usize,
    is_first: bool,
    spent: bool,
}

impl Answer {
    pub(super) fn new(request: &Request, total: usize, flags: Flags) -> Answer {
        let header = Header { flags, total: total as u32, seq: request.call.call, ..Header::new(RecordKind::Response) };
        Answer { header, total, at: 0, part: request.inner.limits.slot_size as usize, is_first: true, spent: false }
    }

    pub(super) fn next_part(&self) -> Option<(usize, usize)> {
        (self.is_first || self.at < self.total).then(|| (self.at, self.total.min(self.at + self.part)))
    }

    /// Sends the part if credit and space allow.
    pub(super) fn step(&mut self, request: &Request, part: &[u8]) -> Option<Reply> {
        let cells = cells_for(part.len() as u32);
        {
            let mut state = lock(&request.call.state);
            if let Some(outcome) = state.ended {
                return Some(Err(Kind::Outcome { outcome, retry_after: None }.into()));
            }
            if !self.spent {
                state.credit = state.credit.checked_sub(cells)?;
                self.spent = true;
            }
        }
        let flags = self.header.flags.with(part_flags(self.at, part.len(), self.total));
        let header = Header { flags, ..self.header };
        match request.inner.try_express(request.call.session, &header, part) {
            Ok(true) => {
                self.at += part.len();
                (self.is_first, self.spent) = (false, false);
                if flags.has(Flags::LAST.with(Flags::END)) {
                    lock(&request.inner.table).calls.remove(&self.header.seq);
                }
                Some(Ok(()))
            }
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.is_answered && !self.is_cancelled() {
            let _: Result<(), Error> = self.send(b"the responder dropped the request without an answer", FAILED);
        }
    }
}

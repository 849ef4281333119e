//! Requests: one reply, or a stream of chunks.

use super::client::Client;
use crate::client::connection::calls;
use crate::client::connection::shared::Connection;
use crate::client::data::call_options::{CallDeadline, IdempotentRetry, RequestOptions, timeout_as_deadline};
use crate::client::data::lock::{deadline, lock};
use crate::client::data::names::Callee;
use crate::client::data::pending_call::{CallProgress, PendingCall};
use crate::client::data::request_slots::ClaimedSlot;
use crate::client::engine::{names, wait};
use crate::client::error::Result;
use crate::shm::layout::cells_for;
use crate::wire::control::InternKind;
use crate::wire::record::{Flags, Header, Kind as RecordKind, Outcome};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An outstanding request: an iterator of the reply's chunks. It ends after the last chunk or with an error. Dropping
/// it before its end cancels the request.
#[derive(Debug)]
pub struct ReplyStream {
    connection: Arc<Connection>,
    pending: Arc<PendingCall>,
    slot: u32,
    generation: u32,
    /// The session of the client in which it was sent.
    session: u64,
    time: CallDeadline,
    done: bool,
    /// Its first record is placed.
    is_sent: bool,
}

impl Client {
    /// Calls `service` and waits for its reply.
    ///
    /// # Errors
    ///
    /// The outcome of the request, if it is not a reply. The request is not sent if the name is invalid or the message
    /// too large.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// assert_eq!(client.request("echo", "hi")?, b"hi");
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn request(&self, service: &str, payload: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        self.request_with(service, payload, RequestOptions::default())
    }

    /// Calls `service` with options.
    ///
    /// # Errors
    ///
    /// As [`Client::request`].
    ///
    /// ```no_run
    /// use lapce_ipc::client::RequestOptions;
    /// use std::time::Duration;
    ///
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let options = RequestOptions { timeout: Some(Duration::from_secs(2)), ..RequestOptions::default() };
    /// let reply = client.request_with("complete", "fn ma", options)?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn request_with(&self, service: &str, payload: impl AsRef<[u8]>, options: RequestOptions) -> Result<Vec<u8>> {
        self.retry(options, |options| {
            let mut reply = Vec::new();
            self.start(service, payload.as_ref(), options, false)?.receive_all(&mut reply)?;
            Ok(reply)
        })
    }

    /// Makes attempts until one has an outcome that is not to be retried.
    pub(super) fn retry<T>(
        &self,
        options: RequestOptions,
        mut attempt: impl FnMut(RequestOptions) -> Result<T>,
    ) -> Result<T> {
        let mut again = IdempotentRetry::new(options);
        loop {
            let outcome = attempt(again.options());
            match again.pause(&outcome, || self.connection.closed().is_some()) {
                None => return outcome,
                // What arrives is sorted meanwhile, and the next attempt returns the end of the connection.
                Some(pause) => _ = self.closed(Some(pause)),
            }
        }
    }

    /// Calls `service` for a stream of chunks.
    ///
    /// # Errors
    ///
    /// If the name is invalid, the message too large, or the connection has ended. The iterator returns the outcome of
    /// the request.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// for token in client.request_stream("chat", "why is the sky blue?")? {
    ///     print!("{}", String::from_utf8_lossy(&token?));
    /// }
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn request_stream(&self, service: &str, payload: impl AsRef<[u8]>) -> Result<ReplyStream> {
        self.start(service, payload.as_ref(), RequestOptions::default(), true)
    }

    /// Calls `service` for a stream of chunks, with options.
    ///
    /// # Errors
    ///
    /// As [`Client::request_stream`].
    pub fn request_stream_with(
        &self,
        service: &str,
        payload: impl AsRef<[u8]>,
        options: RequestOptions,
    ) -> Result<ReplyStream> {
        self.start(service, payload.as_ref(), options, true)
    }

    fn start(&self, service: &str, payload: &[u8], options: RequestOptions, stream: bool) -> Result<ReplyStream> {
        let callee = Callee { name: service, held: None };
        let (mut stream, mut body) = begin(&self.connection, callee, payload.len(), options, stream)?;
        body.send(&mut stream, payload)?;
        Ok(stream)
    }
}

/// A request whose body, of `total` bytes, is to be sent. Waits only for the number of the service.
pub(crate) fn begin(
    connection: &Arc<Connection>,
    callee: Callee<'_>,
    total: usize,
    options: RequestOptions,
    stream: bool,
) -> Result<(ReplyStream, RequestBody)> {
    connection.check_size(total)?;
    let mut time = CallDeadline::new(&connection.limits, options, stream);
    loop {
        if let Some(begun) = RequestBody::new(connection, callee, total, options, stream, time)? {
            return Ok(begun);
        }
        names::request_number(connection, InternKind::Service, callee.name, time.until())
            .map_err(timeout_as_deadline)?;
    }
}

/// A time as a request's header has it: 0 for none.
fn millis(time: Option<Duration>) -> u32 {
    time.map_or(0, |time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1))
}

/// The header of a request with these options, as far as that depends on them.
pub(super) fn request_header(options: RequestOptions) -> Header {
    Header {
        nanos: options.timeout.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX).max(1)),
        origin: millis(options.first_chunk),
        dropped: millis(options.idle),
        ..Header::new(RecordKind::Request)
    }
}

/// The sending of a request's body, part by part.
pub(crate) struct RequestBody {
    header: Header,
    total: usize,
    at: usize,
    part: usize,
    /// There is no more to be sent, though nothing was of a body that is empty.
    done: bool,
}

impl RequestBody {
    /// `None`: the number of the service is to be requested first.
    pub(crate) fn new(
        connection: &Arc<Connection>,
        callee: Callee<'_>,
        total: usize,
        options: RequestOptions,
        stream: bool,
        time: CallDeadline,
    ) -> Result<Option<(ReplyStream, RequestBody)>> {
        let Some((service, claimed)) = calls::claim_slot(connection, callee)? else { return Ok(None) };
        let ClaimedSlot { slot, generation, pending } = claimed;
        let session = service.session;
        let header = Header {
            flags: Flags::default().with_if(Flags::STREAM, stream),
            id: slot,
            id2: generation,
            arg: service.number,
            total: connection.check_size(total)?,
            ..request_header(options)
        };
        let part = connection.limits.slot_size() as usize;
        let (connection, is_sent) = (connection.clone(), false);
        let stream = ReplyStream { connection, pending, slot, generation, session, time, done: false, is_sent };
        Ok(Some((stream, RequestBody { header, total, at: 0, part, done: false })))
    }

    /// Sends what is left of the body, and waits where there is neither credit nor space.
    pub(crate) fn send(&mut self, stream: &mut ReplyStream, payload: &[u8]) -> Result<()> {
        let connection = stream.connection.clone();
        while let Some((at, end)) = self.next_part() {
            let part = &payload[at..end];
            // A body within its credit goes straight into the lane; the rest waits, and reads meanwhile.
            if !self.try_send(stream, part)? {
                wait::for_record(&connection, stream.until(), || self.step(stream, part))
                    .map_err(timeout_as_deadline)??;
            }
        }
        Ok(())
    }

    /// The next part to send, as a range of the body.
    pub(crate) fn next_part(&self) -> Option<(usize, usize)> {
        (!self.done).then(|| (self.at, self.total.min(self.at + self.part)))
    }

    /// Sends the part if credit and space allow. `true`: it is sent, or the call is over and need not be.
    pub(crate) fn try_send(&mut self, stream: &mut ReplyStream, part: &[u8]) -> Result<bool> {
        let cells = cells_for(part.len() as u32);
        let flags = Flags::fragment(self.at, part.len(), self.total);
        let header = Header { flags: self.header.flags.with(flags), ..self.header };
        let is_last = self.at + part.len() == self.total;
        let place = || calls::place(&stream.connection, stream.session, &header, part);
        match stream.pending.send(cells, is_last, place) {
            Some(Ok(true)) => {
                stream.is_sent = true;
                self.at += part.len();
                self.done = is_last;
            }
            Some(not_now) => return not_now,
            None => self.done = true,
        }
        Ok(true)
    }

    /// The same while waiting: returns credit for the reply, which may have begun.
    pub(crate) fn step(&mut self, stream: &mut ReplyStream, part: &[u8]) -> Option<Result<()>> {
        stream.return_owed_credit();
        match self.try_send(stream, part) {
            Ok(true) => Some(Ok(())),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

impl ReplyStream {
    /// The request in this slot, which is placed.
    pub(super) fn placed(
        connection: &Arc<Connection>,
        claimed: ClaimedSlot,
        session: u64,
        time: CallDeadline,
    ) -> ReplyStream {
        let ClaimedSlot { slot, generation, pending } = claimed;
        let connection = connection.clone();
        ReplyStream { connection, pending, slot, generation, session, time, done: false, is_sent: true }
    }

    /// Waits for the next chunk; `None` after the last.
    fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        self.receive_within(None)
    }

    /// Waits for the next chunk, at most for `timeout`.
    ///
    /// # Errors
    ///
    /// The outcome of the request, if it is not a reply; or [`Error::is_timeout`](crate::client::Error::is_timeout),
    /// and the request is still outstanding.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Vec<u8>>> {
        self.receive_within(Some(timeout))
    }

    fn receive_within(&mut self, timeout: Option<Duration>) -> Result<Option<Vec<u8>>> {
        if self.done {
            return Ok(None);
        }
        // What has arrived already needs neither the reader role nor the time.
        if let Some(found) = self.poll() {
            return self.took(found);
        }
        let until = deadline(timeout).into_iter().chain(self.until()).min();
        let found = wait::for_record(&self.connection, until, || self.poll()).and_then(|found| found);
        self.took(found)
    }

    /// Waits for the rest of the reply, and appends it to `reply`. A responder may reply to a plain request in several
    /// chunks: they are one reply.
    pub(crate) fn receive_all(&mut self, reply: &mut Vec<u8>) -> Result<()> {
        while let Some(chunk) = self.receive()? {
            append(chunk, reply);
        }
        Ok(())
    }

    /// When it ends here, if the broker says nothing.
    pub(crate) fn until(&mut self) -> Option<Instant> {
        self.time.until()
    }

    /// Notes whether there is more to come.
    pub(crate) fn took(&mut self, found: Result<CallProgress>) -> Result<Option<Vec<u8>>> {
        match found {
            Ok(CallProgress::Message(message, is_last)) => {
                self.done = is_last;
                self.time.progressed();
                Ok(Some(message))
            }
            Ok(CallProgress::End) => {
                self.done = true;
                Ok(None)
            }
            Err(error) if error.is_timeout() && !self.time.is_over() => Err(error),
            Err(error) => {
                self.done = true;
                if error.is_timeout() {
                    calls::cancel(&self.connection, self.slot, self.generation, Outcome::DeadlineExceeded);
                }
                Err(timeout_as_deadline(error))
            }
        }
    }

    /// The next message or outcome that has arrived, without waiting.
    pub(crate) fn poll(&self) -> Option<Result<CallProgress>> {
        let (found, cells) = self.pending.take(self.connection.stream_step());
        self.return_credit(cells);
        found
    }

    /// Returns owed credit, so that the responder can continue.
    fn return_owed_credit(&self) {
        self.return_credit(self.pending.take_owed(self.connection.stream_step()));
    }

    fn return_credit(&self, cells: u32) {
        if cells == 0 {
            return;
        }
        let credit =
            Header { id: self.slot, id2: self.generation, arg: cells, ..Header::new(RecordKind::ResponseCredit) };
        if !calls::place(&self.connection, self.session, &credit, &[]).unwrap_or(true) {
            self.pending.add_owed(cells);
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done
    }
}

/// Appends a chunk to a reply, or makes it the reply if `reply` has less memory than the chunk.
pub(crate) fn append(chunk: Vec<u8>, reply: &mut Vec<u8>) {
    match reply.is_empty() && reply.capacity() < chunk.len() {
        true => *reply = chunk,
        false => reply.extend_from_slice(&chunk),
    }
}

impl Iterator for ReplyStream {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receive().transpose()
    }
}

impl Drop for ReplyStream {
    fn drop(&mut self) {
        if self.done || !self.connection.is_ours() || self.pending.discard() {
            return;
        }
        if !self.is_sent {
            return lock(&self.connection.table).requests.release(self.slot, self.generation);
        }
        calls::cancel(&self.connection, self.slot, self.generation, Outcome::Cancelled);
    }
}

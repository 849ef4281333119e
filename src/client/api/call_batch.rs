//! Many requests to one service at a time.
//!
//! 1. The batch places as many requests at once as have a slot and space, and takes their replies out of the ring one
//!    by one. It takes the locks of reader role, table and lane once for all of these, and needs one set of fences and
//!    one look at the clock.
//! 2. When half of the outstanding requests have their outcome, the batch places the next ones, so that both sides have
//!    work. The leader sorts other records that lie before a reply in the ring, and with them perhaps replies. The
//!    batch finds those at the table (see `data::request_slots`).
//! 3. While another thread has the reader role, that thread sorts the replies, and the batch takes them as a follower.
//! 4. All else takes the path of a `ReplyStream`: a body or a reply of several records, an error, the number of the
//!    service, no slot, no space.

use super::request::{ReplyStream, RequestBody, append, begin, request_header};
use super::requester::Requester;
use crate::client::connection::calls::BatchPlace;
use crate::client::connection::reader::Reader;
use crate::client::connection::shared::Connection;
use crate::client::data::batch_calls::{BatchCalls, WINDOW};
use crate::client::data::call_options::{CallDeadline, RequestOptions, timeout_as_deadline};
use crate::client::data::request_slots::ClaimedSlot;
use crate::client::engine::turn;
use crate::client::engine::wait::{self, Leader};
use crate::client::error::{Error, Kind, Result};
use crate::wire::record::Outcome;
use std::sync::Arc;
use std::time::Duration;

/// Requests of several records that are outstanding at a time.
const LARGE: usize = 64;

impl Requester {
    /// Calls the service with each of `payloads`, many at a time, and passes each outcome to `each`, with the index of
    /// its payload: exactly one for each payload, when the call returns `Ok`. They come in the order in which the
    /// replies arrive, which is that of the payloads only if the service keeps it.
    ///
    /// At most 256 requests are outstanding at a time, and at most half of what the broker allows this client
    /// (`limits.max_requests_per_connection`). This is the fastest way to make many requests: a call costs little more
    /// than the copies of a request and a reply of at most [`Limits::slot_size`](crate::client::Limits::slot_size)
    /// bytes each. Larger ones may be among them. A reply in several chunks is one reply, as for
    /// [`call`](Requester::call).
    ///
    /// An outcome that is not a reply is an error, as [`call`](Requester::call) returns it, and the other requests go
    /// on: an error reply, no responders, no place for one more request. When the connection ends, or the broker does,
    /// each outstanding request ends as disconnected; those behind them are sent to the next broker, or end with the
    /// reason why there is none. The deadline
    /// ([`Limits::default_request_timeout_ms`](crate::client::Limits::default_request_timeout_ms)) is that of the whole
    /// batch: what has no reply by then ends as
    /// [`Error::is_deadline_exceeded`](crate::client::Error::is_deadline_exceeded), also what was not sent yet.
    ///
    /// While `each` runs, no other thread of this client may receive anything: keep it short. A call of this client
    /// that would block inside `each` may fail with
    /// [`Error::is_view_outstanding`](crate::client::Error::is_view_outstanding) instead of a deadlock, as in
    /// [`Subscription::read_next`](crate::client::Subscription::read_next). If `each` panics, all outstanding requests
    /// are cancelled.
    ///
    /// # Errors
    ///
    /// Then nothing is sent, and `each` is not called: if a payload is larger than
    /// [`Limits::max_message_size`](crate::client::Limits::max_message_size) bytes, this thread reads a message in
    /// place, or this process was forked.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let complete = client.requester("complete")?;
    /// let mut bytes = 0;
    /// complete.call_batch(&["f", "fn", "fn m"], |index, reply| match reply {
    ///     Ok(reply) => bytes += reply.len(),
    ///     Err(error) => eprintln!("{index}: {error}"),
    /// })?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn call_batch(&self, payloads: &[impl AsRef<[u8]>], each: impl FnMut(usize, Result<&[u8]>)) -> Result<()> {
        self.call_batch_with(payloads, RequestOptions::default(), each)
    }

    /// As [`call_batch`](Requester::call_batch), with options. `timeout` is the time of the whole batch. With
    /// `idempotent` a request that ends as disconnected is sent again when all others have their outcome, one by one,
    /// as [`call_with`](Requester::call_with) does; without it none is sent twice.
    ///
    /// # Errors
    ///
    /// As [`call_batch`](Requester::call_batch).
    ///
    /// ```no_run
    /// use lapce_ipc::client::RequestOptions;
    /// use std::time::Duration;
    ///
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let complete = client.requester("complete")?;
    /// let options = RequestOptions { timeout: Some(Duration::from_millis(50)), ..RequestOptions::default() };
    /// let mut in_time = 0;
    /// complete.call_batch_with(&["f", "fn", "fn m"], options, |_, reply| in_time += usize::from(reply.is_ok()))?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn call_batch_with(
        &self,
        payloads: &[impl AsRef<[u8]>],
        options: RequestOptions,
        each: impl FnMut(usize, Result<&[u8]>),
    ) -> Result<()> {
        let connection = &self.client.connection;
        connection.check_fork()?;
        connection.may_wait()?;
        for payload in payloads {
            connection.check_size(payload.as_ref().len())?;
        }
        Batch::new(self, payloads, options, each).run();
        Ok(())
    }
}

/// The reader role. Dropped, it gives back all cells: perhaps no thread waits afterwards.
struct Lead<'a> {
    leader: Leader<'a>,
    connection: &'a Connection,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if self.connection.is_ours() {
            self.leader.reader.publish_rest();
        }
    }
}

/// A request that takes the path of others.
struct Other {
    index: usize,
    stream: ReplyStream,
    reply: Vec<u8>,
}

impl Other {
    /// Takes what has arrived. `None`: there is more to come.
    fn advance(&mut self) -> Option<Result<()>> {
        loop {
            let found = self.stream.poll()?;
            match self.stream.took(found) {
                Ok(Some(chunk)) => append(chunk, &mut self.reply),
                Ok(None) => return Some(Ok(())),
                Err(error) => return Some(Err(error)),
            }
            if self.stream.is_done() {
                return Some(Ok(()));
            }
        }
    }
}

/// A batch under way. Dropped, it cancels what is outstanding.
struct Batch<'a, P, F> {
    requester: &'a Requester,
    connection: &'a Arc<Connection>,
    payloads: &'a [P],
    options: RequestOptions,
    time: CallDeadline,
    each: F,
    /// The payload that is sent next.
    next: usize,
    /// Requests whose replies are taken out of the ring.
    calls: BatchCalls,
    /// Requests of those that were diverted, and are among `others` next.
    diverted: Vec<(usize, u64, ClaimedSlot)>,
    others: Vec<Other>,
    /// A request whose body is not placed yet.
    sending: Option<(Other, RequestBody)>,
    /// So many may still be outstanding when the next ones are placed.
    goal: usize,
    /// There was no space for the next one.
    is_short: bool,
    /// Requests to be sent again, and whether there were any.
    again: Vec<usize>,
    is_lost: bool,
    lead: Option<Lead<'a>>,
    /// The reader's count of sorts when the batch last looked for what was diverted.
    sorts: u64,
    /// Whether this thread has the reader role, so that its user must not wait.
    leads: bool,
}

impl<'a, P: AsRef<[u8]>, F: FnMut(usize, Result<&[u8]>)> Batch<'a, P, F> {
    fn new(requester: &'a Requester, payloads: &'a [P], options: RequestOptions, each: F) -> Batch<'a, P, F> {
        let connection = &requester.client.connection;
        Batch {
            requester,
            connection,
            payloads,
            options,
            time: CallDeadline::new(&connection.limits, options, false),
            each,
            next: 0,
            calls: BatchCalls::default(),
            diverted: Vec::new(),
            others: Vec::new(),
            sending: None,
            goal: 0,
            is_short: false,
            again: Vec::new(),
            is_lost: false,
            lead: None,
            sorts: 0,
            leads: false,
        }
    }

    fn run(&mut self) {
        // Before the first request is placed: no other thread sorts its reply.
        self.lead = self.try_lead();
        self.leads = self.lead.is_some();
        self.sorts = self.lead.as_ref().map_or(0, |lead| lead.leader.reader.sorts);
        while self.next < self.payloads.len() || self.outstanding() > 0 {
            self.fill();
            self.wait();
        }
        self.send_again();
    }

    fn try_lead(&self) -> Option<Lead<'a>> {
        let connection = self.connection;
        Some(Lead { leader: wait::try_lead(connection)?, connection })
    }

    fn outstanding(&self) -> usize {
        self.calls.waiting() + self.others.len() + usize::from(self.sending.is_some())
    }

    /// How many more may be outstanding. Half of the slots are left to the other threads of the client.
    fn room(&self) -> usize {
        let most = self.connection.limits.max_requests().div_ceil(2) as usize;
        most.min(WINDOW).saturating_sub(self.outstanding())
    }

    /// The options of a request that is sent now; `None`: the time is over.
    fn options(&mut self) -> Option<RequestOptions> {
        let options = self.options_with_time_left();
        (options.timeout != Some(Duration::ZERO)).then_some(options)
    }

    fn options_with_time_left(&mut self) -> RequestOptions {
        RequestOptions { timeout: self.time.left().or(self.options.timeout), ..self.options }
    }

    /// Passes an outcome to the user, unless the request is to be sent again.
    fn give(&mut self, index: usize, outcome: Result<&[u8]>) {
        if let Err(error) = &outcome
            && self.options.idempotent
            // Its responders may take as long to reconnect as this client.
            && (error.is_disconnected() || self.is_lost && error.is_no_responders())
        {
            self.is_lost = true;
            return self.again.push(index);
        }
        let _viewing = self.leads.then(|| wait::view(self.connection));
        (self.each)(index, outcome);
    }

    /// Sends as many requests as may be outstanding.
    fn fill(&mut self) {
        while self.next < self.payloads.len() {
            let Some(options) = self.options() else {
                for index in std::mem::replace(&mut self.next, self.payloads.len())..self.payloads.len() {
                    let exceeded = Kind::Outcome { outcome: Outcome::DeadlineExceeded, retry_after: None };
                    self.give(index, Err(exceeded.into()));
                }
                return;
            };
            self.place(options, false);
            let Some(payload) = self.payloads.get(self.next) else { return };
            let is_large = payload.as_ref().len() > self.connection.limits.slot_size() as usize;
            let may_be_large = is_large && self.others.len() < LARGE && self.room() > 0 && self.sending.is_none();
            // With none outstanding that is the way to the number of the service, or to the reason why there is none.
            if !may_be_large && self.outstanding() > 0 {
                return;
            }
            self.start(options);
        }
    }

    /// Places requests of one record each, as far as there are slots and space. Returns whether any was.
    fn place(&mut self, options: RequestOptions, arms: bool) -> bool {
        let (first, room) = (self.next, self.room());
        let payloads = &self.payloads[first..self.payloads.len().min(first + room)];
        let mut place = BatchPlace { calls: &mut self.calls, diverted: &mut self.diverted };
        let (header, callee) = (request_header(options), self.requester.callee());
        let placed = place.place(self.connection, callee, &header, first, payloads, arms);
        // An error is that of the next request, which is started by itself.
        let (placed, is_short) = placed.unwrap_or_default();
        self.next += placed;
        self.is_short = is_short;
        self.adopt();
        placed > 0
    }

    /// Starts the next request by itself.
    fn start(&mut self, options: RequestOptions) {
        // It may wait, also for its turn as the reader.
        (self.lead, self.leads) = (None, false);
        let index = self.next;
        self.next += 1;
        let total = self.payloads[index].as_ref().len();
        match begin(self.connection, self.requester.callee(), total, options, false) {
            Ok((stream, body)) => self.sending = Some((Other { index, stream, reply: Vec::new() }, body)),
            Err(error) => self.give(index, Err(error)),
        }
    }

    /// Waits until so many requests have their outcome that the next ones are worth placing.
    fn wait(&mut self) {
        if self.outstanding() == 0 {
            return;
        }
        self.goal = if self.next < self.payloads.len() { self.outstanding() / 2 } else { 0 };
        let connection = self.connection;
        let waited = match self.lead.take().or_else(|| self.try_lead()) {
            Some(mut lead) => {
                let waited = self.wait_leading(&mut lead.leader);
                self.lead = Some(lead);
                waited
            }
            None => {
                let until = self.time.until();
                wait::reading(connection, until, |reader| self.progress(reader).then_some(()))
            }
        };
        self.leads = self.lead.is_some();
        if let Err(error) = waited {
            self.end(error);
        }
    }

    fn wait_leading(&mut self, lead: &mut Leader<'_>) -> Result<()> {
        self.connection.check_fork()?;
        self.leads = true;
        if self.calls.waiting() == self.outstanding() {
            while turn::poll_briefly(&mut lead.reader, self.connection) && self.take_replies(&mut lead.reader) > 0 {
                if self.calls.waiting() <= self.goal || !self.connection.is_ours() {
                    return Ok(());
                }
            }
        }
        // The router may wait for the cells.
        lead.reader.publish_rest();
        let until = self.time.until();
        wait::leading_on(self.connection, lead, until, |reader| self.progress(Some(reader)).then_some(()))
    }

    /// Takes replies out of the ring, as far as they come next. Returns how many.
    fn take_replies(&mut self, reader: &mut Reader) -> usize {
        if self.sorts != reader.sorts {
            // Of a reply that was sorted in part, the rest could pass for a whole one.
            self.sorts = reader.sorts;
            self.look();
        }
        let mut reply = std::mem::take(&mut reader.scratch);
        let mut taken = 0;
        while self.outstanding() > self.goal && self.connection.is_ours() {
            let calls = &mut self.calls;
            // No panic of the user's can take it again: it is consumed first.
            let Some(index) = reader.take_reply_of(&mut reply, |slot, generation| calls.reply(slot, generation)) else {
                break;
            };
            taken += 1;
            self.give(index, Ok(&reply));
        }
        reader.scratch = reply;
        taken
    }

    /// Takes what has arrived. Returns whether there is something to send.
    fn progress(&mut self, reader: Option<&mut Reader>) -> bool {
        self.leads = reader.is_some();
        if let Some(reader) = reader {
            self.take_replies(reader);
        }
        if !self.connection.is_ours() {
            return true;
        }
        let is_sent = self.send_rest();
        self.look();
        self.poll_others();
        if is_sent || self.outstanding() <= self.goal {
            return true;
        }
        // Before it sleeps: there may be space before there are replies.
        self.is_short && self.options().is_some_and(|options| self.place(options, true))
    }

    /// Sends more of the body that is not placed yet. Returns whether none is left.
    fn send_rest(&mut self) -> bool {
        let Some((other, body)) = &mut self.sending else { return false };
        let payload = self.payloads[other.index].as_ref();
        let sent = loop {
            let Some((at, end)) = body.next_part() else { break Ok(()) };
            match body.step(&mut other.stream, &payload[at..end]) {
                Some(Ok(())) => {}
                Some(Err(error)) => break Err(error),
                None => return false,
            }
        };
        if let Some((other, _)) = self.sending.take() {
            match sent {
                Ok(()) => self.others.push(other),
                Err(error) => self.give(other.index, Err(error)),
            }
        }
        true
    }

    /// Finds the requests that were diverted.
    fn look(&mut self) {
        BatchPlace { calls: &mut self.calls, diverted: &mut self.diverted }.look(self.connection);
        self.adopt();
    }

    fn adopt(&mut self) {
        for (index, session, claimed) in self.diverted.drain(..) {
            let stream = ReplyStream::placed(self.connection, claimed, session, self.time);
            self.others.push(Other { index, stream, reply: Vec::new() });
        }
    }

    fn poll_others(&mut self) {
        let mut others = std::mem::take(&mut self.others);
        others.retain_mut(|other| match other.advance() {
            None => true,
            Some(outcome) => {
                self.give(other.index, outcome.map(|()| &other.reply[..]));
                false
            }
        });
        self.others = others;
    }

    /// The time is over, or the connection has ended.
    fn end(&mut self, error: Error) {
        let error = timeout_as_deadline(error);
        let mut place = BatchPlace { calls: &mut self.calls, diverted: &mut self.diverted };
        let ended = place.end(self.connection, Outcome::DeadlineExceeded);
        self.adopt();
        // What came before the end counts.
        self.poll_others();
        let rest = self.sending.take().map(|(other, _)| other).into_iter().chain(std::mem::take(&mut self.others));
        // They are cancelled before the user hears of it.
        let rest: Vec<_> = rest.map(|other| other.index).collect();
        for index in ended.into_iter().chain(rest) {
            self.give(index, Err(error.clone()));
        }
    }

    /// Sends those again that were lost with a broker.
    fn send_again(&mut self) {
        (self.lead, self.leads) = (None, false);
        let mut reply = Vec::new();
        for index in std::mem::take(&mut self.again) {
            let options = self.options_with_time_left();
            let disconnected = Kind::Outcome { outcome: Outcome::Disconnected, retry_after: None };
            let mut first = Some(Err(disconnected.into()));
            let outcome = self.requester.client.retry(options, |options| {
                reply.clear();
                first
                    .take()
                    .unwrap_or_else(|| self.requester.call_once(self.payloads[index].as_ref(), &mut reply, options))
            });
            (self.each)(index, outcome.map(|()| &reply[..]));
        }
    }
}

impl<P, F> Drop for Batch<'_, P, F> {
    fn drop(&mut self) {
        self.lead = None;
        BatchPlace { calls: &mut self.calls, diverted: &mut self.diverted }.finish(self.connection);
        for (_, session, claimed) in self.diverted.drain(..) {
            // Cancels itself.
            drop(ReplyStream::placed(self.connection, claimed, session, self.time));
        }
    }
}

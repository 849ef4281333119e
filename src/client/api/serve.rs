//! Serving: requests come as an iterator, or to a handler.

use super::client::Client;
use super::reply::{KeptReply, Reply, ReplyParts, Request};
use crate::client::connection::calls;
use crate::client::connection::control_request::{self, ControlRequest, unexpected_reply};
use crate::client::connection::shared::Connection;
use crate::client::data::incoming_call::{Inbox, InboxItem, Offer};
use crate::client::data::kept_replies::{KeepOptions, KeptReplies};
use crate::client::data::lock::{deadline, lock};
use crate::client::engine::wait;
use crate::client::error::{Result, in_time};
use crate::sync::Ordering;
use crate::wire::control::{BrokerFrame, ClientFrame};
use crate::wire::name::Name;
use crate::wire::record::{Header, Kind as RecordKind};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A service that this client offers: an iterator of requests, which waits for the next one. Several clients may offer
/// the same service; they share its requests. Dropping it withdraws the offer.
#[derive(Debug)]
pub struct Service {
    connection: Arc<Connection>,
    inbox: Arc<Inbox>,
    kept: KeptReplies<KeptReply>,
    /// Until when kept replies hold requests up, unless they move.
    held_until: Option<Instant>,
    failed: bool,
}

impl Client {
    /// Offers `service`. When it returns, the offer is in force.
    ///
    /// # Errors
    ///
    /// If the name is invalid or reserved, this client already offers the service, or the connection has ended.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// for request in client.serve("upper")? {
    ///     let request = request?;
    ///     let reply = request.payload().to_ascii_uppercase();
    ///     // An error means that this requester no longer waits: continue.
    ///     let _ = request.reply(reply);
    /// }
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn serve(&self, service: &str) -> Result<Service> {
        self.serve_up_to(service, 0)
    }

    /// Offers `service` with at most `max_in_flight` outstanding requests (0: the broker's limit). Further requests go
    /// to other responders, or fail as overloaded.
    ///
    /// # Errors
    ///
    /// As [`Client::serve`].
    pub fn serve_up_to(&self, service: &str, max_in_flight: u32) -> Result<Service> {
        let (request, service) = start(&self.connection, service, max_in_flight)?;
        let reply = wait::for_bell(&self.connection, None, || request.reply())?;
        finish(service, &reply)
    }
}

/// Requests to serve. Dropping the returned values at any time leaves no offer at the broker.
pub(crate) fn start<'a>(
    connection: &'a Arc<Connection>,
    service: &str,
    max_in_flight: u32,
) -> Result<(ControlRequest<'a>, Service)> {
    let service = Name::parse(service)?;
    let inbox = Arc::new(Inbox::new(Offer { service: service.clone(), max_in_flight }));
    let request = control_request::start(connection, |serial| {
        lock(&connection.table).serving.insert(serial, inbox.clone());
        ClientFrame::Serve { serial, service, max_in_flight }
    })?;
    let kept = KeptReplies::new(KeepOptions::default().within(max_in_flight));
    Ok((request, Service { connection: connection.clone(), inbox, kept, held_until: None, failed: false }))
}

pub(crate) fn finish(service: Service, answer: &BrokerFrame) -> Result<Service> {
    match answer {
        BrokerFrame::Serving { .. } => Ok(service),
        _ => Err(unexpected_reply(answer)),
    }
}

impl Service {
    /// Replies to every request with the result of `handler`, until the connection ends. An error of the handler
    /// becomes an error reply: [`ReplyError::failed`](crate::client::ReplyError::failed) counts towards the service's
    /// breaker; any other error rejects the request and does not count. A panic of the handler counts as a failure.
    ///
    /// A reply that its requester does not take is kept while further requests are handled; see [`Service::keep`]. (A
    /// handler that sends chunks waits for credit of the requester with each, as [`Request::chunk`] does.)
    ///
    /// # Errors
    ///
    /// The reason why the connection ended, or why a restarted broker rejected the offer.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// client.serve("upper")?.run(|request| {
    ///     let text = std::str::from_utf8(request.payload())?;
    ///     Ok::<_, std::str::Utf8Error>(text.to_uppercase()) // an error rejects the request
    /// })?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn run<R: AsRef<[u8]>, E: Into<ReplyError>>(
        &mut self,
        mut handler: impl FnMut(&mut Request) -> std::result::Result<R, E>,
    ) -> Result<()> {
        loop {
            let mut request = self.receive(None)?;
            let reply = catch_unwind(AssertUnwindSafe(|| handler(&mut request).map_err(Into::into)));
            let reply = reply.unwrap_or_else(|panic| {
                Err(ReplyError::failed(format_args!("the responder panicked: {}", panic_text(&*panic))))
            });
            let answered = self.send_or_keep(request, None, reply);
            // The requester may be gone, have cancelled, or its time be over: no one is left to be notified. Only the
            // end of our own connection is ours, too.
            if answered.is_err()
                && let Some(closed) = self.connection.closed()
            {
                return Err(closed);
            }
        }
    }

    /// Bounds the replies that this service keeps, and the time that they delay further requests; see [`KeepOptions`]
    /// for the defaults. Dropping the service ends the calls of kept replies.
    #[must_use]
    pub fn keep(mut self, options: KeepOptions) -> Service {
        self.kept.set_options(options.within(self.inbox.offer.max_in_flight));
        self
    }

    /// The bytes of the replies that are kept now.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.kept.bytes()
    }

    /// Replies to a request of this service as [`Service::run`] does, and does not wait: what the requester does not
    /// take now is kept, and goes while a thread waits for the next request.
    ///
    /// # Errors
    ///
    /// If the requester has cancelled or its deadline has passed, the reply is too large, or the connection has ended.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let mut service = client.serve("upper")?;
    /// while let Some(request) = service.next() {
    ///     let request = request?;
    ///     let text = String::from_utf8(request.payload().to_vec());
    ///     // An error means that this requester no longer waits: continue.
    ///     let _ = service.reply(request, text.map(|text| text.to_uppercase()));
    /// }
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn reply<R: AsRef<[u8]>, E: Into<ReplyError>>(
        &mut self,
        request: Request,
        reply: std::result::Result<R, E>,
    ) -> Reply {
        self.send_or_keep(request, None, reply.map_err(Into::into))
    }

    /// `rest`: of a chunk that has begun.
    pub(crate) fn send_or_keep<R: AsRef<[u8]>>(
        &mut self,
        mut request: Request,
        rest: Option<ReplyParts<'static>>,
        reply: std::result::Result<R, ReplyError>,
    ) -> Reply {
        let connection = self.connection.clone();
        connection.check_fork()?;
        let (rest, mut last) = match &reply {
            Ok(reply) => (rest, ReplyParts::reply(&connection, reply.as_ref())),
            // An error aborts the chunk.
            Err(error) if error.is_failure => (None, ReplyParts::fail(&connection, &error.text)),
            Err(error) => (None, ReplyParts::refuse(&connection, &error.text)),
        };
        // Notices a cancel even if no thread of this process waits.
        wait::sort_pending(&connection);
        if rest.is_none()
            && let Some(sent) = last.step(&mut request)
        {
            return sent;
        }
        let requester = request.requester();
        let kept = KeptReply::new(request, rest, last);
        let size = kept.size();
        self.kept.keep(kept, requester, size, Instant::now());
        Ok(())
    }

    /// Waits for the next request, at most for `timeout`, which then returns `Ok(None)`.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Request>> {
        in_time(self.receive(Some(timeout)))
    }

    fn receive(&mut self, timeout: Option<Duration>) -> Result<Request> {
        let (connection, until) = (self.connection.clone(), deadline(timeout));
        loop {
            let held_until = self.held_until;
            let wait_until = until.into_iter().chain(held_until).min();
            let received = wait::for_record(&connection, wait_until, || {
                let polled = self.poll().map(Some);
                // The wait has another end now.
                polled.or_else(|| (self.held_until != held_until).then_some(None))
            });
            match received {
                Ok(Some(request)) => {
                    if request.is_err() {
                        self.release_kept();
                    }
                    return request;
                }
                Ok(None) => {}
                Err(error) if error.is_timeout() && until.is_none_or(|until| Instant::now() < until) => {}
                Err(error) => {
                    if !error.is_timeout() {
                        self.release_kept();
                    }
                    return Err(error);
                }
            }
        }
    }

    /// No requester waits any more.
    pub(crate) fn release_kept(&mut self) {
        self.kept.clear();
        self.held_until = None;
    }

    /// Until when kept replies hold requests up, as [`Service::poll`] found it.
    #[cfg(feature = "tokio")]
    pub(crate) fn held_until(&self) -> Option<Instant> {
        self.held_until
    }

    /// The next request if one has arrived and no kept reply moves, or the reason why none will.
    pub(crate) fn poll(&mut self) -> Option<Result<Request>> {
        self.held_until = None;
        if !self.kept.is_empty() {
            let now = Instant::now();
            self.kept.step(now, KeptReply::step);
            self.held_until = self.kept.holds_until(now);
        }
        if self.held_until.is_some() {
            return None;
        }
        self.poll_request().map(Ok).or_else(|| self.inbox.end().map(Err))
    }

    /// The next request if it is there; on the way it gives credit back for bodies that are coming in.
    fn poll_request(&mut self) -> Option<Request> {
        loop {
            let item = self.inbox.pop()?;
            match item {
                InboxItem::Request(call) => {
                    // Cancelled before it was looked at.
                    if let Some(request) = Request::of(&self.connection, call) {
                        return Some(request);
                    }
                }
                InboxItem::Grant(call, cells) => {
                    let credit = Header { seq: call.call, arg: cells, ..Header::new(RecordKind::BodyCredit) };
                    if !calls::place(&self.connection, call.session, &credit, &[]).unwrap_or(true) {
                        self.inbox.unpop(InboxItem::Grant(call, cells));
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
        if !self.connection.is_ours() {
            return;
        }
        control_request::post(&self.connection, |table, serial| {
            // Under one lock, for the number is another in the next session, or is not known yet.
            self.inbox.is_dropped.store(1, Ordering::Relaxed);
            let service = self.inbox.number();
            let is_ours = table.inboxes.get(&service).is_some_and(|inbox| Arc::ptr_eq(inbox, &self.inbox));
            is_ours.then(|| {
                table.inboxes.remove(&service);
                ClientFrame::Unserve { serial, service }
            })
        });
        // Requests that wait are rejected, not left to their deadline.
        let waiting = self.inbox.take_all();
        let mut table = lock(&self.connection.table);
        for item in waiting {
            calls::reject(&self.connection, &mut table, item.call());
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// An error reply: either the request is invalid, or the service has failed.
///
/// Failures count towards the service's breaker, and consecutive failures open it for all requesters; rejections do not
/// count. `?` and `into()` turn any error that implements `Display` into a rejection, so invalid requests do not open
/// the breaker. The handler marks failures of the service with [`ReplyError::failed`]; a panic is a failure, too.
///
/// ```
/// use lapce_ipc::client::ReplyError;
///
/// fn parse(payload: &[u8]) -> Result<u32, ReplyError> {
///     Ok(std::str::from_utf8(payload)?.parse()?) // an invalid request: rejected
/// }
/// fn look_up(id: u32) -> Result<String, ReplyError> {
///     std::fs::read_to_string(format!("/nonexistent/{id}")).map_err(ReplyError::failed)
/// }
/// assert!(!parse(b"x").unwrap_err().is_failure());
/// assert!(look_up(7).unwrap_err().is_failure());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyError {
    text: String,
    is_failure: bool,
}

impl ReplyError {
    /// The request is invalid. It does not count towards the breaker.
    pub fn rejected(text: impl Display) -> ReplyError {
        ReplyError { text: text.to_string(), is_failure: false }
    }

    /// The service has failed. It counts towards the breaker.
    pub fn failed(text: impl Display) -> ReplyError {
        ReplyError { text: text.to_string(), is_failure: true }
    }

    /// The text that the requester receives.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it counts towards the breaker.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        self.is_failure
    }
}

// It does not implement `Display` itself, or this would be its conversion into itself, too.
impl<E: Display> From<E> for ReplyError {
    fn from(error: E) -> ReplyError {
        ReplyError::rejected(error)
    }
}

//! Serving: requests come as an iterator, or to a handler.

use super::answer::{Incoming, Request, give_up};
use super::asked::Asked;
use super::error::{Error, Result};
use super::inner::{Inner, deadline, lock, unexpected};
use super::reply_error::ReplyError;
use super::{Client, Name};
use crate::sync::{AtomicU64, Ordering};
use crate::wire::control::{BrokerFrame, ClientFrame};
use crate::wire::record::{Header, Kind as RecordKind};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// What arrives for a service.
#[derive(Debug)]
pub(super) enum Arrived {
    Request(Arc<Incoming>),
    /// So much credit is to be given back for the body of this call.
    Grant(Arc<Incoming>, u32),
}

impl Arrived {
    /// The call that it is about.
    pub(super) fn call(&self) -> &Arc<Incoming> {
        match self {
            Arrived::Request(call) | Arrived::Grant(call, _) => call,
        }
    }
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
    /// Why the present broker does not take the offer.
    refused: OnceLock<Error>,
}

/// What a service is offered as: again, if the broker is another.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) service: Name,
    pub(super) max_in_flight: u32,
}

impl Inbox {
    pub(super) fn new(offer: Offer) -> Inbox {
        Inbox {
            arrived: Mutex::default(),
            offer,
            number: AtomicU64::new(0),
            is_dropped: AtomicU64::new(0),
            refused: OnceLock::new(),
        }
    }

    pub(super) fn push(&self, arrived: Arrived) {
        lock(&self.arrived).push_back(arrived);
    }

    /// The present broker does not take the offer.
    pub(super) fn refuse(&self, error: Error) {
        let _ = self.refused.set(error);
    }

    /// Why nothing more comes, though the connection stands.
    pub(super) fn end(&self) -> Option<Error> {
        self.refused.get().cloned()
    }

    fn number(&self) -> u32 {
        self.number.load(Ordering::Relaxed) as u32
    }

    /// All that waits: nobody will look at it.
    pub(super) fn take_all(&self) -> VecDeque<Arrived> {
        std::mem::take(&mut lock(&self.arrived))
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
    /// Replies to every request with what `handler` returns, until the connection ends. An error of the handler becomes
    /// an error reply: a [`ReplyError::failed`](super::ReplyError::failed) counts at the service's breaker; every other
    /// error says that the request was wrong, and does not count. A panic of the handler is a failure.
    ///
    /// # Errors
    ///
    /// Why the connection ended, or why another broker does not take the offer.
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
            let answered = match catch_unwind(AssertUnwindSafe(|| handler(&mut request))) {
                Ok(Ok(reply)) => request.reply(reply),
                Ok(Err(error)) => {
                    let error = error.into();
                    if error.is_failure() { request.fail(error.text()) } else { request.refuse(error.text()) }
                }
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
        inner.wait_until(deadline(timeout), || self.poll())?
    }

    /// The next request if it is there, or why no more come.
    pub(super) fn poll(&mut self) -> Option<Result<Request>> {
        self.poll_request().map(Ok).or_else(|| self.inbox.end().map(Err))
    }

    /// The next request if it is there; on the way it gives credit back for bodies that are coming in.
    fn poll_request(&mut self) -> Option<Request> {
        loop {
            let arrived = lock(&self.inbox.arrived).pop_front()?;
            match arrived {
                Arrived::Request(call) => {
                    // Cancelled before it was looked at: nobody waits for it.
                    if let Some(request) = Request::of(&self.inner, call) {
                        return Some(request);
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
        if !self.inner.is_ours() {
            return;
        }
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
        let waiting = self.inbox.take_all();
        let mut table = lock(&self.inner.table);
        for arrived in waiting {
            give_up(&self.inner, &mut table, arrived.call());
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

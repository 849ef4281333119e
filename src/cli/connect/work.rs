//! One operation each: publishes in order, a subscription, a request, a service and its calls.

use super::super::options::Policy;
use super::protocol::{Event, Id};
use crate::client::asynchronous::{AsyncClient, AsyncRequest, AsyncService, AsyncSubscription};
use crate::client::{Error, RequestOptions, SubscribeOptions};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::AbortHandle;

/// Answers of the program that wait for their call's requester. With more, its further lines wait, and after the
/// patience the call ends.
const ANSWERS: usize = 64;

/// An operation that has an end.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) abort: AbortHandle,
    /// A request is finished at the end of the input; a subscription and a service are not.
    pub(super) is_request: bool,
}

/// The operations under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Operations(Arc<OperationTable>);

#[derive(Debug, Default)]
struct OperationTable {
    active: Mutex<HashMap<Id, Active>>,
    ended: Notify,
}

impl Operations {
    fn active(&self) -> MutexGuard<'_, HashMap<Id, Active>> {
        self.0.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, id: Id, operation: Active) {
        self.active().insert(id, operation);
    }

    pub(super) fn remove(&self, id: &Id) -> Option<Active> {
        self.active().remove(id)
    }

    pub(super) fn contains(&self, id: &Id) -> bool {
        self.active().contains_key(id)
    }

    pub(super) fn len(&self) -> usize {
        self.active().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.active().is_empty()
    }

    /// Subscriptions and services end, requests go on.
    pub(super) fn end_all_but_requests(&self) {
        self.active().retain(|_, active| {
            if !active.is_request {
                active.abort.abort();
            }
            active.is_request
        });
    }

    /// Waits until an operation has ended by itself. One that ended before the call counts.
    pub(super) async fn ended(&self) {
        self.0.ended.notified().await;
    }
}

/// Where operations report.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    pub(super) events: Sender<Event>,
    pub(super) operations: Operations,
}

impl Reporter {
    async fn say(&self, event: Event) {
        let _ = self.events.send(event).await;
    }

    /// The last event of an operation.
    async fn end(&self, id: Id, event: Event) {
        self.say(event).await;
        self.operations.remove(&id);
        self.operations.0.ended.notify_one();
    }
}

/// A message to publish.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) id: Option<Id>,
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
}

/// Publishes in order. `done` says that the broker has the message for all current subscribers. Behind the last one all
/// are routed.
///
/// # Errors
///
/// If the connection has ended before they were.
pub(super) async fn publish(
    client: AsyncClient,
    mut waiting: Receiver<Publish>,
    events: Sender<Event>,
) -> Result<(), Error> {
    let mut is_flushed = true;
    while let Some(Publish { id, topic, payload }) = waiting.recv().await {
        let mut published = client.publish(&topic, payload).await;
        if published.is_ok() && id.is_some() {
            published = client.flush().await;
        }
        is_flushed = id.is_some();
        let event = match (published, &id) {
            (Ok(()), None) => continue,
            (Ok(()), Some(id)) => Event::of("done", id),
            (Err(error), id) => Event::failed(id.as_ref(), &error),
        };
        if events.send(event).await.is_err() {
            break;
        }
    }
    if is_flushed { Ok(()) } else { client.flush().await }
}

pub(super) async fn subscribe(client: &AsyncClient, pattern: &str, policy: Policy) -> Result<AsyncSubscription, Error> {
    client.subscribe_with(pattern, SubscribeOptions { policy: policy.into(), ..SubscribeOptions::default() }).await
}

/// Reports the messages of a subscription, and drops with the next message.
pub(super) async fn deliver(id: Id, mut subscription: AsyncSubscription, reporter: Reporter) {
    let mut reported = 0;
    loop {
        let message = match subscription.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return reporter.end(id.clone(), Event::failed(Some(&id), &error)).await,
            None => return reporter.end(id.clone(), Event::of("end", &id)).await,
        };
        let dropped = subscription.dropped();
        if dropped > reported {
            reporter.say(Event::of("dropped", &id).counts(dropped - reported)).await;
            reported = dropped;
        }
        let event = Event::of("message", &id).published(message.topic(), message.publisher(), message.sequence());
        reporter.say(event.with(message.into_payload())).await;
    }
}

/// A request to send.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) service: String,
    pub(super) payload: Vec<u8>,
    pub(super) stream: bool,
    pub(super) options: RequestOptions,
}

pub(super) async fn request(id: Id, client: AsyncClient, call: Call, reporter: Reporter) {
    let outcome = if call.stream {
        stream(&id, &client, &call, &reporter).await
    } else {
        let reply = client.request_with(&call.service, &call.payload, call.options).await;
        reply.map(|reply| Event::of("reply", &id).with(reply))
    };
    let event = outcome.unwrap_or_else(|error| Event::failed(Some(&id), &error));
    reporter.end(id, event).await;
}

async fn stream(id: &Id, client: &AsyncClient, call: &Call, reporter: &Reporter) -> Result<Event, Error> {
    let mut chunks = client.request_stream_with(&call.service, &call.payload, call.options).await?;
    while let Some(chunk) = chunks.next().await {
        reporter.say(Event::of("chunk", id).with(chunk?)).await;
    }
    Ok(Event::of("end", id))
}

/// What the program says to a call.
#[derive(Debug)]
pub(super) enum Answer {
    Chunk(Vec<u8>),
    /// The last part; none ends a streamed reply.
    Reply(Option<Vec<u8>>),
    Fail(String),
    Refuse(String),
}

/// The outstanding calls of all services.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    table: Arc<Mutex<CallTable>>,
    /// How long a requester that takes no answers delays the program's further lines.
    patience: Duration,
}

#[derive(Debug, Default)]
struct CallTable {
    last: u64,
    open: HashMap<u64, OpenCall>,
}

#[derive(Clone, Debug)]
struct OpenCall {
    answers: Sender<Answer>,
    /// Notified once, when its requester does not take the answers.
    given_up: Arc<Notify>,
}

impl Calls {
    pub(super) fn new(patience: Duration) -> Calls {
        Calls { table: Arc::default(), patience }
    }

    fn table(&self) -> MutexGuard<'_, CallTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self) -> (u64, Receiver<Answer>, Arc<Notify>) {
        let (answers, received) = channel(ANSWERS);
        let given_up = Arc::new(Notify::new());
        let mut table = self.table();
        table.last += 1;
        let call = table.last;
        table.open.insert(call, OpenCall { answers, given_up: given_up.clone() });
        (call, received, given_up)
    }

    pub(super) fn len(&self) -> usize {
        self.table().open.len()
    }

    fn remove(&self, call: u64) {
        self.table().open.remove(&call);
    }

    /// No more answers come: outstanding calls fail.
    pub(super) fn end(&self) {
        self.table().open.clear();
    }

    /// Passes an answer on. A call whose requester takes none of those before it ends.
    ///
    /// # Errors
    ///
    /// If the call is not outstanding.
    pub(super) async fn tell(&self, call: u64, answer: Answer) -> Result<(), Box<Event>> {
        let error = |code, text: &str| Err(Box::new(Event::error(None, code, text).of_call(call)));
        let unknown = || error("unknown", &format!("call {call} is not outstanding"));
        let open = self.table().open.get(&call).cloned();
        let Some(OpenCall { answers, given_up }) = open else { return unknown() };
        match answers.send_timeout(answer, self.patience).await {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Closed(_)) => unknown(),
            Err(SendTimeoutError::Timeout(_)) => {
                self.remove(call);
                given_up.notify_one();
                error("overloaded", "the requester did not take the reply in time")
            }
        }
    }
}

/// Reports the requests of a service, each of which becomes a call.
pub(super) async fn serve(id: Id, mut service: AsyncService, calls: Calls, reporter: Reporter) {
    loop {
        let mut request = match service.next().await {
            Some(Ok(request)) => request,
            Some(Err(error)) => return reporter.end(id.clone(), Event::failed(Some(&id), &error)).await,
            None => return reporter.end(id.clone(), Event::of("end", &id)).await,
        };
        let (call, answers, given_up) = calls.add();
        let event = Event::of("request", &id).of_call(call).request(request.requester(), request.wants_stream());
        reporter.say(event.with(request.take_payload())).await;
        let (id, calls, reporter) = (id.clone(), calls.clone(), reporter.clone());
        tokio::spawn(async move {
            let end_untaken = request.end_untaken();
            // In its own future: the request is dropped, and rejected, as soon as one of the two is done.
            let is_given_up = async {
                given_up.notified().await;
                end_untaken();
            };
            let event = tokio::select! {
                event = answer_until_end(&id, request, answers) => event,
                () = is_given_up => None,
            };
            if let Some(event) = event {
                reporter.say(event.of_call(call)).await;
            }
            calls.remove(call);
        });
    }
}

/// The event that is left to say.
async fn answer_until_end(id: &Id, mut request: AsyncRequest, mut answers: Receiver<Answer>) -> Option<Event> {
    loop {
        let answer = tokio::select! {
            answer = answers.recv() => answer,
            () = request.cancelled() => return Some(Event::of("cancelled", id)),
        };
        let sent = match answer {
            Some(Answer::Chunk(_)) if !request.wants_stream() => {
                return Some(Event::error(Some(id), "invalid", "the requester does not want a stream: reply instead"));
            }
            Some(Answer::Chunk(payload)) => match request.chunk(payload).await {
                Ok(()) => continue,
                Err(error) => Err(error),
            },
            Some(Answer::Reply(None)) if request.wants_stream() => request.finish().await,
            Some(Answer::Reply(payload)) => request.reply(payload.unwrap_or_default()).await,
            Some(Answer::Fail(message)) => request.fail(&message).await,
            Some(Answer::Refuse(message)) => request.refuse(&message).await,
            // The input is over.
            None => request.fail("the responder's input has ended").await,
        };
        return sent.err().map(|error| Event::failed(Some(id), &error));
    }
}

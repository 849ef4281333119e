//! The operations under way, from the first line to the last.

use super::super::failure::{Code, Failure};
use super::lines::Input;
use super::protocol::{Event, Id, Op};
use super::work::{self, Active, Calls, Operations, Publish, Reporter};
use crate::client::asynchronous::AsyncClient;
use crate::client::{Builder, ConnectionState, RequestOptions};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Publishes that wait for their turn.
const PUBLISHES: usize = 64;

struct Session {
    client: AsyncClient,
    events: Sender<Event>,
    operations: Operations,
    calls: Calls,
    publishes: Sender<Publish>,
    reporter: Reporter,
    max_operations: usize,
}

/// Connects, and carries out all operations. Returns when the input is over and what it began is finished, or when
/// stdout takes no more.
///
/// # Errors
///
/// If there is no broker, it closes the connection, or stdin fails.
pub(super) async fn run(
    builder: Builder,
    mut input: Receiver<Input>,
    events: Sender<Event>,
    max_operations: usize,
    patience: Duration,
) -> Result<(), Failure> {
    let client = AsyncClient::connect_with(builder).await?;
    let mut states = client.events();
    let operations = Operations::default();
    let (publishes, waiting) = channel(PUBLISHES);
    let publisher = tokio::spawn(work::publish(client.clone(), waiting, events.clone()));
    let reporter = Reporter { events: events.clone(), operations: operations.clone() };
    let calls = Calls::new(patience);
    let mut session =
        Session { client: client.clone(), events, operations, calls, publishes, reporter, max_operations };
    session.say(Event::new("connected")).await;
    let mut input_is_over = false;
    let mut is_connected = true;
    while !(input_is_over && session.operations.is_empty()) {
        tokio::select! {
            // Stdout is closed.
            () = session.reporter.events.closed() => break,
            state = states.next() => match state {
                Some(ConnectionState::Connected) if !is_connected => {
                    is_connected = true;
                    session.say(Event::new("connected")).await;
                }
                Some(ConnectionState::Reconnecting { .. }) if is_connected => {
                    is_connected = false;
                    session.say(Event::new("disconnected")).await;
                }
                Some(ConnectionState::Closed { reason }) => return Err(reason.into()),
                Some(_) => {}
                None => return Err(Failure::new(Code::Unavailable, "the connection has ended")),
            },
            () = session.operations.ended() => {}
            line = input.recv(), if !input_is_over => match line {
                Some(Input::Line { number, text }) => session.line(number, &text).await,
                Some(Input::TooLong { number, limit }) => {
                    let message = format!("longer than --max-line-bytes, {limit} bytes");
                    session.say(Event::error(None, "invalid", message).at_line(number)).await;
                }
                Some(Input::Failed(error)) => {
                    return Err(Failure::new(Code::Usage, format!("cannot read stdin: {error}")));
                }
                None => {
                    input_is_over = true;
                    session.end_what_goes_on();
                }
            },
        }
    }
    let Session { publishes, .. } = session;
    // Ends the publisher when its queue is empty.
    drop(publishes);
    let flushed = publisher.await.unwrap_or(Ok(()));
    client.close();
    Ok(flushed?)
}

impl Session {
    async fn say(&self, event: Event) {
        // A closed stdout ends the loop.
        let _ = self.events.send(event).await;
    }

    async fn line(&mut self, number: u64, text: &[u8]) {
        let done = match Op::parse(text) {
            Ok(op) => self.carry_out(op).await,
            Err(invalid) => Err(Event::error(invalid.id.as_ref(), "invalid", invalid.message).at_line(number).into()),
        };
        if let Err(event) = done {
            self.say(*event).await;
        }
    }

    /// Begins an operation, in the order of the lines: a subscription or a service is in force before the next line.
    async fn carry_out(&mut self, op: Op) -> Result<(), Box<Event>> {
        match op {
            Op::Pub { id, topic, payload } => {
                let _ = self.publishes.send(Publish { id, topic, payload }).await;
            }
            Op::Sub { id, pattern, policy } => {
                self.admit(&id)?;
                let subscription = work::subscribe(&self.client, &pattern, policy).await;
                let subscription = subscription.map_err(|error| Box::new(Event::failed(Some(&id), &error)))?;
                self.say(Event::of("ready", &id)).await;
                let task = work::deliver(id.clone(), subscription, self.reporter.clone());
                self.begin(id, false, task);
            }
            Op::Request { id, service, payload, stream, timeout_ms } => {
                self.admit(&id)?;
                let timeout = timeout_ms.map(Duration::from_millis);
                let options = RequestOptions { timeout, ..RequestOptions::default() };
                let call = work::Call { service, payload, stream, options };
                let task = work::request(id.clone(), self.client.clone(), call, self.reporter.clone());
                self.begin(id, true, task);
            }
            Op::Serve { id, service, max_in_flight } => {
                self.admit(&id)?;
                let service = self.client.serve_up_to(&service, max_in_flight).await;
                let service = service.map_err(|error| Box::new(Event::failed(Some(&id), &error)))?;
                self.say(Event::of("ready", &id)).await;
                let task = work::serve(id.clone(), service, self.calls.clone(), self.reporter.clone());
                self.begin(id, false, task);
            }
            Op::Chunk { call, payload } => self.calls.tell(call, work::Answer::Chunk(payload)).await?,
            Op::Reply { call, payload } => self.calls.tell(call, work::Answer::Reply(payload.0)).await?,
            Op::Fail { call, message } => self.calls.tell(call, work::Answer::Fail(message)).await?,
            Op::Refuse { call, message } => self.calls.tell(call, work::Answer::Refuse(message)).await?,
            Op::Cancel { id } => self.cancel(&id).await?,
        }
        Ok(())
    }

    /// Whether an operation may begin.
    fn admit(&self, id: &Id) -> Result<(), Box<Event>> {
        if self.operations.contains(id) {
            return Err(Event::error(Some(id), "invalid", format!("id {id} is in use")).into());
        }
        let count = self.operations.len() + self.calls.len();
        if count >= self.max_operations {
            let message = format!("{count} operations are under way, as many as --max-operations allows");
            return Err(Event::error(Some(id), "limit_reached", message).into());
        }
        Ok(())
    }

    fn begin(&mut self, id: Id, is_request: bool, task: impl Future<Output = ()> + Send + 'static) {
        let abort = tokio::spawn(task).abort_handle();
        self.operations.insert(id, Active { abort, is_request });
    }

    async fn cancel(&mut self, id: &Id) -> Result<(), Box<Event>> {
        let Some(Active { abort, is_request }) = self.operations.remove(id) else {
            return Err(Event::error(Some(id), "unknown", format!("no operation has id {id}")).into());
        };
        // The dropped future cancels the request, or ends the subscription or the service.
        abort.abort();
        let event = if is_request { Event::error(Some(id), "cancelled", "cancelled") } else { Event::of("end", id) };
        self.say(event).await;
        Ok(())
    }

    fn end_what_goes_on(&mut self) {
        self.operations.end_all_but_requests();
        self.calls.end();
    }
}

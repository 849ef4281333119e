//! The connection to the broker, and the calls over it.

use super::completions::{Failure, FailureKind, Link, Part};
use super::replies::Reader;
use super::start::Starter;
use crate::client::asynchronous::AsyncClient;
use crate::client::{Builder, ConnectionState, Error, RequestOptions};
use crate::logic::backoff::Backoff;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Sender;
use tokio::task::AbortHandle;

/// Between attempts to connect.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(5), jitter: 0.0 };

/// How long one attempt waits for a broker that does not run.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that lasted for so long begins again with the first delay.
const STABLE: Duration = Duration::from_secs(10);

/// What comes from the broker.
#[derive(Debug)]
pub(super) enum Event {
    /// Connected, by this client.
    Up(AsyncClient),
    Away(String),
    Part {
        call: u64,
        part: Part,
    },
    Failed {
        call: u64,
        failure: Failure,
    },
}

impl Event {
    /// The state of the connection, if the event is about it.
    pub(super) fn link(&self) -> Option<Link> {
        match self {
            Event::Up(_) => Some(Link::Up),
            Event::Away(reason) => Some(Link::Away(reason.clone())),
            Event::Part { .. } | Event::Failed { .. } => None,
        }
    }
}

/// Connects, and again whenever the connection has ended. Returns when no one receives.
pub(super) async fn keep_connected(builder: Builder, starter: Option<Starter>, events: Sender<Event>) {
    let mut failures = 0;
    loop {
        let reason = match connect(&builder, starter.as_ref(), failures > 0).await {
            Ok(client) => {
                let begun = Instant::now();
                let reason = watch(&client, starter.as_ref(), &events).await;
                failures = if begun.elapsed() > STABLE { 0 } else { failures };
                reason
            }
            Err(reason) => reason,
        };
        if events.send(Event::Away(reason)).await.is_err() {
            return;
        }
        tokio::time::sleep(BACKOFF.delay(failures, 0.5)).await;
        failures = failures.saturating_add(1);
    }
}

/// One attempt. The first one returns at once if no broker runs, and the user is told; the others wait for one.
async fn connect(builder: &Builder, starter: Option<&Starter>, waits: bool) -> Result<AsyncClient, String> {
    let attempt = if waits && starter.is_none() {
        builder.clone().retry_on_initial_connect().timeout(PATIENCE)
    } else {
        builder.clone()
    };
    match (AsyncClient::connect_with(attempt).await, starter) {
        (Ok(client), _) => Ok(client),
        (Err(error), Some(starter)) if error.is_no_broker() => {
            starter.start().await?;
            AsyncClient::connect_with(starter.builder(builder.clone())).await.map_err(|error| error.to_string())
        }
        (Err(error), None) if error.is_no_broker() => Err(format!("{error}; start one: lapce-ipc serve")),
        (Err(error), _) => Err(error.to_string()),
    }
}

/// Reports the states of a connection until it ends; returns the reason. A lost one comes back by itself.
async fn watch(client: &AsyncClient, starter: Option<&Starter>, events: &Sender<Event>) -> String {
    let mut states = client.events();
    while let Some(state) = states.next().await {
        let event = match state {
            ConnectionState::Connected => Event::Up(client.clone()),
            ConnectionState::Reconnecting { attempt, .. } => {
                // The first attempt may find the next broker.
                if let Some(starter) = starter.filter(|starter| attempt > 1 && starter.is_for(client.socket()))
                    && let Err(reason) = starter.start().await
                {
                    log::warn!("cannot start a broker reason={reason:?}");
                }
                Event::Away("the connection to the broker is lost; reconnecting".to_owned())
            }
            ConnectionState::Closed { reason } => return reason.to_string(),
            ConnectionState::Connecting => continue,
        };
        if events.send(event).await.is_err() {
            break;
        }
    }
    "the connection to the broker has ended".to_owned()
}

/// A call, to be cancelled by its handle. Its events end with a last part or a failure.
pub(super) fn call(
    client: AsyncClient,
    service: String,
    options: RequestOptions,
    call: u64,
    payload: Vec<u8>,
    events: Sender<Event>,
) -> AbortHandle {
    let run = async move {
        let failure = match stream(&client, &service, options, call, &payload, &events).await {
            Ok(()) => return,
            Err(failure) => failure,
        };
        // Without a receiver the process ends.
        let _ = events.send(Event::Failed { call, failure }).await;
    };
    tokio::spawn(run).abort_handle()
}

async fn stream(
    client: &AsyncClient,
    service: &str,
    options: RequestOptions,
    call: u64,
    payload: &[u8],
    events: &Sender<Event>,
) -> Result<(), Failure> {
    let failed = |error| failure(service, &error);
    let mut reader = Reader::new(call);
    let mut replies = client.request_stream_with(service, payload, options).await.map_err(failed)?;
    let mut parts = Vec::new();
    // The last part is passed on when the stream has ended well.
    while let Some(chunk) = replies.next().await {
        parts.extend(reader.chunk(&chunk.map_err(failed)?)?);
        let ready = parts.iter().take_while(|part| part.finish.is_none()).count();
        for part in parts.drain(..ready) {
            if events.send(Event::Part { call, part }).await.is_err() {
                return Ok(());
            }
        }
    }
    parts.extend(reader.end()?);
    for part in parts {
        let _ = events.send(Event::Part { call, part }).await;
    }
    Ok(())
}

fn failure(service: &str, error: &Error) -> Failure {
    let (kind, message) = if error.is_breaker_open() {
        let again = format!("to try now: lapce-ipc breaker close {service} --for 1s");
        let message = format!("the engine has failed repeatedly and is given a pause ({service}: {error}; {again})");
        (FailureKind::Breaker, message)
    } else if error.is_no_responders() {
        (FailureKind::NoEngine, format!("no engine serves {service}"))
    } else if error.is_disconnected() {
        (FailureKind::Broker, error.to_string())
    } else {
        (FailureKind::Engine, format!("{service}: {error}"))
    };
    Failure { retry_after: error.retry_after(), ..Failure::new(kind, message) }
}

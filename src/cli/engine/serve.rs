//! The services of an engine: takes requests, waits for their turn, replies, and drains at the end.

use super::endpoint::{Events, read_rest};
use super::fault::{Blame, Fault};
use super::model::Model;
use super::outgoing::{Outgoing, Stop};
use super::queue::Subject;
use super::turns::{Turn, Turns};
use super::{chat, completion};
use crate::cli::exit::EndSignals;
use crate::cli::failure::Failure;
use crate::cli::logging::value;
use crate::cli::target::log_states;
use crate::client::asynchronous::{AsyncClient, AsyncRequest, AsyncService};
use crate::client::{Builder, Error};
use crate::shm::segment::fill_random;
use crate::wire::typed::{ChatRequest, CompletionRequest, Message};
use serde_json::json;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// What is served, and its limits.
#[derive(Clone, Debug)]
pub(super) struct Services {
    pub(super) completion: String,
    pub(super) chat: Option<String>,
    /// Requests per service that are taken.
    pub(super) queue: u32,
    /// Requests that the engine has.
    pub(super) slots: usize,
    /// How long a request waits for a busy engine, or for its requester to take a chunk.
    pub(super) patience: Duration,
    pub(super) drain: Duration,
}

/// What the tasks share.
#[derive(Debug)]
struct Engine {
    model: Model,
    turns: Arc<Turns>,
    patience: Duration,
    last_error: Mutex<Option<(Instant, String)>>,
}

/// A request in this process's form.
#[derive(Debug)]
enum Job {
    Completion(CompletionRequest),
    Chat(ChatRequest),
}

/// Connects, serves until a signal, and drains.
///
/// # Errors
///
/// If there is no broker, it refuses the services, or the connection ends for good.
pub(super) async fn run(builder: Builder, model: Model, services: Services) -> Result<(), Failure> {
    let mut signals = EndSignals::new()?;
    let client = AsyncClient::connect_with(builder).await?;
    let states = tokio::spawn(log_states(client.events()));
    let turns = Turns::new(services.slots);
    let engine = Arc::new(Engine { model, turns, patience: services.patience, last_error: Mutex::default() });
    let ended = serve(&client, &engine, &services, &mut signals).await;
    states.abort();
    client.close();
    ended
}

async fn serve(
    client: &AsyncClient,
    engine: &Arc<Engine>,
    services: &Services,
    signals: &mut EndSignals,
) -> Result<(), Failure> {
    let mut completions = client.serve_up_to(&services.completion, services.queue).await?;
    let mut status = client.serve(&format!("{}.status", services.completion)).await?;
    let mut chats = match &services.chat {
        Some(name) => Some(client.serve_up_to(name, services.queue).await?),
        None => None,
    };
    log::info!(
        "serving service={} chat_service={} base_url={} model={} slots={}",
        value(&services.completion),
        value(services.chat.as_deref().unwrap_or("none")),
        value(&engine.model.base_url),
        value(&engine.model.name),
        services.slots
    );
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            request = completions.next() => tasks.spawn(completion_request(engine.clone(), taken(request)?)),
            request = next(&mut chats) => tasks.spawn(chat_request(engine.clone(), taken(request)?)),
            request = status.next() => tasks.spawn(status_request(engine.clone(), taken(request)?)),
            Some(_) = tasks.join_next() => continue,
            () = signals.next() => break,
        };
    }
    // No further request is taken.
    drop((completions, chats, status));
    log::info!("draining requests={} drain_timeout_ms={}", tasks.len(), services.drain.as_millis());
    let finish = async { while tasks.join_next().await.is_some() {} };
    tokio::select! {
        _ = tokio::time::timeout(services.drain, finish) => {}
        () = signals.next() => {}
    }
    // The rest is rejected when it is dropped.
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}
    log::info!("ended");
    Ok(())
}

async fn next(service: &mut Option<AsyncService>) -> Option<Result<AsyncRequest, Error>> {
    match service {
        Some(service) => service.next().await,
        None => std::future::pending().await,
    }
}

/// The request, or why there are no more.
fn taken(request: Option<Result<AsyncRequest, Error>>) -> Result<AsyncRequest, Failure> {
    match request {
        Some(request) => Ok(request?),
        None => Err(Failure::new(crate::cli::failure::Code::Unavailable, "the connection has ended")),
    }
}

async fn completion_request(engine: Arc<Engine>, request: AsyncRequest) {
    match Message::decode_any(request.payload()) {
        Ok((Message::CompletionRequest(completion), form)) => {
            let subject = Subject::Document(completion.document.clone());
            engine.handle(request, form, subject, Job::Completion(completion)).await;
        }
        Ok(_) => refuse(request, "invalid request: expected a completion_request").await,
        Err(error) => refuse(request, &error.to_string()).await,
    }
}

async fn chat_request(engine: Arc<Engine>, request: AsyncRequest) {
    match Message::decode_any(request.payload()) {
        Ok((Message::ChatRequest(chat), form)) => {
            engine.handle(request, form, Subject::Chat, Job::Chat(chat)).await;
        }
        Ok(_) => refuse(request, "invalid request: expected a chat_request").await,
        Err(error) => refuse(request, &error.to_string()).await,
    }
}

async fn status_request(engine: Arc<Engine>, request: AsyncRequest) {
    let (in_flight, queued) = engine.turns.figures();
    // Before the first completion nothing is known of the endpoint, so it is asked now.
    let unreachable = match engine.model.known_way() {
        Some(_) => None,
        None => engine.model.endpoint.owner().await.err().map(|fault| fault.text),
    };
    let last_error = engine.last_error().clone();
    let status = json!({
        "base_url": engine.model.base_url,
        "model": engine.model.name,
        "way": engine.model.known_way().map(super::way::Way::as_str),
        "unreachable": unreachable,
        "in_flight": in_flight,
        "queued": queued,
        "pause_ms": engine.turns.pause().map_or(0, |pause| pause.as_millis()),
        "last_error": last_error.as_ref().map(|(_, text)| text),
        "last_error_age_ms": last_error.as_ref().map(|(time, _)| time.elapsed().as_millis()),
    });
    let _ = request.reply(status.to_string()).await;
}

/// An error means that the requester no longer waits.
async fn refuse(request: AsyncRequest, text: &str) {
    log::debug!("request refused reason={}", value(text));
    let _ = request.refuse(text).await;
}

impl Engine {
    fn last_error(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an error for the status. Returns whether it is another one than the last.
    fn notes(&self, text: &str) -> bool {
        let last = self.last_error().replace((Instant::now(), text.to_owned()));
        last.is_none_or(|(_, last)| last != text)
    }

    async fn handle(&self, request: AsyncRequest, form: crate::wire::typed::Form, subject: Subject, job: Job) {
        // What would not be sent in time fails now. It counts: an open breaker spares the requesters the way here.
        if let Some(pause) = self.turns.pause().filter(|pause| *pause > self.patience) {
            let text = format!("{}: busy, no request is sent for {:.1}s", self.model.base_url, pause.as_secs_f64());
            self.notes(&text);
            let _ = request.fail(&text).await;
            return;
        }
        let turn = self.turns.arrive(subject);
        let mut out = Outgoing::new(request, form, turn.signals().superseded.clone(), self.patience);
        match self.attempts(&turn, &job, &mut out).await {
            Ok((last, rest)) => {
                *self.last_error() = None;
                let _ = out.finish(&last).await;
                if let Some(rest) = rest {
                    read_rest(rest).await;
                }
                drop(turn);
            }
            Err(stop) => {
                drop(turn);
                self.stopped(out, stop).await;
            }
        }
    }

    /// Waits for the turn and makes the reply; again if the engine was busy, as long as there is time.
    async fn attempts(
        &self,
        turn: &Turn,
        job: &Job,
        out: &mut Outgoing,
    ) -> Result<(Message, Option<Events<'_>>), Stop> {
        let mut first_sent = None;
        loop {
            out.unless_stopped(turn.comes()).await?;
            let since = *first_sent.get_or_insert_with(Instant::now);
            let made = match job {
                Job::Completion(completion) => completion::run(&self.model, completion, out).await,
                Job::Chat(chat) => chat::run(&self.model, chat, out).await,
            };
            match made {
                Err(Stop::Fault(Fault { blame: Blame::Busy { retry_after }, text, .. })) if !out.has_begun() => {
                    let pause = turn.again(retry_after, random());
                    log::info!("engine busy pause_ms={} reason={}", pause.as_millis(), value(&text));
                    if since.elapsed() + pause > self.patience {
                        return Err(Fault::engine(text).into());
                    }
                }
                made => {
                    turn.accepted();
                    return made;
                }
            }
        }
    }

    async fn stopped(&self, out: Outgoing, stop: Stop) {
        match stop {
            Stop::Cancelled => {}
            Stop::Superseded => out.refuse("superseded by a newer request for the document").await,
            Stop::Fault(fault) if fault.blame == Blame::Request => {
                // One that the engine refused may be the first of many: a wrong address, a context that is too small.
                let is_new = fault.status.is_some() && self.notes(&fault.text);
                let level = if is_new { log::Level::Warn } else { log::Level::Debug };
                log::log!(level, "request refused reason={}", value(&fault.text));
                out.refuse(&fault.text).await;
            }
            Stop::Fault(fault) => {
                log::warn!("request failed reason={}", value(&fault.text));
                self.notes(&fault.text);
                if fault.is_unreached {
                    self.model.forget_ways();
                }
                out.fail(&fault.text).await;
            }
        }
    }
}

/// Uniform in `0.0..1.0`.
fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without chance the pauses are as long as they can be.
    fill_random(&mut bytes).map_or(1.0, |()| f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

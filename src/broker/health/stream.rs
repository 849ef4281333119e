//! `/events`: server-sent events, for the status page and for `curl -N`.
//!
//! | event | data |
//! |---|---|
//! | `snapshot` | once a second: health, status, the process; with the router's last reply if it is stuck |
//! | `event` | an event that the broker publishes below `$sys.`: `topic`, `data` |
//! | `lost` | `count` events were lost: this reader is too slow, or there were too many at once |
//! | `end` | the last event: the broker is shutting down |
//!
//! One snapshot serves all streams, and none is taken without streams. Their number is limited, so that connections
//! are left for probes. A stream has no queue of its own but a position in the shared one, so a slow reader costs the
//! others nothing.

use super::pages::{Pages, TIMEOUT, text};
use super::probe::LastReply;
use super::process::Usage;
use crate::broker::context::Phase;
use crate::broker::telemetry::events::{BusItem, EventBus, EventSubscriber, SystemEvent};
use crate::broker::telemetry::report::ms_since;
use actix_web::body::{BodySize, MessageBody};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::MissedTickBehavior;

/// The time between two snapshots.
const EVERY: Duration = Duration::from_secs(1);
const CONTENT_TYPE: &str = "text/event-stream";

/// The state shared by all streams. Clones are the same.
#[derive(Clone)]
pub(super) struct Streams {
    bus: EventBus,
    /// The last snapshot, encoded; `None` without streams.
    snapshot: watch::Sender<Option<Bytes>>,
    /// A stream has begun.
    demand: Arc<Notify>,
    permits: Arc<Semaphore>,
    max: u32,
}

impl Streams {
    pub(super) fn new(bus: EventBus, max: u32) -> Streams {
        let (snapshot, demand, permits) =
            (watch::Sender::new(None), Arc::new(Notify::new()), Arc::new(Semaphore::new(max as usize)));
        Streams { bus, snapshot, demand, permits, max }
    }

    /// Waits until all streams have ended.
    pub(super) async fn ended(&self) {
        let _ = self.permits.acquire_many(self.max).await;
    }

    fn now(&self) -> u64 {
        (self.max as usize).saturating_sub(self.permits.available_permits()) as u64
    }

    /// `None` at the limit of streams.
    fn begin(&self, phase: watch::Receiver<Phase>) -> Option<Stream> {
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        let (follower, mut snapshots) = (self.bus.subscribe(), self.snapshot.subscribe());
        // The present snapshot is sent first.
        snapshots.mark_changed();
        self.demand.notify_one();
        Some(Stream { follower, snapshots, phase, _permit: permit, has_ended: false })
    }
}

/// Takes a snapshot a second while there are streams.
pub(super) async fn take_snapshots(pages: Arc<Pages>) {
    let streams = &pages.streams;
    let mut last = None;
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while streams.snapshot.receiver_count() == 0 {
            // It would be outdated for the next stream.
            streams.snapshot.send_replace(None);
            last = None;
            streams.demand.notified().await;
            tick.reset_immediately();
        }
        tick.tick().await;
        let snapshot = event("snapshot", &take(&pages, &mut last).await);
        streams.snapshot.send_replace(Some(snapshot));
    }
}

/// The state now; if the router does not respond, with the `last` full reply.
async fn take(pages: &Pages, last: &mut Option<LastReply>) -> Value {
    let (snapshot, seen) = pages.snapshot(TIMEOUT).await;
    if snapshot.router_responds || last.is_none() {
        last.clone_from(&seen);
    }
    let heartbeat_age_ms = last.as_ref().map(|seen| ms_since(seen.at));
    let process = Usage::read().map(|usage| {
        json!({
            "memory_bytes": usage.memory.map(|memory| memory.rss),
            "cpu_seconds": usage.cpu_seconds,
            "threads": usage.threads,
            "descriptors": usage.descriptors,
            "descriptors_limit": usage.descriptors_limit,
        })
    });
    json!({
        "router_responds": snapshot.router_responds,
        "router_heartbeat_age_ms": heartbeat_age_ms,
        // When the router counted, by the broker's clock: rates are differences of counters over differences of this.
        "counted_at_ms": heartbeat_age_ms.map(|ago| snapshot.uptime_ms.saturating_sub(ago)),
        "threads_late": snapshot.late,
        "health": snapshot.evaluate(),
        "status": last.as_ref().map(|seen| pages.status(seen)),
        "process": process,
        "streams": { "now": pages.streams.now(), "limit": pages.streams.max },
    })
}

/// The handler of `/events`.
pub(super) async fn events(request: HttpRequest, pages: web::Data<Pages>) -> HttpResponse {
    if request.method() == Method::HEAD {
        return HttpResponse::Ok().content_type(CONTENT_TYPE).finish();
    }
    let phase = pages.phase();
    if phase.borrow().is_ending() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the broker is shutting down\n");
    }
    match pages.streams.begin(phase) {
        Some(stream) => HttpResponse::Ok().content_type(CONTENT_TYPE).body(Body(stream.turn())),
        None => text(
            StatusCode::SERVICE_UNAVAILABLE,
            "all event streams are taken (health_server.max_streams); try again later\n",
        ),
    }
}

/// One stream.
struct Stream {
    follower: EventSubscriber,
    snapshots: watch::Receiver<Option<Bytes>>,
    phase: watch::Receiver<Phase>,
    _permit: OwnedSemaphorePermit,
    has_ended: bool,
}

type Turn = Pin<Box<dyn Future<Output = Option<(Bytes, Stream)>>>>;

impl Stream {
    /// The next event, and the stream to continue with.
    fn turn(mut self) -> Turn {
        Box::pin(async move {
            let event = self.next().await?;
            Some((event, self))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        if self.has_ended {
            return None;
        }
        tokio::select! {
            biased;
            _ = self.phase.wait_for(Phase::is_ending) => {}
            // At most one a second, before the events, of which there may be many.
            Some(snapshot) = next(&mut self.snapshots) => return Some(snapshot),
            Some(told) = self.follower.next() => return Some(match told {
                BusItem::Event(news) => system_event(&news),
                BusItem::Lost(count) => event("lost", &json!({ "count": count })),
            }),
            else => {}
        }
        self.has_ended = true;
        Some(event("end", &json!({ "reason": "the broker is shutting down" })))
    }
}

/// A stream as a response body. It is polled for more only when its last event is sent, or nearly.
struct Body(Turn);

impl MessageBody for Body {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        self.0.as_mut().poll(context).map(|next| {
            next.map(|(event, stream)| {
                self.0 = stream.turn();
                Ok(event)
            })
        })
    }
}

/// The next snapshot; `None` at the end.
async fn next(snapshots: &mut watch::Receiver<Option<Bytes>>) -> Option<Bytes> {
    loop {
        snapshots.changed().await.ok()?;
        let snapshot = snapshots.borrow_and_update().clone();
        if snapshot.is_some() {
            return snapshot;
        }
    }
}

fn system_event(news: &SystemEvent) -> Bytes {
    // It is JSON, unless it was too long for one record.
    let data = serde_json::from_str(&news.text).unwrap_or_else(|_| Value::from(news.text.as_str()));
    event("event", &json!({ "topic": news.topic, "data": data }))
}

/// Encodes an event. JSON contains no unescaped line ends.
fn event(name: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(text: &str) -> String {
        let news = SystemEvent { topic: "$sys.a".to_owned(), text: text.to_owned() };
        String::from_utf8(system_event(&news).to_vec()).unwrap()
    }

    #[test]
    fn an_event_is_two_lines_whatever_is_in_it() {
        assert_eq!(news(r#"{"a":1}"#), "event: event\ndata: {\"data\":{\"a\":1},\"topic\":\"$sys.a\"}\n\n");
        let cut = news("{\"a\":\"b\n\nevent: end\ndata: ");
        assert_eq!(cut.lines().count(), 3, "{cut}");
        assert!(cut.contains(r#""data":"{\"a\":\"b\n\nevent: end\ndata: ""#), "{cut}");
    }
}

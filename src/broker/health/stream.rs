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
//! others nothing. It holds one part that is not written, of an event or a snapshot, or 32 KiB of smaller ones; and the
//! streams' parts count as unread bytes of all responses (`connections`).

use super::connections::Connections;
use super::probe::LastReply;
use crate::broker::context::Phase;
use crate::broker::telemetry::events::{BusItem, EventBus, EventSubscriber, SystemEvent};
use actix_web::body::{BodySize, MessageBody};
use actix_web::web::Bytes;
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
pub(super) const CONTENT_TYPE: &str = "text/event-stream";

/// The state shared by all streams. Clones are the same.
#[derive(Clone)]
pub(super) struct Streams {
    bus: EventBus,
    /// The last snapshot, encoded; `None` without streams.
    snapshot: watch::Sender<Option<Bytes>>,
    /// A stream has begun.
    demand: Arc<Notify>,
    permits: Arc<Semaphore>,
    pub(super) max: u32,
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

    /// The number of streams.
    pub(super) fn now(&self) -> u64 {
        (self.max as usize).saturating_sub(self.permits.available_permits()) as u64
    }

    /// `None` at the limit of streams.
    pub(super) fn begin(&self, phase: watch::Receiver<Phase>, connections: Connections) -> Option<Body> {
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        let (follower, mut snapshots) = (self.bus.subscribe(), self.snapshot.subscribe());
        // The present snapshot is sent first.
        snapshots.mark_changed();
        self.demand.notify_one();
        let stream = Stream { follower, snapshots, phase, connections, _permit: permit, has_ended: false };
        Some(Body(stream.turn()))
    }
}

/// Takes a snapshot a second while there are streams, by `take`, which is handed the router's last full reply.
pub(super) async fn take_snapshots(streams: Streams, take: impl AsyncFn(&mut Option<LastReply>) -> Value) {
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
        let snapshot = event("snapshot", &take(&mut last).await);
        streams.snapshot.send_replace(Some(snapshot));
    }
}

/// One stream.
struct Stream {
    follower: EventSubscriber,
    snapshots: watch::Receiver<Option<Bytes>>,
    phase: watch::Receiver<Phase>,
    connections: Connections,
    _permit: OwnedSemaphorePermit,
    has_ended: bool,
}

type Turn = Pin<Box<dyn Future<Output = Option<(Bytes, Stream)>>>>;

impl Stream {
    /// The next event, and the stream to continue with.
    fn turn(mut self) -> Turn {
        Box::pin(async move {
            let event = self.next().await?;
            self.connections.room().await;
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
            Some(item) = self.follower.next() => return Some(match item {
                BusItem::Event(events) => system_event(&events),
                BusItem::Lost(count) => event("lost", &json!({ "count": count })),
            }),
            else => {}
        }
        self.has_ended = true;
        Some(event("end", &json!({ "reason": "the broker is shutting down" })))
    }
}

/// A stream as a response body. It is polled for more only when its last event is sent, or nearly.
pub(super) struct Body(Turn);

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

fn system_event(events: &SystemEvent) -> Bytes {
    // It is JSON, unless it was too long for one record.
    let data = serde_json::from_str(&events.text).unwrap_or_else(|_| Value::from(events.text.as_str()));
    event("event", &json!({ "topic": events.topic, "data": data }))
}

/// Encodes an event. JSON contains no unescaped line ends.
fn event(name: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str) -> String {
        let events = SystemEvent { topic: "$sys.a".to_owned(), text: text.to_owned() };
        String::from_utf8(system_event(&events).to_vec()).unwrap()
    }

    #[test]
    fn an_event_is_two_lines_whatever_is_in_it() {
        assert_eq!(events(r#"{"a":1}"#), "event: event\ndata: {\"data\":{\"a\":1},\"topic\":\"$sys.a\"}\n\n");
        let cut = events("{\"a\":\"b\n\nevent: end\ndata: ");
        assert_eq!(cut.lines().count(), 3, "{cut}");
        assert!(cut.contains(r#""data":"{\"a\":\"b\n\nevent: end\ndata: ""#), "{cut}");
    }
}

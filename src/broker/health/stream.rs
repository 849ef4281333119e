//! `/events`: server-sent events, for the status page and for whoever wants to watch with `curl -N`.
//!
//! | event | data |
//! |---|---|
//! | `snapshot` | once a second: health, status, the process; with the router's last figures if it hangs |
//! | `news` | what the broker publishes below `$sys.`, as it happens: `topic`, `data` |
//! | `lost` | `count` news did not reach this reader: it is too slow, or too much happened at once |
//! | `end` | the last one: the broker is shutting down |
//!
//! One snapshot is taken for all who follow, and none when nobody does. Streams are limited, so that they leave the
//! server's connections to the probes; and since a stream has no queue of its own but a place in that of all, a reader
//! that is slow costs the others nothing.

use super::pages::{PATIENCE, Pages, text};
use super::process::Usage;
use super::survey::Seen;
use crate::broker::connection::Phase;
use crate::broker::events::{Follower, News, Newsroom, Told};
use crate::broker::report::ms_since;
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

/// What all streams share. Clones are the same.
#[derive(Clone)]
pub(super) struct Streams {
    newsroom: Newsroom,
    /// The last snapshot, as it is sent; `None` if nobody has followed lately.
    snapshot: watch::Sender<Option<Bytes>>,
    /// Somebody has begun to follow.
    wanted: Arc<Notify>,
    permits: Arc<Semaphore>,
    max: u32,
}

impl Streams {
    pub(super) fn new(newsroom: Newsroom, max: u32) -> Streams {
        let (snapshot, wanted, permits) =
            (watch::Sender::new(None), Arc::new(Notify::new()), Arc::new(Semaphore::new(max as usize)));
        Streams { newsroom, snapshot, wanted, permits, max }
    }

    /// Waits until nobody follows.
    pub(super) async fn ended(&self) {
        let _ = self.permits.acquire_many(self.max).await;
    }

    fn now(&self) -> u64 {
        (self.max as usize).saturating_sub(self.permits.available_permits()) as u64
    }

    /// `None` if as many follow as may.
    fn begin(&self, phase: watch::Receiver<Phase>) -> Option<Stream> {
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        let (follower, mut snapshots) = (self.newsroom.follow(), self.snapshot.subscribe());
        // The one that is there is news to whoever comes.
        snapshots.mark_changed();
        self.wanted.notify_one();
        Some(Stream { follower, snapshots, phase, _permit: permit, has_ended: false })
    }
}

/// Takes a snapshot a second for as long as anybody follows.
pub(super) async fn take_snapshots(pages: Arc<Pages>) {
    let streams = &pages.streams;
    let mut last = None;
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while streams.snapshot.receiver_count() == 0 {
            // It would be an old one to whoever comes next.
            streams.snapshot.send_replace(None);
            last = None;
            streams.wanted.notified().await;
            tick.reset_immediately();
        }
        tick.tick().await;
        let snapshot = event("snapshot", &take(&pages, &mut last).await);
        streams.snapshot.send_replace(Some(snapshot));
    }
}

/// Everything that is known now. If the router does not respond, with the `last` that it said to such a question.
async fn take(pages: &Pages, last: &mut Option<Seen>) -> Value {
    let (facts, seen) = pages.facts(PATIENCE).await;
    if facts.answers || last.is_none() {
        last.clone_from(&seen);
    }
    let answered_ms_ago = last.as_ref().map(|seen| ms_since(seen.at));
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
        "answers": facts.answers,
        "answered_ms_ago": answered_ms_ago,
        // When the router counted, by the broker's clock: rates are differences of counters over differences of this.
        "counted_at_ms": answered_ms_ago.map(|ago| facts.uptime_ms.saturating_sub(ago)),
        "threads_late": facts.late,
        "health": facts.judge(),
        "status": last.as_ref().map(|seen| pages.status(seen)),
        "process": process,
        "streams": { "now": pages.streams.now(), "limit": pages.streams.max },
    })
}

/// The answer to `/events`.
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

/// One who follows.
struct Stream {
    follower: Follower,
    snapshots: watch::Receiver<Option<Bytes>>,
    phase: watch::Receiver<Phase>,
    _permit: OwnedSemaphorePermit,
    has_ended: bool,
}

type Turn = Pin<Box<dyn Future<Output = Option<(Bytes, Stream)>>>>;

impl Stream {
    /// The next event, and the stream to go on with.
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
            // At most one a second: before the news, of which there may be very many.
            Some(snapshot) = next(&mut self.snapshots) => return Some(snapshot),
            Some(told) = self.follower.next() => return Some(match told {
                Told::News(news) => of_news(&news),
                Told::Lost(count) => event("lost", &json!({ "count": count })),
            }),
            else => {}
        }
        self.has_ended = true;
        Some(event("end", &json!({ "reason": "the broker is shutting down" })))
    }
}

/// A stream as the body of an answer. It is asked for more only when what it gave is sent, or nearly.
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

/// The next snapshot; `None` if there will be none.
async fn next(snapshots: &mut watch::Receiver<Option<Bytes>>) -> Option<Bytes> {
    loop {
        snapshots.changed().await.ok()?;
        let snapshot = snapshots.borrow_and_update().clone();
        if snapshot.is_some() {
            return snapshot;
        }
    }
}

fn of_news(news: &News) -> Bytes {
    // It is JSON, unless it was too long for one record.
    let data = serde_json::from_str(&news.text).unwrap_or_else(|_| Value::from(news.text.as_str()));
    event("news", &json!({ "topic": news.topic, "data": data }))
}

/// An event as it is sent. JSON has no ends of lines that are not escaped.
fn event(name: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(text: &str) -> String {
        let news = News { topic: "$sys.a".to_owned(), text: text.to_owned() };
        String::from_utf8(of_news(&news).to_vec()).unwrap()
    }

    #[test]
    fn an_event_is_two_lines_whatever_is_in_it() {
        assert_eq!(news(r#"{"a":1}"#), "event: news\ndata: {\"data\":{\"a\":1},\"topic\":\"$sys.a\"}\n\n");
        let cut = news("{\"a\":\"b\n\nevent: end\ndata: ");
        assert_eq!(cut.lines().count(), 3, "{cut}");
        assert!(cut.contains(r#""data":"{\"a\":\"b\n\nevent: end\ndata: ""#), "{cut}");
    }
}

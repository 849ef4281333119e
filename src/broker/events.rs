//! What the router has to say to people. It never writes a log line itself: a log that nobody reads must not stop it.
//! It leaves events in a bounded lock-free queue; a task on the main thread writes them. Events that find the queue
//! full are counted, and the count is told. What it publishes on its own topics goes the same way to those who follow
//! it over HTTP, if there are any.

use crate::routing::breaker::{Gate, Transition};
use crate::shm::layout::RingName;
use crate::sync::{AtomicU64, Ordering};
use crate::wire::name::Name;
use crate::wire::pattern::Pattern;
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;
use tokio::sync::{Notify, broadcast};

/// Events that may wait.
const CAPACITY: usize = 1024;

/// News that somebody who follows them may be behind.
const BEHIND: usize = 256;

/// Something on one of the broker's own topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) topic: String,
    /// JSON.
    pub(crate) text: String,
}

/// What those hear who follow the news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    News(Arc<News>),
    /// So many found no room on their way.
    Lost(u64),
}

/// Where the news can be followed. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Newsroom {
    told: broadcast::Sender<Told>,
    followers: Arc<AtomicU64>,
}

impl Newsroom {
    fn new() -> Newsroom {
        Newsroom { told: broadcast::Sender::new(BEHIND), followers: Arc::new(AtomicU64::new(0)) }
    }

    /// Follows the news from now on. Who is too slow loses some, and disturbs nobody.
    pub(crate) fn follow(&self) -> Follower {
        let told = self.told.subscribe();
        self.followers.fetch_add(1, Ordering::Relaxed);
        Follower { told, followers: self.followers.clone() }
    }

    /// Whether anybody follows: what the router asks, for which it needs no lock.
    fn is_followed(&self) -> bool {
        self.followers.load(Ordering::Relaxed) > 0
    }
}

/// Somebody who follows the news.
#[derive(Debug)]
pub(crate) struct Follower {
    told: broadcast::Receiver<Told>,
    followers: Arc<AtomicU64>,
}

impl Follower {
    /// What comes next, or how much was lost since the last; `None` when there will be no more. Nothing is lost if this
    /// is given up.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        match self.told.recv().await {
            Ok(told) => Some(told),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(Told::Lost(count)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Something that people may want to know.
#[derive(Debug)]
pub(crate) enum Event {
    /// A subscription did not take its messages in time.
    Evicted { connection: u32, pattern: Pattern, dropped: u32 },
    /// A record has killed two routers, and was taken out of its lane.
    SetAside { connection: u32, lane: RingName, position: u64 },
}

/// A breaker has changed its state.
#[derive(Debug)]
pub(crate) struct BreakerChange {
    pub(crate) service: Name,
    pub(crate) transition: Transition,
    /// The connection that wanted it so, if one did.
    pub(crate) by: Option<u32>,
}

/// What `BreakerActor` hears of the router.
#[derive(Debug)]
pub(crate) enum BreakerNews {
    /// A service has a new gate.
    Gate(Name, Arc<Gate>),
    /// A gate has changed its state.
    Changed(BreakerChange),
}

#[derive(Debug)]
struct Shared<T> {
    queue: ArrayQueue<T>,
    missed: AtomicU64,
    came: Notify,
}

/// A bounded queue out of the router's thread. Clones are the same queue.
#[derive(Debug)]
pub(crate) struct Queue<T>(Arc<Shared<T>>);

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Queue<T> {
        Queue(self.0.clone())
    }
}

impl<T> Queue<T> {
    fn new() -> Queue<T> {
        let (queue, missed, came) = (ArrayQueue::new(CAPACITY), AtomicU64::new(0), Notify::new());
        Queue(Arc::new(Shared { queue, missed, came }))
    }

    fn push(&self, item: T) {
        if self.0.queue.push(item).is_err() {
            self.0.missed.fetch_add(1, Ordering::Relaxed);
        }
        self.0.came.notify_one();
    }

    /// Waits until something may have come.
    pub(crate) async fn came(&self) {
        self.0.came.notified().await;
    }

    pub(crate) fn pop(&self) -> Option<T> {
        self.0.queue.pop()
    }

    /// How many found no room since this was last asked.
    pub(crate) fn take_missed(&self) -> u64 {
        self.0.missed.swap(0, Ordering::Relaxed)
    }
}

/// The router's end. Clones are the same queues.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    log: Queue<Event>,
    breakers: Queue<BreakerNews>,
    news: Queue<News>,
    /// Of actors; not yet published.
    actors: Queue<News>,
    newsroom: Newsroom,
}

impl Events {
    pub(crate) fn new() -> Events {
        let (log, breakers, news, actors) = (Queue::new(), Queue::new(), Queue::new(), Queue::new());
        Events { log, breakers, news, actors, newsroom: Newsroom::new() }
    }

    /// Leaves word of an actor, to be published. Never blocks.
    pub(crate) fn actor(&self, news: News) {
        self.actors.push(news);
    }

    /// What is said of actors, for the one who has it published.
    pub(crate) fn actors(&self) -> Queue<News> {
        self.actors.clone()
    }

    /// Leaves word of what is published on a topic of the broker's, if anybody wants to hear it. Never blocks.
    pub(crate) fn published(&self, topic: &str, text: &str) {
        if self.newsroom.is_followed() {
            self.news.push(News { topic: topic.to_owned(), text: text.to_owned() });
        }
    }

    /// Where to follow that.
    pub(crate) fn newsroom(&self) -> Newsroom {
        self.newsroom.clone()
    }

    /// Passes news on to those who follow them.
    pub(crate) async fn spread(self) {
        loop {
            self.news.came().await;
            // Whoever followed may be gone.
            while let Some(news) = self.news.pop() {
                let _ = self.newsroom.told.send(Told::News(Arc::new(news)));
            }
            let missed = self.news.take_missed();
            if missed > 0 {
                let _ = self.newsroom.told.send(Told::Lost(missed));
            }
        }
    }

    /// Leaves an event. Never blocks.
    pub(crate) fn tell(&self, event: Event) {
        self.log.push(event);
    }

    /// Leaves word of a breaker. Never blocks.
    pub(crate) fn breaker(&self, news: BreakerNews) {
        self.breakers.push(news);
    }

    /// What is said of breakers, for the one who passes it on.
    pub(crate) fn breakers(&self) -> Queue<BreakerNews> {
        self.breakers.clone()
    }

    /// Writes events to the log as they come.
    pub(crate) async fn write(self) {
        loop {
            self.log.came().await;
            while let Some(event) = self.log.pop() {
                match event {
                    Event::Evicted { connection, pattern, dropped } => log::warn!(
                        "subscription evicted connection={connection} pattern={pattern} dropped={dropped} \
                         reason=slow_consumer"
                    ),
                    Event::SetAside { connection, lane, position } => log::error!(
                        "poison message quarantined connection={connection} lane={lane:?} position={position} \
                         reason=killed_two_routers"
                    ),
                }
            }
            let missed = self.log.take_missed();
            if missed > 0 {
                log::warn!("events lost count={missed} reason=queue_full");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_blocks_nobody_and_is_counted() {
        let events = Events::new();
        for connection in 0..CAPACITY as u32 + 5 {
            events.tell(Event::Evicted { connection, pattern: ">".parse().unwrap(), dropped: 0 });
        }
        assert_eq!((events.log.take_missed(), events.log.take_missed()), (5, 0));
        assert_eq!(events.log.0.queue.len(), CAPACITY);
    }

    #[actix::test]
    async fn news_are_told_to_followers_and_who_is_slow_hears_how_many_were_lost() {
        let events = Events::new();
        events.published("$sys.a", "before anybody followed");
        assert_eq!(events.news.0.queue.len(), 0);
        let (mut quick, mut slow) = (events.newsroom().follow(), events.newsroom().follow());
        actix::spawn(events.clone().spread());
        let news = |n: usize| Told::News(Arc::new(News { topic: "$sys.a".to_owned(), text: n.to_string() }));
        for n in 0..BEHIND + 7 {
            events.published("$sys.a", &n.to_string());
            assert_eq!(quick.next().await, Some(news(n)));
        }
        assert_eq!(slow.next().await, Some(Told::Lost(7)));
        assert_eq!(slow.next().await, Some(news(7)), "and it goes on with the oldest that there is");
        // All at once: what does not fit into the queue is told, too.
        drop(slow);
        for n in 0..CAPACITY + 5 {
            events.published("$sys.a", &n.to_string());
        }
        let (mut lost, mut heard) = (0, 0);
        while lost + heard < CAPACITY as u64 + 5 {
            match quick.next().await {
                Some(Told::Lost(count)) => lost += count,
                Some(Told::News(_)) => heard += 1,
                None => unreachable!(),
            }
        }
        assert_eq!(heard, BEHIND as u64 - 1, "the last is that five found no room");
        drop(quick);
        assert!(!events.newsroom.is_followed());
    }
}

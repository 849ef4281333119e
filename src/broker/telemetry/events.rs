//! Events of the router for operators. The router never writes a log line itself: a blocked log must not stop it.
//! It leaves events in a bounded lock-free queue; a task on the main thread writes them. Events that find the queue
//! full are counted, and the count is logged. What it publishes on its own topics goes the same way to the event bus,
//! if `/events` streams subscribe to it.

use super::log_limit::{Kind, may_log};
use crate::logic::breaker::{Gate, Transition};
use crate::logic::shares::Principal;
use crate::shm::layout::RingName;
use crate::sync::{AtomicU64, Ordering};
use crate::wire::name::Name;
use crate::wire::pattern::Pattern;
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;
use tokio::sync::{Notify, broadcast};

/// Events that may wait.
const CAPACITY: usize = 1024;

/// Events that a subscriber of the bus may lag behind.
const BEHIND: usize = 256;

/// An event on one of the broker's own topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SystemEvent {
    pub(crate) topic: String,
    /// JSON.
    pub(crate) text: String,
}

/// An item of the event bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BusItem {
    Event(Arc<SystemEvent>),
    /// The number of events that were lost.
    Lost(u64),
}

/// The event bus. Clones are the same bus.
#[derive(Clone, Debug)]
pub(crate) struct EventBus {
    items: broadcast::Sender<BusItem>,
    subscribers: Arc<AtomicU64>,
}

impl EventBus {
    fn new() -> EventBus {
        EventBus { items: broadcast::Sender::new(BEHIND), subscribers: Arc::new(AtomicU64::new(0)) }
    }

    /// Subscribes from now on. A subscriber that is too slow loses events, and delays no other.
    pub(crate) fn subscribe(&self) -> EventSubscriber {
        let items = self.items.subscribe();
        self.subscribers.fetch_add(1, Ordering::Relaxed);
        EventSubscriber { items, subscribers: self.subscribers.clone() }
    }

    /// Whether the bus has subscribers; the router asks, without a lock.
    fn has_subscribers(&self) -> bool {
        self.subscribers.load(Ordering::Relaxed) > 0
    }
}

/// A subscriber of the event bus.
#[derive(Debug)]
pub(crate) struct EventSubscriber {
    items: broadcast::Receiver<BusItem>,
    subscribers: Arc<AtomicU64>,
}

impl EventSubscriber {
    /// The next item, or the number of lost ones; `None` at the end. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<BusItem> {
        match self.items.recv().await {
            Ok(items) => Some(items),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(BusItem::Lost(count)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Drop for EventSubscriber {
    fn drop(&mut self) {
        self.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An event for the log.
#[derive(Debug)]
pub(crate) enum Event {
    /// A slow consumer's subscription was evicted.
    Evicted { connection: u32, user: Principal, pattern: Pattern, dropped: u32 },
    /// A poison message was quarantined: it had killed two routers.
    Quarantined { connection: u32, lane: RingName, position: u64 },
}

/// A breaker has changed its state.
#[derive(Debug)]
pub(crate) struct BreakerChange {
    pub(crate) service: Name,
    pub(crate) transition: Transition,
    /// The connection that ordered it, if any.
    pub(crate) by: Option<u32>,
}

/// An event of the router for `BreakerActor`.
#[derive(Debug)]
pub(crate) enum BreakerEvent {
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

/// A bounded lock-free queue out of the router's thread. Clones are the same queue.
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

    /// The number of items lost since the last call.
    pub(crate) fn take_missed(&self) -> u64 {
        self.0.missed.swap(0, Ordering::Relaxed)
    }
}

/// The router's end. Clones are the same queues.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    log: Queue<Event>,
    breakers: Queue<BreakerEvent>,
    published: Queue<SystemEvent>,
    /// Events of actors, not yet published.
    actors: Queue<SystemEvent>,
    bus: EventBus,
}

impl Events {
    pub(crate) fn new() -> Events {
        let (log, breakers, published, actors) = (Queue::new(), Queue::new(), Queue::new(), Queue::new());
        Events { log, breakers, published, actors, bus: EventBus::new() }
    }

    /// Queues an event of an actor, to be published. Never blocks.
    pub(crate) fn actor(&self, published: SystemEvent) {
        self.actors.push(published);
    }

    /// The queue of actors' events, for the task that publishes them.
    pub(crate) fn actors(&self) -> Queue<SystemEvent> {
        self.actors.clone()
    }

    /// Puts an event of the broker's own topics on the bus, if it has subscribers. Never blocks.
    pub(crate) fn published(&self, topic: &str, text: &str) {
        if self.bus.has_subscribers() {
            self.published.push(SystemEvent { topic: topic.to_owned(), text: text.to_owned() });
        }
    }

    /// The event bus.
    pub(crate) fn bus(&self) -> EventBus {
        self.bus.clone()
    }

    /// Forwards published events to the subscribers of the bus.
    pub(crate) async fn forward(self) {
        loop {
            self.published.came().await;
            // The subscribers may be gone.
            while let Some(published) = self.published.pop() {
                let _ = self.bus.items.send(BusItem::Event(Arc::new(published)));
            }
            let missed = self.published.take_missed();
            if missed > 0 {
                let _ = self.bus.items.send(BusItem::Lost(missed));
            }
        }
    }

    /// Queues an event for the log. Never blocks.
    pub(crate) fn tell(&self, event: Event) {
        self.log.push(event);
    }

    /// Queues a change of a breaker. Never blocks.
    pub(crate) fn breaker(&self, published: BreakerEvent) {
        self.breakers.push(published);
    }

    /// The queue of breakers' changes, for `BreakerActor`.
    pub(crate) fn breakers(&self) -> Queue<BreakerEvent> {
        self.breakers.clone()
    }

    /// Writes events to the log as they come.
    pub(crate) async fn write(self) {
        loop {
            self.log.came().await;
            while let Some(event) = self.log.pop() {
                match event {
                    Event::Evicted { connection, user, pattern, dropped } => {
                        if may_log(Kind::Evicted, user) {
                            log::warn!(
                                "subscription evicted connection={connection} pattern={pattern} dropped={dropped} \
                                 reason=slow_consumer"
                            );
                        }
                    }
                    Event::Quarantined { connection, lane, position } => log::error!(
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
    use crate::logic::shares::BROKER;

    #[test]
    fn a_full_queue_blocks_nobody_and_is_counted() {
        let events = Events::new();
        for connection in 0..CAPACITY as u32 + 5 {
            events.tell(Event::Evicted { connection, user: BROKER, pattern: ">".parse().unwrap(), dropped: 0 });
        }
        assert_eq!((events.log.take_missed(), events.log.take_missed()), (5, 0));
        assert_eq!(events.log.0.queue.len(), CAPACITY);
    }

    #[actix::test]
    async fn news_are_told_to_followers_and_who_is_slow_hears_how_many_were_lost() {
        let events = Events::new();
        events.published("$sys.a", "before any subscriber");
        assert_eq!(events.published.0.queue.len(), 0);
        let (mut quick, mut slow) = (events.bus().subscribe(), events.bus().subscribe());
        actix::spawn(events.clone().forward());
        let published =
            |n: usize| BusItem::Event(Arc::new(SystemEvent { topic: "$sys.a".to_owned(), text: n.to_string() }));
        for n in 0..BEHIND + 7 {
            events.published("$sys.a", &n.to_string());
            assert_eq!(quick.next().await, Some(published(n)));
        }
        assert_eq!(slow.next().await, Some(BusItem::Lost(7)));
        assert_eq!(slow.next().await, Some(published(7)), "and it goes on with the oldest that there is");
        // All at once: what does not fit into the queue is items, too.
        drop(slow);
        for n in 0..CAPACITY + 5 {
            events.published("$sys.a", &n.to_string());
        }
        let (mut lost, mut heard) = (0, 0);
        while lost + heard < CAPACITY as u64 + 5 {
            match quick.next().await {
                Some(BusItem::Lost(count)) => lost += count,
                Some(BusItem::Event(_)) => heard += 1,
                None => unreachable!(),
            }
        }
        assert_eq!(heard, BEHIND as u64 - 1, "the last is that five found no room");
        drop(quick);
        assert!(!events.bus.has_subscribers());
    }
}

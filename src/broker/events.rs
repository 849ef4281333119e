//! What the router has to say to people. It never writes a log line itself: a log that nobody reads must not stop it.
//! It leaves events in a bounded lock-free queue; a task on the main thread writes them. Events that find the queue
//! full are counted, and the count is told.

use crate::routing::breaker::Transition;
use crate::shm::layout::RingName;
use crate::sync::{AtomicU64, Ordering};
use crate::wire::name::Name;
use crate::wire::pattern::Pattern;
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;
use tokio::sync::Notify;

/// Events that may wait.
const CAPACITY: usize = 1024;

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
    breakers: Queue<BreakerChange>,
}

impl Events {
    pub(crate) fn new() -> Events {
        Events { log: Queue::new(), breakers: Queue::new() }
    }

    /// Leaves an event. Never blocks.
    pub(crate) fn tell(&self, event: Event) {
        self.log.push(event);
    }

    /// Leaves word of a breaker. Never blocks.
    pub(crate) fn breaker_changed(&self, change: BreakerChange) {
        self.breakers.push(change);
    }

    /// What is said of breakers, for the one who passes it on.
    pub(crate) fn breakers(&self) -> Queue<BreakerChange> {
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
                        "record set aside connection={connection} lane={lane:?} position={position} \
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
}

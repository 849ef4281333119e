//! What the router has to say to people. It never writes a log line itself: a log that nobody reads must not stop it.
//! It leaves events in a bounded lock-free queue; a task on the main thread writes them. Events that find the queue
//! full are counted, and the count is told.

use crate::shm::layout::RingName;
use crate::sync::{AtomicU64, Ordering};
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

#[derive(Debug)]
struct Shared {
    queue: ArrayQueue<Event>,
    missed: AtomicU64,
    came: Notify,
}

/// The router's end. Clones are the same queue.
#[derive(Clone, Debug)]
pub(crate) struct Events(Arc<Shared>);

impl Events {
    pub(crate) fn new() -> Events {
        let (queue, missed, came) = (ArrayQueue::new(CAPACITY), AtomicU64::new(0), Notify::new());
        Events(Arc::new(Shared { queue, missed, came }))
    }

    /// Leaves an event. Never blocks.
    pub(crate) fn tell(&self, event: Event) {
        if self.0.queue.push(event).is_err() {
            self.0.missed.fetch_add(1, Ordering::Relaxed);
        }
        self.0.came.notify_one();
    }

    /// Writes events to the log as they come.
    pub(crate) async fn write(self) {
        loop {
            self.0.came.notified().await;
            while let Some(event) = self.0.queue.pop() {
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
            let missed = self.0.missed.swap(0, Ordering::Relaxed);
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
        assert_eq!(events.0.missed.load(Ordering::Relaxed), 5);
        assert_eq!(events.0.queue.len(), CAPACITY);
    }
}

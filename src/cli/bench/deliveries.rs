//! `pubsub` and `fanout`: this process publishes, others subscribe, in up to eight processes.
//!
//! The first byte of a message tells its phase: warm-up, measured, the end. Subscribers count the measured messages and
//! print the count when each publisher has ended; nothing may be missing. The time runs until the last of them has
//! printed.

use super::processes::{Processes, Role};
use super::work::{Throughput, Work};
use crate::cli::failure::{Code, Failure};
use crate::client::{Client, Publisher};
use std::time::{Duration, Instant};

const TOPIC: &str = "bench.deliveries";
/// The most processes that subscribe.
const PROCESSES: u32 = 8;
/// The phases.
const WARM_UP: u8 = b'w';
pub(super) const MEASURED: u8 = b'm';
pub(super) const END: u8 = b'e';

/// Messages between two looks at the clock; fewer when they are large, or have many receivers.
const BATCH: usize = 128;
const BATCH_BYTES: usize = 1 << 20;
const BATCH_DELIVERIES: usize = 8 << 10;

/// Publishers and subscribers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) subscribers: u32,
    pub(super) publishers: u32,
    /// On which each publisher publishes in turn.
    pub(super) topics: u32,
    /// Messages of one call, to publish and to read; `None`: one, with the calls for one.
    pub(super) batch: Option<u32>,
}

impl Load {
    /// One publisher on one topic, and one subscriber.
    pub(super) const PAIR: Load = Load { subscribers: 1, publishers: 1, topics: 1, batch: None };

    /// The connections of all.
    pub(super) fn connections(self) -> u32 {
        self.subscribers.saturating_add(self.publishers)
    }
}

/// The pattern that matches so many topics.
pub(super) fn pattern_of(topics: u32) -> &'static str {
    if topics > 1 { "bench.deliveries.>" } else { TOPIC }
}

/// Counts deliveries to all subscribers together.
///
/// # Errors
///
/// If a process fails, or a message is lost.
pub(super) fn run(processes: &mut Processes, load: Load, work: Work) -> Result<Throughput, Failure> {
    let Load { subscribers, publishers, topics, batch } = load;
    let count = subscribers.min(PROCESSES);
    for number in 0..count {
        let connections = subscribers / count + u32::from(number < subscribers % count);
        let options = [
            ("--connections", connections),
            ("--publishers", publishers),
            ("--topics", topics),
            ("--batch", batch.unwrap_or(0)),
        ];
        processes.start(Role::Subscriber, &options)?;
    }
    let clients = (0..publishers).map(|_| processes.connect()).collect::<Result<Vec<_>, _>>()?;
    let mut sources = clients.iter().map(|client| Source::new(client, load, work)).collect::<Result<Vec<_>, _>>()?;
    publish_all(&mut sources, WARM_UP, work.warm_up)?;
    let from = Instant::now();
    let published = publish_all(&mut sources, MEASURED, work.measured)?;
    sources.iter_mut().try_for_each(Source::end)?;
    let mut samples = 0;
    for member in &mut processes.clients {
        let failed = |why: String| Failure::new(Code::Unavailable, format!("a subscriber failed: {why}"));
        let count = member.line().map_err(|error| failed(error.to_string()))?;
        samples += count.parse::<u64>().map_err(|_| failed(format!("unexpected output {count:?}")))?;
    }
    let expected = published * u64::from(subscribers);
    if samples != expected {
        let message = format!("the subscribers received {samples} of {expected} messages");
        return Err(Failure::new(Code::Unavailable, message));
    }
    let subscribers = usize::try_from(subscribers).unwrap_or(usize::MAX);
    Ok(Throughput { samples, elapsed: from.elapsed(), subscribers: Some(subscribers), outstanding: None })
}

/// One publisher, and its message.
struct Source {
    publishers: Vec<Publisher>,
    next: usize,
    /// The messages of one call.
    payloads: Vec<Vec<u8>>,
    is_batched: bool,
    /// Calls between two looks at the clock.
    calls: usize,
    /// For messages with many receivers: waits at each look until they are routed. Without it those that lie in the
    /// lane when the time is over would take the broker far longer than the time that is measured.
    flushes: Option<Client>,
}

impl Source {
    fn new(client: &Client, Load { topics, batch, subscribers, .. }: Load, work: Work) -> Result<Source, Failure> {
        let name = |number: u32| if topics > 1 { format!("{TOPIC}.{number}") } else { TOPIC.to_owned() };
        let publishers = (0..topics).map(|number| client.publisher(&name(number))).collect::<Result<Vec<_>, _>>()?;
        let each = batch.unwrap_or(1) as usize;
        let most = (BATCH_DELIVERIES / subscribers.max(1) as usize).min(BATCH);
        let calls = (BATCH_BYTES / work.size).min(most).max(1).div_ceil(each);
        let (payloads, flushes) = (vec![vec![0; work.size]; each], (most < BATCH).then(|| client.clone()));
        Ok(Source { publishers, next: 0, payloads, is_batched: batch.is_some(), calls, flushes })
    }

    fn publish(&mut self, phase: u8, duration: Duration) -> Result<u64, Failure> {
        self.payloads.iter_mut().for_each(|payload| payload[0] = phase);
        let (until, mut published) = (Instant::now() + duration, 0);
        while Instant::now() < until {
            for _ in 0..self.calls {
                let publisher = &self.publishers[self.next];
                if self.is_batched {
                    publisher.publish_batch(&self.payloads)?;
                } else {
                    publisher.publish(&self.payloads[0])?;
                }
                self.next = if self.next + 1 < self.publishers.len() { self.next + 1 } else { 0 };
            }
            published += (self.calls * self.payloads.len()) as u64;
            if let Some(client) = &self.flushes {
                client.flush()?;
            }
        }
        Ok(published)
    }

    fn end(&mut self) -> Result<(), Failure> {
        Ok(self.publishers[self.next].publish([END])?)
    }
}

/// All publish for a time, each in a thread of its own.
fn publish_all(sources: &mut [Source], phase: u8, duration: Duration) -> Result<u64, Failure> {
    if let [source] = sources {
        return source.publish(phase, duration);
    }
    let panicked = || Failure::new(Code::Unavailable, "a publisher panicked".to_owned());
    std::thread::scope(|scope| {
        let threads = sources.iter_mut().map(|source| scope.spawn(move || source.publish(phase, duration)));
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| panicked())?).sum()
    })
}

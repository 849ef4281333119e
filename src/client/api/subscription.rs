//! Subscriptions.

use super::client::Client;
use crate::client::connection::calls;
use crate::client::connection::control_request::{self, ControlRequest, unexpected_reply};
use crate::client::connection::reader::Reader;
use crate::client::connection::shared::Connection;
use crate::client::data::lag::CatchUp;
use crate::client::data::lock::{deadline, lock};
use crate::client::data::message::{Message, View};
use crate::client::data::subscription_queue::SubscriptionQueue;
use crate::client::engine::wait;
use crate::client::error::{Kind, Result, in_time};
use crate::shm::layout::{CELL_BYTES, credit_step, message_cost};
use crate::sync::Ordering;
use crate::wire::control::{BrokerFrame, ClientFrame, DeliveryPolicy};
use crate::wire::pattern::Pattern;
use crate::wire::record::{Header, Kind as RecordKind};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages that are taken out of the ring at a time. Other threads of the client wait that long for the reader role.
const BATCH: usize = 256;

/// The options of a subscription.
#[derive(Clone, Copy, Debug, Default)]
pub struct SubscribeOptions {
    /// The delivery policy: how a message is handled when this subscription has no credit.
    pub policy: DeliveryPolicy,
    /// The credit for unread messages, in bytes; 0 requests the maximum.
    pub capacity_bytes: u32,
}

/// A subscription: an iterator of messages, which waits for the next one. It ends with an error when the connection
/// ends or the subscription is evicted, and unsubscribes when it is dropped.
#[derive(Debug)]
pub struct Subscription {
    connection: Arc<Connection>,
    queue: Arc<SubscriptionQueue>,
    /// Taken out of the queue at once, to lock it once.
    batch: VecDeque<Message>,
    /// For one that drops the oldest.
    catching_up: CatchUp,
    owed: u32,
    failed: bool,
}

impl Client {
    /// Subscribes to the topics that match `pattern`: `*` matches one token, a final `>` one or more. When it returns,
    /// the subscription is in force.
    ///
    /// # Errors
    ///
    /// If the pattern is invalid, the limit of subscriptions is reached, or the connection has ended.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let mut completions = client.subscribe("lapce.ai.*")?;
    /// let first = completions.next().expect("it waits")?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn subscribe(&self, pattern: &str) -> Result<Subscription> {
        self.subscribe_with(pattern, SubscribeOptions::default())
    }

    /// Subscribes with options.
    ///
    /// # Errors
    ///
    /// As [`Client::subscribe`].
    ///
    /// ```no_run
    /// use lapce_ipc::client::{Client, DeliveryPolicy, SubscribeOptions};
    ///
    /// # let client = Client::connect()?;
    /// let options = SubscribeOptions { policy: DeliveryPolicy::DropOldest, capacity_bytes: 4096 };
    /// let cursor = client.subscribe_with("lapce.cursor", options)?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn subscribe_with(&self, pattern: &str, options: SubscribeOptions) -> Result<Subscription> {
        let (request, subscription) = start(&self.connection, pattern, options)?;
        let reply = wait::for_bell(&self.connection, None, || request.reply())?;
        finish(subscription, &reply)
    }
}

/// Requests a subscription. Its queue is known to the reader before the request is sent. Dropping it at any time leaves
/// no subscription at the broker.
pub(crate) fn start<'a>(
    connection: &'a Arc<Connection>,
    pattern: &str,
    options: SubscribeOptions,
) -> Result<(ControlRequest<'a>, Subscription)> {
    let pattern = Pattern::parse(pattern)?;
    let wanted = match options.capacity_bytes {
        0 => u32::MAX,
        bytes => bytes / CELL_BYTES as u32,
    };
    let own = connection.next_number() as u32;
    let queue =
        Arc::new(SubscriptionQueue::new(own, pattern.clone(), options.policy, wanted, &connection.limits.all()));
    let capacity = queue.capacity();
    let request = control_request::start(connection, |serial| {
        lock(&connection.table).subscribing.insert(serial, queue.clone());
        ClientFrame::Subscribe { serial, pattern, policy: options.policy, credit: capacity }
    })?;
    let (connection, batch, catching_up) = (connection.clone(), VecDeque::new(), CatchUp::default());
    Ok((request, Subscription { connection, queue, batch, catching_up, owed: 0, failed: false }))
}

pub(crate) fn finish(subscription: Subscription, answer: &BrokerFrame) -> Result<Subscription> {
    match answer {
        BrokerFrame::Subscribed { .. } => Ok(subscription),
        _ => Err(unexpected_reply(answer)),
    }
}

/// The result of one look of [`Subscription::read_next`].
enum Next<T> {
    /// A message in the ring, and what reading it gave.
    Read(T),
    /// A message in the queue.
    Queued(Message),
    /// The broker holds newer messages.
    CatchUp,
}

impl Subscription {
    /// Waits for the next message, at most for `timeout`, which then returns `Ok(None)`.
    ///
    /// # Errors
    ///
    /// If the connection has ended or the subscription was evicted.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Message>> {
        in_time(self.receive(Some(timeout)))
    }

    /// The next message if one has arrived.
    ///
    /// A subscription with [`DeliveryPolicy::DropOldest`] that has a backlog at the broker first waits for the newer
    /// messages: until none has arrived for 100 ms, at most 2 s.
    ///
    /// # Errors
    ///
    /// If the connection has ended or the subscription was evicted.
    pub fn try_next(&mut self) -> Result<Option<Message>> {
        self.next_timeout(Duration::ZERO)
    }

    /// Waits for the next message and passes it to `read`, in place if possible: without a copy and without an
    /// allocation. The message is consumed afterwards, also if `read` panics.
    ///
    /// While `read` runs, no other thread of this client receives messages: keep it short, and do slow work afterwards.
    /// A call of this client that would block inside `read` (for a reply, for space, for a message) fails with
    /// [`Error::is_view_outstanding`](crate::client::Error::is_view_outstanding) instead of a deadlock. Whether a call
    /// would block depends on the arrived records, so do not rely on either. A
    /// [`Publisher`](crate::client::Publisher) works while there is space.
    ///
    /// # Errors
    ///
    /// If the connection has ended or the subscription was evicted.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let mut ticks = client.subscribe("lapce.tick")?;
    /// let first_byte = ticks.read_next(|view| {
    ///     let mut byte = [0];
    ///     view.copy_to(0, &mut byte);
    ///     byte[0]
    /// })?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn read_next<T>(&mut self, read: impl FnOnce(&View<'_>) -> T) -> Result<T> {
        let (mut read, mut result) = (Some(read), None);
        self.take_batch(1, true, |view| result = read.take().map(|read| read(view)))?;
        match (result, read) {
            (Some(result), _) => Ok(result),
            (None, Some(read)) => self.read_waiting(read),
            // It is taken only to look at the one message that is found.
            (None, None) => Err(Kind::Timeout.into()),
        }
    }

    /// Waits for the next message, and passes it to `read` with those that have arrived behind it, one by one, each as
    /// [`read_next`](Subscription::read_next) does. Returns how many: at least one, at most 256.
    ///
    /// This is the fastest way to receive: what `read_next` does besides `read` is done once for all of them.
    ///
    /// # Errors
    ///
    /// If the connection has ended or the subscription was evicted.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let mut tokens = client.subscribe("lapce.ai.tokens")?;
    /// let mut bytes = 0;
    /// let count = tokens.read_batch(|view| bytes += view.len())?;
    /// println!("{count} messages, {bytes} bytes");
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn read_batch(&mut self, mut read: impl FnMut(&View<'_>)) -> Result<usize> {
        let at_once = self.take_batch(BATCH, true, &mut read)?;
        if at_once > 0 {
            return Ok(at_once);
        }
        self.read_waiting(&mut read)?;
        Ok(1 + self.take_batch(BATCH - 1, true, read)?)
    }

    /// Takes up to `most` messages that lie next in the ring, as long as nothing else is to be looked at before them.
    /// The credit of those that are also `read` is owed to the broker from now on. Returns how many: none if another
    /// thread has the reader role, or the next record is not such a message.
    #[inline]
    fn take_batch(&mut self, most: usize, is_read: bool, mut take: impl FnMut(&View<'_>)) -> Result<usize> {
        let step = self.step();
        let is_next = self.batch.is_empty() && self.queue.is_empty() && self.owed < step;
        if !is_next || self.queue.policy == DeliveryPolicy::DropOldest {
            return Ok(0);
        }
        self.connection.check_fork()?;
        let Subscription { connection, queue, owed, .. } = self;
        let Some(mut lead) = wait::try_lead(connection) else { return Ok(0) };
        let (mut taken, mut unpaid) = (0, 0);
        // Looked at again, because until now another thread could have the reader role.
        while taken < most && *owed < step && queue.is_empty() {
            let owed = if is_read { &mut *owed } else { &mut unpaid };
            if take_next(&mut lead.reader, connection, queue, owed, &mut take).is_none() {
                break;
            }
            taken += 1;
        }
        drop(lead);
        self.took(0)?;
        Ok(taken)
    }

    fn read_waiting<T>(&mut self, read: impl FnOnce(&View<'_>) -> T) -> Result<T> {
        self.catch_up()?;
        self.refill();
        if let Some(message) = self.batch.pop_front() {
            self.took(self.queue.cost(&message, self.connection.limits.slot_size()))?;
            return Ok(read(&message.view()));
        }
        let (connection, queue) = (self.connection.clone(), self.queue.clone());
        let mut read = Some(read);
        let slot_size = connection.limits.slot_size();
        loop {
            let next = wait::reading(&connection, None, |reader| {
                if self.should_catch_up() {
                    return Some(Ok(Next::CatchUp));
                }
                if let Some(message) = queue.pop(slot_size) {
                    return Some(Ok(Next::Queued(message)));
                }
                self.return_credit_ahead();
                if let Some(end) = self.queue.end() {
                    return Some(Err(end));
                }
                let take = |view: &View<'_>| read.take().map(|read| Ok(Next::Read(read(view))));
                take_next(reader?, &connection, &queue, &mut self.owed, take)?
            })??;
            match (next, read.take()) {
                (Next::Read(result), _) => {
                    self.took(0)?;
                    return Ok(result);
                }
                (Next::Queued(message), Some(read)) => {
                    self.took(self.queue.cost(&message, slot_size))?;
                    return Ok(read(&message.view()));
                }
                (Next::CatchUp, again) => {
                    read = again;
                    self.catch_up()?;
                }
                // It is taken only to look at the one message that is found.
                (Next::Queued(_), None) => return Err(Kind::Timeout.into()),
            }
        }
    }

    /// The number of messages that were not delivered to this subscription: it had no credit, or the rest of a message
    /// of several records did not come, because its publisher had ended or the message was quarantined.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.queue.dropped()
    }

    fn receive(&mut self, timeout: Option<Duration>) -> Result<Message> {
        if self.batch.is_empty() {
            let mut batch = std::mem::take(&mut self.batch);
            let taken = self.take_batch(BATCH, false, |view| batch.push_back(view.to_message()));
            self.batch = batch;
            taken?;
        }
        if self.batch.is_empty() {
            self.await_batch(timeout)?;
        }
        let message = self.batch.pop_front().ok_or(Kind::Timeout)?;
        self.took(self.queue.cost(&message, self.connection.limits.slot_size()))?;
        Ok(message)
    }

    /// Waits until the next message is in `batch`.
    fn await_batch(&mut self, timeout: Option<Duration>) -> Result<()> {
        let (connection, deadline) = (self.connection.clone(), deadline(timeout));
        let mut is_late = false;
        loop {
            self.catch_up()?;
            self.refill();
            if !self.batch.is_empty() {
                return Ok(());
            }
            if is_late {
                return Err(Kind::Timeout.into());
            }
            wait::for_record(&connection, deadline, || {
                if self.should_catch_up() {
                    return Some(Ok(()));
                }
                self.refill();
                if !self.batch.is_empty() {
                    return Some(Ok(()));
                }
                self.return_credit_ahead();
                self.queue.end().map(Err)
            })??;
            is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        }
    }

    /// Whether to read on before a message is returned, because the broker holds newer messages and the oldest are to
    /// be dropped. For a limited time, and only while the connection is open.
    fn should_catch_up(&mut self) -> bool {
        if self.queue.policy != DeliveryPolicy::DropOldest {
            return false;
        }
        let has_newer = self.connection.backlog.has_newer() && self.connection.closed().is_none();
        self.catching_up.should_wait(has_newer, self.connection.backlog.records(), Instant::now())
    }

    /// Reads on, for a limited time, until the broker holds no newer messages.
    fn catch_up(&mut self) -> Result<()> {
        let connection = self.connection.clone();
        while self.should_catch_up() {
            let until = self.catching_up.until();
            match wait::for_record(&connection, until, || (!self.should_catch_up()).then_some(())) {
                // The time is over, or nothing more comes: what is there is given.
                Err(error) if !error.is_timeout() && connection.closed().is_none() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The deadline of [`Self::should_catch_up`]. For the asynchronous client.
    #[cfg(feature = "tokio")]
    pub(crate) fn catch_up_deadline(&self) -> Option<Instant> {
        self.catching_up.until()
    }

    /// The next message if it is there, without looking at the ring. For the asynchronous client.
    #[cfg(feature = "tokio")]
    pub(crate) fn poll(&mut self) -> Option<Result<Message>> {
        if self.should_catch_up() {
            return None;
        }
        self.refill();
        match self.batch.pop_front() {
            Some(message) => {
                let cost = self.queue.cost(&message, self.connection.limits.slot_size());
                Some(self.took(cost).map(|()| message))
            }
            None => {
                self.return_credit_ahead();
                self.queue.end().or_else(|| self.connection.closed()).map(Err)
            }
        }
    }

    fn refill(&mut self) {
        if !self.batch.is_empty() {
            return;
        }
        if self.queue.policy == DeliveryPolicy::DropOldest {
            // One by one: what is taken out is not dropped any more.
            self.batch.extend(self.queue.pop(self.connection.limits.slot_size()));
        } else {
            self.queue.take_all(&mut self.batch);
        }
    }

    /// Nothing waits to be taken: then messages that are being put together are next, and their room is given back
    /// now. So a publisher that stops in mid-message holds no room that others need.
    fn return_credit_ahead(&mut self) {
        if self.queue.policy == DeliveryPolicy::DropOldest {
            return;
        }
        // If there is no space now: this is called until there is something to take.
        let return_credit = |cells| self.try_return_credit(cells).is_ok_and(|given| given);
        if self.queue.return_credit_ahead(self.owed, self.step(), return_credit) {
            self.owed = 0;
        }
    }

    /// Returns credit for these cells to the broker if there is space in the lane.
    fn try_return_credit(&self, cells: u32) -> Result<bool> {
        let credit = Header { id: self.queue.id(), arg: cells, ..Header::new(RecordKind::Credit) };
        calls::place_in_any_session(&self.connection, &credit, &[])
    }

    /// The credit that is returned at a time, in cells.
    fn step(&self) -> u32 {
        credit_step(self.queue.capacity(), self.connection.limits.slot_size())
    }

    /// Adds the cost of a consumed message to the owed credit.
    fn add_owed(&mut self, cost: u32) {
        // The broker gives none for a queue that is emptied at once.
        if self.queue.policy != DeliveryPolicy::DropOldest {
            self.owed += cost;
        }
    }

    /// A message was taken: its credit goes back to the broker, some at a time. It is taken, so it must not wait for
    /// space: what does not fit is owed until the next one is taken or waited for.
    #[inline]
    fn took(&mut self, cost: u32) -> Result<()> {
        self.add_owed(cost);
        if self.owed < self.step() { Ok(()) } else { self.return_owed() }
    }

    /// Returns the owed credit, if there is space.
    #[inline(never)]
    fn return_owed(&mut self) -> Result<()> {
        match self.try_return_credit(self.owed) {
            Ok(true) => self.owed = 0,
            Ok(false) => {}
            // A connection that ended meanwhile is reported when there is nothing left to read.
            Err(error) if self.connection.closed().is_none() => return Err(error),
            Err(_) => {}
        }
        Ok(())
    }
}

/// Passes the next record of the ring to `take`, if it is a whole message of the subscription, and adds the credit for
/// it to `owed`: first, so that it is owed also if `take` panics.
#[inline]
fn take_next<T>(
    reader: &mut Reader,
    connection: &Connection,
    queue: &SubscriptionQueue,
    owed: &mut u32,
    take: impl FnOnce(&View<'_>) -> T,
) -> Option<T> {
    reader.take_in_place(queue.id(), queue.own, |topic, header, ring, extent| {
        if header.dropped > 0 {
            queue.set_dropped(header.dropped);
        }
        // The broker gives none for a queue that is emptied at once.
        if queue.policy != DeliveryPolicy::DropOldest {
            *owed += message_cost(extent.len, connection.limits.slot_size(), queue.capacity());
        }
        let _viewing = wait::view(connection);
        take(&View::in_ring(topic, header, ring, extent))
    })
}

impl Iterator for Subscription {
    type Item = Result<Message>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let received = self.receive(None);
        self.failed = received.is_err();
        Some(received)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        control_request::post(&self.connection, |table, serial| {
            // Under one lock, for the number is another in the next session, or is not known yet.
            self.queue.is_dropped.store(1, Ordering::Relaxed);
            let subscription = self.queue.id();
            let is_ours = table.subscriptions.get(&subscription).is_some_and(|queue| Arc::ptr_eq(queue, &self.queue));
            is_ours.then(|| {
                table.end_subscription(subscription);
                ClientFrame::Unsubscribe { serial, subscription }
            })
        });
    }
}

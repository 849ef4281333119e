//! Messages that wait for their subscription's owner.

use super::lock::lock;
use super::message::Message;
use crate::client::error::{Error, Kind};
use crate::shm::layout::{cells_for, message_cost};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::wire::control::{DeliveryPolicy, Limits};
use crate::wire::pattern::Pattern;
use std::collections::{HashMap, VecDeque};

/// An event of a subscription, perhaps before the reply with its number.
#[derive(Debug)]
pub(crate) enum SubscriptionEvent {
    Message(Message),
    /// So many messages were dropped until now.
    Dropped(u32),
    /// The same, and the subscription is evicted.
    Evicted(u32),
}

/// The reason why a subscription has ended.
#[derive(Clone, Debug)]
enum End {
    Evicted,
    Refused(Error),
}

/// Messages that wait for their subscription's owner.
#[derive(Debug)]
pub(crate) struct SubscriptionQueue {
    /// Our own number, which outlives a session.
    pub(crate) own: u32,
    pub(crate) pattern: Pattern,
    pub(crate) policy: DeliveryPolicy,
    /// Cells of credit that its owner wants.
    wanted: u32,
    /// The credit of the current broker, in cells.
    capacity: AtomicU64,
    /// The broker's number, in the current session.
    pub(crate) id: AtomicU64,
    /// The subscription was dropped.
    pub(crate) is_dropped: AtomicU64,
    /// Not 0 while `state` has something for the owner, so that the owner need not lock it for each message.
    attention: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    messages: VecDeque<Message>,
    /// Cells of the messages that wait, for `drop_oldest`.
    waiting: u32,
    /// Messages of several records that are being put together, by publisher.
    partials: HashMap<u32, Partial>,
    dropped_by_broker: u64,
    /// What the brokers before this one had dropped.
    dropped_before: u64,
    dropped_here: u64,
    /// Cells of messages that were left out, because they had been seen: their room is to be given back.
    unused: u32,
    end: Option<End>,
}

impl State {
    fn has_something(&self) -> bool {
        !self.messages.is_empty() || !self.partials.is_empty() || self.unused > 0 || self.end.is_some()
    }
}

/// A message that is being put together.
#[derive(Clone, Copy, Debug)]
struct Partial {
    cost: u32,
    /// Its room was given back already.
    is_paid: bool,
}

/// The credit of a subscription that wants so much, at a broker with these limits: room for one record at least.
fn granted(wanted: u32, limits: &Limits) -> u32 {
    let most = limits.subscription_credit_cells;
    wanted.clamp(cells_for(limits.slot_size).min(most), most)
}

impl SubscriptionQueue {
    pub(crate) fn new(
        own: u32,
        pattern: Pattern,
        policy: DeliveryPolicy,
        wanted: u32,
        limits: &Limits,
    ) -> SubscriptionQueue {
        let capacity = AtomicU64::new(u64::from(granted(wanted, limits)));
        let (id, is_dropped, attention) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        SubscriptionQueue { own, pattern, policy, wanted, capacity, id, is_dropped, attention, state: Mutex::default() }
    }

    /// Whether nothing is here for the owner: its next message, if any, lies in the ring. Certain for a thread that has
    /// the reader role, because only the reader adds something.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.attention.load(Ordering::Relaxed) == 0
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        self.attention.store(u64::from(state.has_something()), Ordering::Relaxed);
        result
    }

    pub(crate) fn id(&self) -> u32 {
        self.id.load(Ordering::Relaxed) as u32
    }

    /// The credit of the current broker, in cells.
    #[inline]
    pub(crate) fn capacity(&self) -> u32 {
        self.capacity.load(Ordering::Relaxed) as u32
    }

    /// Cells of credit that a broker with these limits gives.
    pub(crate) fn granted(&self, limits: &Limits) -> u32 {
        granted(self.wanted, limits)
    }

    /// The next broker does not give it what the last one gave.
    pub(crate) fn refuse(&self, error: Error) {
        // Its number may be another's by now.
        self.id.store(u64::from(u32::MAX), Ordering::Relaxed);
        self.change(|state| state.end = Some(End::Refused(error)));
    }

    /// Another broker has other limits.
    pub(crate) fn adopt(&self, limits: &Limits) {
        self.capacity.store(u64::from(self.granted(limits)), Ordering::Relaxed);
    }

    /// Another broker serves it, under the number `id`.
    pub(crate) fn renew(&self, id: u32, limits: &Limits) {
        self.adopt(limits);
        self.id.store(u64::from(id), Ordering::Relaxed);
        self.change(|state| {
            state.partials.clear();
            if self.policy == DeliveryPolicy::DropOldest {
                state.waiting = state.messages.iter().map(|message| self.cost(message, limits.slot_size)).sum();
            }
            state.dropped_before += std::mem::take(&mut state.dropped_by_broker);
        });
    }

    /// A message of `len` bytes came again, and is left out.
    pub(crate) fn skip_duplicate(&self, publisher: u32, len: u32, slot_size: u32) {
        self.change(|state| {
            let is_paid = state.partials.remove(&publisher).is_some_and(|partial| partial.is_paid);
            if !is_paid && self.policy != DeliveryPolicy::DropOldest {
                state.unused += message_cost(len, slot_size, self.capacity());
            }
        });
    }

    pub(crate) fn cost(&self, message: &Message, slot_size: u32) -> u32 {
        if message.is_paid { 0 } else { message_cost(message.payload().len() as u32, slot_size, self.capacity()) }
    }

    /// The first part of a message has come.
    pub(crate) fn begin(&self, publisher: u32, total: u32, slot_size: u32) {
        let cost = message_cost(total, slot_size, self.capacity());
        self.change(|state| state.partials.insert(publisher, Partial { cost, is_paid: false }));
    }

    /// The rest of the message under way will not come. The broker gives its room back: if we have, too, credit is at
    /// most that much too high, until everything is taken.
    pub(crate) fn abort(&self, publisher: u32) {
        self.change(|state| state.partials.remove(&publisher));
    }

    fn push(&self, mut message: Message, slot_size: u32) {
        self.change(|state| {
            if !state.partials.is_empty() {
                message.is_paid = state.partials.remove(&message.publisher()).is_some_and(|partial| partial.is_paid);
            }
            if self.policy == DeliveryPolicy::DropOldest {
                state.waiting += self.cost(&message, slot_size);
                while state.waiting > self.capacity() {
                    let Some(oldest) = state.messages.pop_front() else { break };
                    state.waiting = state.waiting.saturating_sub(self.cost(&oldest, slot_size));
                    state.dropped_here += 1;
                }
            }
            state.messages.push_back(message);
        });
    }

    /// Takes in an event.
    pub(crate) fn receive(&self, event: SubscriptionEvent, slot_size: u32) {
        match event {
            SubscriptionEvent::Message(message) => self.push(message, slot_size),
            SubscriptionEvent::Dropped(dropped) => self.set_dropped(dropped),
            SubscriptionEvent::Evicted(dropped) => {
                self.set_dropped(dropped);
                self.change(|state| state.end = Some(End::Evicted));
            }
        }
    }

    pub(crate) fn set_dropped(&self, dropped: u32) {
        lock(&self.state).dropped_by_broker = u64::from(dropped);
    }

    pub(crate) fn pop(&self, slot_size: u32) -> Option<Message> {
        self.change(|state| {
            let message = state.messages.pop_front()?;
            state.waiting = state.waiting.saturating_sub(self.cost(&message, slot_size));
            Some(message)
        })
    }

    /// All that wait, at once. `batch` is empty.
    pub(crate) fn take_all(&self, batch: &mut VecDeque<Message>) {
        self.change(|state| {
            std::mem::swap(batch, &mut state.messages);
            state.waiting = 0;
        });
    }

    /// Messages that were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        let state = lock(&self.state);
        state.dropped_before + state.dropped_by_broker + state.dropped_here
    }

    /// Why nothing more comes, if that is so.
    pub(crate) fn end(&self) -> Option<Error> {
        let state = lock(&self.state);
        match state.end.as_ref()? {
            End::Refused(error) => Some(error.clone()),
            End::Evicted => Some(Kind::Evicted { dropped: state.dropped_before + state.dropped_by_broker }.into()),
        }
    }

    /// Messages that are being put together are next to be taken: their credit is returned by `return_credit`, with
    /// what is `owed` for others; or that alone, from a `step` on. Returns whether it is returned.
    pub(crate) fn return_credit_ahead(&self, owed: u32, step: u32, return_credit: impl FnOnce(u32) -> bool) -> bool {
        self.change(|state| {
            let unpaid = state.partials.values().filter(|partial| !partial.is_paid);
            let cells: u32 = unpaid.map(|partial| partial.cost).sum::<u32>() + state.unused;
            if (cells == 0 && owed < step) || !return_credit(owed + cells) {
                return false;
            }
            state.unused = 0;
            state.partials.values_mut().for_each(|partial| partial.is_paid = true);
            true
        })
    }
}

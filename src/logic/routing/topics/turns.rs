//! Turns: whether a user's subscriptions get a message of another user, what that costs, and what they miss.
//!
//! Each user has an account of work for the publishes of others (see `work`). While it is overdrawn, its subscriptions
//! are passed over, which costs the same however many they are: what they have missed is counted at each of them later,
//! when the account has time.

use super::{Key, Subscriber, TARGET_NS, Targets, TopicId, Topics};
use crate::logic::shares::Principal;
use std::time::Duration;

/// What it costs that a message is routed by itself, not within a run.
const SINGLE_NS: u64 = 300;
/// What it costs to place one message of a run, with no payload; and how many bytes of payload cost a nanosecond.
const PLACE_NS: u64 = 20;
const BYTES_PER_NS: u64 = 16;
/// The most that a measured decision for one subscription counts: the thread may have been off its CPU meanwhile.
const MAX_TARGET_NS: u64 = 1000;

/// The turn of one user's subscriptions with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Each is decided for.
    Decide,
    /// The user's account is overdrawn: none gets the message. See [`Topics::miss`].
    PassOver,
    /// The same, but this one makes publishers wait: until then, or until it is evicted.
    Wait(Key, u64),
}

impl Targets {
    /// So many messages were dropped for all of them.
    fn miss(&mut self, id: TopicId, subscriber: &mut Subscriber, messages: u32) {
        if self.missed == 0 && messages > 0 {
            subscriber.missed_on.push(id);
        }
        self.missed = self.missed.saturating_add(messages);
    }
}

impl Topics {
    /// The turn of one user's subscriptions with a message of `publisher`.
    #[inline]
    pub(crate) fn turn(&mut self, id: TopicId, user: usize, publisher: Principal, now: u64) -> Turn {
        let targets = &self.entry(id).targets[user];
        let (count, blocks, has_missed) = (targets.subscriptions.len(), targets.blocks, targets.missed > 0);
        if count == 0 {
            return Turn::Decide;
        }
        let Subscriber { principal, account, .. } = &mut self.subscribers[user];
        if *principal != publisher && !account.has_time(self.work, now) {
            return blocks.map_or(Turn::PassOver, |block| Turn::Wait(block, account.next(self.work)));
        }
        if has_missed {
            self.count_missed(id, user);
        }
        Turn::Decide
    }

    /// A user whose subscriptions match a message of another one pays for it: for the decisions, as long as they took
    /// if that was measured, and because the message is routed by itself.
    #[inline]
    pub(crate) fn pay(&mut self, id: TopicId, user: usize, publisher: Principal, took: Option<Duration>) {
        let count = self.entry(id).targets[user].subscriptions.len() as u64;
        let Subscriber { principal, account, .. } = &mut self.subscribers[user];
        if count > 0 && *principal != publisher {
            let took = took.map_or(0, |took| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
            account.pay(SINGLE_NS + took.clamp(TARGET_NS * count, MAX_TARGET_NS * count));
        }
    }

    /// The users whose subscriptions match so many messages of another one, `len` bytes each, that were routed in a
    /// run: those that were passed over have missed them, the others pay.
    pub(crate) fn end_run(
        &mut self,
        id: TopicId,
        publisher: Principal,
        (messages, len): (u64, u32),
        passed_over: &[usize],
    ) {
        let Topics { table, subscribers, .. } = self;
        let Some(entry) = &mut table[id as usize] else { return };
        for (user, (targets, subscriber)) in entry.targets.iter_mut().zip(subscribers).enumerate() {
            if passed_over.contains(&user) {
                targets.miss(id, subscriber, u32::try_from(messages).unwrap_or(u32::MAX));
            } else if subscriber.principal != publisher {
                let place = PLACE_NS + u64::from(len) / BYTES_PER_NS;
                subscriber.account.pay(messages.saturating_mul(place * targets.subscriptions.len() as u64));
            }
        }
    }

    /// A message is dropped for all subscriptions of the user that match; counted at each of them later.
    pub(crate) fn miss(&mut self, id: TopicId, user: usize) {
        let Topics { table, subscribers, .. } = self;
        if let Some(targets) = table[id as usize].as_mut().and_then(|entry| entry.targets.get_mut(user)) {
            targets.miss(id, &mut subscribers[user], 1);
        }
    }

    /// Whether a message was dropped for all subscriptions of a user, and that is not settled.
    #[inline]
    pub(crate) fn has_missed(&self) -> bool {
        !self.counted.is_empty() || self.subscribers.iter().any(|subscriber| !subscriber.missed_on.is_empty())
    }

    /// Counts what was dropped for all subscriptions of a user at each of them, if the user's account has time.
    pub(crate) fn count_missed_of_all(&mut self, now: u64) {
        for user in 0..self.subscribers.len() {
            if self.subscribers[user].account.has_time(self.work, now) {
                self.count_all_missed(user);
            }
        }
    }

    /// When the next can be counted; `None`: all are.
    pub(crate) fn next_count(&self) -> Option<u64> {
        let waits = self.subscribers.iter().filter(|subscriber| !subscriber.missed_on.is_empty());
        waits.map(|subscriber| subscriber.account.next(self.work)).min()
    }

    pub(super) fn count_all_missed(&mut self, user: usize) {
        while let Some(id) = self.subscribers[user].missed_on.pop() {
            self.count_missed(id, user);
        }
    }

    /// Counts what was dropped for all of the user's subscriptions on a topic at each of them.
    pub(super) fn count_missed(&mut self, id: TopicId, user: usize) {
        let Topics { table, subscribers, subscriptions, counted, .. } = self;
        // The topic may be gone.
        let targets = table[id as usize].as_mut().and_then(|entry| entry.targets.get_mut(user));
        let Some(targets) = targets.filter(|targets| targets.missed > 0) else { return };
        let missed = std::mem::take(&mut targets.missed);
        subscribers[user].account.pay(TARGET_NS * targets.subscriptions.len() as u64);
        for key in &targets.subscriptions {
            if let Some(subscription) = subscriptions.get_mut(*key) {
                subscription.dropped = subscription.dropped.saturating_add(missed);
                counted.push((subscription.owner, subscription.policy, missed));
            }
        }
    }

    /// What the account of a user has left, in nanoseconds.
    #[cfg(test)]
    pub(crate) fn work_left(&self, principal: Principal) -> i64 {
        self.subscribers
            .iter()
            .find(|subscriber| subscriber.principal == principal)
            .map_or(0, |found| found.account.left())
    }

    /// Messages that users have missed and that are not counted yet.
    #[cfg(test)]
    pub(crate) fn missed(&self) -> u64 {
        let targets = self.table.iter().flatten().flat_map(|entry| &entry.targets);
        targets.map(|targets| u64::from(targets.missed)).sum()
    }
}

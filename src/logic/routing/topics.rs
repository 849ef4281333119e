//! Topics and subscriptions. A publish carries a topic's number; each topic lists its matching subscriptions, so the
//! hot path compares no names.
//!
//! The lists are caches, one for each user whose subscriptions match. A change of a user's subscriptions costs its
//! tokens (see `patterns`) and makes that user's lists stale; the next publish on a topic finds them anew. So a change
//! costs neither a look at all topics nor one at all subscriptions, and what one user changes costs the lists of
//! no other. Work for another user's subscriptions is paid out of that user's account (`turns`).

use super::arena::{Arena, Key, MAX_SHORT};
use super::bits::BitSet;
use super::drop_oldest::DropOldestQueue;
use super::grace::Grace;
use super::patterns::PatternIndex;
use crate::logic::shares::{Principal, ShareLimits, ShareReached, Shares};
use crate::logic::work::{WorkAccount, WorkShare};
use crate::wire::control::DeliveryPolicy;
use crate::wire::name::Topic;
use crate::wire::pattern::Pattern;
use std::collections::HashMap;

pub(crate) mod turns;

/// A topic's index in the table, and its number in records to subscribers.
pub(crate) type TopicId = u32;

/// What it costs to find one subscription, or to decide for it, in nanoseconds.
const TARGET_NS: u64 = 60;

/// A topic. It exists while a client has its number.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) topic: Topic,
    /// The matching subscriptions, by the index of their user.
    pub(crate) targets: Vec<Targets>,
    /// The user with all of them, and its index.
    sole: Option<(Principal, usize)>,
    /// The connections that have received the topic's name.
    pub(crate) known: BitSet,
    /// The change of all subscriptions that the lists are up to date with.
    seen: u64,
    users: u32,
    /// The user that it is charged to, which asked for it first; `None`: the broker.
    owner: Option<Principal>,
}

/// One user's subscriptions that match a topic.
#[derive(Debug, Default)]
pub(crate) struct Targets {
    pub(crate) subscriptions: Vec<Key>,
    /// The user's change that the list is up to date with.
    seen: u64,
    /// The first that makes publishers wait.
    blocks: Option<Key>,
    /// Messages that were dropped for all of them, and are not counted at each yet.
    missed: u32,
}

/// A user with subscriptions.
#[derive(Debug)]
struct Subscriber {
    principal: Principal,
    account: WorkAccount,
    patterns: PatternIndex,
    /// Its last change.
    changed: u64,
    /// Topics with messages that are not counted at its subscriptions yet.
    missed_on: Vec<TopicId>,
    /// Where the search for lists to forget goes on.
    forget_at: usize,
}

/// A subscription. Credit is counted in cells.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// The connection.
    pub(crate) owner: u32,
    /// The index of its user.
    user: usize,
    /// Its place in the index of patterns.
    place: usize,
    pub(crate) pattern: Pattern,
    pub(crate) policy: DeliveryPolicy,
    /// The credit left.
    pub(crate) credit: u32,
    /// The full credit.
    pub(crate) capacity: u32,
    /// Dropped messages.
    pub(crate) dropped: u32,
    /// Dropped messages of which its owner was notified.
    pub(crate) dropped_told: u32,
    /// Cells of credit that its owner has returned so far.
    pub(crate) given: u64,
    /// Of a subscription that drops.
    pub(crate) grace: Grace,
    /// Of a `drop_oldest` subscription: messages that do not fit into its client's ring.
    pub(crate) overflow: Option<Box<DropOldestQueue>>,
}

impl Subscription {
    /// Whether its queue is assembling a message of `origin`.
    pub(crate) fn puts_together(&self, origin: u32) -> bool {
        self.overflow.as_ref().is_some_and(|overflow| overflow.is_begun(origin))
    }
}

/// All topics and subscriptions.
#[derive(Debug)]
pub(crate) struct Topics {
    by_name: HashMap<Topic, TopicId>,
    table: Vec<Option<Entry>>,
    free: Vec<TopicId>,
    shares: Shares,
    /// Of the pairs in the lists.
    routes: Shares,
    /// Of the places in the arena of subscriptions.
    places: Shares,
    work: WorkShare,
    /// Changes of all subscriptions.
    changes: u64,
    /// Users that have or had subscriptions. They are few, each with few quotas, so none is forgotten.
    subscribers: Vec<Subscriber>,
    pub(crate) subscriptions: Arena<Subscription>,
    /// What was counted at a subscription later than it was dropped: its connection, its policy, how many.
    pub(crate) counted: Vec<(u32, DeliveryPolicy, u32)>,
}

impl Topics {
    /// With shares of topics, of routes (pairs of a topic and a matching subscription), and of subscriptions, at most
    /// [`MAX_SHORT`] in all; and each user's share of the work for the publishes of others.
    pub(crate) fn new([topics, routes, subscriptions]: [ShareLimits; 3], work: WorkShare) -> Topics {
        Topics {
            by_name: HashMap::new(),
            table: Vec::new(),
            free: Vec::new(),
            shares: Shares::new(topics),
            routes: Shares::new(routes),
            places: Shares::new(subscriptions),
            work,
            changes: 0,
            subscribers: Vec::new(),
            subscriptions: Arena::new(MAX_SHORT),
            counted: Vec::new(),
        }
    }

    /// Sets other limits.
    pub(crate) fn adopt(&mut self, [topics, routes, subscriptions]: [ShareLimits; 3], work: WorkShare) {
        self.shares.adopt(topics);
        self.routes.adopt(routes);
        self.places.adopt(subscriptions);
        self.work = work;
    }

    /// Adds a user of `topic`. One that is new is charged to `owner`; one of the broker's own (`None`) exists for a
    /// moment only, and is exempt from the limit.
    ///
    /// # Errors
    ///
    /// At the owner's share of topics.
    pub(crate) fn intern(&mut self, topic: &Topic, owner: Option<Principal>) -> Result<TopicId, ShareReached> {
        if let Some(id) = self.by_name.get(topic) {
            let id = *id;
            self.entry_mut(id).users += 1;
            return Ok(id);
        }
        if let Some(owner) = owner {
            self.shares.take(owner)?;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.table.push(None);
            (self.table.len() - 1) as TopicId
        });
        let (targets, known) = (Vec::new(), BitSet::default());
        self.table[id as usize] =
            Some(Entry { topic: topic.clone(), targets, sole: None, known, seen: 0, users: 1, owner });
        self.by_name.insert(topic.clone(), id);
        Ok(id)
    }

    /// Adds a user of the topic `id`, which must be in use.
    pub(crate) fn retain(&mut self, id: TopicId) {
        self.entry_mut(id).users += 1;
    }

    /// Removes a user. With the last user the topic is removed and returned.
    pub(crate) fn release(&mut self, id: TopicId) -> Option<Entry> {
        let entry = self.entry_mut(id);
        entry.users -= 1;
        if entry.users > 0 {
            return None;
        }
        for user in 0..self.subscribers.len() {
            self.count_missed(id, user);
            self.forget_targets(id, user);
        }
        let entry = self.table[id as usize].take().expect("it was just there");
        self.by_name.remove(&entry.topic);
        self.free.push(id);
        if let Some(owner) = entry.owner {
            self.shares.give_back(owner);
        }
        Some(entry)
    }

    /// The topic with the number `id`, which must be in use.
    #[inline]
    pub(crate) fn entry(&self, id: TopicId) -> &Entry {
        self.table[id as usize].as_ref().expect("a topic in use is in the table")
    }

    /// The same, to change it.
    #[inline]
    pub(crate) fn entry_mut(&mut self, id: TopicId) -> &mut Entry {
        self.table[id as usize].as_mut().expect("a topic in use is in the table")
    }

    /// Adds a subscription of a connection of the user `principal`.
    ///
    /// # Errors
    ///
    /// At the user's share of subscriptions.
    pub(crate) fn subscribe(
        &mut self,
        (owner, principal): (u32, Principal),
        pattern: Pattern,
        policy: DeliveryPolicy,
        capacity: u32,
        now: u64,
    ) -> Result<Key, ShareReached> {
        self.places.take(principal)?;
        let user = self.subscriber(principal, now);
        let subscription = Subscription {
            owner,
            user,
            place: 0,
            pattern: pattern.clone(),
            policy,
            credit: capacity,
            capacity,
            dropped: 0,
            dropped_told: 0,
            given: 0,
            grace: Grace::default(),
            overflow: None,
        };
        let key = self.subscriptions.insert(subscription).expect("the arena has a place for each share");
        let place = self.subscribers[user].patterns.insert(&pattern, key);
        if let Some(subscription) = self.subscriptions.get_mut(key) {
            subscription.place = place;
        }
        self.changed(user);
        Ok(key)
    }

    /// The index of a user.
    fn subscriber(&mut self, principal: Principal, now: u64) -> usize {
        self.subscribers.iter().position(|subscriber| subscriber.principal == principal).unwrap_or_else(|| {
            self.subscribers.push(Subscriber {
                principal,
                account: WorkAccount::new(self.work, now),
                patterns: PatternIndex::default(),
                changed: 0,
                missed_on: Vec::new(),
                forget_at: 0,
            });
            self.subscribers.len() - 1
        })
    }

    fn changed(&mut self, user: usize) {
        self.changes += 1;
        self.subscribers[user].changed = self.changes;
    }

    /// Removes a subscription.
    pub(crate) fn unsubscribe(&mut self, key: Key) -> Option<Subscription> {
        let user = self.subscriptions.get(key)?.user;
        // What it has missed is counted while it is on the lists.
        self.count_all_missed(user);
        let subscription = self.subscriptions.remove(key)?;
        self.places.give_back(self.subscribers[user].principal);
        let moved = self.subscribers[user].patterns.remove(&subscription.pattern, subscription.place);
        if let Some(moved) = moved.and_then(|moved| self.subscriptions.get_mut(moved)) {
            moved.place = subscription.place;
        }
        self.changed(user);
        Some(subscription)
    }

    /// Brings the lists of a topic up to date. Returns the index of the user with all subscriptions that match, if that
    /// is the publisher itself: the common case, in which nothing is charged.
    #[inline]
    pub(crate) fn find_targets(&mut self, id: TopicId, publisher: Principal) -> Option<usize> {
        if self.entry(id).seen != self.changes {
            self.find_changed(id);
        }
        let (principal, user) = self.entry(id).sole?;
        (principal == publisher).then_some(user)
    }

    #[cold]
    fn find_changed(&mut self, id: TopicId) {
        let count = self.subscribers.len();
        let entry = self.entry_mut(id);
        // Exact: most topics have the subscriptions of one user, and a list grows to four at least.
        entry.targets.reserve_exact(count.saturating_sub(entry.targets.len()));
        entry.targets.resize_with(count.max(entry.targets.len()), Targets::default);
        for user in 0..count {
            if self.entry(id).targets[user].seen == self.subscribers[user].changed {
                continue;
            }
            self.count_missed(id, user);
            self.forget_targets(id, user);
            let subscriber = &mut self.subscribers[user];
            let entry = self.table[id as usize].as_mut().expect("a topic in use is in the table");
            let targets = &mut entry.targets[user];
            let visited = subscriber.patterns.find(&entry.topic, &mut targets.subscriptions);
            subscriber.account.pay(TARGET_NS * (visited + targets.subscriptions.len()) as u64);
            targets.seen = subscriber.changed;
            let blocks =
                |key: &&Key| self.subscriptions.get(**key).is_some_and(|found| found.policy == DeliveryPolicy::Block);
            targets.blocks = targets.subscriptions.iter().find(blocks).copied();
            let (principal, count) = (subscriber.principal, targets.subscriptions.len());
            self.charge_routes(id, (user, principal), count);
        }
        let Topics { table, subscribers, changes, .. } = self;
        let Some(entry) = &mut table[id as usize] else { return };
        let mut used = entry.targets.iter().enumerate().filter(|(_, targets)| !targets.subscriptions.is_empty());
        entry.sole = match (used.next(), used.next()) {
            (Some((user, _)), None) => Some((subscribers[user].principal, user)),
            _ => None,
        };
        entry.seen = *changes;
    }

    /// Charges the user with the pairs of a new list. Beyond its share, lists of other topics are forgotten.
    fn charge_routes(&mut self, id: TopicId, (user, principal): (usize, Principal), count: usize) {
        let mut looked = 0;
        while self.routes.take_many(principal, count).is_err() {
            if looked == self.table.len() {
                // Longer than all the user may have: it is needed now, and goes with the next list.
                self.routes.exceed(principal, count);
                return;
            }
            looked += 1;
            let at = self.subscribers[user].forget_at % self.table.len();
            self.subscribers[user].forget_at = at + 1;
            if at != id as usize && self.table[at].is_some() {
                self.count_missed(at as TopicId, user);
                self.forget_targets(at as TopicId, user);
            }
        }
    }

    /// Forgets one user's list of a topic; it is found anew with the next publish.
    fn forget_targets(&mut self, id: TopicId, user: usize) {
        let principal = self.subscribers[user].principal;
        let entry = self.entry_mut(id);
        let Some(targets) = entry.targets.get_mut(user) else { return };
        let forgotten = std::mem::take(targets).subscriptions.len();
        entry.seen = 0;
        self.routes.give_back_many(principal, forgotten);
    }

    /// A connection that has ended does not know the topic any more.
    pub(crate) fn forget_known(&mut self, id: TopicId, connection: u32) {
        if let Some(entry) = self.table.get_mut(id as usize).and_then(Option::as_mut) {
            entry.known.remove(connection);
        }
    }

    /// What users hold of the pairs of a topic and a matching subscription.
    pub(crate) fn routes(&self) -> &Shares {
        &self.routes
    }

    /// What users hold of the topics.
    pub(crate) fn shares(&self) -> &Shares {
        &self.shares
    }

    /// What users hold of the subscriptions.
    pub(crate) fn places(&self) -> &Shares {
        &self.places
    }

    /// The number of topics.
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }
}

#[cfg(test)]
mod tests;

//! Topics and subscriptions. A publish carries a topic's number; each topic lists its matching subscriptions, so the
//! hot path compares no names.

use super::arena::{Arena, Key, MAX_SHORT};
use super::drop_oldest::DropOldestQueue;
use super::grace::Grace;
use crate::logic::shares::{ShareReached, Shares, Uid};
use crate::wire::control::DeliveryPolicy;
use crate::wire::name::Topic;
use crate::wire::pattern::Pattern;
use std::collections::HashMap;

/// A topic's index in the table, and its number in records to subscribers.
pub(crate) type TopicId = u32;

/// A subscription that matches a topic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) subscription: Key,
    /// Whether its owner has received the topic's name.
    pub(crate) announced: bool,
}

/// A topic. It exists while a client has its number.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) topic: Topic,
    pub(crate) targets: Vec<Target>,
    users: u32,
    /// The user that it is charged to, which asked for it first; `None`: the broker.
    owner: Option<Uid>,
}

/// A subscription. Credit is counted in cells.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// The connection.
    pub(crate) owner: u32,
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

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitReached {
    Topics(ShareReached),
    Subscriptions,
    /// Pairs of a topic and a matching subscription.
    Routes,
}

/// All topics and subscriptions.
///
/// The cost of a change grows with the numbers of topics and routes, so both are bounded. The subscriptions of a closed
/// connection are removed in one pass.
#[derive(Debug)]
pub(crate) struct Topics {
    by_name: HashMap<Topic, TopicId>,
    table: Vec<Option<Entry>>,
    free: Vec<TopicId>,
    shares: Shares,
    routes: usize,
    most_routes: usize,
    pub(crate) subscriptions: Arena<Subscription>,
    all: Vec<Key>,
}

impl Topics {
    /// With shares of topics, and a limit of routes.
    pub(crate) fn new(shares: Shares, most_routes: usize) -> Topics {
        Topics {
            by_name: HashMap::new(),
            table: Vec::new(),
            free: Vec::new(),
            shares,
            routes: 0,
            most_routes,
            subscriptions: Arena::new(MAX_SHORT),
            all: Vec::new(),
        }
    }

    /// At most so many from now on, of which a user may hold `percent` of what the others leave.
    pub(crate) fn adopt(&mut self, most: usize, percent: u32, most_routes: usize) {
        self.shares.adopt(most, percent);
        self.most_routes = most_routes;
    }

    /// Adds a user of `topic`. One that is new is charged to `owner`; one of the broker's own (`None`) exists for a
    /// moment only, and is exempt from the limits.
    ///
    /// # Errors
    ///
    /// At the owner's share of topics, or at the limit of routes.
    pub(crate) fn intern(&mut self, topic: &Topic, owner: Option<Uid>) -> Result<TopicId, LimitReached> {
        if let Some(id) = self.by_name.get(topic) {
            let id = *id;
            self.entry_mut(id).users += 1;
            return Ok(id);
        }
        // Before the look at all subscriptions: a user without a share left must not cost that.
        if let Some(owner) = owner {
            self.shares.take(owner).map_err(LimitReached::Topics)?;
        }
        let subscriptions = &self.subscriptions;
        let matches = |key: &&Key| subscriptions.get(**key).is_some_and(|found| found.pattern.matches(topic));
        let target = |key: &Key| Target { subscription: *key, announced: false };
        let targets: Vec<_> = self.all.iter().filter(matches).map(target).collect();
        if let Some(owner) = owner
            && self.routes + targets.len() > self.most_routes
        {
            self.shares.give_back(owner);
            return Err(LimitReached::Routes);
        }
        self.routes += targets.len();
        let id = self.free.pop().unwrap_or_else(|| {
            self.table.push(None);
            (self.table.len() - 1) as TopicId
        });
        self.table[id as usize] = Some(Entry { topic: topic.clone(), targets, users: 1, owner });
        self.by_name.insert(topic.clone(), id);
        Ok(id)
    }

    /// Adds a user of the topic `id`, which must be in use.
    pub(crate) fn retain(&mut self, id: TopicId) {
        self.entry_mut(id).users += 1;
    }

    /// Removes a user. With the last user the topic is removed; returns the subscriptions that know its number.
    pub(crate) fn release(&mut self, id: TopicId) -> Vec<Key> {
        let entry = self.entry_mut(id);
        entry.users -= 1;
        if entry.users > 0 {
            return Vec::new();
        }
        let entry = self.table[id as usize].take().expect("it was just there");
        self.by_name.remove(&entry.topic);
        self.free.push(id);
        if let Some(owner) = entry.owner {
            self.shares.give_back(owner);
        }
        self.routes -= entry.targets.len();
        entry.targets.iter().filter(|t| t.announced).map(|t| t.subscription).collect()
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

    /// Adds a subscription.
    ///
    /// # Errors
    ///
    /// At the limit of subscriptions or of routes.
    pub(crate) fn subscribe(
        &mut self,
        owner: u32,
        pattern: Pattern,
        policy: DeliveryPolicy,
        capacity: u32,
    ) -> Result<Key, LimitReached> {
        let topics: Vec<TopicId> = self.matching(&pattern).collect();
        if self.routes + topics.len() > self.most_routes {
            return Err(LimitReached::Routes);
        }
        let subscription = Subscription {
            owner,
            pattern,
            policy,
            credit: capacity,
            capacity,
            dropped: 0,
            dropped_told: 0,
            given: 0,
            grace: Grace::default(),
            overflow: None,
        };
        let key = self.subscriptions.insert(subscription).ok_or(LimitReached::Subscriptions)?;
        self.all.push(key);
        self.routes += topics.len();
        for id in topics {
            self.entry_mut(id).targets.push(Target { subscription: key, announced: false });
        }
        Ok(key)
    }

    fn matching(&self, pattern: &Pattern) -> impl Iterator<Item = TopicId> {
        let matches = |entry: &Option<Entry>| entry.as_ref().is_some_and(|entry| pattern.matches(&entry.topic));
        self.table.iter().enumerate().filter(move |(_, entry)| matches(entry)).map(|(id, _)| id as TopicId)
    }

    /// Removes a subscription.
    pub(crate) fn unsubscribe(&mut self, key: Key) -> Option<Subscription> {
        let subscription = self.subscriptions.remove(key)?;
        self.all.retain(|k| *k != key);
        for id in self.matching(&subscription.pattern).collect::<Vec<_>>() {
            self.forget_gone(id);
        }
        Some(subscription)
    }

    /// Removes many subscriptions; unknown keys are ignored.
    pub(crate) fn unsubscribe_all(&mut self, keys: &[Key]) {
        if let [key] = keys {
            self.unsubscribe(*key);
            return;
        }
        if keys.iter().filter_map(|key| self.subscriptions.remove(*key)).count() == 0 {
            return;
        }
        let subscriptions = &self.subscriptions;
        self.all.retain(|key| subscriptions.get(*key).is_some());
        for id in 0..self.table.len() {
            self.forget_gone(id as TopicId);
        }
    }

    /// Removes ended subscriptions from a topic.
    fn forget_gone(&mut self, id: TopicId) {
        let Topics { table, subscriptions, routes, .. } = self;
        let Some(entry) = &mut table[id as usize] else { return };
        let before = entry.targets.len();
        entry.targets.retain(|target| subscriptions.get(target.subscription).is_some());
        *routes -= before - entry.targets.len();
    }

    /// The number of topics.
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> Topic {
        name.parse().unwrap()
    }

    fn topics(most: usize, most_routes: usize) -> Topics {
        Topics::new(Shares::new(most, 100), most_routes)
    }

    fn targets(topics: &Topics, id: TopicId) -> Vec<Key> {
        topics.entry(id).targets.iter().map(|t| t.subscription).collect()
    }

    fn subscribe(topics: &mut Topics, pattern: &str) -> Key {
        topics.subscribe(0, pattern.parse().unwrap(), DeliveryPolicy::Block, 10).unwrap()
    }

    #[test]
    fn subscriptions_find_topics_whichever_comes_first() {
        let mut topics = topics(10, 100);
        let before = subscribe(&mut topics, "a.>");
        let id = topics.intern(&topic("a.b"), Some(7)).unwrap();
        let after = subscribe(&mut topics, "a.*");
        subscribe(&mut topics, "b.>");
        assert_eq!(targets(&topics, id), [before, after]);
        topics.unsubscribe(before);
        assert_eq!(targets(&topics, id), [after]);
        assert!(topics.unsubscribe(before).is_none());
    }

    #[test]
    fn a_topic_goes_with_its_last_user_and_tells_who_knew_it() {
        let mut topics = topics(1, 100);
        let (knows, other) = (subscribe(&mut topics, "a"), subscribe(&mut topics, ">"));
        let id = topics.intern(&topic("a"), Some(7)).unwrap();
        assert_eq!(topics.intern(&topic("a"), Some(7)), Ok(id));
        assert_eq!(topics.intern(&topic("b"), Some(7)), Err(LimitReached::Topics(ShareReached { user: 7, most: 1 })));
        topics.entry_mut(id).targets[0].announced = true;
        assert_eq!(topics.release(id), []);
        assert_eq!(topics.release(id), [knows]);
        let id = topics.intern(&topic("b"), Some(7)).unwrap();
        assert_eq!(targets(&topics, id), [other]);
        topics.unsubscribe(other).unwrap();
        assert_eq!((targets(&topics, id).len(), topics.len()), (0, 1));
    }

    #[test]
    fn routes_are_counted_and_bounded_and_go_with_either_side() {
        let mut topics = topics(100, 6);
        let keys: Vec<Key> = (0..3).map(|_| subscribe(&mut topics, ">")).collect();
        let (a, b) = (topics.intern(&topic("a"), Some(7)).unwrap(), topics.intern(&topic("b"), Some(7)).unwrap());
        assert_eq!(topics.routes, 6);
        assert_eq!(topics.intern(&topic("c"), Some(7)), Err(LimitReached::Routes));
        assert_eq!(topics.shares.held_by(7), 2, "what is refused is not charged");
        let full = topics.subscribe(0, "a".parse().unwrap(), DeliveryPolicy::Block, 10);
        assert_eq!(full, Err(LimitReached::Routes));
        let news = topics.intern(&Topic::parse_system("$sys.news").unwrap(), None).unwrap();
        topics.release(news);
        topics.unsubscribe_all(&[keys[0], keys[2], keys[0]]);
        assert_eq!((targets(&topics, a), targets(&topics, b), topics.routes), (vec![keys[1]], vec![keys[1]], 2));
        topics.release(a);
        assert_eq!(topics.routes, 1);
        topics.unsubscribe_all(&keys);
        assert_eq!((topics.routes, topics.all.len(), topics.subscriptions.len()), (0, 0, 0));
    }
}

//! Topics and subscriptions. A publish carries a topic's number; which subscriptions get it is kept ready in the
//! topic, so that the hot path compares no names.

use super::arena::{Arena, Key, MOST_SHORT};
use super::grace::Grace;
use super::newest::Newest;
use crate::wire::control::DeliveryPolicy;
use crate::wire::name::Topic;
use crate::wire::pattern::Pattern;
use std::collections::HashMap;

/// A topic's place in the table, and its number towards subscribers.
pub(crate) type TopicId = u32;

/// One subscription that a topic's messages go to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) subscription: Key,
    /// Whether its owner has been told the topic's name.
    pub(crate) announced: bool,
}

/// A topic, known while anybody has asked for its number.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) topic: Topic,
    pub(crate) targets: Vec<Target>,
    users: u32,
}

/// A subscription. Credit is counted in cells.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// The connection.
    pub(crate) owner: u32,
    pub(crate) pattern: Pattern,
    pub(crate) policy: DeliveryPolicy,
    /// What its owner can take now.
    pub(crate) credit: u32,
    /// What its owner can take when it has taken everything.
    pub(crate) capacity: u32,
    /// Messages that it did not get.
    pub(crate) dropped: u32,
    /// How many of them its owner has been told.
    pub(crate) dropped_told: u32,
    /// Cells of credit that its owner has ever given.
    pub(crate) given: u64,
    /// For one that drops.
    pub(crate) grace: Grace,
    /// For one that drops the oldest: what there is no room for in its client's ring.
    pub(crate) kept: Option<Box<Newest>>,
}

impl Subscription {
    /// Whether a message of `origin` is put together for it, to be kept.
    pub(crate) fn puts_together(&self, origin: u32) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.is_begun(origin))
    }
}

/// Of what there is as much as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Topics,
    Subscriptions,
    /// Pairs of a topic and a subscription that gets it.
    Routes,
}

/// All topics and subscriptions.
///
/// What a change costs grows with the topics and routes that there are, so both are bounded. No work is done for each
/// pair of a connection's own: all of its subscriptions go at once.
#[derive(Debug)]
pub(crate) struct Topics {
    by_name: HashMap<Topic, TopicId>,
    table: Vec<Option<Entry>>,
    free: Vec<TopicId>,
    most: usize,
    routes: usize,
    most_routes: usize,
    pub(crate) subscriptions: Arena<Subscription>,
    all: Vec<Key>,
}

impl Topics {
    /// At most so many topics and routes.
    pub(crate) fn new(most: usize, most_routes: usize) -> Topics {
        Topics {
            by_name: HashMap::new(),
            table: Vec::new(),
            free: Vec::new(),
            most,
            routes: 0,
            most_routes,
            subscriptions: Arena::new(MOST_SHORT),
            all: Vec::new(),
        }
    }

    /// At most so many from now on.
    pub(crate) fn adopt(&mut self, most: usize, most_routes: usize) {
        (self.most, self.most_routes) = (most, most_routes);
    }

    /// One more user of `topic`. One of the broker's own is known for a moment only, and there is always room for it.
    ///
    /// # Errors
    ///
    /// If there are too many topics, or it would have too many subscriptions.
    pub(crate) fn intern(&mut self, topic: &Topic) -> Result<TopicId, Full> {
        if let Some(id) = self.by_name.get(topic) {
            let id = *id;
            self.entry_mut(id).users += 1;
            return Ok(id);
        }
        if self.by_name.len() >= self.most && !topic.is_system() {
            return Err(Full::Topics);
        }
        let subscriptions = &self.subscriptions;
        let matches = |key: &&Key| subscriptions.get(**key).is_some_and(|found| found.pattern.matches(topic));
        let target = |key: &Key| Target { subscription: *key, announced: false };
        let targets: Vec<_> = self.all.iter().filter(matches).map(target).collect();
        if self.routes + targets.len() > self.most_routes && !topic.is_system() {
            return Err(Full::Routes);
        }
        self.routes += targets.len();
        let id = self.free.pop().unwrap_or_else(|| {
            self.table.push(None);
            (self.table.len() - 1) as TopicId
        });
        self.table[id as usize] = Some(Entry { topic: topic.clone(), targets, users: 1 });
        self.by_name.insert(topic.clone(), id);
        Ok(id)
    }

    /// One more user of the topic with the number `id`, which must be in use.
    pub(crate) fn retain(&mut self, id: TopicId) {
        self.entry_mut(id).users += 1;
    }

    /// One user less. When it was the last, the topic is forgotten; answers the subscriptions that know its number.
    pub(crate) fn release(&mut self, id: TopicId) -> Vec<Key> {
        let entry = self.entry_mut(id);
        entry.users -= 1;
        if entry.users > 0 {
            return Vec::new();
        }
        let entry = self.table[id as usize].take().expect("it was just there");
        self.by_name.remove(&entry.topic);
        self.free.push(id);
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
    /// If there are too many, or it would have too many topics.
    pub(crate) fn subscribe(
        &mut self,
        owner: u32,
        pattern: Pattern,
        policy: DeliveryPolicy,
        capacity: u32,
    ) -> Result<Key, Full> {
        let topics: Vec<TopicId> = self.matching(&pattern).collect();
        if self.routes + topics.len() > self.most_routes {
            return Err(Full::Routes);
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
            kept: None,
        };
        let key = self.subscriptions.insert(subscription).ok_or(Full::Subscriptions)?;
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

    /// Removes many subscriptions; those that are gone already are none.
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

    /// Takes the subscriptions that are gone out of a topic.
    fn forget_gone(&mut self, id: TopicId) {
        let Topics { table, subscriptions, routes, .. } = self;
        let Some(entry) = &mut table[id as usize] else { return };
        let before = entry.targets.len();
        entry.targets.retain(|target| subscriptions.get(target.subscription).is_some());
        *routes -= before - entry.targets.len();
    }

    /// How many topics are known.
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

    fn targets(topics: &Topics, id: TopicId) -> Vec<Key> {
        topics.entry(id).targets.iter().map(|t| t.subscription).collect()
    }

    fn subscribe(topics: &mut Topics, pattern: &str) -> Key {
        topics.subscribe(0, pattern.parse().unwrap(), DeliveryPolicy::Block, 10).unwrap()
    }

    #[test]
    fn subscriptions_find_topics_whichever_comes_first() {
        let mut topics = Topics::new(10, 100);
        let before = subscribe(&mut topics, "a.>");
        let id = topics.intern(&topic("a.b")).unwrap();
        let after = subscribe(&mut topics, "a.*");
        subscribe(&mut topics, "b.>");
        assert_eq!(targets(&topics, id), [before, after]);
        topics.unsubscribe(before);
        assert_eq!(targets(&topics, id), [after]);
        assert!(topics.unsubscribe(before).is_none());
    }

    #[test]
    fn a_topic_goes_with_its_last_user_and_tells_who_knew_it() {
        let mut topics = Topics::new(1, 100);
        let (knows, other) = (subscribe(&mut topics, "a"), subscribe(&mut topics, ">"));
        let id = topics.intern(&topic("a")).unwrap();
        assert_eq!(topics.intern(&topic("a")), Ok(id));
        assert_eq!(topics.intern(&topic("b")), Err(Full::Topics));
        topics.entry_mut(id).targets[0].announced = true;
        assert_eq!(topics.release(id), []);
        assert_eq!(topics.release(id), [knows]);
        let id = topics.intern(&topic("b")).unwrap();
        assert_eq!(targets(&topics, id), [other]);
        topics.unsubscribe(other).unwrap();
        assert_eq!((targets(&topics, id).len(), topics.len()), (0, 1));
    }

    #[test]
    fn routes_are_counted_and_bounded_and_go_with_either_side() {
        let mut topics = Topics::new(100, 6);
        let keys: Vec<Key> = (0..3).map(|_| subscribe(&mut topics, ">")).collect();
        let (a, b) = (topics.intern(&topic("a")).unwrap(), topics.intern(&topic("b")).unwrap());
        assert_eq!(topics.routes, 6);
        assert_eq!(topics.intern(&topic("c")), Err(Full::Routes));
        let full = topics.subscribe(0, "a".parse().unwrap(), DeliveryPolicy::Block, 10);
        assert_eq!(full, Err(Full::Routes));
        let news = topics.intern(&Topic::parse_system("$sys.news").unwrap()).unwrap();
        topics.release(news);
        topics.unsubscribe_all(&[keys[0], keys[2], keys[0]]);
        assert_eq!((targets(&topics, a), targets(&topics, b), topics.routes), (vec![keys[1]], vec![keys[1]], 2));
        topics.release(a);
        assert_eq!(topics.routes, 1);
        topics.unsubscribe_all(&keys);
        assert_eq!((topics.routes, topics.all.len(), topics.subscriptions.len()), (0, 0, 0));
    }
}

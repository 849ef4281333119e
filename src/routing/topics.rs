//! Topics and subscriptions. A publish carries a topic's number; which subscriptions get it is kept ready in the
//! topic, so that the hot path compares no names.

use super::arena::{Arena, Key};
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
    topics: Vec<TopicId>,
}

/// All topics and subscriptions.
#[derive(Debug)]
pub(crate) struct Topics {
    by_name: HashMap<Topic, TopicId>,
    table: Vec<Option<Entry>>,
    free: Vec<TopicId>,
    most: usize,
    pub(crate) subscriptions: Arena<Subscription>,
    all: Vec<Key>,
}

impl Topics {
    pub(crate) fn new(most: usize) -> Topics {
        Topics {
            by_name: HashMap::new(),
            table: Vec::new(),
            free: Vec::new(),
            most,
            subscriptions: Arena::short(),
            all: Vec::new(),
        }
    }

    /// One more user of `topic`; `None` if there are too many topics.
    pub(crate) fn intern(&mut self, topic: &Topic) -> Option<TopicId> {
        if let Some(id) = self.by_name.get(topic) {
            let id = *id;
            self.entry_mut(id).users += 1;
            return Some(id);
        }
        if self.by_name.len() >= self.most {
            return None;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.table.push(None);
            (self.table.len() - 1) as TopicId
        });
        let mut targets = Vec::new();
        for key in &self.all {
            let subscription = self.subscriptions.get_mut(*key).expect("all lists the living");
            if subscription.pattern.matches(topic) {
                subscription.topics.push(id);
                targets.push(Target { subscription: *key, announced: false });
            }
        }
        self.table[id as usize] = Some(Entry { topic: topic.clone(), targets, users: 1 });
        self.by_name.insert(topic.clone(), id);
        Some(id)
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
        for target in &entry.targets {
            if let Some(subscription) = self.subscriptions.get_mut(target.subscription) {
                subscription.topics.retain(|t| *t != id);
            }
        }
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

    /// Adds a subscription; `None` if there are too many.
    pub(crate) fn subscribe(
        &mut self,
        owner: u32,
        pattern: Pattern,
        policy: DeliveryPolicy,
        capacity: u32,
    ) -> Option<Key> {
        let mut topics = Vec::new();
        for (id, entry) in self.table.iter().enumerate() {
            if entry.as_ref().is_some_and(|entry| pattern.matches(&entry.topic)) {
                topics.push(id as TopicId);
            }
        }
        let subscription = Subscription {
            owner,
            pattern,
            policy,
            credit: capacity,
            capacity,
            dropped: 0,
            dropped_told: 0,
            topics: topics.clone(),
        };
        let key = self.subscriptions.insert(subscription)?;
        self.all.push(key);
        for id in topics {
            self.entry_mut(id).targets.push(Target { subscription: key, announced: false });
        }
        Some(key)
    }

    /// Removes a subscription.
    pub(crate) fn unsubscribe(&mut self, key: Key) -> Option<Subscription> {
        let subscription = self.subscriptions.remove(key)?;
        self.all.retain(|k| *k != key);
        for id in &subscription.topics {
            self.entry_mut(*id).targets.retain(|t| t.subscription != key);
        }
        Some(subscription)
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
        let mut topics = Topics::new(10);
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
        let mut topics = Topics::new(1);
        let (knows, other) = (subscribe(&mut topics, "a"), subscribe(&mut topics, ">"));
        let id = topics.intern(&topic("a")).unwrap();
        assert_eq!(topics.intern(&topic("a")), Some(id));
        assert_eq!(topics.intern(&topic("b")), None, "bounded");
        topics.entry_mut(id).targets[0].announced = true;
        assert_eq!(topics.release(id), []);
        assert_eq!(topics.release(id), [knows]);
        let id = topics.intern(&topic("b")).unwrap();
        assert_eq!(targets(&topics, id), [other]);
        topics.unsubscribe(other).unwrap();
        assert_eq!((targets(&topics, id).len(), topics.len()), (0, 1));
    }
}

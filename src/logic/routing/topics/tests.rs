use super::turns::Turn;
use super::*;
use crate::logic::shares::uid;
use proptest::prelude::*;

/// What an account holds is the share of it.
const WINDOW: u64 = 100_000_000;
const ALL: WorkShare = WorkShare { percent: 100, window: WINDOW };
// The user of the subscriptions, and one that publishes.
const READER: Principal = uid(7);
const WRITER: Principal = uid(8);

fn topic(name: &str) -> Topic {
    name.parse().unwrap()
}

fn topics(most: usize, most_routes: usize, work: WorkShare) -> Topics {
    Topics::new([most, most_routes, MAX_SHORT].map(|most| ShareLimits::of_all(most, 100)), work)
}

fn subscribe_as(topics: &mut Topics, uid: Principal, pattern: &str, policy: DeliveryPolicy) -> Key {
    topics.subscribe((0, uid), pattern.parse().unwrap(), policy, 10, 0).unwrap()
}

fn subscribe(topics: &mut Topics, pattern: &str) -> Key {
    subscribe_as(topics, READER, pattern, DeliveryPolicy::DropNewest)
}

/// The matching subscriptions, in the order of their keys.
fn targets(topics: &mut Topics, id: TopicId) -> Vec<Key> {
    topics.find_targets(id, WRITER);
    let mut keys: Vec<Key> = topics.entry(id).targets.iter().flat_map(|list| list.subscriptions.clone()).collect();
    keys.sort_by_key(|key| key.to_u64());
    keys
}

fn dropped(topics: &Topics, key: Key) -> u32 {
    topics.subscriptions.get(key).unwrap().dropped
}

#[test]
fn subscriptions_find_topics_whichever_comes_first() {
    let mut topics = topics(10, 100, ALL);
    let before = subscribe(&mut topics, "a.>");
    let id = topics.intern(&topic("a.b"), Some(uid(7))).unwrap();
    assert_eq!(targets(&mut topics, id), [before]);
    let after = subscribe_as(&mut topics, WRITER, "a.*", DeliveryPolicy::Block);
    subscribe(&mut topics, "b.>");
    assert_eq!(targets(&mut topics, id), [before, after]);
    topics.unsubscribe(before);
    assert_eq!(targets(&mut topics, id), [after]);
    assert!(topics.unsubscribe(before).is_none());
}

#[test]
fn a_user_with_its_share_of_subscriptions_leaves_some_to_others() {
    let limits = [10, 10, 10].map(|most| ShareLimits::of_all(most, 50));
    let mut topics = Topics::new(limits, ALL);
    let mut try_as = |uid| topics.subscribe((0, uid), ">".parse().unwrap(), DeliveryPolicy::Block, 10, 0);
    let taken: Vec<Key> = (0..5).map(|_| try_as(READER).unwrap()).collect();
    assert_eq!(try_as(READER), Err(ShareReached { user: READER, most: 5 }));
    assert!((0..3).all(|_| try_as(WRITER).is_ok()));
    assert_eq!(try_as(WRITER), Err(ShareReached { user: WRITER, most: 3 }));
    topics.unsubscribe(taken[0]);
    assert_eq!((topics.places.held_by(READER), topics.subscriptions.len()), (4, 7));
    topics.unsubscribe(taken[1]);
    subscribe(&mut topics, "a");
}

#[test]
fn a_topic_goes_with_its_last_user_and_says_which_connections_know_it() {
    let mut topics = topics(1, 100, ALL);
    let other = subscribe(&mut topics, ">");
    let id = topics.intern(&topic("a"), Some(uid(7))).unwrap();
    assert_eq!(topics.intern(&topic("a"), Some(uid(7))), Ok(id));
    assert_eq!(topics.intern(&topic("b"), Some(uid(7))), Err(ShareReached { user: uid(7), most: 1 }));
    topics.entry_mut(id).known.insert(3);
    topics.entry_mut(id).known.insert(5);
    topics.forget_known(id, 5);
    assert!(topics.release(id).is_none());
    assert_eq!(topics.release(id).unwrap().known.iter().collect::<Vec<_>>(), [3]);
    let id = topics.intern(&topic("b"), Some(uid(7))).unwrap();
    assert!(!topics.entry(id).known.contains(3));
    assert_eq!(targets(&mut topics, id), [other]);
    topics.unsubscribe(other).unwrap();
    assert_eq!((targets(&mut topics, id).len(), topics.len(), topics.routes.held()), (0, 1, 0));
}

#[test]
fn lists_beyond_the_share_of_routes_are_forgotten_and_found_again() {
    let mut topics = topics(100, 6, ALL);
    let keys: Vec<Key> = (0..3).map(|_| subscribe(&mut topics, ">")).collect();
    let ids = ["a", "b", "c", "d"].map(|name| topics.intern(&topic(name), Some(WRITER)).unwrap());
    for _ in 0..3 {
        for id in ids {
            assert_eq!(targets(&mut topics, id), keys);
            assert!(topics.routes.held() <= 6);
        }
    }
    let more: Vec<Key> = (0..5).map(|_| subscribe(&mut topics, ">")).collect();
    assert_eq!(targets(&mut topics, ids[0]).len(), 8, "one list is found also if it is longer than the share");
    assert_eq!(targets(&mut topics, ids[1]).len(), 8);
    assert_eq!(topics.routes.held(), 8);
    for key in keys.into_iter().chain(more) {
        topics.unsubscribe(key);
    }
    ids.iter().for_each(|id| drop(topics.release(*id)));
    assert_eq!(topics.routes.held(), 0);
}

#[test]
fn an_overdrawn_user_is_passed_over_and_its_drops_are_counted_later() {
    let work = WorkShare { percent: 5, window: WINDOW };
    let mut topics = topics(10, 100, work);
    let keys = ["a", ">"].map(|pattern| subscribe(&mut topics, pattern));
    let own = subscribe_as(&mut topics, WRITER, "a", DeliveryPolicy::Block);
    let id = topics.intern(&topic("a"), Some(WRITER)).unwrap();
    topics.find_targets(id, WRITER);
    let turn = |topics: &mut Topics, user, now| {
        let turn = topics.turn(id, user, WRITER, now);
        if turn == Turn::Decide {
            topics.pay(id, user, WRITER, None);
        }
        turn
    };
    let decided = (0..1_000_000).take_while(|_| turn(&mut topics, 0, 0) == Turn::Decide).count();
    assert!((10_000..100_000).contains(&decided), "{decided} messages take the burst of 5 ms");
    for _ in 0..3 {
        assert_eq!(turn(&mut topics, 0, 0), Turn::PassOver);
        topics.miss(id, 0);
    }
    assert_eq!(turn(&mut topics, 1, 0), Turn::Decide, "the publisher's own subscriptions cost nothing");
    assert_eq!(topics.turn(id, 0, READER, 0), Turn::Decide, "and so with this one's own messages");
    assert_eq!(keys.map(|key| dropped(&topics, key)), [3, 3], "counted, because they come before the message");
    topics.miss(id, 0);
    let next = topics.next_count().unwrap();
    topics.count_missed_of_all(next - 100);
    assert_eq!(keys.map(|key| dropped(&topics, key)), [3, 3]);
    topics.count_missed_of_all(next);
    assert_eq!(keys.map(|key| dropped(&topics, key)), [4, 4]);
    assert_eq!((topics.next_count(), dropped(&topics, own)), (None, 0));
    assert_eq!(topics.counted.iter().map(|(_, _, count)| count).sum::<u32>(), 8);
    // One that makes publishers wait is not passed over.
    let block = subscribe_as(&mut topics, READER, "a", DeliveryPolicy::Block);
    topics.find_targets(id, WRITER);
    while turn(&mut topics, 0, next) == Turn::Decide {}
    assert!(matches!(turn(&mut topics, 0, next), Turn::Wait(key, until) if key == block && until > next));
}

#[test]
fn what_a_subscription_missed_is_counted_before_it_ends_or_its_list_changes() {
    let mut topics = topics(10, 100, WorkShare { percent: 1, window: WINDOW });
    let [first, second] = ["a", "a"].map(|pattern| subscribe(&mut topics, pattern));
    let id = topics.intern(&topic("a"), Some(WRITER)).unwrap();
    topics.find_targets(id, WRITER);
    topics.miss(id, 0);
    assert_eq!(topics.unsubscribe(first).unwrap().dropped, 1);
    topics.find_targets(id, WRITER);
    topics.miss(id, 0);
    let third = subscribe(&mut topics, "a");
    topics.find_targets(id, WRITER);
    assert_eq!((dropped(&topics, second), dropped(&topics, third)), (2, 0));
    topics.miss(id, 0);
    topics.release(id);
    assert_eq!((dropped(&topics, second), dropped(&topics, third)), (3, 1));
}

proptest! {
    /// Topics and subscriptions of three users come and go, and the routes are those that a look at all finds.
    #[test]
    fn the_lists_are_those_of_a_look_at_all_and_the_books_are_balanced(
        most_routes in 1usize..40,
        steps in prop::collection::vec((0u8..5, 0usize..6, 0u16..3, any::<prop::sample::Index>()), 1..150),
    ) {
        const NAMES: [&str; 6] = ["a", "b", "a.a", "a.b", "b.a.c", "c"];
        const PATTERNS: [&str; 6] = ["a", ">", "*", "a.>", "*.a.>", "a.*"];
        let mut topics = topics(100, most_routes, ALL);
        let mut keys: Vec<(Key, Principal)> = Vec::new();
        let mut ids: Vec<TopicId> = Vec::new();
        for (what, which, user, index) in steps {
            let user = Principal::new(7, user);
            match what {
                0 => keys.push((subscribe_as(&mut topics, user, PATTERNS[which], DeliveryPolicy::DropNewest), user)),
                1 if !keys.is_empty() => {
                    let (key, _) = keys.swap_remove(index.index(keys.len()));
                    prop_assert!(topics.unsubscribe(key).is_some());
                }
                2 => ids.push(topics.intern(&topic(NAMES[which]), Some(user)).unwrap()),
                3 if !ids.is_empty() => {
                    topics.release(ids.swap_remove(index.index(ids.len())));
                }
                _ => {}
            }
            for id in &ids {
                let name = topics.entry(*id).topic.clone();
                let matches = |key: &&(Key, Principal)| topics.subscriptions.get(key.0).unwrap().pattern.matches(&name);
                let mut expected: Vec<Key> = keys.iter().filter(matches).map(|(key, _)| *key).collect();
                expected.sort_by_key(|key| key.to_u64());
                prop_assert_eq!(targets(&mut topics, *id), expected);
            }
        }
        for (key, _) in keys {
            topics.unsubscribe(key);
        }
        for id in ids {
            topics.release(id);
        }
        prop_assert_eq!((topics.len(), topics.shares.held(), topics.routes.held()), (0, 0, 0));
        prop_assert!(topics.subscribers.iter().all(|subscriber| subscriber.patterns.is_empty()));
    }
}

//! What the subscriptions of one user cost publishers of another one: time, within limits.

use super::*;

impl Router {
    fn evicted(&self) -> u64 {
        self.state.ports.counters.evicted
    }

    /// Publishes until the publisher waits for an unread subscription, and how long it does, in milliseconds.
    fn wait_for(&mut self, publisher: &mut Peer, topic: u32) -> u64 {
        let before = self.evicted();
        for _ in 0..100 {
            assert!(publisher.publish(topic, &[1; 900]));
            self.run();
            let mut waited = 0;
            while self.state.ports.ingress(publisher.key).unwrap().parked.is_some() {
                self.pass(1);
                waited += 1;
            }
            if self.evicted() > before {
                return waited;
            }
            assert_eq!(waited, 0, "a wait ends with an eviction");
        }
        panic!("no wait");
    }
}

#[test]
fn publishes_wait_for_the_subscriptions_of_another_user_for_a_limited_time() {
    let mut router = Router::new(|config| config.delivery.user_wait_ms = 250);
    let (mut publisher, subscriber) = (router.connect(), router.connect_as(OTHER));
    let topic = router.topic(&publisher, "t");
    let mut waits = Vec::new();
    for _ in 0..4 {
        router.subscribe(&subscriber, "t", DeliveryPolicy::Block, 1);
        waits.push(router.wait_for(&mut publisher, topic));
    }
    assert!((250..270).contains(&waits[0]), "{waits:?}");
    assert!(waits[1..].iter().sum::<u64>() < 20, "what is used up comes back by a fortieth of the time: {waits:?}");
    // Ten seconds later all of it is there again, and so it is for a third user at any time.
    let third = router.connect_as(OTHER + 1);
    router.subscribe(&third, "t", DeliveryPolicy::Block, 1);
    assert!((250..270).contains(&router.wait_for(&mut publisher, topic)));
    router.pass(60_000);
    router.subscribe(&subscriber, "t", DeliveryPolicy::Block, 1);
    assert!((250..270).contains(&router.wait_for(&mut publisher, topic)));
}

#[test]
fn credit_that_is_no_space_does_not_restart_the_time_that_others_wait() {
    let mut router = Router::new(|config| config.delivery.user_wait_ms = 100);
    let (mut publisher, mut subscriber) = (router.connect(), router.connect_as(OTHER));
    let topic = router.topic(&publisher, "t");
    let id = router.subscribe(&subscriber, "t", DeliveryPolicy::Block, 0);
    // It grants credit each millisecond, and reads nothing.
    let (mut waited, before) = (0, router.evicted());
    while router.evicted() == before {
        _ = publisher.publish(topic, &[1; 900]);
        let credit = Header { id, arg: 8192, ..Header::new(Kind::Credit) };
        assert!(subscriber.push(true, credit, b""));
        router.run();
        waited += u64::from(router.state.ports.ingress(publisher.key).unwrap().parked.is_some());
        router.pass(1);
        assert!(waited < 1000, "others wait on");
    }
    assert!((95..=105).contains(&waited), "{waited} ms");
}

#[test]
fn a_process_that_times_out_again_and_again_delays_its_own_user_ever_less() {
    let mut router = Router::new(|config| config.delivery.slow_consumer_timeout_ms = 1000);
    let (mut publisher, subscriber) = (router.connect(), router.connect());
    let topic = router.topic(&publisher, "t");
    let waits = [(); 6].map(|()| {
        router.subscribe(&subscriber, "t", DeliveryPolicy::Block, 1);
        router.wait_for(&mut publisher, topic)
    });
    for (times, wait) in waits.iter().enumerate() {
        let timeout = 1000 >> times;
        assert!((timeout..timeout + 5).contains(wait), "{waits:?}");
    }
}

#[test]
fn each_eviction_costs_the_next_request_of_its_client_twice_as_much() {
    let mut router = Router::new(|config| config.delivery.slow_consumer_timeout_ms = 100);
    let (mut publisher, subscriber, other) = (router.connect(), router.connect(), router.connect());
    let topic = router.topic(&publisher, "t");
    let costs = [(); 4].map(|()| {
        router.subscribe(&subscriber, "t", DeliveryPolicy::Block, 1);
        router.wait_for(&mut publisher, topic);
        router.state.take_debt(subscriber.key)
    });
    assert_eq!(costs, [1_000_000, 2_000_000, 4_000_000, 8_000_000]);
    let debts = [&publisher, &subscriber, &other].map(|peer| router.state.take_debt(peer.key));
    assert_eq!(debts, [0; 3], "it is paid once, and by the evicted client alone");
}

#[test]
fn another_users_subscriptions_beyond_their_share_of_work_miss_messages_and_say_so() {
    let mut router = Router::new(|config| config.limits.user_work_percent = 1);
    let (mut publisher, mut own, mut subscriber) = (router.connect(), router.connect(), router.connect_as(OTHER));
    let topic = router.topic(&publisher, "t");
    router.subscribe(&own, "t", DeliveryPolicy::Block, 0);
    let ids: Vec<u32> = (0..500).map(|_| router.subscribe(&subscriber, ">", DeliveryPolicy::DropNewest, 0)).collect();
    let is_message = |(header, _): &(Header, Vec<u8>)| header.kind == Kind::Deliver;
    let (mut messages, mut received) = (0, 0);
    // Until the user is passed over, and some more.
    while messages < 200 || router.state.pubsub.topics().next_count().is_none() {
        assert!(publisher.publish(topic, &[1; 900]));
        router.run();
        while router.state.ports.ingress(publisher.key).unwrap().parked.is_some() {
            router.pass(1);
        }
        messages += 1;
        received += own.take_all(&mut router).into_iter().filter(is_message).count() as u32;
    }
    assert_eq!(received, messages, "the publisher's own user pays nothing");
    router.pass(60_000);
    assert_eq!(router.state.pubsub.topics().next_count(), None);
    let delivered = subscriber.take_all(&mut router);
    let subscriptions = &router.state.pubsub.topics().subscriptions;
    for id in ids {
        let got = delivered.iter().filter(|record| is_message(record) && record.0.id == id).count() as u32;
        let found = subscriptions.get(subscriptions.find(id).unwrap()).unwrap();
        assert_eq!((found.dropped + got, found.dropped_told), (messages, found.dropped));
    }
}

#[test]
fn what_the_broker_itself_publishes_is_counted_where_it_is_missed() {
    let mut router = Router::new(|config| config.limits.user_work_percent = 1);
    let subscriber = router.connect_as(OTHER);
    let ids: Vec<u32> =
        (0..500).map(|_| router.subscribe(&subscriber, "$sys.>", DeliveryPolicy::DropNewest, 0)).collect();
    let tell = |router: &mut Router| {
        let RouterState { pubsub, ports, .. } = &mut router.state;
        pubsub.publish_system(ports, "$sys.test", "text");
        let subscriptions = &pubsub.topics().subscriptions;
        subscriptions.get(subscriptions.find(ids[0]).unwrap()).unwrap().dropped
    };
    // No time passes, so the account is not filled.
    let first = (1..10_000).find(|_| tell(&mut router) > 0).expect("it is overdrawn");
    assert_eq!((tell(&mut router), tell(&mut router)), (2, 3), "after {first} events");
}

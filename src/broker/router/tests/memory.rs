//! Leases come with load and go when it is over, and what all connections make the broker keep is bounded.

use super::*;
use crate::broker::router::egress::Egresses;
use crate::broker::router::ingress::Ingress;
use crate::broker::router::memory;
use crate::broker::router::ports::Ports;
use std::time::{Duration, Instant};

/// Pages go back on another thread.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < until, "waited for {what}");
        std::thread::yield_now();
    }
}

/// Publishes so much that an unread ring needs more than its base window.
fn flood(router: &mut Router, publisher: &mut Peer, topic: u32) {
    for n in 0..3000u32 {
        publisher.publish(topic, &n.to_le_bytes());
        if n % 40 == 0 {
            router.run();
        }
    }
    router.run();
}

#[test]
fn windows_grow_under_load_and_are_given_back() {
    let mut router = Router::new(|_| {});
    let (mut publisher, mut subscriber) = (router.connect(), router.connect());
    router.subscribe(&subscriber, "t", DeliveryPolicy::DropOldest, 0);
    let topic = router.topic(&publisher, "t");
    for round in 0..3 {
        flood(&mut router, &mut publisher, topic);
        let (used, pages) = (router.state.ports.egresses.memory.used(), subscriber.segment.pages().unwrap());
        assert!(used > 0 && pages > 1, "{used} cells, {pages} pages in round {round}");
        let delivered = subscriber.take_all(&mut router).len();
        assert!(delivered > 200, "{delivered}");
        // Nobody sends anything: the one who was only given has to say nothing for that.
        router.pass(600);
        wait_until("the pages to be back", || router.state.ports.egresses.memory.used() == 0);
        // A reader that looks for its next record may touch a page of its extension.
        assert!(subscriber.segment.pages().unwrap() <= 2);
    }
    publisher.publish(topic, b"still works");
    router.run();
    assert_eq!(subscriber.take().unwrap().1, b"still works");
}

#[test]
fn a_window_that_is_in_use_stays_until_it_is_not() {
    let mut router = Router::new(|_| {});
    let (mut publisher, mut subscriber) = (router.connect(), router.connect());
    router.subscribe(&subscriber, "t", DeliveryPolicy::DropOldest, 0);
    let topic = router.topic(&publisher, "t");
    flood(&mut router, &mut publisher, topic);
    router.pass(600);
    let unread = router.state.ports.egresses.get(subscriber.key).unwrap().ring.window();
    assert!(unread > 0, "records lie in it");
    subscriber.take_all(&mut router);
    router.pass(600);
    router.pass(5_000);
    wait_until("the pages to be back", || router.state.ports.egresses.memory.used() == 0);
}

#[test]
fn an_honest_client_passes_every_audit_while_its_pages_go_back() {
    let mut router = Router::new(|_| {});
    let peer = router.connect();
    let Ports { egresses, ingresses, .. } = &mut router.state.ports;
    let ingress = ingresses[peer.key as usize].as_deref_mut().expect("its ingress");
    let (mut audits, mut pending) = (0, 0);
    for cycle in 0..3000 {
        let before = audit(ingress, egresses, peer.key);
        assert_eq!(before, 0, "cycle {cycle}");
        lease(egresses, peer.key);
        audit(ingress, egresses, peer.key);
        egresses.trim(peer.key, &mut ingress.bulk, &mut ingress.express).expect("the client keeps the rules");
        assert_eq!(egresses.egress_window(peer.key), 0);
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let cells = audit(ingress, egresses, peer.key);
            audits += 1;
            pending += u32::from(cells > 0);
            if cells == 0 {
                break;
            }
            assert!(Instant::now() < until, "waited for the pages to be back");
        }
    }
    assert!(pending > 0, "no audit of {audits} came while pages were on their way back");
}

#[test]
fn a_ring_that_finds_no_free_slot_counts_as_refused() {
    let mut router = Router::new(|config| {
        (config.shared_memory.num_slots, config.shared_memory.max_window_slots) = (64, 64);
    });
    let peers = [router.connect(), router.connect()];
    let Egresses { memory, table, .. } = &mut router.state.ports.egresses;
    let mut grow = |peer: &Peer| {
        let egress = table[peer.key as usize].as_deref_mut().expect("its egress");
        while memory.grow_egress(peer.key, &mut egress.leases, &mut egress.ring) {}
        (egress.ring.window(), memory.refused())
    };
    let (window, refused) = grow(&peers[0]);
    assert!(window > 0 && refused == 1, "{window} cells, {refused} refusals: half of what is free is less than a page");
    assert_eq!(grow(&peers[1]), (0, 2));
}

/// Audits the memory of `key`; returns how many cells are on their way back.
fn audit(ingress: &Ingress, egresses: &Egresses, key: u32) -> u64 {
    let egress = egresses.get(key).expect("its egress");
    if let Err(close) = memory::audit(ingress.windows(), &egress.ring, &egress.leases) {
        panic!("{}", close.reason);
    }
    egress.leases.pending()
}

/// Leases an extension for the egress ring of `key`, as soon as the last one is back with the system.
fn lease(egresses: &mut Egresses, key: u32) {
    let Egresses { memory, table, .. } = egresses;
    let egress = table[key as usize].as_deref_mut().expect("its egress");
    wait_until("the extension to be leased", || memory.grow_egress(key, &mut egress.leases, &mut egress.ring));
}

#[test]
fn many_topics_and_many_subscriptions_end_with_their_client_at_once() {
    let mut router = Router::new(|config| config.limits.max_routes = 5000);
    let (hog, other) = (router.connect(), router.connect());
    for n in 0..1000 {
        router.topic(&hog, &format!("t.{n}"));
    }
    for _ in 0..500 {
        let policy = DeliveryPolicy::DropOldest;
        let frame = ClientFrame::Subscribe { serial: 1, pattern: ">".parse().unwrap(), policy, credit: 0 };
        assert!(matches!(router.handle_request(&hog, frame), BrokerFrame::Subscribed { .. }));
    }
    router.topic(&other, "one.more");
    router.state.client_ended(hog.key, hog.id);
    router.run();
    assert!(router.state.ports.ingress(hog.key).is_none());
    assert_eq!((router.state.pubsub.topics().len(), router.state.pubsub.topics().subscriptions.len()), (1, 0));
}

//! Memory that the clients of one user make the broker keep: bounded for all of them, and other users find some.

use super::*;
use crate::broker::router::egress::Egresses;

const OTHER: u32 = 4_000_000;
const BOUND: usize = 200_000;

/// Rings are small, and users hold little.
fn narrow() -> Router {
    Router::new(|config| {
        (config.shared_memory.num_slots, config.shared_memory.max_window_slots) = (4, 4);
        config.limits.max_user_backlog_bytes = BOUND as u32;
    })
}

/// Has the echo answer so many requests of 1,000 bytes, which are not read.
fn echo_unread(router: &mut Router, peer: &mut Peer, times: u32) {
    let echo = router.service(peer, "echo");
    for generation in 1..=times {
        assert!(peer.request(0, generation, echo, &[1; 1000]));
        router.run();
    }
}

fn held(router: &mut Router, user: u32) -> (usize, usize) {
    let users = router.state.ports.egresses.user_memory();
    users.get(&uid(user)).map_or((0, 0), |held| (held.backlog_bytes as usize, held.overflow_bytes as usize))
}

#[test]
fn at_its_users_bound_the_connection_with_the_largest_backlog_is_closed() {
    let mut router = narrow();
    let (mut own, mut hog, mut reads) = (router.connect(), router.connect_as(OTHER), router.connect_as(OTHER));
    echo_unread(&mut router, &mut own, 10);
    echo_unread(&mut router, &mut hog, 120);
    let before = held(&mut router, OTHER).0;
    assert!((BOUND / 2..BOUND * 2 / 3).contains(&before), "{before}: calls get half of it");
    // A client that reads is served all the same.
    let service = router.service(&own, "s");
    router.serve(&reads, "s", 0);
    assert!(own.request(1, 1, service, b"x"));
    router.run();
    assert_eq!(kinds(&reads.take_all(&mut router)), [Kind::RoutedRequest]);
    let mut small = Vec::new();
    while router.state.ended.is_empty() {
        let mut peer = router.connect_as(OTHER);
        echo_unread(&mut router, &mut peer, 20);
        small.push(peer);
        assert!(small.len() < 20, "never ended: {}", held(&mut router, OTHER).0);
    }
    let (info, close) = router.state.ended.pop().unwrap();
    assert_eq!((info.id, close.code), (hog.id, ClosingCode::SlowConsumer));
    assert!(close.reason.contains("of user 4000000") && close.reason.contains("limits.max_user_backlog_bytes"));
    assert!(router.state.ended.is_empty() && router.state.ports.ingress(own.key).is_some());
    assert!(held(&mut router, OTHER).0 <= BOUND - before + 20 * 1_064);
    for peer in small.iter().chain([&own, &reads]) {
        router.state.client_ended(peer.key, peer.id);
    }
    router.run();
    assert_eq!(router.state.ports.egresses.user_memory().len(), 0);
}

#[test]
fn at_its_users_bound_no_overflow_queue_grows() {
    let mut router = narrow();
    let (mut publisher, own) = (router.connect(), router.connect());
    let topic = router.topic(&publisher, "t");
    let mut subscribers: Vec<Peer> = (0..3).map(|_| router.connect_as(OTHER)).collect();
    for peer in subscribers.iter().chain([&own]) {
        router.subscribe(peer, "t", DeliveryPolicy::DropOldest, 0);
    }
    for _ in 0..400 {
        assert!(publisher.publish(topic, &[1; 900]));
        router.run();
        while router.state.ports.ingress(publisher.key).unwrap().parked.is_some() {
            router.pass(1);
        }
        assert!(held(&mut router, OTHER).1 <= BOUND);
    }
    // Of both, one grows three times as fast, until it holds nine tenths of what the other leaves.
    let [of_other, of_own] = [OTHER, own_uid()].map(|user| held(&mut router, user).1);
    assert!((BOUND * 2 / 3..BOUND).contains(&of_other) && of_own > BOUND / 4, "{of_other}, {of_own}");
    for peer in &mut subscribers {
        let taken = peer.take_all(&mut router);
        let last = taken.iter().rfind(|(header, _)| header.kind == Kind::Deliver);
        assert_eq!(last.map(|(header, _)| header.seq), Some(400), "the newest");
    }
    assert_eq!(held(&mut router, OTHER), (0, 0));
}

#[test]
fn a_user_that_leases_all_it_may_leaves_slots_to_another() {
    let mut router = Router::new(|_| {});
    let hogs: Vec<Peer> = (0..6).map(|_| router.connect_as(OTHER)).collect();
    let own = router.connect();
    let Egresses { memory, table, .. } = &mut router.state.ports.egresses;
    let mut grow = |peer: &Peer| {
        let egress = table[peer.key as usize].as_deref_mut().expect("its egress");
        while memory.grow_egress(peer.key, &mut egress.leases, &mut egress.ring) {}
        u64::from(egress.ring.window())
    };
    let hogged: u64 = hogs.iter().map(&mut grow).sum();
    let leased = grow(&own);
    // A slot of 1 KiB has eight cells; the last half page is left.
    assert!((1000 * 8..=1024 * 8).contains(&hogged), "{hogged}");
    assert!(leased > 500 * 8, "almost as much as one ring may have: {leased}");
    let users = router.state.ports.egresses.user_memory();
    let cells: Vec<(u32, u64)> = users.into_iter().map(|(user, held)| (user.uid(), held.leased_cells)).collect();
    let mut expected = [(OTHER, hogged), (own_uid(), leased)];
    expected.sort_unstable();
    assert_eq!(cells, expected);
}

//! Which connections are polled.

use super::*;

const MS: u64 = 1_000_000;

/// Lets time pass, and `peer` publish as another connection is not polled any more.
fn publish_after(router: &mut Router, peer: &mut Peer, topic: u32, nanos: u64) {
    router.state.ports.now += nanos;
    assert!(peer.publish(topic, b"hi"));
    router.run();
    router.state.ports.cool_longest_quiet();
}

#[test]
fn a_connection_that_is_silent_while_others_have_work_is_not_polled_for_long() {
    let mut router = Router::new(|_| {});
    let mut peers: Vec<Peer> = (0..3).map(|_| router.connect()).collect();
    let topics: Vec<u32> = peers.iter().map(|peer| router.topic(peer, "topic")).collect();
    for (peer, topic) in peers.iter_mut().zip(&topics) {
        assert!(peer.publish(*topic, b"hi"));
    }
    router.run();
    let quiet = |router: &Router| router.state.ports.schedule.quiet().to_vec();
    assert_eq!(quiet(&router), [peers[0].key, peers[1].key, peers[2].key]);

    let flag = |peer: &Peer| peer.segment.data_signal(RingName::Bulk);
    // As the client that rings.
    assert!(peers.iter().all(|peer| flag(peer).take()));

    publish_after(&mut router, &mut peers[2], topics[2], 2 * MS);
    assert_eq!(quiet(&router).len(), 3, "not yet");
    publish_after(&mut router, &mut peers[2], topics[2], 1);
    assert_eq!(quiet(&router), [peers[1].key, peers[2].key]);
    publish_after(&mut router, &mut peers[2], topics[2], 0);
    assert_eq!(quiet(&router), [peers[2].key]);
    publish_after(&mut router, &mut peers[2], topics[2], MS);
    assert_eq!(quiet(&router), [peers[2].key], "it has work");

    let rings: Vec<bool> = peers.iter().map(|peer| flag(peer).is_armed()).collect();
    assert_eq!(rings, [true, true, false], "the silent ones ring");
    assert!(peers[0].publish(topics[0], b"hi"));
    router.run();
    assert_eq!(quiet(&router), [peers[2].key, peers[0].key], "polled again");
}

//! Attacks on those that publish and subscribe.

use super::attack::{Scene, many};
use super::pause;
use crate::raw::{Lane, Raw, publish};
use lapce_ipc::client::DeliveryPolicy::{self, Block, DropNewest};
use lapce_ipc::wire::control::InternKind;
use lapce_ipc::wire::record::{Flags, Header, Kind};
use lapce_ipc::wire::{BrokerFrame, ClientFrame, Pattern, Topic};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

fn subscription(pattern: &str, policy: DeliveryPolicy, credit: u32) -> impl FnOnce(u32) -> ClientFrame + use<> {
    let pattern = Pattern::parse(pattern).expect("a pattern");
    move |serial| ClientFrame::Subscribe { serial, pattern, policy, credit }
}

/// Subscribes; 0 if the broker refuses it.
fn subscribe(raw: &mut Raw, pattern: &str, policy: DeliveryPolicy, credit: u32) -> u32 {
    match raw.ask(subscription(pattern, policy, credit)) {
        BrokerFrame::Subscribed { subscription, .. } => subscription,
        _ => 0,
    }
}

/// The number of a topic; one that no connection has if the broker refuses it.
pub(crate) fn topic(raw: &mut Raw, name: &str) -> u32 {
    let name = Topic::parse(name).expect("a name");
    match raw.ask(|serial| ClientFrame::Intern { serial, kind: InternKind::Topic, name }) {
        BrokerFrame::Interned { id, .. } => id,
        other => panic!("{other:?}"),
    }
}

/// The other core is busy, the broker is not.
pub(crate) fn busy(scene: &Scene) {
    scene.again(Duration::ZERO, std::hint::spin_loop);
}

/// Subscribes to everything, and never reads.
pub(crate) fn block_once(scene: &Scene) {
    let mut raw = scene.raw("block-once");
    subscribe(&mut raw, ">", Block, 0);
    scene.again(100 * MS, || ());
}

/// Of the least credit, and again as soon as it is evicted.
fn block_and_come_again(scene: &Scene, connections: usize) {
    let mut raws = scene.raws(connections, "block-again");
    raws.iter_mut().for_each(|raw| _ = subscribe(raw, ">", Block, 1));
    scene.again(MS, || {
        for raw in &mut raws {
            assert!(!raw.has_word(), "put out");
            while let Some((header, _)) = raw.try_receive() {
                if header.kind == Kind::Evicted {
                    subscribe(raw, ">", Block, 1);
                }
            }
        }
    });
}

pub(crate) fn block_again(scene: &Scene) {
    block_and_come_again(scene, 1);
}

pub(crate) fn block_again_20(scene: &Scene) {
    block_and_come_again(scene, 20);
}

/// Grants credit as if it had read, and does not read.
pub(crate) fn forged_credit(scene: &Scene) {
    let mut raw = scene.raw("forged-credit");
    let (mut number, mut step) = (subscribe(&mut raw, ">", Block, 0), 0);
    scene.again(MS, || {
        let credit = Header { id: number, arg: 8_192, ..Header::new(Kind::Credit) };
        raw.try_place(Lane::Express, &credit.to_words(), &[]);
        step += 1;
        if step % 1_000 == 0 {
            // It may have been evicted, which it cannot read.
            raw.ask(|serial| ClientFrame::Unsubscribe { serial, subscription: number });
            number = subscribe(&mut raw, ">", Block, 0);
        }
        assert!(!raw.has_word(), "put out");
    });
}

fn subscribe_often(scene: &Scene, connections: usize) {
    let mut raws = scene.raws(connections, "many-subscriptions");
    raws.iter_mut().for_each(|raw| _ = raw.ask_all((0..many(1_024)).map(|_| subscription(">", DropNewest, 0))));
    scene.hold(&raws);
}

/// As many subscriptions to everything as one connection may have.
pub(crate) fn many_subscriptions(scene: &Scene) {
    subscribe_often(scene, 1);
}

pub(crate) fn many_subscriptions_10(scene: &Scene) {
    subscribe_often(scene, 10);
}

/// Publishers that wait for a subscriber of their own, which grants credit of 0.
pub(crate) fn waiting_publishers(scene: &Scene) {
    let mut subscriber = scene.raw("grants-nothing");
    let mut number = subscribe(&mut subscriber, "waiting.topic", Block, 1);
    let mut publishers = scene.raws(many(300), "waits");
    let topics: Vec<u32> = publishers.iter_mut().map(|raw| topic(raw, "waiting.topic")).collect();
    let mut sequence = 0;
    scene.again(MS, || {
        let nothing = Header { id: number, ..Header::new(Kind::Credit) };
        (0..8).for_each(|_| _ = subscriber.try_place(Lane::Express, &nothing.to_words(), &[]));
        while let Some((header, _)) = subscriber.try_receive() {
            if header.kind == Kind::Evicted {
                number = subscribe(&mut subscriber, "waiting.topic", Block, 1);
            }
        }
        sequence += 1;
        if sequence % 50 == 1 {
            for (raw, topic) in publishers.iter_mut().zip(&topics) {
                let header = Header { seq: sequence, ..publish(*topic, 0, Flags::WHOLE) };
                raw.try_place(Lane::Bulk, &header.to_words(), &[]);
            }
        }
        assert!(!subscriber.has_word(), "put out");
    });
}

/// Thirteen connections that fill rings of their own and do not read: together they lease all slots.
pub(crate) fn budget(scene: &Scene) {
    let mut raws = scene.raws(13, "budget");
    let topics: Vec<u32> = raws
        .iter_mut()
        .enumerate()
        .map(|(index, raw)| {
            let name = format!("budget.{index}");
            subscribe(raw, &name, DropNewest, 0);
            topic(raw, &name)
        })
        .collect();
    let mut fill = |times: usize| {
        for (raw, topic) in raws.iter_mut().zip(&topics) {
            (0..times).for_each(|_| _ = raw.push(Lane::Bulk, &publish(*topic, 1_000, Flags::WHOLE), &[0; 1_000]));
        }
    };
    fill(many(600));
    scene.again(100 * MS, || fill(1));
}

/// Rings the broker for nothing, below the limit of 1,000 a second for each connection.
pub(crate) fn ringers(scene: &Scene) {
    let raws = scene.raws(30, "ringers");
    scene.again(Duration::ZERO, || {
        for raw in &raws {
            raw.ring();
            pause(Duration::ZERO);
        }
        pause(MS);
        assert!(!raws[0].has_word(), "put out");
    });
}

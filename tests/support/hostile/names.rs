//! Attacks by names: topics, subscriptions, services, offers.

use super::attack::{Scene, many};
use super::calls::Places;
use crate::raw::{Lane, Raw};
use lapce_ipc::client::DeliveryPolicy::DropNewest;
use lapce_ipc::wire::control::InternKind::{self, Service, Topic};
use lapce_ipc::wire::record::{Flags, Header, Kind};
use lapce_ipc::wire::{BrokerFrame, ClientFrame, Name, Pattern, Topic as TopicName};
use std::time::Duration;

/// Interns so many names; answers how many were granted.
fn intern(raw: &mut Raw, kind: InternKind, names: impl Iterator<Item = String>) -> usize {
    raw.ask_all(names.map(|name| {
        let name = TopicName::parse(&name).expect("a name");
        move |serial| ClientFrame::Intern { serial, kind, name }
    }))
}

fn subscribe(raw: &mut Raw, patterns: impl Iterator<Item = String>) -> usize {
    raw.ask_all(patterns.map(|pattern| {
        let pattern = Pattern::parse(&pattern).expect("a pattern");
        move |serial| ClientFrame::Subscribe { serial, pattern, policy: DropNewest, credit: 0 }
    }))
}

/// Connections that know as many topics as all may, named by `prefix`.
fn all_topics(scene: &Scene, connections: usize, each: usize, prefix: &str) -> Vec<Raw> {
    let mut raws = scene.raws(connections, prefix);
    for (index, raw) in raws.iter_mut().enumerate() {
        intern(raw, Topic, (0..each).map(|number| format!("{prefix}.{index}.{number}")));
    }
    raws
}

/// Subscribes and unsubscribes without end, while many topics are known.
pub(crate) fn subscribe_storm(scene: &Scene) {
    let _known = all_topics(scene, 9, many(7_200), "storm");
    let mut raw = scene.raw("subscribes");
    let pattern = Pattern::parse("*.never.*").expect("a pattern");
    scene.again(Duration::ZERO, || {
        let (pattern, policy) = (pattern.clone(), DropNewest);
        let answer = raw.ask(|serial| ClientFrame::Subscribe { serial, pattern, policy, credit: 0 });
        if let BrokerFrame::Subscribed { subscription, .. } = answer {
            raw.ask(|serial| ClientFrame::Unsubscribe { serial, subscription });
        }
    });
}

/// Interns new topics without end, while many subscriptions are held.
fn intern_while_held(scene: &Scene, connections: usize) {
    let mut held = scene.raws(many(connections), "held");
    for (index, raw) in held.iter_mut().enumerate() {
        subscribe(raw, (0..1_024).map(|number| format!("held.{index}.*.{number}")));
    }
    let (mut raw, mut number) = (scene.raw("interns"), 0u64);
    scene.again(Duration::ZERO, || {
        number += 1;
        let name = TopicName::parse(&format!("held.fresh.{number}")).expect("a name");
        let answer = raw.ask(|serial| ClientFrame::Intern { serial, kind: Topic, name });
        if let BrokerFrame::Interned { id, .. } = answer {
            raw.push(Lane::Bulk, &Header { id, ..Header::new(Kind::Release) }, &[]);
        }
    });
}

pub(crate) fn intern_storm(scene: &Scene) {
    intern_while_held(scene, 60);
}

pub(crate) fn intern_storm_690(scene: &Scene) {
    intern_while_held(scene, 690);
}

/// Takes all names of services.
pub(crate) fn services_all(scene: &Scene) {
    let mut raws = scene.raws(1, "services");
    intern(&mut raws[0], Service, (0..1_100).map(|number| format!("taken.{number}")));
    scene.hold(&raws);
}

/// Takes all topics.
pub(crate) fn topics_all(scene: &Scene) {
    let raws = all_topics(scene, 8, 8_192, "taken");
    scene.hold(&raws);
}

/// Takes all routes: each of its subscriptions matches each of its topics.
pub(crate) fn routes_all(scene: &Scene) {
    let mut raws = all_topics(scene, 1, 1_024, "routes");
    subscribe(&mut raws[0], (0..1_024).map(|_| "routes.>".to_owned()));
    scene.hold(&raws);
}

/// Serves many names from many connections, and requests one of them without end.
pub(crate) fn offers(scene: &Scene) {
    let mut raws = scene.raws(many(40), "offers");
    for raw in &mut raws {
        serve(raw, (0..900).map(|number| format!("offer.{number}")));
    }
    let mut raw = scene.raw("requests");
    let name = TopicName::parse("offer.899").expect("a name");
    let BrokerFrame::Interned { id: service, .. } =
        raw.ask(|serial| ClientFrame::Intern { serial, kind: Service, name })
    else {
        panic!("no service");
    };
    let mut places = Places::new(raw.limits.max_requests);
    scene.again(Duration::from_millis(1), || {
        for _ in 0..32 {
            let request = Header { flags: Flags::WHOLE, nanos: 1_000_000, ..places.request(service, 0) };
            raw.try_place(Lane::Express, &request.to_words(), &[]);
        }
        while raw.try_receive().is_some() {}
        assert!(!raw.has_word(), "put out");
    });
}

fn serve(raw: &mut Raw, names: impl Iterator<Item = String>) -> usize {
    raw.ask_all(names.map(|name| {
        let service = Name::parse(&name).expect("a name");
        move |serial| ClientFrame::Serve { serial, service, max_in_flight: 0 }
    }))
}

/// Makes the status larger than a frame: 72 connections serve the same 900 names, the longest there are.
pub(crate) fn status_size(scene: &Scene) {
    let mut raws = scene.raws(many(72), "status");
    let token = "x".repeat(60);
    for raw in &mut raws {
        serve(raw, (0..900).map(|number| format!("{token}.{token}.{token}.{token}.{number}")));
    }
    scene.hold(&raws);
}

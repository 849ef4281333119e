//! A publisher has the key that the broker makes for it: nobody's messages pass for those of another (rules P1 to P4).
//!
//! All clients of their own protocol here choose the same nonce.

#[path = "support/raw.rs"]
mod raw;
mod support;

use lapce_ipc::wire::control::InternKind;
use lapce_ipc::wire::record::{Flags, Header};
use lapce_ipc::wire::{BrokerFrame, ClientFrame, Topic};
use raw::{Lane, Raw, publish};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use support::role::{Child, heard, role, tell};
use support::users::{OTHER_USER, are_root, open_folder};
use support::{Broker, DEADLINE};

const TOPIC: &str = "numbers";

/// A process with one connection after the other. `publish` and `resend` are followed by sequence numbers.
fn publisher() {
    let path = PathBuf::from(std::env::var("LAPCE_IPC_SOCKET").expect("a socket"));
    let mut raw = Raw::connect(&path, "publisher");
    tell("ready");
    loop {
        let line = heard();
        let mut words = line.split(' ');
        let flags = match words.next().expect("a word") {
            "connect" => {
                raw = Raw::connect(&path, "publisher");
                Flags::default()
            }
            "publish" => Flags::WHOLE,
            "resend" => Flags::WHOLE.with(Flags::RESENT),
            other => panic!("{other}"),
        };
        let (kind, name) = (InternKind::Topic, Topic::parse(TOPIC).expect("a name"));
        let interned = raw.ask(|serial| ClientFrame::Intern { serial, kind, name });
        let BrokerFrame::Interned { id, .. } = interned else { panic!("{interned:?}") };
        for seq in words.map(|word| word.parse().expect("a number")) {
            assert!(raw.push(Lane::Bulk, &Header { seq, ..publish(id, 1, flags) }, b"x"));
        }
        raw.flush(1);
        tell(&format!("done {}", raw.connection));
    }
}

#[test]
fn child() {
    if role().as_deref() == Some("publisher") {
        publisher();
    }
}

/// Has a publisher do something; answers the id of its connection.
fn done(publisher: &mut Child, order: &str) -> u32 {
    publisher.say(order);
    publisher.hears("done").parse().expect("a number")
}

/// The sequence numbers of the next messages.
fn next(numbers: &Receiver<u64>, count: usize) -> Vec<u64> {
    (0..count).map(|_| numbers.recv_timeout(DEADLINE).expect("a message in time")).collect()
}

/// The sequence numbers of what a subscriber gets. It reads all the time: a client comes back while a thread waits.
fn subscribed(broker: &Broker) -> Receiver<u64> {
    let client = broker.builder().connect().expect("the broker takes us");
    let mut messages = client.subscribe(TOPIC).expect("a subscription");
    let (to, numbers) = sync_channel(64);
    std::thread::spawn(move || {
        while let Ok(Some(message)) = messages.next_timeout(DEADLINE) {
            if to.send(message.sequence()).is_err() {
                return;
            }
        }
    });
    numbers
}

/// A publisher that is gone used the nonce of another one, with a number that the other does not reach.
fn takes_nothing_from_the_next(broker: &mut Broker, start: impl FnOnce(&Broker) -> Child) {
    let numbers = subscribed(broker);
    let mut thief = start(broker);
    let first = done(&mut thief, "publish 1000000");
    assert_eq!(next(&numbers, 1), [1_000_000]);
    thief.kill();
    broker.kill();
    broker.start_again();
    let mut publisher = Child::ready(broker, "publisher");
    assert_ne!(done(&mut publisher, "resend 1 2"), first);
    done(&mut publisher, "publish 3");
    assert_eq!(next(&numbers, 3), [1, 2, 3]);
}

#[test]
fn a_user_with_the_nonce_of_another_takes_no_message_from_it() {
    if !are_root() {
        return;
    }
    let keys = [("shared_memory.permissions", "0o666"), ("ipc.allowed_uids", "65534")];
    let mut broker = Broker::start_with(&keys);
    fs::set_permissions(broker.folder(), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(OTHER_USER, 65_534);
    let (_folder, copy) = open_folder(std::env::current_exe().unwrap().to_str().unwrap());
    takes_nothing_from_the_next(&mut broker, |broker| Child::ready_as_other_user(broker, &copy, "publisher"));
}

#[test]
fn a_process_with_the_nonce_of_another_takes_no_message_from_it() {
    takes_nothing_from_the_next(&mut Broker::start(), |broker| Child::ready(broker, "publisher"));
}

fn secret(broker: &Broker) -> PathBuf {
    broker.folder().join("ipc.sock.publishers")
}

#[test]
fn a_process_has_one_key_at_all_brokers_and_what_it_sends_again_comes_once() {
    let mut broker = Broker::start();
    let numbers = subscribed(&broker);
    let mut publisher = Child::ready(&broker, "publisher");
    let first = done(&mut publisher, "publish 1 2 3");
    for (signal, seq) in [("KILL", 4), ("TERM", 5), ("KILL", 6)] {
        broker.end(signal);
        broker.start_again();
        assert_eq!(done(&mut publisher, "connect"), first);
        done(&mut publisher, "resend 1 2 3");
        done(&mut publisher, &format!("publish {seq}"));
    }
    // Another session at the same broker: the id is taken, the key is the same.
    assert_ne!(done(&mut publisher, "connect"), first);
    done(&mut publisher, "resend 6 7");
    assert_eq!(next(&numbers, 7), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(fs::metadata(secret(&broker)).unwrap().mode(), 0o100_600);
}

/// A killed broker's secret, changed before the next one starts: that makes another, and says why.
fn is_replaced(change: impl FnOnce(&Path), said: &str) {
    let mut broker = Broker::start();
    let numbers = subscribed(&broker);
    let mut publisher = Child::ready(&broker, "publisher");
    let first = done(&mut publisher, "publish 1");
    broker.kill();
    let before = fs::read(secret(&broker)).unwrap();
    change(&secret(&broker));
    broker.start_again();
    assert_ne!(done(&mut publisher, "connect"), first);
    done(&mut publisher, "resend 1");
    assert_eq!(next(&numbers, 2), [1, 1], "a double, but nothing is lost");
    assert_ne!(fs::read(secret(&broker)).unwrap(), before);
    assert_eq!(fs::metadata(secret(&broker)).unwrap().mode(), 0o100_600);
    broker.process().wait_for("secret of publishers written path=");
    let log = broker.process().stderr();
    assert_eq!(log.contains("publishers get other keys than at the last broker"), !said.is_empty(), "{log}");
    assert!(log.contains(said), "{log}");
    let digits = String::from_utf8(before).unwrap();
    assert!(!log.contains(digits.trim_end().rsplit(' ').next().unwrap()), "{log}");
}

#[test]
fn a_secret_that_others_may_know_or_that_is_none_is_replaced() {
    is_replaced(|file| fs::set_permissions(file, Permissions::from_mode(0o640)).unwrap(), "closed to all others");
    is_replaced(|file| fs::write(file, "data").unwrap(), "not a secret of publishers");
    is_replaced(|file| fs::remove_file(file).unwrap(), "");
    if are_root() {
        is_replaced(|file| chown(file, Some(OTHER_USER), None).unwrap(), "closed to all others");
    }
}

//! Two clients that keep the rules of the protocol, beside hostile ones: one publishes and requests, the other
//! subscribes. Whatever the others do, each message comes once, whole and in order, and each request has one outcome.

use super::supervised::{MS, Supervised};
use crate::broker::router::in_process::ClientEnds;
use crate::logic::shares::Principal;
use crate::shm::layout::{RingName, message_cells};
use crate::shm::peer::own_uid;
use crate::shm::ring::{Payload, publication_fence};
use crate::wire::control::{BrokerFrame, ClientFrame, DeliveryPolicy, InternKind};
use crate::wire::record::{Flags, Header, Kind};

/// Bytes of a record.
const SLOT_SIZE: usize = 1024;
/// Requests at a time.
const SLOTS: usize = 4;

pub(super) struct Witness {
    publisher: ClientEnds,
    subscriber: ClientEnds,
    topic: u32,
    echo: u32,
    subscription: u32,
    /// The messages that are published, and those that came.
    sent: u64,
    got: u64,
    /// Bytes of a begun message.
    part: usize,
    /// Messages at which two routers in a row have died, which are skipped.
    quarantined: u64,
    /// Cells of credit to return.
    owed: u32,
    /// The generations of its request slots, and whether each is in use.
    slots: [(u32, bool); SLOTS],
}

/// The bytes of a message: one record, or several.
fn len(number: u64) -> usize {
    [0, 40, 64, 700, 1024, 2500][number as usize % 6]
}

/// Places a record, and rings if the router asks for that.
fn push(ends: &mut ClientEnds, lane: RingName, header: &Header, payload: &[u8]) -> bool {
    let producer = if lane == RingName::Bulk { &mut ends.bulk } else { &mut ends.express };
    producer.enter();
    let pushed = producer.push(&header.to_words(), Payload::Bytes(payload)).expect("the router's count");
    producer.leave();
    if !pushed {
        // It waits for space, so its lane grows.
        ends.segment.space_signal(lane).arm();
    }
    publication_fence();
    if ends.segment.data_signal(lane).take() {
        ends.bells.ring();
    }
    pushed
}

/// The next record, consumed.
fn take(ends: &mut ClientEnds) -> Option<(Header, Vec<u8>)> {
    let record = ends.egress.peek().expect("a record of the router")?;
    let mut payload = Vec::new();
    ends.egress.append_payload(&record, &mut payload);
    ends.egress.advance(&record);
    ends.egress.publish_consumed();
    publication_fence();
    if ends.segment.space_signal(RingName::Egress).take() {
        ends.bells.ring();
    }
    Some((Header::from_words(&record.header).expect("a kind"), payload))
}

impl Witness {
    /// Attaches both. `None`: the system has no descriptors.
    pub(super) fn attach(router: &mut Supervised) -> Option<Witness> {
        let own = Principal::of_uid(own_uid());
        let publisher = ClientEnds::attach_as(&mut router.state, own).ok()?;
        let subscriber = ClientEnds::attach_as(&mut router.state, own).ok()?;
        let mut intern = |kind, name: &str| {
            let frame = ClientFrame::Intern { serial: 1, kind, name: name.parse().expect("a name") };
            match router.ask(publisher.key, publisher.id, frame) {
                Some(BrokerFrame::Interned { id, .. }) => id,
                other => panic!("{other:?}"),
            }
        };
        let (topic, echo) = (intern(InternKind::Topic, "witness"), intern(InternKind::Service, "echo"));
        let pattern = "witness".parse().expect("a pattern");
        let frame = ClientFrame::Subscribe { serial: 1, pattern, policy: DeliveryPolicy::Block, credit: 0 };
        let subscription = match router.ask(subscriber.key, subscriber.id, frame) {
            Some(BrokerFrame::Subscribed { subscription, .. }) => subscription,
            other => panic!("{other:?}"),
        };
        let (sent, got, part, quarantined, owed) = (0, 0, 0, 0, 0);
        let slots = [(0, false); SLOTS];
        Some(Witness { publisher, subscriber, topic, echo, subscription, sent, got, part, quarantined, owed, slots })
    }

    /// Publishes a message, as far as there is space: `false` if there is none for its first record.
    pub(super) fn publish(&mut self, router: &mut Supervised) -> bool {
        let number = self.sent + 1;
        let payload = vec![number as u8; len(number)];
        let parts: Vec<&[u8]> = if payload.is_empty() { vec![&[]] } else { payload.chunks(SLOT_SIZE).collect() };
        for (at, part) in parts.iter().enumerate() {
            let flags = Flags::default().with_if(Flags::FIRST, at == 0).with_if(Flags::LAST, at + 1 == parts.len());
            let total = payload.len() as u32;
            let header = Header { flags, id: self.topic, total, seq: number, ..Header::new(Kind::Publish) };
            let mut tries = 0;
            while !push(&mut self.publisher, RingName::Bulk, &header, part) {
                if at == 0 {
                    return false;
                }
                // Within a message it waits, for a reader that is evicted then, or until the lanes are open.
                tries += 1;
                assert!(tries < 100, "no space for the rest of message {number}");
                router.work();
                while self.read() {
                    router.work();
                }
                router.advance(2_000 * MS);
            }
        }
        self.sent = number;
        true
    }

    /// Requests an echo, if a slot and space are free.
    pub(super) fn request(&mut self) {
        let Some(slot) = self.slots.iter().position(|(_, in_use)| !in_use) else { return };
        let (generation, id) = (self.slots[slot].0 + 1, slot as u32);
        let (flags, total) = (Flags::WHOLE, 10);
        let header = Header { flags, id, id2: generation, arg: self.echo, total, ..Header::new(Kind::Request) };
        if push(&mut self.publisher, RingName::Express, &header, &[slot as u8; 10]) {
            self.slots[slot] = (generation, true);
        }
    }

    /// Reads everything. Returns whether a record came.
    pub(super) fn read(&mut self) -> bool {
        let mut any = false;
        // First: whether a message was quarantined is known before the next one comes.
        while let Some((header, payload)) = take(&mut self.publisher) {
            any = true;
            match header.kind {
                Kind::RoutedResponse | Kind::Failed => {
                    let slot = &mut self.slots[header.id as usize];
                    assert_eq!(*slot, (header.id2, true), "one outcome for each request");
                    slot.1 = false;
                    assert!(header.kind == Kind::Failed || payload == [header.id as u8; 10]);
                }
                Kind::Quarantined => self.quarantined += 1,
                other => panic!("the witness got {other:?}"),
            }
        }
        while let Some((header, payload)) = take(&mut self.subscriber) {
            any = true;
            match header.kind {
                Kind::Deliver => self.delivered(&header, &payload),
                Kind::Aborted => {
                    assert!(self.quarantined > 0, "the publisher is there, and the subscriber reads");
                    self.part = 0;
                }
                Kind::TopicName | Kind::TopicGone => {}
                other => panic!("the witness got {other:?}"),
            }
        }
        if self.owed > 0 {
            let credit = Header { id: self.subscription, arg: self.owed, ..Header::new(Kind::Credit) };
            if push(&mut self.subscriber, RingName::Express, &credit, b"") {
                (self.owed, any) = (0, true);
            }
        }
        any
    }

    fn delivered(&mut self, header: &Header, payload: &[u8]) {
        assert_eq!(header.flags.has(Flags::FIRST), self.part == 0, "{header:?}");
        if header.flags.has(Flags::FIRST) {
            let lost = header.seq.checked_sub(self.got + 1).expect("none comes twice or too late");
            assert!(lost <= self.quarantined, "message {} came where {} is next", header.seq, self.got + 1);
            self.quarantined -= lost;
            self.got = header.seq - 1;
        }
        self.part += payload.len();
        assert!(header.seq == self.got + 1 && payload.iter().all(|byte| *byte == header.seq as u8), "{header:?}");
        if header.flags.has(Flags::LAST) {
            assert_eq!((self.part, header.total as usize), (len(header.seq), len(header.seq)));
            self.owed += message_cells(header.total, SLOT_SIZE as u32);
            (self.got, self.part) = (header.seq, 0);
        }
    }

    /// The hostile clients have ended: all that is outstanding comes now. Then the witness leaves, too.
    pub(super) fn finish(mut self, router: &mut Supervised) {
        for _ in 0..2 {
            router.work();
            while self.read() {
                router.work();
            }
        }
        assert!(self.sent - self.got <= self.quarantined, "{} published, {} came", self.sent, self.got);
        assert_eq!(self.part, 0, "the last message is whole");
        assert!(self.slots.iter().all(|(_, in_use)| !in_use), "requests without an outcome: {:?}", self.slots);
        for ends in [&self.publisher, &self.subscriber] {
            router.survive(|state| state.client_ended(ends.key, ends.id));
        }
        router.work();
    }
}

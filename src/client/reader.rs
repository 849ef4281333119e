//! The reader role: sorting what arrives into everybody's queues, and waiting for more.
//!
//! The reader takes everything out of the ring at once; that is why one unread subscription delays no other. What the
//! queues may hold is bounded by the credit that their owners gave.

use super::WaitStrategy;
use super::answer::{Incoming, give_up};
use super::error::{Kind, Result};
use super::frames;
use super::inner::{ById, Inner, Table, lock};
use super::link::{Got, Link, Step};
use super::pending::Failure;
use super::queue::Early;
use super::seen::Seen;
use super::serve::Arrived;
use super::session;
use super::subscription::Message;
use super::waiting::What;
use crate::shm::doorbell::ClientBells;
use crate::shm::layout::{RingName, cells_for};
use crate::shm::peer::current_cpu;
use crate::shm::ring::{Consumer, Record, Signal, publication_fence};
use crate::shm::segment::{CpuWords, Newer, Segment};
use crate::wire::control::ClosingCode;
use crate::wire::name::Topic;
use crate::wire::record::{Flags, Header, Kind as RecordKind, Outcome};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Records that are sorted before the waiting threads are told.
const BATCH: usize = 256;
/// The longest time to spin; it tunes itself below that.
const SPIN_MAX: Duration = Duration::from_micros(50);
const SPIN_MIN: Duration = Duration::from_micros(2);
/// Looks at the ring between two looks at the clock while spinning.
const POLLS: u32 = 32;
/// Topics that are gone of which it is remembered what came last: more than a lane holds.
const MOST_GONE: usize = 4096;

/// A topic that the broker has a number for.
#[derive(Debug)]
struct Named {
    topic: Topic,
    seen: Seen,
}

#[derive(Debug)]
pub(super) struct Reader {
    pub(super) bells: Arc<ClientBells>,
    egress: Consumer,
    /// Ours: we sleep.
    data: Signal,
    /// The router's: it waits for space.
    space: Signal,
    /// Armed by the router while it does not poll us.
    router_sleeps: Signal,
    cpu: CpuWords,
    /// The router holds newer messages.
    newer: Newer,
    base: u32,
    pub(super) link: Link,
    names: HashMap<u32, Named, ById>,
    /// What came last in topics that the last broker had named, or that are gone: a message on one of these may yet be
    /// sent again.
    seen: HashMap<Topic, Seen>,
    /// Those that are gone, in order.
    gone: VecDeque<Topic>,
    /// Messages of several records that are under way, by subscription and publisher.
    partials: HashMap<(u32, u32), Vec<u8>>,
    spin: Duration,
    /// Messages of the last session may have to be sent again.
    has_unsent: bool,
}

impl Reader {
    pub(super) fn new(segment: Segment, egress: Consumer, bells: Arc<ClientBells>, link: Link) -> Reader {
        Reader {
            bells,
            egress,
            data: segment.data_signal(RingName::Egress),
            space: segment.space_signal(RingName::Egress),
            router_sleeps: segment.data_signal(RingName::Bulk),
            cpu: segment.cpu_words(),
            newer: segment.newer(),
            base: segment.geometry().base_cells(),
            link,
            names: HashMap::default(),
            seen: HashMap::new(),
            gone: VecDeque::new(),
            partials: HashMap::new(),
            spin: SPIN_MAX,
            has_unsent: false,
        }
    }

    /// Reads from another session's ring from now on. What had begun in the last one is begun anew by its senders.
    pub(super) fn renew(&mut self, segment: Segment, egress: Consumer) {
        self.has_unsent = true;
        self.egress = egress;
        self.data = segment.data_signal(RingName::Egress);
        self.space = segment.space_signal(RingName::Egress);
        self.router_sleeps = segment.data_signal(RingName::Bulk);
        self.cpu = segment.cpu_words();
        self.newer = segment.newer();
        self.base = segment.geometry().base_cells();
        self.partials.clear();
        self.seen.extend(self.names.drain().map(|(_, named)| (named.topic, named.seen)));
    }

    /// Carries out what is due about the connection.
    pub(super) fn step(&mut self, inner: &Inner) -> Step {
        inner.place_posted();
        inner.place_cancels();
        inner.release_leaving();
        if self.has_unsent {
            // If there is no space now, a bell says when there is.
            self.has_unsent = !inner.send_again();
        }
        if self.link.is_restored(inner) {
            return session::go_on(self, inner);
        }
        self.link.step(inner)
    }

    /// Sorts what is in the ring, up to a batch. Returns how many records; at least one if the client was behind and is
    /// no longer.
    pub(super) fn sort(&mut self, inner: &Inner) -> usize {
        let (mut sorted, mut caught_up) = (0, false);
        let mut table = None;
        // Before the ring: the last of what was held lies in it when this says that no more is.
        let newer = self.newer.get();
        while sorted < BATCH {
            let record = match self.egress.peek() {
                Ok(Some(record)) => record,
                Ok(None) => {
                    caught_up = inner.behind.caught_up(newer);
                    break;
                }
                Err(violation) => {
                    drop(table.take());
                    inner.close(Kind::Protocol(violation.to_string()).into());
                    break;
                }
            };
            let table = table.get_or_insert_with(|| lock(&inner.table));
            if let Err(error) = self.dispatch(inner, table, &record) {
                table.close(error);
                break;
            }
            self.egress.advance(&record);
            sorted += 1;
        }
        inner.behind.came(sorted);
        if sorted > 0 || caught_up {
            let mut table = table.unwrap_or_else(|| lock(&inner.table));
            table.wakers.drain(..).for_each(std::task::Waker::wake);
            drop(table);
            self.give_back();
        }
        sorted.max(usize::from(caught_up))
    }

    /// Gives consumed cells back, and tells the router if it waits for them (R9).
    fn give_back(&mut self) {
        self.egress.publish();
        publication_fence();
        if self.space.take() {
            self.bells.ring();
        }
    }

    /// The next record, if it is a whole message for `subscription`: `read` sees it in the ring, then it is consumed,
    /// also if `read` panics.
    pub(super) fn take_in_place<T>(
        &mut self,
        subscription: u32,
        own: u32,
        read: impl FnOnce(&Topic, &Header, &Consumer, &Record) -> T,
    ) -> Option<T> {
        let record = self.egress.peek().ok()??;
        let header = Header::from_words(&record.header).ok()?;
        let whole = header.kind == RecordKind::Deliver && header.flags.has(Flags::WHOLE);
        // One that is sent again may have been seen: that is looked into where it is sorted.
        if !whole || header.id != subscription || header.flags.has(Flags::RESENT) {
            return None;
        }
        let named = self.names.get_mut(&header.id2)?;
        named.seen.note(own, header.origin, header.seq, false);
        let result = catch_unwind(AssertUnwindSafe(|| read(&named.topic, &header, &self.egress, &record)));
        self.egress.advance(&record);
        if self.egress.unpublished() >= u64::from(self.base + self.egress.window()) / 4 {
            self.give_back();
        }
        Some(result.unwrap_or_else(|panic| resume_unwind(panic)))
    }

    fn dispatch(&mut self, inner: &Inner, table: &mut Table, record: &Record) -> Result<()> {
        let header = Header::from_words(&record.header).map_err(|error| Kind::Protocol(error.to_string()))?;
        match header.kind {
            RecordKind::Deliver => self.deliver(inner, table, record, &header)?,
            RecordKind::Answer | RecordKind::Failed | RecordKind::RequestCredit => {
                self.answer(table, record, &header);
            }
            RecordKind::Call => self.call(inner, table, record, &header),
            RecordKind::CallEnded => {
                if let Some(call) = table.calls.remove(&header.seq) {
                    // That the requester is gone is to us as if it had cancelled: our own connection has not ended.
                    let outcome = Outcome::from_u16(header.code).filter(|outcome| *outcome != Outcome::Disconnected);
                    call.end(outcome.unwrap_or(Outcome::Cancelled));
                }
            }
            RecordKind::CallCredit => {
                if let Some(call) = table.calls.get(&header.seq) {
                    call.add_credit(header.arg);
                }
            }
            RecordKind::TopicName => {
                let name = String::from_utf8_lossy(&self.bytes(record)).into_owned();
                let topic = Topic::parse_system(&name).map_err(|error| Kind::Protocol(error.to_string()))?;
                let seen = self.seen.remove(&topic).unwrap_or_default();
                // That the number was another's, and is free, it was not told while it had much to read.
                let gone = self.names.insert(header.id, Named { topic, seen });
                self.forget(gone);
            }
            RecordKind::TopicGone => {
                let gone = self.names.remove(&header.id);
                self.forget(gone);
            }
            RecordKind::Aborted => {
                self.partials.remove(&(header.id, header.origin));
                if let Some(queue) = table.subscriptions.get(&header.id) {
                    queue.abort(header.origin);
                }
                table.tell_subscription(header.id, Early::Dropped(header.dropped), inner.limits.slot_size());
            }
            RecordKind::Dropped => {
                table.tell_subscription(header.id, Early::Dropped(header.dropped), inner.limits.slot_size());
            }
            RecordKind::Evicted => {
                table.tell_subscription(header.id, Early::Evicted(header.dropped), inner.limits.slot_size());
                table.subscriptions.remove(&header.id);
                self.partials.retain(|(subscription, _), _| *subscription != header.id);
            }
            RecordKind::SetAside => table.set_aside += 1,
            RecordKind::Flushed => table.flushed = table.flushed.max(header.seq),
            kind => return Err(Kind::Protocol(format!("record of kind {kind:?} from the broker")).into()),
        }
        Ok(())
    }

    /// A topic is gone. What came last on it is remembered for a time.
    fn forget(&mut self, gone: Option<Named>) {
        let Some(Named { topic, seen }) = gone else { return };
        self.seen.insert(topic.clone(), seen);
        self.gone.push_back(topic);
        if self.gone.len() > MOST_GONE
            && let Some(topic) = self.gone.pop_front()
        {
            self.seen.remove(&topic);
        }
    }

    fn bytes(&self, record: &Record) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(record.len as usize);
        self.egress.append_payload(record, &mut bytes);
        bytes
    }

    fn deliver(&mut self, inner: &Inner, table: &mut Table, record: &Record, header: &Header) -> Result<()> {
        let queue = table.subscriptions.get(&header.id);
        if queue.is_none() && table.subscribing.is_empty() {
            // It crossed our `unsubscribe`.
            self.partials.remove(&(header.id, header.origin));
            return Ok(());
        }
        let payload = if header.flags.has(Flags::WHOLE) {
            self.bytes(record)
        } else {
            let place = (header.id, header.origin);
            let partial = self.partials.entry(place).or_default();
            if header.flags.has(Flags::FIRST) {
                partial.clear();
                if let Some(queue) = queue {
                    queue.begin(header.origin, header.total, inner.limits.slot_size());
                }
                // Grows with what arrives, not with what is announced.
            }
            self.egress.append_payload(record, partial);
            if !header.flags.has(Flags::LAST) {
                return Ok(());
            }
            self.partials.remove(&place).unwrap_or_default()
        };
        let Some(named) = self.names.get_mut(&header.id2) else {
            return Err(Kind::Protocol(format!("message on topic number {}, which was never named", header.id2)).into());
        };
        let is_resent = header.flags.has(Flags::RESENT);
        if let Some(queue) = queue
            && named.seen.note(queue.own, header.origin, header.seq, is_resent)
        {
            queue.leave_out(header.origin, payload.len() as u32, inner.limits.slot_size());
            return Ok(());
        }
        let message = Message::new(named.topic.clone(), payload, header);
        let slot_size = inner.limits.slot_size();
        if header.dropped > 0 {
            table.tell_subscription(header.id, Early::Dropped(header.dropped), slot_size);
        }
        table.tell_subscription(header.id, Early::Message(message), slot_size);
        Ok(())
    }

    fn answer(&mut self, table: &mut Table, record: &Record, header: &Header) {
        let Some(slot) = table.requests.get_mut(header.id as usize).filter(|s| s.generation == header.id2) else {
            return;
        };
        let Some(pending) = &slot.pending else { return };
        let over = match header.kind {
            RecordKind::Answer => pending.answer(header, cells_for(record.len), |to| {
                self.egress.append_payload(record, to);
            }),
            RecordKind::Failed => {
                let outcome = Outcome::from_u16(header.code).unwrap_or(Outcome::Disconnected);
                let retry_after = (header.nanos > 0).then(|| Duration::from_nanos(header.nanos));
                pending.end(Err(Failure::Outcome(outcome, retry_after)));
                true
            }
            _ => {
                pending.add_body_credit(header.arg);
                false
            }
        };
        if over {
            slot.pending = None;
            table.free_requests.push(header.id);
        }
    }

    fn call(&mut self, inner: &Inner, table: &mut Table, record: &Record, header: &Header) {
        let (first, last) = (header.flags.has(Flags::FIRST), header.flags.has(Flags::LAST));
        if first {
            let credit = inner.limits.stream_credit_cells();
            table.calls.insert(header.seq, Arc::new(Incoming::new(header, table.session, credit)));
        }
        let Some(call) = table.calls.get(&header.seq).cloned() else { return };
        let grant = call.append(cells_for(record.len), last, inner.stream_step(), |to| {
            self.egress.append_payload(record, to);
        });
        let inbox = table.inboxes.get(&header.id);
        if inbox.is_none() && table.serving.is_empty() {
            // Served no more: the broker gives no calls to who has stopped, so this one crossed our `unserve`.
            return give_up(inner, table, &call);
        }
        let arrived = if last { Arrived::Request(call) } else { Arrived::Grant(call, grant) };
        match inbox {
            _ if matches!(arrived, Arrived::Grant(_, 0)) => {}
            Some(inbox) => inbox.push(arrived),
            None => table.orphan_calls.push((header.id, arrived)),
        }
    }

    /// Waits for something to arrive: spins while that can pay, then sleeps, at most until `deadline`. Answers whether
    /// it slept or may have missed a bell, so that the others should look too.
    pub(super) fn wait(&mut self, inner: &Inner, what: What, deadline: Option<Instant>) -> bool {
        let due = match self.step(inner) {
            Step::Rest => None,
            Step::At(time) => Some(time),
            Step::Changed => return true,
        };
        match inner.wait {
            WaitStrategy::Busy => {
                if !self.spin() {
                    if self.egress.unpublished() > 0 {
                        self.give_back();
                    }
                    self.look_at_bells(inner, Some(Duration::ZERO));
                }
                return true;
            }
            WaitStrategy::Adaptive if what == What::Record => {
                let cpu = current_cpu();
                self.cpu.set_client(cpu);
                let started = Instant::now();
                // Decided once: a router that goes to sleep meanwhile does so to let run whom it has woken for us.
                let can_pay = !self.router_sleeps.is_armed() && self.cpu.broker() != Some(cpu);
                while can_pay && started.elapsed() < self.spin {
                    if self.spin() {
                        return false;
                    }
                }
            }
            WaitStrategy::Adaptive | WaitStrategy::Block => {}
        }
        if !self.arm(inner) {
            return false;
        }
        let slept = Instant::now();
        let until = deadline.into_iter().chain(due).min();
        let left = until.map(|until| until.saturating_duration_since(slept));
        self.look_at_bells(inner, left);
        self.data.disarm();
        if what == What::Record {
            // What came soon after we gave up says that spinning longer would have paid.
            self.spin = if slept.elapsed() < SPIN_MAX { self.spin * 2 } else { self.spin / 2 };
            self.spin = self.spin.clamp(SPIN_MIN, SPIN_MAX);
        }
        true
    }

    /// Whether the broker is being looked for.
    pub(super) fn is_away(&self) -> bool {
        self.link.is_away()
    }

    /// Polls for a while. Answers whether something is there.
    fn spin(&mut self) -> bool {
        for _ in 0..POLLS {
            if !matches!(self.egress.peek(), Ok(None)) {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Asks to be woken, and looks once more (R8). `false`: something is there.
    pub(super) fn arm(&mut self, inner: &Inner) -> bool {
        if self.egress.unpublished() > 0 {
            self.give_back();
        }
        self.data.arm();
        let newer = self.newer.get();
        let is_new = newer.is_multiple_of(2) && !inner.behind.has_read(newer);
        if !is_new && matches!(self.egress.peek(), Ok(None)) {
            return true;
        }
        self.data.disarm();
        false
    }

    pub(super) fn look_at_bells(&mut self, inner: &Inner, timeout: Option<Duration>) {
        match self.bells.wait(timeout) {
            Ok(woken) => {
                if woken.socket {
                    self.read_socket(inner);
                }
                if woken.path {
                    self.link.path_changed(inner);
                }
            }
            Err(error) => inner.close(Kind::Disconnected(error.to_string()).into()),
        }
    }

    /// Reads what the control socket has.
    fn read_socket(&mut self, inner: &Inner) {
        if !self.link.is_greeted() {
            self.link.read_greeting(inner);
        }
        while self.link.is_greeted() {
            match self.link.next() {
                Got::Frame(frame) => frames::handle_frame(inner, *frame),
                Got::Nothing => return,
                Got::Nonsense(reason) => {
                    self.link.put_down();
                    inner.close(Kind::Protocol(reason).into());
                }
                Got::End(reason) => {
                    // What the broker delivered before it went is still in the ring.
                    while self.sort(inner) > 0 {}
                    let said = lock(&inner.table).closing.take();
                    // A broker that ends is followed by another, perhaps; any other reason is about us.
                    let is_for_us =
                        said.as_ref().is_some_and(|said| said.closing_code() != Some(ClosingCode::Shutdown));
                    if is_for_us || !self.link.lose(inner, said.is_some(), Instant::now()) {
                        self.link.put_down();
                        inner.close(said.unwrap_or_else(|| Kind::Disconnected(reason).into()));
                    }
                }
            }
        }
    }
}

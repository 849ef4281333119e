//! The reader role: sorting what arrives into everybody's queues, and waiting for more.
//!
//! The reader takes everything out of the ring at once; that is why one unread subscription delays no other. What the
//! queues may hold is bounded by the credit that their owners gave.

use super::WaitStrategy;
use super::error::{Kind, Result};
use super::inner::{ById, Inner, Table, What, lock};
use super::link::{Got, Link, Step};
use super::request::Failure;
use super::serve::{Arrived, Incoming};
use super::subscription::{End, Message};
use crate::shm::layout::{RingName, cells_for};
use crate::shm::peer::current_cpu;
use crate::shm::ring::{Consumer, Record, Signal, publication_fence};
use crate::shm::segment::Segment;
use crate::wire::control::BrokerFrame;
use crate::wire::name::Topic;
use crate::wire::record::{Flags, Header, Kind as RecordKind, Outcome};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Records that are sorted before the waiting threads are told.
const BATCH: usize = 256;
/// The longest time to spin; it tunes itself below that.
const SPIN_MAX: Duration = Duration::from_micros(50);
const SPIN_MIN: Duration = Duration::from_micros(2);
/// Looks at the ring between two looks at the clock while spinning.
const POLLS: u32 = 32;

#[derive(Debug)]
pub(super) struct Reader {
    egress: Consumer,
    /// Ours: we sleep.
    data: Signal,
    /// The router's: it waits for space.
    space: Signal,
    base: u32,
    pub(super) link: Link,
    names: HashMap<u32, Topic, ById>,
    /// Messages of several records that are under way, by subscription and publisher.
    partials: HashMap<(u32, u32), Vec<u8>>,
    spin: Duration,
}

impl Reader {
    pub(super) fn new(segment: &Segment, egress: Consumer, link: Link) -> Reader {
        Reader {
            egress,
            data: segment.data_signal(RingName::Egress),
            space: segment.space_signal(RingName::Egress),
            base: segment.geometry().base_cells(),
            link,
            names: HashMap::default(),
            partials: HashMap::new(),
            spin: SPIN_MAX,
        }
    }

    /// Sorts what is in the ring, up to a batch. Answers how many records.
    pub(super) fn sort(&mut self, inner: &Inner) -> usize {
        let mut sorted = 0;
        let mut table = None;
        while sorted < BATCH {
            let record = match self.egress.peek() {
                Ok(Some(record)) => record,
                Ok(None) => break,
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
        if sorted > 0 {
            if let Some(mut table) = table {
                table.wakers.drain(..).for_each(std::task::Waker::wake);
            }
            self.give_back(inner);
        }
        sorted
    }

    /// Gives consumed cells back, and tells the router if it waits for them (R9).
    fn give_back(&mut self, inner: &Inner) {
        self.egress.publish();
        publication_fence();
        if self.space.take() {
            inner.bells.ring();
        }
    }

    /// The next record, if it is a whole message for `subscription`: `read` sees it in the ring, then it is consumed.
    pub(super) fn take_in_place<T>(
        &mut self,
        inner: &Inner,
        subscription: u32,
        read: impl FnOnce(&Topic, &Header, &Consumer, &Record) -> T,
    ) -> Option<T> {
        let record = self.egress.peek().ok()??;
        let header = Header::from_words(&record.header).ok()?;
        let whole = header.kind == RecordKind::Deliver && header.flags.has(Flags::WHOLE);
        if !whole || header.id != subscription {
            return None;
        }
        let topic = self.names.get(&header.id2)?.clone();
        let result = read(&topic, &header, &self.egress, &record);
        self.egress.advance(&record);
        if self.egress.unpublished() >= u64::from(self.base + self.egress.window()) / 4 {
            self.give_back(inner);
        }
        Some(result)
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
                self.names.insert(header.id, topic);
            }
            RecordKind::TopicGone => {
                self.names.remove(&header.id);
            }
            RecordKind::Aborted => {
                self.partials.remove(&(header.id, header.origin));
                if let Some(queue) = table.subscriptions.get(&header.id) {
                    queue.abort(header.origin);
                    queue.set_dropped(header.dropped);
                }
            }
            RecordKind::Dropped => {
                if let Some(queue) = table.subscriptions.get(&header.id) {
                    queue.set_dropped(header.dropped);
                }
            }
            RecordKind::Evicted => {
                if let Some(queue) = table.subscriptions.remove(&header.id) {
                    queue.set_dropped(header.dropped);
                    queue.end(End::Evicted);
                }
                self.partials.retain(|(subscription, _), _| *subscription != header.id);
            }
            RecordKind::SetAside => table.set_aside += 1,
            RecordKind::Flushed => table.flushed = table.flushed.max(header.seq),
            kind => return Err(Kind::Protocol(format!("record of kind {kind:?} from the broker")).into()),
        }
        Ok(())
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
                    queue.begin(header.origin, header.total, inner.limits.slot_size);
                }
                // Grows with what arrives, not with what is announced.
            }
            self.egress.append_payload(record, partial);
            if !header.flags.has(Flags::LAST) {
                return Ok(());
            }
            self.partials.remove(&place).unwrap_or_default()
        };
        let Some(topic) = self.names.get(&header.id2) else {
            return Err(Kind::Protocol(format!("message on topic number {}, which was never named", header.id2)).into());
        };
        let message = Message::new(topic.clone(), payload, header);
        match queue {
            Some(queue) => {
                if header.dropped > 0 {
                    queue.set_dropped(header.dropped);
                }
                queue.push(message, inner.limits.slot_size);
            }
            None => table.orphans.push((header.id, message)),
        }
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
            let credit = inner.limits.stream_credit_cells;
            table.calls.insert(header.seq, Arc::new(Incoming::new(header, credit)));
        }
        let Some(call) = table.calls.get(&header.seq).cloned() else { return };
        let grant = call.append(cells_for(record.len), last, inner.stream_step(), |to| {
            self.egress.append_payload(record, to);
        });
        let arrived = if last { Arrived::Request(call) } else { Arrived::Grant(header.seq, grant) };
        if matches!(arrived, Arrived::Grant(_, 0)) {
            return;
        }
        match table.inboxes.get(&header.id) {
            Some(inbox) => inbox.push(arrived),
            None if !table.serving.is_empty() => table.orphan_calls.push((header.id, arrived)),
            // Served no more: the broker gives no calls to who has stopped, so this one crossed our `unserve`.
            None => {}
        }
    }

    /// Waits for something to arrive: spins while that can pay, then sleeps, at most until `deadline`. Answers whether
    /// it slept or may have missed a bell, so that the others should look too.
    pub(super) fn wait(&mut self, inner: &Inner, what: What, deadline: Option<Instant>) -> bool {
        let due = match self.link.step(inner) {
            Step::Rest => None,
            Step::At(time) => Some(time),
            Step::Changed => return true,
        };
        match inner.wait {
            WaitStrategy::Busy => {
                if !self.spin() {
                    if self.egress.unpublished() > 0 {
                        self.give_back(inner);
                    }
                    self.look_at_bells(inner, Some(Duration::ZERO));
                }
                return true;
            }
            WaitStrategy::Adaptive if what == What::Record => {
                let cpu = current_cpu();
                inner.cpu.set_client(cpu);
                let started = Instant::now();
                // Decided once: a router that goes to sleep meanwhile does so to let run whom it has woken for us.
                let can_pay = !inner.router_sleeps.is_armed() && inner.cpu.broker() != Some(cpu);
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
            self.give_back(inner);
        }
        self.data.arm();
        if matches!(self.egress.peek(), Ok(None)) {
            return true;
        }
        self.data.disarm();
        false
    }

    pub(super) fn look_at_bells(&mut self, inner: &Inner, timeout: Option<Duration>) {
        match inner.bells.wait(timeout) {
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
        if !self.link.is_up() {
            self.link.read_greeting(inner);
        }
        while self.link.is_up() {
            match self.link.next() {
                Got::Frame(frame) => {
                    let answered = handle_frame(&mut lock(&inner.table), inner.limits.slot_size, frame);
                    if let Some(serial) = answered {
                        lock(&inner.outgoing).answered(serial);
                    }
                }
                Got::Nothing => return,
                Got::Nonsense(reason) => {
                    self.link.put_down(inner);
                    inner.close(Kind::Protocol(reason).into());
                }
                Got::End(reason) => {
                    // What the broker delivered before it went is still in the ring.
                    while self.sort(inner) > 0 {}
                    let said = lock(&inner.table).closing.take();
                    if said.is_some() || !self.link.lose(inner, Instant::now()) {
                        self.link.put_down(inner);
                        inner.close(said.unwrap_or_else(|| Kind::Disconnected(reason).into()));
                    }
                }
            }
        }
    }
}

/// Carries out what the broker says. Answers the serial of the question that it answers.
fn handle_frame(table: &mut Table, slot_size: u32, frame: BrokerFrame) -> Option<u32> {
    let serial = match &frame {
        BrokerFrame::Subscribed { serial, subscription } => {
            if let Some(queue) = table.subscribing.remove(serial) {
                for (_, message) in table.orphans.extract_if(.., |(id, _)| id == subscription) {
                    queue.push(message, slot_size);
                }
                table.subscriptions.insert(*subscription, queue);
            }
            *serial
        }
        BrokerFrame::Serving { serial, service } => {
            if let Some(inbox) = table.serving.remove(serial) {
                for (_, arrived) in table.orphan_calls.extract_if(.., |(id, _)| id == service) {
                    inbox.push(arrived);
                }
                table.inboxes.insert(*service, inbox);
            }
            *serial
        }
        BrokerFrame::Failed { serial, .. } => {
            table.subscribing.remove(serial);
            table.serving.remove(serial);
            *serial
        }
        BrokerFrame::Interned { serial, .. }
        | BrokerFrame::Done { serial }
        | BrokerFrame::Status { serial, .. }
        | BrokerFrame::Breakers { serial, .. } => *serial,
        BrokerFrame::Closing { code, message } => {
            // In force at the end of file, when what was delivered before is sorted.
            table.closing = Some(Kind::Closed { code: *code, message: message.clone() }.into());
            return None;
        }
        // That the broker drains needs nothing of us: what is under way is finished, and then it closes.
        BrokerFrame::Draining { .. } | BrokerFrame::Welcome { .. } | BrokerFrame::Refused { .. } => return None,
    };
    // What still waits for a number is nobody's, once every number has been told.
    if table.subscribing.is_empty() {
        table.orphans.clear();
    }
    if table.serving.is_empty() {
        table.orphan_calls.clear();
    }
    if let Some(answer) = table.answers.get_mut(&serial) {
        *answer = Some(frame);
    }
    table.wakers.drain(..).for_each(std::task::Waker::wake);
    Some(serial)
}

#[cfg(test)]
mod tests {
    use super::super::serve::Inbox;
    use super::*;
    use crate::wire::control::FailedCode;

    const SLOT_SIZE: u32 = 1024;

    fn serving(serials: &[u32]) -> Table {
        let mut table = Table::default();
        table.serving.extend(serials.iter().map(|serial| (*serial, Arc::new(Inbox::default()))));
        table
    }

    fn orphans(table: &Table) -> Vec<u32> {
        table.orphan_calls.iter().map(|(service, _)| *service).collect()
    }

    #[test]
    fn calls_that_wait_for_a_service_number_go_once_every_number_is_told() {
        let mut table = serving(&[1, 2]);
        let inboxes = [table.serving[&1].clone(), table.serving[&2].clone()];
        table.orphan_calls.extend([7, 8, 9].map(|service| (service, Arrived::Grant(u64::from(service), 1))));
        handle_frame(&mut table, SLOT_SIZE, BrokerFrame::Serving { serial: 1, service: 7 });
        // The other's number is not known yet: it may be either of these.
        assert_eq!((inboxes[0].len(), orphans(&table)), (1, vec![8, 9]));
        handle_frame(&mut table, SLOT_SIZE, BrokerFrame::Serving { serial: 2, service: 9 });
        assert_eq!((inboxes[1].len(), orphans(&table)), (1, Vec::new()));
    }

    #[test]
    fn calls_that_wait_for_a_service_number_go_when_the_broker_gives_none() {
        let mut table = serving(&[1]);
        table.orphan_calls.push((7, Arrived::Grant(7, 1)));
        let (code, message) = (FailedCode::Limit, String::new());
        handle_frame(&mut table, SLOT_SIZE, BrokerFrame::Failed { serial: 1, code, message });
        assert_eq!(orphans(&table), [0; 0]);
    }
}

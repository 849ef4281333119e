//! One turn of the reader: it performs due actions, reads the control socket, then spins or sleeps.

use crate::client::connection::calls;
use crate::client::connection::dispatch;
use crate::client::connection::frames;
use crate::client::connection::interning;
use crate::client::connection::link::{NextAction, SocketEvent};
use crate::client::connection::reader::Reader;
use crate::client::connection::shared::{Connection, WaitStrategy};
use crate::client::data::lock::lock;
use crate::client::error::Kind;
use crate::client::reconnect::{attempts, restore};
use crate::logic::spin::Spin;
use crate::shm::peer::current_cpu;
use crate::wire::control::ClosingCode;
use std::time::{Duration, Instant};

/// The event that a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitFor {
    /// Something that a record in the egress ring brings.
    Record,
    /// Something else, which a bell announces.
    Bell,
}

/// Performs the due actions of the connection.
pub(crate) fn step(reader: &mut Reader, connection: &Connection) -> NextAction {
    connection.express().place_deferred();
    calls::place_cancels(connection);
    interning::release_unused(connection);
    if reader.has_resends {
        // If there is no space now, a bell says when there is.
        reader.has_resends = !resend(connection);
    }
    if attempts::is_restored(&reader.link, connection) {
        return restore::complete(reader, connection);
    }
    attempts::step(&mut reader.link, connection)
}

/// Rounds of polls before the first look at the clock.
const BRIEF: u32 = 4;

/// Whether spinning can pay: the router is awake, on another CPU.
fn can_pay(reader: &Reader) -> bool {
    let cpu = current_cpu();
    reader.cpu.set_client(cpu);
    !reader.router_sleeps.is_armed() && reader.cpu.broker() != Some(cpu)
}

/// Brief polls between two looks at the control socket, which are system calls.
const LOOK_EVERY: u32 = 256;

/// Polls for a moment without a look at the clock, while that can pay and nothing is due. Returns whether a record is
/// there.
pub(crate) fn poll_briefly(reader: &mut Reader, connection: &Connection) -> bool {
    // A thread whose polls always succeed may be the only one: it notices a lost socket, too.
    reader.brief_polls = reader.brief_polls.wrapping_add(1);
    if reader.brief_polls.is_multiple_of(LOOK_EVERY) {
        look_at_link(reader, connection);
    }
    if step(reader, connection) != NextAction::Rest {
        return false;
    }
    let spins = match connection.wait {
        WaitStrategy::Busy => true,
        WaitStrategy::Adaptive => reader.spin.pays() && can_pay(reader),
        WaitStrategy::Block => false,
    };
    spins && (0..BRIEF).any(|_| reader.poll())
}

fn nanos_since(time: Instant) -> u64 {
    u64::try_from(time.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Polls for the time that may pay. Returns whether a record is there.
fn spin(reader: &mut Reader) -> bool {
    let started = Instant::now();
    let Spin { time, explores } = reader.spin.begin();
    loop {
        if reader.poll() {
            if explores {
                reader.spin.found(nanos_since(started));
            }
            return true;
        }
        if nanos_since(started) >= time {
            return false;
        }
    }
}

/// Waits for something to arrive: spins while that can pay, then sleeps, at most until `deadline`. Returns whether
/// it slept or may have missed a bell, so that the others should look too.
pub(crate) fn wait(reader: &mut Reader, connection: &Connection, wait_for: WaitFor, deadline: Option<Instant>) -> bool {
    let due = match step(reader, connection) {
        NextAction::Rest => None,
        NextAction::At(time) => Some(time),
        NextAction::Changed => return true,
    };
    match connection.wait {
        WaitStrategy::Busy => {
            if !reader.poll() {
                reader.publish_rest();
                poll_bells(reader, connection, Some(Duration::ZERO));
            }
            return true;
        }
        WaitStrategy::Adaptive if wait_for == WaitFor::Record => {
            // Decided once: a router that goes to sleep meanwhile does so to let the threads run that it has woken.
            if can_pay(reader) && spin(reader) {
                return false;
            }
        }
        WaitStrategy::Adaptive | WaitStrategy::Block => {}
    }
    if !reader.arm(&connection.backlog) {
        return false;
    }
    let slept = Instant::now();
    let until = deadline.into_iter().chain(due).min();
    let left = until.map(|until| until.saturating_duration_since(slept));
    poll_bells(reader, connection, left);
    reader.data.disarm();
    if wait_for == WaitFor::Record {
        reader.spin.slept(nanos_since(slept));
    }
    true
}

pub(crate) fn poll_bells(reader: &mut Reader, connection: &Connection, timeout: Option<Duration>) {
    match reader.bells.wait(timeout) {
        Ok(woken) => {
            if woken.socket {
                read_socket(reader, connection);
            }
            if woken.path {
                attempts::path_changed(&mut reader.link, connection);
            }
        }
        Err(error) => connection.close(Kind::Disconnected(error.to_string()).into()),
    }
}

/// Notices a lost socket or a new broker. The bell is left as it is: an event loop may wait for it.
pub(super) fn look_at_link(reader: &mut Reader, connection: &Connection) {
    read_socket(reader, connection);
    attempts::path_changed(&mut reader.link, connection);
}

/// Reads what the control socket has.
fn read_socket(reader: &mut Reader, connection: &Connection) {
    if !reader.link.is_greeted() {
        attempts::read_greeting(&mut reader.link, connection);
    }
    while reader.link.is_greeted() {
        match reader.link.next() {
            SocketEvent::Frame(frame) => frames::handle_frame(connection, *frame),
            SocketEvent::Nothing => return,
            SocketEvent::Nonsense(reason) => {
                reader.link.shut_down();
                connection.close(Kind::Protocol(reason).into());
            }
            SocketEvent::End(reason) => {
                // What the broker delivered before it went is still in the ring.
                while dispatch::sort(reader, connection) > 0 {}
                let said = lock(&connection.table).closing.take();
                // A broker that ends is followed by another, perhaps; any other reason is about us.
                let is_for_us = said.as_ref().is_some_and(|said| said.closing_code() != Some(ClosingCode::Shutdown));
                if is_for_us || !attempts::socket_lost(&mut reader.link, connection, said.is_some(), Instant::now()) {
                    reader.link.shut_down();
                    connection.close(said.unwrap_or_else(|| Kind::Disconnected(reason).into()));
                }
            }
        }
    }
}

/// Places messages that are to be sent again, if that is possible now. Returns whether none is left.
fn resend(connection: &Connection) -> bool {
    let Some(mut lane) = connection.bulk().try_claim() else { return false };
    // The next publisher gets the error.
    lane.place_resends().unwrap_or(true)
}

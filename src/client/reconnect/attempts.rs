//! The control socket as the reader sees it: read, lost, and found again.
//!
//! ```text
//!            its end, no Closing before it        an attempt is due            Welcome
//!   Up ─────────────────────────────────► Waiting ─────────────────► Greeting ─────────► Up
//!                                            ▲            refused for now, no │
//!                                            ├───────── reply, its end again ─┤
//!                                            │ lost                           │ Welcome of another broker
//!                                            └────────────── Restoring ◄──────┘
//!                                                                └──► Up, when all is there again
//! ```
//!
//! Nothing here waits: the thread with the reader role carries out what is due, and sleeps until the next thing is due,
//! a bell rings, a socket has something, or something appears at the socket's path.

use super::restore;
use crate::client::connect::await_broker::{chance, has_appeared};
use crate::client::connect::endpoint::{greeting, open};
use crate::client::connect::retry::Retry;
use crate::client::connection::calls;
use crate::client::connection::link::{Link, LinkState, NextAction, SocketEvent, receive};
use crate::client::connection::shared::Connection;
use crate::client::data::connection_state::ConnectionState;
use crate::client::data::lock::lock;
use crate::client::error::{Error, Kind};
use crate::wire::codec::FrameDecoder;
use crate::wire::control::{self, ClientFrame, RefusedCode, Token};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// A session that ends within this time has ended at once.
const AT_ONCE: Duration = Duration::from_secs(1);

/// The socket was lost: the first attempt to come back is due. `is_over`: there is nothing to be resumed. `false`:
/// this client does not come back.
pub(crate) fn socket_lost(link: &mut Link, connection: &Connection, is_over: bool, now: Instant) -> bool {
    let Some(options) = &connection.endpoint.reconnect else { return false };
    if connection.closed().is_some() {
        return false;
    }
    if is_over || matches!(link.line, LinkState::Restoring(..)) {
        link.token = None;
    }
    link.shut_down();
    lock(&connection.control).disconnect();
    link.watch_path(&connection.endpoint.path);
    let ended_at_once = link.renewed_at.take().is_some_and(|renewed_at| now.duration_since(renewed_at) < AT_ONCE);
    link.line = LinkState::Waiting(Retry::new(options.clone(), now));
    if ended_at_once {
        attempt_failed(link, connection, "each new session ended at once");
    } else {
        report_waiting(link, connection, Duration::ZERO);
    }
    true
}

/// Whether the whole session is restored at the new broker.
pub(crate) fn is_restored(link: &Link, connection: &Connection) -> bool {
    link.is_restoring() && lock(&connection.table).restoring.is_empty()
}

fn report_waiting(link: &Link, connection: &Connection, next_in: Duration) {
    if let LinkState::Waiting(retry) = &link.line {
        let state = ConnectionState::Reconnecting { attempt: retry.attempt(), next_in };
        lock(&connection.table).set_state(state);
    }
}

/// Performs the due action.
pub(crate) fn step(link: &mut Link, connection: &Connection) -> NextAction {
    let (due, is_greeting) = match &link.line {
        LinkState::Up(_) | LinkState::Restoring(..) | LinkState::Down => return NextAction::Rest,
        LinkState::Waiting(retry) => (retry.at(), false),
        LinkState::Greeting(_, _, None) => return NextAction::Rest,
        LinkState::Greeting(_, _, Some(until)) => (*until, true),
    };
    let now = Instant::now();
    if now < due {
        return NextAction::At(due);
    }
    if is_greeting {
        attempt_failed(link, connection, "the broker does not respond")
    } else {
        attempt(link, connection, now)
    }
    NextAction::Changed
}

fn attempt(link: &mut Link, connection: &Connection, now: Instant) {
    let LinkState::Waiting(retry) = std::mem::replace(&mut link.line, LinkState::Down) else { return };
    if connection.closed().is_some() {
        return link.shut_down();
    }
    let endpoint = &connection.endpoint;
    let dialled = endpoint.try_dial().and_then(|socket| {
        link.bells.watch(socket.as_fd()).map_err(|error| Kind::Disconnected(error.to_string()))?;
        // Under the lock, so that no attempt begins once the connection was closed here.
        let table = lock(&connection.table);
        match &table.closed {
            Some(closed) => Err(closed.clone()),
            None => endpoint.hello(&socket, link.token).map(|()| socket),
        }
    });
    match dialled {
        Ok(socket) => {
            link.decoder = FrameDecoder::new(control::BROKER_FRAME_BYTES_MAX);
            link.descriptors.clear();
            link.line = LinkState::Greeting(socket.into(), retry, now.checked_add(endpoint.timeout));
            lock(&connection.table).set_state(ConnectionState::Connecting);
        }
        Err(error) if error.is_not_allowed() || connection.closed().is_some() => close(link, connection, error),
        Err(error) => {
            if error.is_no_broker() {
                calls::end_requests(connection);
            }
            link.line = LinkState::Waiting(retry);
            attempt_failed(link, connection, &error.to_string());
        }
    }
}

/// The attempt failed: waits for the next one, or gives up.
fn attempt_failed(link: &mut Link, connection: &Connection, reason: &str) {
    let (LinkState::Waiting(mut retry) | LinkState::Greeting(_, mut retry, _)) = link.take_line() else { return };
    match retry.failed(Instant::now(), chance()) {
        Some(delay) => {
            link.line = LinkState::Waiting(retry);
            report_waiting(link, connection, delay);
        }
        None => close(link, connection, Kind::Disconnected(format!("gave up reconnecting: {reason}")).into()),
    }
}

fn close(link: &mut Link, connection: &Connection, error: Error) {
    link.shut_down();
    connection.close(error);
}

/// The socket over which Hello was said has something.
pub(crate) fn read_greeting(link: &mut Link, connection: &Connection) {
    let LinkState::Greeting(socket, ..) = &link.line else { return };
    let frame = match receive(socket, &mut link.decoder, &mut link.descriptors) {
        SocketEvent::Nothing => return,
        SocketEvent::End(reason) => return attempt_failed(link, connection, &reason),
        SocketEvent::Nonsense(reason) => return close(link, connection, Kind::Protocol(reason).into()),
        SocketEvent::Frame(frame) => *frame,
    };
    let descriptors = std::mem::take(&mut link.descriptors);
    match greeting(frame) {
        Ok((greeted, limits, geometry)) if link.token.is_none() => {
            let decoder = std::mem::replace(&mut link.decoder, FrameDecoder::new(control::BROKER_FRAME_BYTES_MAX));
            // It is watched already, and will be behind the new bells by the time that they are in use.
            match open(socket.as_fd(), descriptors, FrameDecoder::new(0), greeted, limits, geometry) {
                Ok(welcome) => {
                    let line = LinkState::Restoring(socket.clone(), welcome.into());
                    let LinkState::Greeting(socket, ..) = std::mem::replace(&mut link.line, line) else { return };
                    link.decoder = decoder;
                    restore::restore(connection, socket, &limits);
                }
                // This process lacks memory or descriptors: another time it may work.
                Err(error) if error.is_disconnected() => attempt_failed(link, connection, &error.to_string()),
                Err(error) => close(link, connection, error),
            }
        }
        Ok((greeted, limits, _)) if greeted.connection == connection.id() && descriptors.is_empty() => {
            // They may have changed by a reload; the geometry cannot.
            connection.limits.adopt(&limits);
            resumed(link, connection, greeted.token);
        }
        Ok(_) => close(link, connection, Kind::Protocol("the broker resumed another session".to_owned()).into()),
        Err(error) => match error.refused_code() {
            // Another time it may work: some session must end first, or the broker.
            Some(RefusedCode::TooManyConnections | RefusedCode::Draining | RefusedCode::BadToken) => {
                attempt_failed(link, connection, &error.to_string());
            }
            // The broker is another, or the resume window has expired: start a new session.
            Some(RefusedCode::ResumeFailed) if link.token.take().is_some() => {
                if let LinkState::Greeting(_, mut retry, _) = link.take_line() {
                    retry.once_more(Instant::now());
                    link.line = LinkState::Waiting(retry);
                }
            }
            _ => close(link, connection, error),
        },
    }
}

fn resumed(link: &mut Link, connection: &Connection, token: Token) {
    let LinkState::Greeting(socket, ..) = std::mem::replace(&mut link.line, LinkState::Down) else { return };
    link.token = Some(token);
    link.unwatch_path();
    link.line = LinkState::Up(socket.clone());
    let confirmed = ClientFrame::Resumed.encode().unwrap_or_default();
    lock(&connection.control).resume(socket, &confirmed);
    lock(&connection.table).set_state(ConnectionState::Connected);
}

/// Something happened in the folder of the socket's path.
pub(crate) fn path_changed(link: &mut Link, connection: &Connection) {
    let Some(watch) = &link.path else { return };
    if has_appeared(watch, &connection.endpoint.path)
        && let LinkState::Waiting(retry) = &mut link.line
    {
        retry.path_appeared(Instant::now());
    }
}

//! Which connection of the endpoints is closed to make room: at the limit of connections the one that has been idle
//! longest, at the limit of unread bytes the one whose response has been unread longest. So slow, idle and silent
//! clients, however many, cannot keep a probe from its response, nor fill the memory with responses.
//!
//! A connection is idle while none of its requests is being handled: before the first, between two, and while a
//! response is being sent or streamed. A connection that is closed gets an error at its next read or write, and its
//! task is woken for that.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use tokio::sync::Notify;

/// An idle connection.
#[derive(Debug)]
struct Quiet<T> {
    connection: T,
    /// Bytes of its response that the socket has not taken.
    unread: u64,
    /// The turn in which they began.
    unread_since: u64,
}

/// The connections by their idle time. Pure: `T` stands for a connection.
#[derive(Debug)]
struct Table<T> {
    max: usize,
    max_unread: u64,
    busy: usize,
    /// By the turn in which it became idle.
    quiet: BTreeMap<u64, Quiet<T>>,
    turn: u64,
    /// Unread bytes of all connections, with those that are closed and still have their memory.
    unread: u64,
}

impl<T> Table<T> {
    fn new(max: usize, max_unread: u64) -> Table<T> {
        Table { max, max_unread, busy: 0, quiet: BTreeMap::new(), turn: 0, unread: 0 }
    }

    /// Adds a connection. Returns its turn, and the connection to close.
    fn enter(&mut self, connection: T) -> (u64, Option<T>) {
        let is_full = self.quiet.len() + self.busy >= self.max;
        let gives_way = if is_full { self.quiet.pop_first() } else { None };
        (self.put(connection), gives_way.map(|(_, quiet)| quiet.connection))
    }

    /// A request is being handled. `None`: the connection was closed.
    fn begin(&mut self, turn: u64) -> Option<T> {
        let quiet = self.quiet.remove(&turn)?;
        self.busy += 1;
        Some(quiet.connection)
    }

    /// The request was handled. Returns the new turn.
    fn end(&mut self, connection: T) -> u64 {
        self.busy -= 1;
        self.put(connection)
    }

    fn put(&mut self, connection: T) -> u64 {
        self.turn += 1;
        self.quiet.insert(self.turn, Quiet { connection, unread: 0, unread_since: 0 });
        self.turn
    }

    /// A part of a response is about to be written.
    fn owes(&mut self, turn: u64, bytes: u64) {
        self.turn += 1;
        self.unread += bytes;
        if let Some(quiet) = self.quiet.get_mut(&turn) {
            quiet.unread_since = if quiet.unread == 0 { self.turn } else { quiet.unread_since };
            quiet.unread += bytes;
        }
    }

    /// The socket has taken all.
    fn wrote(&mut self, turn: u64, bytes: u64) {
        self.unread -= bytes;
        if let Some(quiet) = self.quiet.get_mut(&turn) {
            quiet.unread = 0;
        }
    }

    /// Whether there is room for a response, and the connections to close for it. There is none before they have left.
    fn room(&mut self) -> (bool, Vec<T>) {
        let mut gives_way = Vec::new();
        let mut unread: u64 = self.quiet.values().map(|quiet| quiet.unread).sum();
        while unread >= self.max_unread {
            let owing = self.quiet.iter().filter(|(_, quiet)| quiet.unread > 0);
            let Some(turn) = owing.min_by_key(|(_, quiet)| quiet.unread_since).map(|(turn, _)| *turn) else { break };
            let Some(quiet) = self.quiet.remove(&turn) else { break };
            unread -= quiet.unread;
            gives_way.push(quiet.connection);
        }
        (self.unread < self.max_unread, gives_way)
    }

    /// The connection has ended, with so many bytes unread.
    fn leave(&mut self, turn: u64, unread: u64) {
        self.unread -= unread;
        self.quiet.remove(&turn);
    }
}

/// How the table reaches the task of a connection.
#[derive(Debug, Default)]
struct Handle {
    is_closed: bool,
    waker: Option<Waker>,
}

type SharedHandle = Arc<Mutex<Handle>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All connections.
#[derive(Clone, Debug)]
pub(super) struct Connections {
    table: Arc<Mutex<Table<SharedHandle>>>,
    /// Bytes were written, or a connection has left.
    freed: Arc<Notify>,
}

impl Connections {
    /// With a limit of connections, and one of the bytes that all clients together leave unread.
    pub(super) fn new(max: usize, max_unread: u64) -> Connections {
        Connections { table: Arc::new(Mutex::new(Table::new(max, max_unread))), freed: Arc::default() }
    }

    /// Adds a connection; at the limit another is closed. Keep the value for as long as the connection lasts.
    pub(super) fn enter(&self) -> Rc<Connection> {
        let handle = SharedHandle::default();
        let (turn, gives_way) = locked(&self.table).enter(handle.clone());
        gives_way.iter().for_each(|handle| close(handle, "max_connections"));
        Rc::new(Connection { all: self.clone(), handle, turn: Cell::new(turn), unread: Cell::new(0) })
    }

    /// Waits until there is room for another response; those that have been unread longest give way.
    ///
    /// To be called right before the response is made: between the two nothing may wait.
    pub(super) async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            let (has_room, gives_way) = locked(&self.table).room();
            gives_way.iter().for_each(|handle| close(handle, "max_unread_bytes"));
            if has_room {
                return;
            }
            freed.await;
        }
    }
}

fn close(handle: &SharedHandle, reason: &str) {
    log::debug!("closing a health connection reason={reason}");
    let mut handle = locked(handle);
    handle.is_closed = true;
    if let Some(waker) = handle.waker.take() {
        waker.wake();
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    all: Connections,
    handle: SharedHandle,
    turn: Cell<u64>,
    unread: Cell<u64>,
}

impl Connection {
    /// Begins a request, which lasts until the returned value is dropped. `None`: the connection was closed.
    pub(super) fn serves(self: Rc<Connection>) -> Option<Serves> {
        let handle = locked(&self.all.table).begin(self.turn.get());
        handle.map(|handle| Serves { connection: self, handle: Some(handle) })
    }

    /// Whether it was closed to make room. If not, the waker is woken when it is.
    pub(super) fn is_closed(&self, waker: &Waker) -> bool {
        let mut handle = locked(&self.handle);
        if !handle.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            handle.waker = Some(waker.clone());
        }
        handle.is_closed
    }

    /// So many bytes of a response are about to be written.
    pub(super) fn owes(&self, bytes: usize) {
        self.unread.set(self.unread.get() + bytes as u64);
        locked(&self.all.table).owes(self.turn.get(), bytes as u64);
    }

    /// The socket has taken all bytes.
    pub(super) fn wrote(&self) {
        let unread = self.unread.take();
        if unread > 0 {
            locked(&self.all.table).wrote(self.turn.get(), unread);
            self.all.freed.notify_waiters();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        locked(&self.all.table).leave(self.turn.get(), self.unread.get());
        self.all.freed.notify_waiters();
    }
}

/// A request that is being handled.
#[derive(Debug)]
pub(super) struct Serves {
    connection: Rc<Connection>,
    handle: Option<SharedHandle>,
}

impl Drop for Serves {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.connection.turn.set(locked(&self.connection.all.table).end(handle));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_quiet_longest_gives_way_and_who_is_served_does_not() {
        let mut table = Table::new(3, 1);
        let turns: Vec<u64> = ["a", "b", "c"]
            .map(|name| table.enter(name))
            .map(|(turn, none)| {
                assert_eq!(none, None);
                turn
            })
            .to_vec();
        assert_eq!(table.begin(turns[0]), Some("a"));
        let (d, gives_way) = table.enter("d");
        assert_eq!(gives_way, Some("b"), "a is being served");
        assert_eq!(table.begin(turns[1]), None, "it has given way");
        table.leave(turns[1], 0);
        let a = table.end("a");
        assert_eq!(table.enter("e").1, Some("c"));
        assert_eq!(table.enter("f").1, Some("d"), "a was served after d had come");
        table.leave(a, 0);
        table.leave(d, 0);
        assert_eq!(table.enter("g").1, None, "there is room");
    }

    #[test]
    fn when_all_are_served_nobody_gives_way() {
        let mut table = Table::new(2, 1);
        for name in ["a", "b", "c"] {
            let (turn, gives_way) = table.enter(name);
            assert_eq!(gives_way, None);
            table.begin(turn).unwrap();
        }
        let quiet = table.end("a");
        assert_eq!(table.enter("d").1, Some("a"));
        assert_eq!(table.begin(quiet), None);
    }

    #[test]
    fn the_responses_that_are_unread_longest_give_way_and_there_is_room_when_they_have_left() {
        let mut table = Table::new(10, 100);
        let [a, b, c] = ["a", "b", "c"].map(|name| table.enter(name).0);
        table.owes(b, 40);
        table.owes(a, 40);
        assert_eq!(table.room(), (true, vec![]));
        // It is read, and owes again: now `a` has waited longest.
        table.wrote(b, 40);
        table.owes(b, 40);
        table.owes(c, 150);
        table.owes(a, 10);
        assert_eq!(table.room(), (false, vec!["a", "b", "c"]), "each was needed");
        assert_eq!(table.room(), (false, vec![]), "they still have their memory");
        table.leave(a, 50);
        table.leave(b, 40);
        assert_eq!(table.room(), (false, vec![]));
        table.wrote(c, 150);
        assert_eq!(table.room(), (true, vec![]));
    }

    #[test]
    fn a_connection_that_gives_way_is_told_and_leaves_nothing() {
        let all = Connections::new(1, 10);
        let first = all.enter();
        drop(first.clone().serves().unwrap());
        assert!(!first.is_closed(Waker::noop()));
        let second = all.enter();
        assert!(first.is_closed(Waker::noop()) && !second.is_closed(Waker::noop()));
        assert!(first.clone().serves().is_none() && second.clone().serves().is_some());
        second.owes(10);
        drop((first, second));
        let table = all.table.lock().unwrap();
        assert_eq!((table.quiet.len(), table.busy, table.unread), (0, 0, 0));
    }
}

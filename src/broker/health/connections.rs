//! Which connection of the endpoints is closed at the limit: the one that has been idle longest. So slow and idle
//! clients, however many, cannot keep a probe from its response.
//!
//! A connection is idle while none of its requests is being handled: before the first, between two, and while a
//! response is being sent or streamed. Closing shuts its socket down without waiting; the library releases it.

use rustix::net::{Shutdown, shutdown};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connections by their idle time. Pure: `T` stands for a connection.
#[derive(Debug)]
struct Table<T> {
    max: usize,
    busy: usize,
    /// By the turn in which it became idle.
    quiet: BTreeMap<u64, T>,
    turn: u64,
}

impl<T> Table<T> {
    fn new(max: usize) -> Table<T> {
        Table { max, busy: 0, quiet: BTreeMap::new(), turn: 0 }
    }

    /// Adds a connection. Returns its turn, and the connection to close.
    fn enter(&mut self, connection: T) -> (u64, Option<T>) {
        let is_full = self.quiet.len() + self.busy >= self.max;
        let gives_way = if is_full { self.quiet.pop_first() } else { None };
        (self.put(connection), gives_way.map(|(_, connection)| connection))
    }

    /// A request is being handled. `None`: the connection was closed.
    fn begin(&mut self, turn: u64) -> Option<T> {
        let connection = self.quiet.remove(&turn)?;
        self.busy += 1;
        Some(connection)
    }

    /// The request was handled. Returns the new turn.
    fn end(&mut self, connection: T) -> u64 {
        self.busy -= 1;
        self.put(connection)
    }

    fn put(&mut self, connection: T) -> u64 {
        self.turn += 1;
        self.quiet.insert(self.turn, connection);
        self.turn
    }

    /// The connection has ended.
    fn leave(&mut self, turn: u64) {
        self.quiet.remove(&turn);
    }
}

/// All connections.
#[derive(Clone, Debug)]
pub(super) struct Connections(Arc<Mutex<Table<OwnedFd>>>);

impl Connections {
    /// With a limit of connections.
    pub(super) fn new(max: usize) -> Connections {
        Connections(Arc::new(Mutex::new(Table::new(max))))
    }

    /// Adds a connection; at the limit another is closed. Keep the value for as long as the connection lasts.
    ///
    /// # Errors
    ///
    /// If there is no descriptor for it. Then it is never closed to make room.
    pub(super) fn enter(&self, socket: impl AsFd) -> io::Result<Rc<Connection>> {
        let (turn, gives_way) = self.table().enter(socket.as_fd().try_clone_to_owned()?);
        if let Some(socket) = gives_way {
            log::debug!("closing the longest idle health connection reason=max_connections");
            // It may have ended by itself.
            let _ = shutdown(&socket, Shutdown::Both);
        }
        Ok(Rc::new(Connection { all: self.clone(), turn: RefCell::new(turn) }))
    }

    fn table(&self) -> MutexGuard<'_, Table<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    all: Connections,
    turn: RefCell<u64>,
}

impl Connection {
    /// Begins a request, which lasts until the returned value is dropped. `None`: the connection was closed.
    pub(super) fn serves(self: Rc<Connection>) -> Option<Serves> {
        let socket = self.all.table().begin(*self.turn.borrow());
        socket.map(|socket| Serves { connection: self, socket: Some(socket) })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.table().leave(*self.turn.borrow());
    }
}

/// A request that is being handled.
#[derive(Debug)]
pub(super) struct Serves {
    connection: Rc<Connection>,
    socket: Option<OwnedFd>,
}

impl Drop for Serves {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            *self.connection.turn.borrow_mut() = self.connection.all.table().end(socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_quiet_longest_gives_way_and_who_is_served_does_not() {
        let mut table = Table::new(3);
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
        table.leave(turns[1]);
        let a = table.end("a");
        assert_eq!(table.enter("e").1, Some("c"));
        assert_eq!(table.enter("f").1, Some("d"), "a was served after d had come");
        table.leave(a);
        table.leave(d);
        assert_eq!(table.enter("g").1, None, "there is room");
    }

    #[test]
    fn when_all_are_served_nobody_gives_way() {
        let mut table = Table::new(2);
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
    fn a_socket_that_gives_way_ends_and_leaves_no_descriptor() {
        let all = Connections::new(1);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let first = all.enter(&ours).unwrap();
        let serves = first.clone().serves().unwrap();
        drop(serves);
        let (other, _end) = std::os::unix::net::UnixStream::pair().unwrap();
        let second = all.enter(&other).unwrap();
        assert_eq!(io::Read::read(&mut &theirs, &mut [0; 1]).unwrap(), 0);
        assert!(first.clone().serves().is_none() && second.clone().serves().is_some());
        drop((first, second));
        let table = all.table();
        assert_eq!((table.quiet.len(), table.busy), (0, 0));
    }
}

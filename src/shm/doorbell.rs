//! Doorbells: waking a sleeping process without ever blocking the ringing side.
//!
//! An eventfd that two processes hold is one open file description: either process can clear its `O_NONBLOCK`, fill the
//! counter, and so block the other's next write. Therefore the broker never writes to or reads from a descriptor that a
//! client holds:
//!
//! - client → broker: an eventfd. The client writes; the broker only watches it, edge-triggered, and never reads it.
//! - broker → client: an eventfd that only the broker holds. The client gets an *epoll* descriptor that watches it;
//!   each write by the broker makes the epoll descriptor readable once.

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

const BELL: u64 = u64::MAX;

/// Events that one look at the doorbells returns at most.
pub(crate) const MAX_EVENTS: usize = 64;

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) }
}

fn new_eventfd() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Rings an eventfd that only the broker holds.
#[inline]
fn ring_eventfd(bell: &OwnedFd) {
    // The counter is full after 2^64 - 2 rings; only the holder of the descriptor can empty it.
    if rustix::io::write(bell, &1u64.to_ne_bytes()) == Err(Errno::AGAIN) {
        let _ = rustix::io::read(bell, &mut [0u8; 8]);
        let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
    }
}

/// The descriptors for the client's Welcome, besides the segment.
#[derive(Debug)]
pub(crate) struct ClientDescriptors {
    /// The eventfd by which the client rings the broker.
    pub(crate) ring: OwnedFd,
    /// The epoll descriptor on which the client waits.
    pub(crate) wait: OwnedFd,
}

/// The broker's end of both bells of a connection.
#[derive(Debug)]
pub(crate) struct BrokerBells {
    /// Watched, never read nor written.
    from_client: OwnedFd,
    /// Held by the broker alone.
    to_client: OwnedFd,
}

impl BrokerBells {
    /// Creates both bells and the descriptors for the client.
    ///
    /// # Errors
    ///
    /// If the system refuses: too many descriptors.
    pub(crate) fn new() -> io::Result<(BrokerBells, ClientDescriptors)> {
        let (from_client, to_client) = (new_eventfd()?, new_eventfd()?);
        let wait = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&wait, &to_client, EventData::new_u64(BELL), EventFlags::IN | EventFlags::ET)?;
        let ring = from_client.try_clone()?;
        Ok((BrokerBells { from_client, to_client }, ClientDescriptors { ring, wait }))
    }

    /// Wakes the client's reader.
    #[inline]
    pub(crate) fn ring(&self) {
        ring_eventfd(&self.to_client);
    }
}

/// The broker's watch over the bells of all connections: a private epoll descriptor.
#[derive(Debug)]
pub(crate) struct BellBoard {
    epoll: OwnedFd,
}

impl BellBoard {
    /// A board without bells.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub(crate) fn new() -> io::Result<BellBoard> {
        Ok(BellBoard { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Watches the bell of connection `key`, until the bell is dropped.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub(crate) fn watch(&self, bells: &BrokerBells, key: u32) -> io::Result<()> {
        let data = EventData::new_u64(u64::from(key));
        Ok(epoll::add(&self.epoll, &bells.from_client, data, EventFlags::IN | EventFlags::ET)?)
    }

    /// Ends the watch of a bell. Closing the broker's descriptor would not do, because the client may hold its own.
    pub(crate) fn unwatch(&self, bells: &BrokerBells) {
        let _ = epoll::delete(&self.epoll, &bells.from_client);
    }

    /// A bell for the broker's own threads, which no client holds.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub(crate) fn router_waker(&self) -> io::Result<RouterWaker> {
        let bell = new_eventfd()?;
        epoll::add(&self.epoll, &bell, EventData::new_u64(BELL), EventFlags::IN | EventFlags::ET)?;
        Ok(RouterWaker(bell))
    }

    /// Calls `rang` with the key of each connection that rang since the last call, and with `None` for the router's own
    /// bell. Returns their number, at most [`MAX_EVENTS`]. Without one it waits for up to `time` (`None`: without end).
    ///
    /// # Errors
    ///
    /// If the system refuses.
    #[inline]
    pub(crate) fn look(&self, time: Option<Duration>, mut rang: impl FnMut(Option<u32>)) -> io::Result<usize> {
        let time = time.map(timespec);
        let mut events = [std::mem::MaybeUninit::uninit(); MAX_EVENTS];
        let (events, _) = match epoll::wait(&self.epoll, &mut events, time.as_ref()) {
            Ok(events) => events,
            Err(Errno::INTR) => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        for event in events.iter() {
            rang(u32::try_from(event.data.u64()).ok());
        }
        Ok(events.len())
    }
}

/// For tests that poll a bell together with other descriptors.
#[cfg(test)]
impl AsFd for BellBoard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// A bell inside the broker: other threads wake the router's thread by it.
#[derive(Debug)]
pub(crate) struct RouterWaker(OwnedFd);

impl RouterWaker {
    /// Wakes the thread that waits on the board.
    pub(crate) fn ring(&self) {
        ring_eventfd(&self.0);
    }
}

/// Why [`ClientBells::wait`] returned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Woken {
    /// The broker rang.
    pub(crate) bell: bool,
    /// The control socket has something to read, or has ended.
    pub(crate) socket: bool,
    /// The watched folder has changed.
    pub(crate) path: bool,
}

/// The client's end of both bells, and its control socket, behind one descriptor.
#[derive(Debug)]
pub(crate) struct ClientBells {
    ring: OwnedFd,
    wait: OwnedFd,
}

const SOCKET: u64 = 1;
const PATH: u64 = 2;

impl ClientBells {
    /// Watches the bell of a Welcome and the control socket.
    ///
    /// # Errors
    ///
    /// If `wait` is no epoll descriptor, or the system refuses.
    pub(crate) fn new(descriptors: ClientDescriptors, socket: BorrowedFd<'_>) -> io::Result<ClientBells> {
        let ClientDescriptors { ring, wait } = descriptors;
        let bells = ClientBells { ring, wait };
        bells.watch(socket)?;
        Ok(bells)
    }

    /// Watches another control socket.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub(crate) fn watch(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::add(&self.wait, socket, EventData::new_u64(SOCKET), EventFlags::IN | EventFlags::RDHUP)?)
    }

    /// Watches an inotify descriptor.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub(crate) fn watch_path(&self, inotify: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::add(&self.wait, inotify, EventData::new_u64(PATH), EventFlags::IN)?)
    }

    /// Ends the watch of a socket or an inotify descriptor, if there is one.
    pub(crate) fn unwatch(&self, descriptor: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.wait, descriptor);
    }

    /// Wakes the broker.
    #[inline]
    pub(crate) fn ring(&self) {
        let _ = rustix::io::write(&self.ring, &1u64.to_ne_bytes());
    }

    /// Sleeps until the broker rings, the socket is readable, or `timeout` has passed (`None`: without end; zero: does
    /// not sleep).
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Woken> {
        let timeout = timeout.map(timespec);
        let mut events = [std::mem::MaybeUninit::uninit(); 4];
        let (events, _) = match epoll::wait(&self.wait, &mut events, timeout.as_ref()) {
            Ok(events) => events,
            Err(Errno::INTR) => return Ok(Woken::default()),
            Err(error) => return Err(error.into()),
        };
        let mut woken = Woken::default();
        for event in events.iter() {
            match event.data.u64() {
                SOCKET => woken.socket = true,
                PATH => woken.path = true,
                _ => woken.bell = true,
            }
        }
        Ok(woken)
    }
}

/// A descriptor that stays the same while the bells behind it change; it is readable when one of them is.
#[derive(Debug)]
pub(crate) struct AggregateEpoll(OwnedFd);

impl AggregateEpoll {
    /// A descriptor over these bells.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub(crate) fn new(bells: &ClientBells) -> io::Result<AggregateEpoll> {
        let nest = AggregateEpoll(epoll::create(CreateFlags::CLOEXEC)?);
        nest.put(bells)?;
        Ok(nest)
    }

    /// Adds these bells.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub(crate) fn put(&self, bells: &ClientBells) -> io::Result<()> {
        Ok(epoll::add(&self.0, &bells.wait, EventData::new_u64(BELL), EventFlags::IN)?)
    }

    /// Removes these bells.
    pub(crate) fn take(&self, bells: &ClientBells) {
        let _ = epoll::delete(&self.0, &bells.wait);
    }
}

impl AsFd for AggregateEpoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn client(descriptors: ClientDescriptors) -> (ClientBells, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ClientBells::new(descriptors, ours.as_fd()).unwrap(), {
            std::mem::forget(ours);
            theirs
        })
    }

    fn looked(board: &BellBoard) -> Vec<u32> {
        let mut keys = Vec::new();
        board.look(Some(Duration::ZERO), |key| keys.extend(key)).unwrap();
        keys
    }

    #[test]
    fn each_ring_of_the_broker_wakes_once() {
        let (broker, descriptors) = BrokerBells::new().unwrap();
        let (client, _socket) = client(descriptors);
        assert_eq!(client.wait(Some(Duration::ZERO)).unwrap(), Woken::default());
        broker.ring();
        broker.ring();
        assert!(client.wait(None).unwrap().bell);
        assert_eq!(client.wait(Some(Duration::ZERO)).unwrap(), Woken::default(), "the first wait took the edge");
        broker.ring();
        assert!(client.wait(None).unwrap().bell);
    }

    #[test]
    fn each_ring_of_a_client_is_seen_once_and_names_it() {
        let board = BellBoard::new().unwrap();
        let (broker, descriptors) = BrokerBells::new().unwrap();
        board.watch(&broker, 7).unwrap();
        let (client, _socket) = client(descriptors);
        client.ring();
        assert_eq!(looked(&board), [7]);
        assert_eq!(looked(&board), [] as [u32; 0]);
        client.ring();
        assert_eq!(looked(&board), [7]);
        board.unwatch(&broker);
        client.ring();
        assert_eq!(looked(&board), [] as [u32; 0]);
    }

    #[test]
    fn a_client_that_fills_its_bell_and_makes_it_blocking_hangs_nobody() {
        let board = BellBoard::new().unwrap();
        let (broker, descriptors) = BrokerBells::new().unwrap();
        board.watch(&broker, 7).unwrap();
        rustix::io::write(&descriptors.ring, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        rustix::fs::fcntl_setfl(&descriptors.ring, rustix::fs::OFlags::empty()).unwrap();
        rustix::fs::fcntl_setfl(&descriptors.wait, rustix::fs::OFlags::empty()).unwrap();
        // Everything that the broker does with either bell; if it blocks, the test run hangs.
        assert_eq!(looked(&board), [7]);
        for _ in 0..1000 {
            broker.ring();
            assert_eq!(looked(&board), [] as [u32; 0]);
        }
    }

    #[test]
    fn a_broker_that_is_gone_is_seen_at_the_socket() {
        let (broker, descriptors) = BrokerBells::new().unwrap();
        let (client, socket) = client(descriptors);
        drop((broker, socket));
        assert!(client.wait(None).unwrap().socket);
    }
}

//! Clients in the router's own thread, without actors, sockets or a clock: for unit tests and the fuzzer, and to count
//! instructions.

use super::egress::Flush;
use super::state::RouterState;
use crate::logic::shares::Principal;
use crate::shm::doorbell::{BrokerBells, ClientBells};
use crate::shm::peer::Credentials;
use crate::shm::ring::{Consumer, Producer};
use crate::shm::segment::{Nonces, Segment};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// The client's ends of a real segment. Descriptors close when it is dropped.
#[cfg_attr(not(test), allow(dead_code, reason = "the segment and the socket are held; only tests look at them"))]
pub(super) struct ClientEnds {
    pub(super) key: u32,
    pub(super) id: u32,
    pub(super) bulk: Producer,
    pub(super) express: Producer,
    pub(super) egress: Consumer,
    pub(super) bells: ClientBells,
    pub(super) segment: Segment,
    pub(super) socket: (UnixStream, UnixStream),
}

impl ClientEnds {
    /// Attaches a connection of this user. Ids are small numbers, in the order in which connections come.
    ///
    /// # Errors
    ///
    /// If the system refuses a descriptor, or the router the connection.
    #[cfg(any(test, feature = "cli"))]
    pub(super) fn attach(state: &mut RouterState) -> Result<ClientEnds, Box<dyn std::error::Error>> {
        ClientEnds::attach_as(state, Principal::of_uid(crate::shm::peer::own_uid()))
    }

    /// Attaches a connection of any user.
    ///
    /// # Errors
    ///
    /// If the system refuses a descriptor, or the router the connection.
    pub(super) fn attach_as(
        state: &mut RouterState,
        principal: Principal,
    ) -> Result<ClientEnds, Box<dyn std::error::Error>> {
        let geometry = state.ports.settings.geometry;
        let nonces = Nonces::random()?;
        let segment = Segment::create(geometry, nonces, 0o600)?;
        let (bells, descriptors) = BrokerBells::new()?;
        let theirs = Segment::open(segment.as_fd().try_clone_to_owned()?, geometry, nonces)?;
        let peer = Credentials { pid: std::process::id(), uid: principal.uid() };
        let publisher = state.ports.counters.connections + 1;
        let (key, id) = state.attach("peer".parse()?, publisher, (peer, principal), segment.into(), bells.into())?;
        let (bulk, express, egress) = theirs.client_ends();
        let socket = UnixStream::pair()?;
        let bells = ClientBells::new(descriptors, socket.0.as_fd())?;
        Ok(ClientEnds { key, id, bulk, express, egress, bells, segment: theirs, socket })
    }
}

/// Works until no work is left, as a burst of the event loop does.
pub(super) fn work(state: &mut RouterState) {
    state.look();
    while state.step() | state.ports.poll_quiet() {}
    state.end_batch();
    state.ports.egresses.flush(Flush::All);
}

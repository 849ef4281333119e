//! The peers, in the order of the tables. A new one is one file here, and one line in [`all`].

mod busrt;
mod dbus;
mod iceoryx2;
mod lapce_ipc;
mod nats;
mod node;
mod unix_socket;
mod zeromq;

use crate::peer::Peer;

static ALL: [&dyn Peer; 9] = [
    &lapce_ipc::ADAPTIVE,
    &lapce_ipc::BLOCK,
    &unix_socket::UnixSocket,
    &iceoryx2::Iceoryx2,
    &zeromq::ZeroMq,
    &nats::Nats,
    &busrt::BusRt,
    &dbus::DBus,
    &node::Node,
];

pub(crate) fn all() -> &'static [&'static dyn Peer] {
    &ALL
}

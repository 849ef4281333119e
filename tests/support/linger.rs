//! A socket whose close waits: what a hostile client passes to a broker that would close it.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// A TCP connection with data that its peer never takes, and a close that waits for that for a minute.
pub fn lingering() -> (TcpStream, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut stream = TcpStream::connect(listener.local_addr().expect("its address")).expect("it listens");
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::from_secs(60))).expect("its option");
    stream.set_nonblocking(true).expect("its mode");
    while stream.write(&[0; 65_536]).is_ok() {}
    (stream, listener)
}

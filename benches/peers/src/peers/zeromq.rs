//! ZeroMQ over `ipc://`: DEALER and ROUTER for requests, PUSH and PULL one way.
//!
//! libzmq, which the crate compiles, batches messages by itself and has an I/O thread in each process. PUSH blocks at
//! its high-water mark, so nothing is dropped.

use crate::error::Result;
use crate::peer::{About, Peer, Requester, Scene};
use crate::work::{Caller, Sink, Source, replies};

/// High-water marks one way, in messages: with the default of 1,000 the ends wait for each other more often.
const UNREAD: i32 = 10_000;

pub(crate) struct ZeroMq;

impl Peer for ZeroMq {
    fn about(&self) -> About {
        let (major, minor, patch) = zmq::version();
        About {
            key: "zeromq",
            name: "ZeroMQ",
            version: format!("libzmq {major}.{minor}.{patch}"),
            path: "end to end over ipc (a Unix socket), an I/O thread in each process",
            processes: 2,
            wait: "blocks in poll",
            compares: "no broker: an end crosses to the other's process once, not twice; a library of sockets, without \
                       registration, access control or supervision; it gathers messages into batches",
        }
    }

    fn respond(&self, scene: &Scene) -> Result<()> {
        let socket = zmq::Context::new().socket(zmq::ROUTER)?;
        socket.set_sndhwm(0)?; // ROUTER drops at its mark; a reply of 1,000 tokens must arrive
        socket.bind(&address(scene, "requests"))?;
        scene.ready();
        let (mut requester, mut request) = (zmq::Message::new(), zmq::Message::new());
        loop {
            socket.recv(&mut requester, 0)?;
            socket.recv(&mut request, 0)?;
            for reply in replies(&request)? {
                socket.send(&requester[..], zmq::SNDMORE)?;
                socket.send(reply.as_ref(), 0)?;
            }
        }
    }

    fn connect(&self, scene: &Scene) -> Result<Box<dyn Requester>> {
        thread_local! {
            // One for a process, as its documentation recommends: a context owns the I/O thread.
            static CONTEXT: zmq::Context = zmq::Context::new();
        }
        let socket = CONTEXT.with(|context| context.socket(zmq::DEALER))?;
        socket.connect(&address(scene, "requests"))?;
        Ok(Box::new(Connection { socket, reply: zmq::Message::new() }))
    }

    fn send(&self, scene: &Scene, source: &mut Source) -> Result<()> {
        let socket = zmq::Context::new().socket(zmq::PUSH)?;
        socket.set_sndhwm(UNREAD)?;
        socket.connect(&address(scene, "one_way"))?;
        while let Some(message) = source.next() {
            socket.send(message, 0)?;
        }
        scene.wait_for_end();
        Ok(())
    }

    fn receive(&self, scene: &Scene, sink: &mut Sink) -> Result<()> {
        let socket = zmq::Context::new().socket(zmq::PULL)?;
        socket.set_rcvhwm(UNREAD)?;
        socket.bind(&address(scene, "one_way"))?;
        scene.ready();
        let mut message = zmq::Message::new();
        while !sink.is_done() {
            socket.recv(&mut message, 0)?;
            sink.take(&message)?;
        }
        Ok(())
    }
}

struct Connection {
    socket: zmq::Socket,
    reply: zmq::Message,
}

impl Requester for Connection {
    fn run(&mut self, caller: &mut Caller) -> Result<()> {
        while let Some(request) = caller.next() {
            self.socket.send(request, 0)?;
            while caller.waits() {
                self.socket.recv(&mut self.reply, 0)?;
                caller.take(&self.reply)?;
            }
        }
        Ok(())
    }
}

fn address(scene: &Scene, name: &str) -> String {
    format!("ipc://{}", scene.text(name))
}

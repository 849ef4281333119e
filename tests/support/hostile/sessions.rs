//! Attacks by connections, control frames and HTTP.

use super::attack::{Scene, many};
use crate::raw::{Control, Raw, hello};
use crate::support::linger::lingering;
use crate::support::role::tell;
use lapce_ipc::wire::control::PROTOCOL_VERSION;
use lapce_ipc::wire::{BrokerFrame, ClientFrame};
use rustix::net::SendFlags;
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

/// Fifty connections that ask for the status in a loop.
pub(crate) fn status_loop(scene: &Scene) {
    let mut raws = scene.raws(many(50), "status-loop");
    scene.again(Duration::ZERO, || {
        for raw in &mut raws {
            raw.control.say(&ClientFrame::Status { serial: 1 });
        }
        raws.iter_mut().for_each(|raw| drop(raw.control.frame().expect("a status")));
    });
}

/// Connections that come, and go in order.
pub(crate) fn come_and_go(scene: &Scene) {
    scene.again(Duration::ZERO, || scene.raw("come-and-go").control.say(&ClientFrame::Bye));
}

/// As many connections as the broker takes.
pub(crate) fn connections_all(scene: &Scene) {
    let mut held = Vec::new();
    while held.len() < 1_000 {
        let mut control = Control::connect(&scene.socket);
        control.say(&hello("connections"));
        match control.frame() {
            Some(BrokerFrame::Welcome { .. }) => held.push(control),
            _ => break,
        }
    }
    scene.again(Duration::from_millis(100), || ());
}

/// Bytes without order.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let next = |_| {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 as u8
        };
        (0..len).map(next).collect()
    }
}

/// Garbage instead of a Hello, and behind one.
pub(crate) fn garbage(scene: &Scene) {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    scene.again(Duration::ZERO, || {
        let mut control = Control::connect(&scene.socket);
        let len = noise.bytes(1)[0];
        if len.is_multiple_of(2) {
            control = scene.raw("garbage").control;
        }
        let mut frame = u32::from(len).to_le_bytes().to_vec();
        frame.extend(noise.bytes(len.into()));
        control.send(&frame);
    });
}

/// Connections that are refused: for the user if it may not connect, else for a version that does not exist.
pub(crate) fn refused(scene: &Scene) {
    let mut greeting = hello("refused").encode().expect("a frame");
    // Behind length, variant and magic.
    greeting[16..18].copy_from_slice(&(PROTOCOL_VERSION + 1).to_le_bytes());
    scene.again(Duration::ZERO, || {
        let mut control = Control::connect(&scene.socket);
        control.send(&greeting);
        while control.frame().is_some() {}
    });
}

/// Connections that hold back the last byte of a frame, which is as long as one may be.
pub(crate) fn half_frames(scene: &Scene) {
    const FRAME: u32 = 65_536;
    let raws: Vec<Raw> = (0..many(900))
        .map(|_| {
            let mut raw = scene.raw("half-frames");
            raw.control.send(&FRAME.to_le_bytes());
            raw.control.send(&vec![0; FRAME as usize - 1]);
            raw
        })
        .collect();
    scene.hold(&raws);
}

/// Passes descriptors whose close lingers, before and behind the Hello.
pub(crate) fn linger(scene: &Scene) {
    let mut kept = Vec::new();
    for _ in 0..4 {
        let (stream, listener) = lingering();
        let mut early = Control::connect(&scene.socket);
        let greeting = hello("linger").encode().expect("a frame");
        let first = early.send_descriptors(&greeting, &[stream.as_fd()]).map_err(|error| error.kind());
        let mut raw = scene.raw("linger");
        let question = ClientFrame::Status { serial: 1 }.encode().expect("a frame");
        let second = raw.control.send_descriptors(&question, &[stream.as_fd()]).map_err(|error| error.kind());
        kept.push((early, raw, listener));
        if [first, second].iter().all(|sent| *sent == Err(ErrorKind::PermissionDenied)) {
            tell("note the kernel refuses descriptors");
        }
        // Whichever close is the last one waits.
        std::thread::spawn(move || drop(stream));
    }
    scene.again(Duration::from_millis(100), || ());
}

/// Scrapes over HTTP, whose answers are never read. Their number is bounded: so is what they take of this machine.
pub(crate) fn http_pipelining(scene: &Scene) {
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    let mut left = request.len() * 500;
    let open = || {
        let stream = TcpStream::connect(scene.health).expect("it listens");
        stream.set_nonblocking(true).expect("a mode");
        (stream, 0)
    };
    let mut streams: Vec<(TcpStream, usize)> = (0..30).map(|_| open()).collect();
    scene.again(Duration::from_millis(1), || {
        for (stream, at) in &mut streams {
            match send(stream, &request[*at..][..left.min(request.len() - *at)]) {
                Ok(sent) => (*at, left) = ((*at + sent) % request.len(), left - sent),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => (*stream, *at) = open(),
            }
        }
    });
}

fn send(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(stream, bytes, SendFlags::NOSIGNAL)?)
}

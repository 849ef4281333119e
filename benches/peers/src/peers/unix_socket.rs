//! A Unix stream socket: a length before each message, blocking reads and writes, buffers of the standard library.
//!
//! It is what two processes of one machine have without any library. One way, the sender's buffer is written when it is
//! full, so that many messages share a system call.

use crate::error::Result;
use crate::peer::{About, Peer, Requester, Scene};
use crate::work::{Caller, Sink, Source, replies};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

const BUFFER_BYTES: usize = 64 * 1024;

pub(crate) struct UnixSocket;

impl Peer for UnixSocket {
    fn about(&self) -> About {
        About {
            key: "unix_socket",
            name: "Unix socket",
            version: "of the kernel".to_owned(),
            path: "end to end over a stream socket, a length before each message",
            processes: 2,
            wait: "blocks in read",
            compares: "the kernel alone: no broker, no names, no routing; one way, many messages share a system call, \
                       because the sender writes when its buffer of 64 KiB is full",
        }
    }

    fn respond(&self, scene: &Scene) -> Result<()> {
        let listener = UnixListener::bind(scene.path("socket"))?;
        scene.ready();
        for stream in listener.incoming() {
            let stream = stream?;
            // A requester that leaves ends its thread.
            thread::spawn(move || answer(&stream));
        }
        Ok(())
    }

    fn connect(&self, scene: &Scene) -> Result<Box<dyn Requester>> {
        let stream = UnixStream::connect(scene.path("socket"))?;
        Ok(Box::new(Connection { reader: BufReader::new(stream.try_clone()?), stream, reply: Vec::new() }))
    }

    fn send(&self, scene: &Scene, source: &mut Source) -> Result<()> {
        let mut writer = BufWriter::with_capacity(BUFFER_BYTES, UnixStream::connect(scene.path("one_way"))?);
        while let Some(message) = source.next() {
            write_message(&mut writer, message)?;
        }
        writer.flush()?;
        scene.wait_for_end();
        Ok(())
    }

    fn receive(&self, scene: &Scene, sink: &mut Sink) -> Result<()> {
        let listener = UnixListener::bind(scene.path("one_way"))?;
        scene.ready();
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, listener.accept()?.0);
        let mut message = Vec::new();
        while !sink.is_done() {
            read_message(&mut reader, &mut message)?;
            sink.take(&message)?;
        }
        std::fs::remove_file(scene.path("one_way"))?;
        Ok(())
    }
}

struct Connection {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    reply: Vec<u8>,
}

impl Requester for Connection {
    fn run(&mut self, caller: &mut Caller) -> Result<()> {
        let mut writer = BufWriter::new(&self.stream);
        while let Some(request) = caller.next() {
            write_message(&mut writer, request)?;
            writer.flush()?;
            while caller.waits() {
                read_message(&mut self.reader, &mut self.reply)?;
                caller.take(&self.reply)?;
            }
        }
        Ok(())
    }
}

fn answer(stream: &UnixStream) -> Result<()> {
    let (mut reader, mut writer) = (BufReader::new(stream), BufWriter::new(stream));
    let mut request = Vec::new();
    loop {
        read_message(&mut reader, &mut request)?;
        for reply in replies(&request)? {
            write_message(&mut writer, reply.as_ref())?;
            writer.flush()?; // a token is sent when it is made
        }
    }
}

fn write_message(writer: &mut impl Write, message: &[u8]) -> Result<()> {
    writer.write_all(&(message.len() as u32).to_le_bytes())?;
    writer.write_all(message)?;
    Ok(())
}

fn read_message(reader: &mut impl Read, message: &mut Vec<u8>) -> Result<()> {
    let mut len = [0; 4];
    reader.read_exact(&mut len)?;
    message.resize(u32::from_le_bytes(len) as usize, 0);
    reader.read_exact(message)?;
    Ok(())
}

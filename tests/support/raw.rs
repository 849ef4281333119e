//! A client without the library: it speaks the control socket and writes its segment byte by byte, and so can do
//! everything that a broken or hostile client can do. It reads and writes the segment as a file, never maps it.

#![allow(dead_code, reason = "each test program uses its part")]

use super::support::DEADLINE;
use lapce_ipc::wire::control::{ClosingCode, Geometry, Limits, RefusedCode, Token};
use lapce_ipc::wire::record::{Flags, HEADER_WORDS, Header, Kind};
use lapce_ipc::wire::{BrokerFrame, ClientFrame, FrameDecoder, Name, control};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

/// Bytes in a cell.
pub(crate) const CELL: u64 = 128;
/// Bytes in front of a record's payload.
pub(crate) const HEADER: u64 = 64;
/// Cells in front of the base windows.
const CONTROL_CELLS: u64 = 5;

/// Words of the segment that client and broker share: see the layout in `src/shm/layout.rs`.
pub(crate) mod word {
    /// Cells of the egress ring that the client has consumed.
    pub(crate) const EGRESS_CONSUMED: u64 = 0;
    /// Cells of the bulk lane that the broker has consumed.
    pub(crate) const BULK_CONSUMED: u64 = 8;
    /// Cells of the express lane that the broker has consumed.
    pub(crate) const EXPRESS_CONSUMED: u64 = 9;
    /// Not 0 while the broker waits for space in the egress ring.
    pub(crate) const EGRESS_SPACE: u64 = 34;
    /// Cells of the egress ring's extension in use.
    pub(crate) const EGRESS_WINDOW: u64 = 58;
    /// The first word that is free.
    pub(crate) const END: u64 = 64;
}

/// A lane towards the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Publishes.
    Bulk,
    /// Requests, answers, credit.
    Express,
}

/// How many cells a record takes.
pub(crate) fn cells(payload: usize) -> u64 {
    (HEADER + payload as u64).div_ceil(CELL)
}

/// The control socket, before and after Welcome.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) socket: UnixStream,
    decoder: FrameDecoder,
    descriptors: Vec<OwnedFd>,
}

impl Control {
    /// Connects, and says nothing.
    #[track_caller]
    pub(crate) fn connect(path: &Path) -> Control {
        let socket = UnixStream::connect(path).expect("somebody listens");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        socket.set_write_timeout(Some(DEADLINE)).expect("a timeout");
        Control { socket, decoder: FrameDecoder::new(control::BROKER_FRAME_BYTES_MAX), descriptors: Vec::new() }
    }

    /// Sends bytes. Whether the broker still takes them is no matter: it may have closed already.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = &rest[sent..],
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => return,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("send: {error}"),
            }
        }
    }

    /// Sends a frame.
    pub(crate) fn say(&mut self, frame: &ClientFrame) {
        self.send(&frame.encode().expect("a frame"));
    }

    /// Sends bytes with descriptors.
    pub(crate) fn send_descriptors(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)), "too many");
        Ok(rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
    }

    /// The next frame; `None` when the broker has closed.
    #[track_caller]
    pub(crate) fn frame(&mut self) -> Option<BrokerFrame> {
        loop {
            if let Some(body) = self.decoder.next_frame().expect("a frame") {
                return Some(BrokerFrame::decode(body).expect("a frame of a broker"));
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [0; 4096];
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let got = rustix::net::recvmsg(&self.socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    self.descriptors.extend(rights);
                }
            }
            match got.map_err(io::Error::from) {
                Ok(got) if got.bytes == 0 => return None,
                Ok(got) => self.decoder.push(&bytes[..got.bytes]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                // A socket with a timeout is not taken up again by the system when the process was stopped for a
                // moment.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("no frame within {DEADLINE:?}: {error}"),
            }
        }
    }

    /// Expects a refusal, and the end behind it.
    #[track_caller]
    pub(crate) fn refused(&mut self) -> (RefusedCode, String) {
        match self.frame() {
            Some(BrokerFrame::Refused { code, message, version }) => {
                assert_eq!(version, control::PROTOCOL_VERSION);
                assert_eq!(self.frame(), None, "the broker closes");
                (code, message)
            }
            other => panic!("no refusal but {other:?}"),
        }
    }

    /// Expects that the broker closes with a reason; other frames may come before.
    #[track_caller]
    pub(crate) fn closing(&mut self) -> (ClosingCode, String) {
        loop {
            match self.frame() {
                Some(BrokerFrame::Closing { code, message }) => {
                    assert_eq!(self.frame(), None, "the broker closes");
                    return (code, message);
                }
                Some(_) => {}
                None => panic!("the broker closed without a reason"),
            }
        }
    }
}

/// A Hello of this version.
pub(crate) fn hello(name: &str) -> ClientFrame {
    ClientFrame::hello(Name::parse(name).expect("a name"), 0x5eed, None)
}

/// A Hello of the same instance that takes up a session.
pub(crate) fn resume(token: Token) -> ClientFrame {
    ClientFrame::hello(Name::parse("resumes").expect("a name"), 0x5eed, Some(token))
}

/// A connection that stands.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) control: Control,
    /// Its number.
    pub(crate) connection: u32,
    /// What resumes its session.
    pub(crate) token: Token,
    pub(crate) limits: Limits,
    pub(crate) geometry: Geometry,
    pub(crate) segment: File,
    /// The eventfd that wakes the broker.
    pub(crate) bell: OwnedFd,
    /// The epoll descriptor by which the broker wakes us.
    pub(crate) wait: OwnedFd,
    claimed: [u64; 2],
    next: [u64; 2],
    taken: u64,
    egress_at: u64,
    serial: u32,
    sequence: u64,
}

impl Raw {
    /// Connects and says hello.
    #[track_caller]
    pub(crate) fn connect(path: &Path, name: &str) -> Raw {
        let mut control = Control::connect(path);
        control.say(&hello(name));
        Raw::welcomed(control)
    }

    /// Waits for Welcome.
    #[track_caller]
    pub(crate) fn welcomed(mut control: Control) -> Raw {
        let frame = control.frame();
        let Some(BrokerFrame::Welcome { connection, token, limits, geometry, .. }) = frame else {
            panic!("no welcome but {frame:?}")
        };
        let [segment, bell, wait] =
            <[OwnedFd; 3]>::try_from(std::mem::take(&mut control.descriptors)).expect("three descriptors");
        Raw {
            control,
            connection,
            token,
            limits,
            geometry,
            segment: segment.into(),
            bell,
            wait,
            claimed: [0; 2],
            next: [0; 2],
            taken: 0,
            egress_at: 0,
            serial: 0,
            sequence: 0,
        }
    }

    /// Takes the session up over a new socket, with its token.
    #[track_caller]
    pub(crate) fn resume(&mut self, path: &Path) {
        let mut control = Control::connect(path);
        control.say(&resume(self.token));
        let frame = control.frame();
        let Some(BrokerFrame::Welcome { connection, token, geometry, .. }) = frame else {
            panic!("no welcome but {frame:?}")
        };
        assert_eq!((connection, geometry), (self.connection, self.geometry), "the same session");
        assert_eq!(control.descriptors.len(), 0, "nothing that it has already");
        assert_ne!(token, self.token, "rotated");
        (self.control, self.token) = (control, token);
    }

    /// Loses its socket without a word.
    pub(crate) fn cut(&self) {
        self.control.socket.shutdown(std::net::Shutdown::Both).expect("a shutdown");
    }

    /// Asks something and waits for the answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, question: impl FnOnce(u32) -> ClientFrame) -> BrokerFrame {
        self.serial += 1;
        let frame = question(self.serial);
        self.control.say(&frame);
        self.control.frame().unwrap_or_else(|| panic!("closed instead of an answer to {frame:?}"))
    }

    /// Asks many things, 32 at a time, until the broker refuses one. Answers how many it granted.
    #[track_caller]
    pub(crate) fn ask_all<Q: FnOnce(u32) -> ClientFrame>(&mut self, questions: impl IntoIterator<Item = Q>) -> usize {
        let (mut questions, mut granted) = (questions.into_iter(), 0);
        loop {
            let (mut bytes, mut asked) = (Vec::new(), 0);
            for question in questions.by_ref().take(32) {
                self.serial += 1;
                asked += 1;
                bytes.extend(question(self.serial).encode().expect("a frame"));
            }
            self.control.send(&bytes);
            let replies = (0..asked).map(|_| self.control.frame().expect("a reply, not the end"));
            let failed = replies.filter(|reply| matches!(reply, BrokerFrame::Failed { .. })).count();
            granted += asked - failed;
            if asked == 0 || failed > 0 {
                return granted;
            }
        }
    }

    /// Whether the broker has closed; frames that came before are lost. Does not wait.
    pub(crate) fn has_ended(&self) -> bool {
        let mut byte = [0; 4096];
        loop {
            match rustix::net::recv(&self.control.socket, &mut byte, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return true,
                Ok(_) => {}
                Err(error) => return error != rustix::io::Errno::AGAIN,
            }
        }
    }

    /// Whether something has come over the control socket, its end included. Takes nothing.
    pub(crate) fn has_word(&self) -> bool {
        let got = rustix::net::recv(&self.control.socket, &mut [0; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK);
        !matches!(got, Err(rustix::io::Errno::AGAIN))
    }

    /// Rings the broker.
    pub(crate) fn ring(&self) {
        rustix::io::write(&self.bell, &1u64.to_ne_bytes()).expect("the eventfd takes it");
    }

    /// Reads a word of the segment.
    pub(crate) fn word(&self, word: u64) -> u64 {
        let mut bytes = [0; 8];
        self.segment.read_exact_at(&mut bytes, word * 8).expect("the segment");
        u64::from_le_bytes(bytes)
    }

    /// Writes a word of the segment.
    pub(crate) fn set_word(&self, word: u64, value: u64) {
        self.segment.write_all_at(&value.to_le_bytes(), word * 8).expect("the segment");
    }

    /// Cells of a base window.
    pub(crate) fn base_cells(&self) -> u64 {
        cells(self.geometry.slot_size as usize)
    }

    /// Where the extension of the ring in `place` (bulk, express, egress) begins, in bytes.
    pub(crate) fn extension(&self, place: u64) -> u64 {
        let base = ((CONTROL_CELLS + 3 * self.base_cells()) * CELL).next_multiple_of(4096);
        base + place * u64::from(self.geometry.extension_cells) * CELL
    }

    /// Where a cell of the base window of the ring in `place` begins, in bytes.
    fn base(&self, place: u64, cell: u64) -> u64 {
        (CONTROL_CELLS + place * self.base_cells() + cell) * CELL
    }

    fn nonce(&self, lane: Lane) -> u64 {
        match lane {
            Lane::Bulk => self.geometry.nonce_bulk,
            Lane::Express => self.geometry.nonce_express,
        }
    }

    /// Cells of the lane that the broker has consumed.
    pub(crate) fn consumed(&self, lane: Lane) -> u64 {
        self.word(if lane == Lane::Bulk { word::BULK_CONSUMED } else { word::EXPRESS_CONSUMED })
    }

    /// Writes a record at a place of the file, its tag last.
    pub(crate) fn write_record(&self, at: u64, tag: u64, header: &[u64; HEADER_WORDS], payload: &[u8]) {
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(payload);
        self.segment.write_all_at(&bytes, at + 8).expect("the segment");
        self.segment.write_all_at(&tag.to_le_bytes(), at).expect("the segment");
    }

    /// Places a record behind the one before, or at the start of the base window once the lane is drained, and rings.
    /// `header` is what stands there whatever `payload` is. `false`: the broker said something instead of draining the
    /// lane.
    #[track_caller]
    pub(crate) fn place(&mut self, lane: Lane, header: &[u64; HEADER_WORDS], payload: &[u8]) -> bool {
        let (index, size) = (lane as usize, cells(payload.len()));
        if self.next[index] + size > self.base_cells() {
            let until = Instant::now() + DEADLINE;
            while self.consumed(lane) != self.claimed[index] {
                assert!(Instant::now() < until, "the broker does not drain the {lane:?} lane");
                if self.has_word() {
                    return false;
                }
                std::thread::yield_now();
            }
            self.next[index] = 0;
        }
        let at = self.base(index as u64, self.next[index]);
        self.write_record(at, self.nonce(lane).wrapping_add(self.claimed[index]), header, payload);
        self.claimed[index] += size;
        self.next[index] += size;
        self.ring();
        true
    }

    /// Places a record as [`Raw::place`] does, if there is space now.
    pub(crate) fn try_place(&mut self, lane: Lane, header: &[u64; HEADER_WORDS], payload: &[u8]) -> bool {
        let has_space = self.next[lane as usize] + cells(payload.len()) <= self.base_cells();
        (has_space || self.consumed(lane) == self.claimed[lane as usize]) && self.place(lane, header, payload)
    }

    /// Sends a record as it should be: with the payload's length in its header.
    #[track_caller]
    pub(crate) fn push(&mut self, lane: Lane, header: &Header, payload: &[u8]) -> bool {
        let mut header = *header;
        if header.kind == Kind::Publish && header.seq == 0 {
            // A message takes the next number with its first record.
            self.sequence += u64::from(header.flags.has(Flags::FIRST));
            header.seq = self.sequence;
        }
        let header = &header;
        self.place(lane, &words(header, payload.len()), payload)
    }

    /// Where the next record of the egress ring lies, if it is there, and its first words.
    fn find(&self) -> Option<(u64, [u64; HEADER_WORDS])> {
        let tag = self.geometry.nonce_egress.wrapping_add(self.taken);
        let places = [self.egress_at, self.base(2, 0), self.extension(2)];
        let end_of_base = self.base(2, self.base_cells());
        // One position behind the base window is no cell of the ring, and may be behind the segment.
        let at =
            places.into_iter().filter(|at| (self.base(2, 0)..end_of_base).contains(at) || *at >= self.extension(2));
        for at in at {
            let mut first = [0; 64];
            if self.segment.read_exact_at(&mut first, at).is_err() {
                continue;
            }
            let word = |n: usize| u64::from_le_bytes(first[n * 8..n * 8 + 8].try_into().expect("eight bytes"));
            if word(0) == tag {
                return Some((at, std::array::from_fn(|n| word(n + 1))));
            }
        }
        None
    }

    /// Takes the next record if it is there, and gives its cells back.
    pub(crate) fn try_receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let record = self.take()?;
        self.set_word(word::EGRESS_CONSUMED, self.taken);
        if self.word(word::EGRESS_SPACE) != 0 {
            self.ring();
        }
        Some(record)
    }

    /// Goes on behind the record at `at`.
    fn took(&mut self, at: u64, len: usize) {
        self.taken += cells(len);
        self.egress_at = at + cells(len) * CELL;
    }

    /// Takes the next record out of the egress ring, if it is there.
    pub(crate) fn take(&mut self) -> Option<(Header, Vec<u8>)> {
        let (at, header) = self.find()?;
        let mut payload = vec![0; (header[0] & 0xffff_ffff) as usize];
        self.segment.read_exact_at(&mut payload, at + HEADER).expect("the segment");
        self.took(at, payload.len());
        Some((Header::from_words(&header).expect("a kind"), payload))
    }

    /// Consumes what is in the egress ring, unread: for a client that may have written there itself.
    pub(crate) fn discard(&mut self) {
        while let Some((at, header)) = self.find() {
            self.took(at, (header[0] & 0xffff_ffff).min(u64::from(self.geometry.slot_size)) as usize);
        }
        self.set_word(word::EGRESS_CONSUMED, self.taken);
        self.ring();
    }

    /// Takes the next record, waits for it, and gives its cells back.
    #[track_caller]
    pub(crate) fn receive(&mut self) -> (Header, Vec<u8>) {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(record) = self.try_receive() {
                return record;
            }
            assert!(Instant::now() < until, "no record within {DEADLINE:?}");
            assert!(!self.has_word(), "the broker said {:?} while we waited for a record", self.control.frame());
            std::thread::yield_now();
        }
    }

    /// Has the broker answer a flush: all that was published before is routed, and the connection stands.
    #[track_caller]
    pub(crate) fn flush(&mut self, number: u64) {
        self.push(Lane::Bulk, &Header { seq: number, ..Header::new(Kind::Flush) }, &[]);
        loop {
            let (header, _) = self.receive();
            if header.kind == Kind::Flushed {
                assert_eq!(header.seq, number);
                return;
            }
        }
    }
}

/// The words of a header with its payload's length.
pub(crate) fn words(header: &Header, len: usize) -> [u64; HEADER_WORDS] {
    let mut words = header.to_words();
    words[0] |= u64::try_from(len).expect("a length") & 0xffff_ffff;
    words
}

/// The header of the first record of a publish.
pub(crate) fn publish(topic: u32, total: u32, flags: Flags) -> Header {
    Header { id: topic, total, flags, ..Header::new(Kind::Publish) }
}

/// The header of a request's first record.
pub(crate) fn request(place: u32, service: u32, total: u32, flags: Flags) -> Header {
    Header { id: place, id2: 1, arg: service, total, flags, ..Header::new(Kind::Request) }
}

/// The header of an answer's record.
pub(crate) fn response(call: u64, total: u32, flags: Flags) -> Header {
    Header { seq: call, total, flags, ..Header::new(Kind::Response) }
}

/// A record with anything in its header.
pub(crate) fn forged(kind: u8, len: u32) -> [u64; HEADER_WORDS] {
    let mut words = Header { flags: Flags::WHOLE, ..Header::new(Kind::Publish) }.to_words();
    words[0] = words[0] & !0xff_ffff_ffff | u64::from(kind) << 32 | u64::from(len);
    words
}

//! The targets of `fuzz/`: each takes any bytes, and panics if what must hold does not. They are tests, too, over the
//! corpus in `fuzz/corpus` and over random inputs.

use super::router::CloseReason;
use super::router::fuzzed::{self, Machine};
use crate::logic::session::lifecycle::{Begin, Lifecycle, Lost};
use crate::logic::session::sessions::{ReplyCache, Sessions};
use crate::shm::ring::hostile;
use crate::shm::ring::hostile::Input;
use crate::wire::FrameDecoder;
use crate::wire::control::{self, BrokerFrame, ClientFrame, ClosingCode, PROTOCOL_VERSION, Token};
use crate::wire::typed::Message;
use std::time::{Duration, Instant};

/// Sockets that a program may use, one after the other.
const SOCKETS_MAX: u8 = 8;
const UID: u32 = 1000;

/// A typed message of any bytes: a valid message or an error.
pub fn typed_messages(bytes: &[u8]) {
    if let Ok(message) = Message::decode(bytes) {
        assert_eq!(Message::decode(&message.encode().expect("it was encoded")), Ok(message));
    }
}

/// Records with any header, and what the router does with them.
pub fn record_header(bytes: &[u8]) {
    fuzzed::records(bytes);
}

/// A ring whose memory its peer rewrites.
pub fn hostile_ring(bytes: &[u8]) {
    hostile::run(bytes);
}

/// The router with hostile clients, and two that keep the rules.
pub fn router(bytes: &[u8]) {
    fuzzed::run(bytes);
}

/// Bytes on the control socket, in pieces and over several sockets: the decoder, the handshake, and what a session does
/// with the frames.
pub fn control_frames(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (step, cut) = (usize::from(input.byte()).max(1), usize::from(input.byte()) * 8);
    let Some(machine) = Machine::new(|_| {}) else { return };
    let mut plane = ControlPlane::new(machine);
    let rest = input.rest();
    let sockets = if cut == 0 { vec![rest] } else { rest.chunks(cut).take(SOCKETS_MAX.into()).collect() };
    for socket in sockets {
        plane.serve(socket, step);
    }
    plane.machine.finish();
}

/// What `ConnectionActor` and the handshake do, without actors and sockets. One client, and its session.
struct ControlPlane {
    machine: Machine,
    sessions: Sessions<usize>,
    session: Option<Session>,
    now: Instant,
    tokens: u8,
}

struct Session {
    client: usize,
    id: u32,
    replies: ReplyCache,
    lifecycle: Lifecycle,
}

/// Why a socket is not served on.
enum End {
    Left,
    Lost,
    Closed(CloseReason),
}

impl ControlPlane {
    fn new(machine: Machine) -> ControlPlane {
        ControlPlane { machine, sessions: Sessions::new(), session: None, now: Instant::now(), tokens: 0 }
    }

    /// Tokens are small numbers here, so that the input can name them.
    fn token(&mut self) -> Token {
        self.tokens = self.tokens.wrapping_add(1);
        Token::from_bytes([self.tokens; 16])
    }

    /// Serves one socket to its end.
    fn serve(&mut self, bytes: &[u8], step: usize) {
        let mut decoder = FrameDecoder::new(control::CLIENT_FRAME_BYTES_MAX);
        let (mut attached, mut end) = (false, None);
        for piece in bytes.chunks(step) {
            decoder.push(piece);
            while end.is_none() {
                let body = match decoder.next_frame() {
                    Ok(Some(body)) => body.to_vec(),
                    Ok(None) => break,
                    Err(error) => {
                        end = Some(End::Closed(violation(error)));
                        break;
                    }
                };
                both_ways(&body);
                if attached {
                    end = self.frame(&body);
                } else if self.hello(&body) {
                    attached = true;
                } else {
                    end = Some(End::Left);
                }
                self.machine.work();
            }
            assert!(end.is_some() || decoder.buffered() < control::CLIENT_FRAME_BYTES_MAX + 4);
        }
        if attached {
            self.end(end.unwrap_or(End::Lost));
        }
        self.machine.work();
    }

    /// The handshake. `false`: the socket is refused.
    fn hello(&mut self, body: &[u8]) -> bool {
        if control::peek_hello(body) != Ok(PROTOCOL_VERSION) {
            return false;
        }
        let Ok(ClientFrame::Hello { nonce, resume, .. }) = ClientFrame::decode(body) else { return false };
        let fresh = self.token();
        if let Some(token) = resume {
            let Ok((id, client)) = self.sessions.resume(token, fresh, UID, nonce, self.now) else { return false };
            let session = self.session.as_mut().expect("a session that can be claimed");
            assert_eq!((session.id, session.client), (id, client));
            session.lifecycle.attached();
            session.replies.next_socket();
            return true;
        }
        // A client that says Hello without its token has given its session up; here it ends at once.
        if let Some(session) = self.session.take() {
            assert!(self.sessions.end_waiting(session.id), "it awaits its peer");
            self.machine.end(session.client, None);
            self.machine.work();
        }
        let Some(client) = self.machine.attach(UID) else { return false };
        let id = self.machine.id(client);
        let mut lifecycle = Lifecycle::new(Duration::from_secs(5));
        assert_eq!(lifecycle.begin(self.now), Begin::Handshake);
        lifecycle.attached();
        self.sessions.open(id, fresh, UID, nonce);
        self.session = Some(Session { client, id, replies: ReplyCache::default(), lifecycle });
        true
    }

    /// A frame of a session. `Some`: the socket is not served on.
    fn frame(&mut self, body: &[u8]) -> Option<End> {
        let session = self.session.as_mut().expect("it is attached");
        self.sessions.confirm(session.id);
        let frame = match ClientFrame::decode(body) {
            Ok(ClientFrame::Bye) => return Some(End::Left),
            Ok(ClientFrame::Resumed | ClientFrame::Restored) => return None,
            Ok(ClientFrame::Hello { .. }) => return Some(End::Closed(violation("unexpected second Hello"))),
            Err(error) => return Some(End::Closed(violation(error))),
            Ok(frame) => frame,
        };
        let serial = frame.serial().expect("a request");
        if let Some(reply) = session.replies.find(serial) {
            assert_eq!(serial_of(&reply), Some(serial));
            return None;
        }
        // Requests for other actors have no reply here.
        let reply = self.machine.ask(session.client, frame)?;
        assert_eq!(serial_of(&reply), Some(serial));
        session.replies.keep(serial, &reply);
        None
    }

    fn end(&mut self, end: End) {
        let session = self.session.as_mut().expect("it is attached");
        if matches!(end, End::Lost) && session.lifecycle.socket_lost(true) == Lost::Fails {
            let Begin::Await(until) = session.lifecycle.begin(self.now) else { panic!("it has a session") };
            assert!(self.sessions.detach(session.id, session.client, until));
            self.now += Duration::from_secs(1);
            return;
        }
        let (client, id) = (session.client, session.id);
        self.session = None;
        self.sessions.end(id);
        let close = if let End::Closed(close) = end { Some(close) } else { None };
        self.machine.end(client, close);
    }
}

fn violation(reason: impl ToString) -> CloseReason {
    CloseReason { code: ClosingCode::ProtocolViolation, reason: reason.to_string() }
}

/// A frame that decodes encodes to the bytes that it came from.
fn both_ways(body: &[u8]) {
    if let Ok(frame) = ClientFrame::decode(body) {
        assert_eq!(frame.encode().expect("it was encoded")[4..], *body);
    }
    if let Ok(frame) = BrokerFrame::decode(body) {
        assert_eq!(frame.encode().expect("it was encoded")[4..], *body);
    }
}

fn serial_of(reply: &BrokerFrame) -> Option<u32> {
    match reply {
        BrokerFrame::Interned { serial, .. }
        | BrokerFrame::Subscribed { serial, .. }
        | BrokerFrame::Serving { serial, .. }
        | BrokerFrame::Done { serial }
        | BrokerFrame::Failed { serial, .. }
        | BrokerFrame::Status { serial, .. }
        | BrokerFrame::Breakers { serial, .. } => Some(*serial),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::InternKind;
    use crate::wire::name::Name;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::Path;

    /// Runs the corpus of a target, then random inputs of up to `most` bytes.
    fn exercise(name: &str, target: fn(&[u8]), inputs: u64, most: u64) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut corpus: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        corpus.sort();
        assert!(!corpus.is_empty(), "{} has no inputs", folder.display());
        for path in corpus {
            check(target, &path.display().to_string(), &std::fs::read(&path).unwrap());
        }
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed >> 16
        };
        for number in 0..inputs {
            let len = random() % most;
            // Small numbers are more often valid.
            let mask = if random() % 2 == 0 { 0xff } else { 0x3f };
            let bytes: Vec<u8> = (0..len).map(|_| random() as u8 & mask).collect();
            check(target, &format!("random input {number}"), &bytes);
        }
    }

    fn check(target: fn(&[u8]), what: &str, bytes: &[u8]) {
        let result = catch_unwind(AssertUnwindSafe(|| target(bytes)));
        assert!(result.is_ok(), "{what} fails: {bytes:?}");
    }

    #[test]
    fn fuzzed_control_frames() {
        exercise("control_frames", control_frames, 100, 300);
    }

    #[test]
    fn fuzzed_typed_messages() {
        exercise("typed_messages", typed_messages, 1000, 200);
    }

    #[test]
    fn fuzzed_record_headers() {
        exercise("record_header", record_header, 200, 400);
    }

    #[test]
    fn fuzzed_rings() {
        exercise("hostile_ring", hostile_ring, 500, 600);
    }

    #[test]
    fn fuzzed_routers() {
        exercise("router", router, 200, 900);
    }

    #[test]
    fn a_session_is_resumed_and_its_reply_repeated() {
        let name = Name::parse("c").unwrap();
        let frames = |resume| {
            let topic = "a.b".parse().unwrap();
            let mut bytes = ClientFrame::hello(name.clone(), 7, resume).encode().unwrap();
            bytes.extend(ClientFrame::Intern { serial: 9, kind: InternKind::Topic, name: topic }.encode().unwrap());
            bytes
        };
        let mut plane = ControlPlane::new(Machine::new(|_| {}).unwrap());
        plane.serve(&frames(None), 3);
        assert_eq!(plane.sessions.waiting_ids().count(), 1);
        plane.serve(&frames(Some(Token::from_bytes([1; 16]))), 100);
        let session = plane.session.as_ref().unwrap();
        assert!(matches!(session.replies.find(9), Some(BrokerFrame::Interned { serial: 9, id: 0 })));
        plane.serve(&ClientFrame::hello(name, 7, None).encode().unwrap(), 100);
        assert_eq!(plane.machine.id(1), plane.session.as_ref().unwrap().id, "a new one");
        plane.machine.finish();
    }
}

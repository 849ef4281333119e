//! What goes over the control socket: questions, which are kept until they are answered and asked again when the socket
//! was lost before (S6 in `actors.md`).

use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Questions that may be under way at a time: the broker keeps as many answers. Further ones wait their turn here.
const MOST_UNDER_WAY: usize = 64;

/// The sending half of the control socket.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// `None` while there is no connection.
    socket: Option<Arc<UnixStream>>,
    /// Questions without an answer, by their serials, in order.
    asked: VecDeque<(u32, Vec<u8>)>,
    /// So many of them, the first, went over this socket.
    under_way: usize,
}

impl Outgoing {
    pub(super) fn new(socket: Arc<UnixStream>) -> Outgoing {
        Outgoing { socket: Some(socket), asked: VecDeque::new(), under_way: 0 }
    }

    /// Sends a question, now or in its turn.
    pub(super) fn ask(&mut self, serial: u32, question: Vec<u8>) {
        self.asked.push_back((serial, question));
        self.send_more();
    }

    /// A question was answered.
    pub(super) fn answered(&mut self, serial: u32) {
        let Some(at) = self.asked.iter().position(|(known, _)| *known == serial) else { return };
        self.asked.remove(at);
        self.under_way -= usize::from(at < self.under_way);
        self.send_more();
    }

    /// Sends a frame that is no question. Whether it arrives is not known.
    pub(super) fn say(&mut self, frame: &[u8]) {
        let Some(socket) = &self.socket else { return };
        if (&**socket).write_all(frame).is_err() {
            self.lose();
        }
    }

    /// The socket is lost. Its reader sees its end, if it did not see it first.
    pub(super) fn lose(&mut self) {
        self.under_way = 0;
        if let Some(socket) = self.socket.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// The session goes on over another socket: says `first`, then asks again.
    pub(super) fn resume(&mut self, socket: Arc<UnixStream>, first: &[u8]) {
        (self.socket, self.under_way) = (Some(socket), 0);
        self.say(first);
        self.send_more();
    }

    fn send_more(&mut self) {
        while self.under_way < MOST_UNDER_WAY.min(self.asked.len()) {
            let Some(socket) = &self.socket else { return };
            if (&**socket).write_all(&self.asked[self.under_way].1).is_err() {
                return self.lose();
            }
            self.under_way += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn pair() -> (Arc<UnixStream>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours.into(), theirs)
    }

    fn read(socket: &mut UnixStream) -> Vec<u8> {
        let mut bytes = [0; 256];
        let read = socket.read(&mut bytes).unwrap_or(0);
        bytes[..read].to_vec()
    }

    #[test]
    fn unanswered_questions_are_asked_again_in_their_order() {
        let (ours, mut theirs) = pair();
        let mut outgoing = Outgoing::new(ours);
        (1..=4).for_each(|serial| outgoing.ask(serial, vec![serial as u8]));
        assert_eq!(read(&mut theirs), [1, 2, 3, 4]);
        outgoing.answered(2);
        outgoing.lose();
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "the other side sees the end");
        outgoing.ask(5, vec![5]);
        outgoing.say(b"x");
        let (ours, mut theirs) = pair();
        outgoing.resume(ours, b"!");
        assert_eq!(read(&mut theirs), [b'!', 1, 3, 4, 5]);
    }

    #[test]
    fn no_more_are_under_way_than_the_broker_keeps_answers() {
        let (ours, mut theirs) = pair();
        let mut outgoing = Outgoing::new(ours);
        (0..100).for_each(|serial| outgoing.ask(serial, vec![serial as u8]));
        assert_eq!(read(&mut theirs).len(), MOST_UNDER_WAY);
        outgoing.answered(70);
        assert_eq!(read(&mut theirs), [] as [u8; 0], "one that had not been sent");
        outgoing.answered(0);
        assert_eq!(read(&mut theirs), [64]);
    }

    #[test]
    fn a_socket_that_fails_is_lost_and_nothing_with_it() {
        let (ours, theirs) = pair();
        drop(theirs);
        let mut outgoing = Outgoing::new(ours);
        outgoing.ask(1, vec![1]);
        let (ours, mut theirs) = pair();
        outgoing.resume(ours, b"");
        assert_eq!(read(&mut theirs), [1]);
    }
}

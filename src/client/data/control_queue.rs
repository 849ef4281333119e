//! What goes over the control socket: questions, which are kept until they are answered and asked again when the socket
//! was lost before (S6 in `actors.md`).

use crate::wire::control::ClientFrame;
use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Questions that may be under way at a time: the broker keeps as many answers. Further ones wait their turn here.
const MOST_UNDER_WAY: usize = 64;

/// The sending half of the control socket.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// `None` while there is no connection.
    socket: Option<Arc<UnixStream>>,
    /// Questions without an answer, by their serials, in order.
    asked: VecDeque<(u32, ClientFrame)>,
    /// So many of them, the first, went over this socket.
    under_way: usize,
    /// So many of them, the first, went over this socket or over one before it, to the same broker.
    sent: usize,
    /// Questions that wait until the session is what it was, at another broker. `None`: it is.
    later: Option<VecDeque<(u32, ClientFrame)>>,
}

impl Outgoing {
    pub(crate) fn new(socket: Arc<UnixStream>) -> Outgoing {
        Outgoing { socket: Some(socket), asked: VecDeque::new(), under_way: 0, sent: 0, later: None }
    }

    /// Sends a question, now or in its turn.
    pub(crate) fn ask(&mut self, serial: u32, question: ClientFrame) {
        match &mut self.later {
            Some(later) => later.push_back((serial, question)),
            None => self.asked.push_back((serial, question)),
        }
        self.send_more();
    }

    /// A question was answered: this one.
    pub(crate) fn answered(&mut self, serial: u32) -> Option<ClientFrame> {
        let at = self.asked.iter().position(|(known, _)| *known == serial)?;
        let question = self.asked.remove(at);
        self.under_way -= usize::from(at < self.under_way);
        self.sent -= usize::from(at < self.sent);
        self.send_more();
        question.map(|(_, question)| question)
    }

    /// Nobody waits for the answer to this question any more. `true`: it was never sent, and will not be.
    pub(crate) fn withdraw(&mut self, serial: u32) -> bool {
        // Dropped soon after it was asked: that is where to look first.
        let at = |queue: &VecDeque<(u32, ClientFrame)>| queue.iter().rposition(|(known, _)| *known == serial);
        if let Some(later) = &mut self.later
            && let Some(at) = at(later)
        {
            // Whom it may have been sent to is gone.
            later.remove(at);
            return true;
        }
        let unsent = at(&self.asked).filter(|at| *at >= self.sent);
        unsent.is_some_and(|at| self.asked.remove(at).is_some())
    }

    /// Another broker is there: these questions come first, and others when the session is what it was.
    pub(crate) fn begin_anew(&mut self, socket: Arc<UnixStream>, first: VecDeque<(u32, ClientFrame)>) {
        let asked = std::mem::replace(&mut self.asked, first);
        // If there is something in it already, the last attempt did not come to its end, and `asked` was its own.
        self.later.get_or_insert(asked);
        (self.socket, self.under_way, self.sent) = (Some(socket), 0, 0);
        self.send_more();
    }

    /// The session is what it was. What was to be ended at the broker before has ended with it.
    pub(crate) fn go_on(&mut self) {
        let ends = |frame: &ClientFrame| matches!(frame, ClientFrame::Unsubscribe { .. } | ClientFrame::Unserve { .. });
        let later = self.later.take().unwrap_or_default();
        self.asked.extend(later.into_iter().filter(|(_, question)| !ends(question)));
        self.send_more();
    }

    /// Sends a frame that is no question. Whether it arrives is not known.
    pub(crate) fn say(&mut self, frame: &[u8]) {
        let Some(socket) = &self.socket else { return };
        if (&**socket).write_all(frame).is_err() {
            self.lose();
        }
    }

    /// The socket is lost. Its reader sees its end, if it did not see it first.
    pub(crate) fn lose(&mut self) {
        self.under_way = 0;
        if let Some(socket) = self.socket.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// The session goes on over another socket: says `first`, then asks again.
    pub(crate) fn resume(&mut self, socket: Arc<UnixStream>, first: &[u8]) {
        (self.socket, self.under_way) = (Some(socket), 0);
        self.say(first);
        self.send_more();
    }

    fn send_more(&mut self) {
        while self.under_way < MOST_UNDER_WAY.min(self.asked.len()) {
            let Some(socket) = &self.socket else { return };
            // Questions have names and patterns in them that are not too long.
            let question = self.asked[self.under_way].1.encode().unwrap_or_default();
            if (&**socket).write_all(&question).is_err() {
                return self.lose();
            }
            self.under_way += 1;
            self.sent = self.sent.max(self.under_way);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::FrameDecoder;
    use crate::wire::control::CLIENT_FRAME_BYTES_MAX;
    use std::io::Read;

    fn pair() -> (Arc<UnixStream>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours.into(), theirs)
    }

    /// The serials of what came.
    fn read(socket: &mut UnixStream) -> Vec<u32> {
        let mut bytes = [0; 4096];
        let read = socket.read(&mut bytes).unwrap_or(0);
        let mut decoder = FrameDecoder::new(CLIENT_FRAME_BYTES_MAX);
        decoder.push(&bytes[..read]);
        let mut serials = Vec::new();
        while let Some(body) = decoder.next_frame().unwrap() {
            serials.push(ClientFrame::decode(body).unwrap().serial().unwrap_or(0));
        }
        serials
    }

    fn status(serial: u32) -> ClientFrame {
        ClientFrame::Status { serial }
    }

    #[test]
    fn unanswered_questions_are_asked_again_in_their_order() {
        let (ours, mut theirs) = pair();
        let mut outgoing = Outgoing::new(ours);
        (1..=4).for_each(|serial| outgoing.ask(serial, status(serial)));
        assert_eq!(read(&mut theirs), [1, 2, 3, 4]);
        assert_eq!(outgoing.answered(2), Some(status(2)));
        outgoing.lose();
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "the other side sees the end");
        outgoing.ask(5, status(5));
        outgoing.say(b"x");
        let (ours, mut theirs) = pair();
        outgoing.resume(ours, &ClientFrame::Resumed.encode().unwrap());
        assert_eq!(read(&mut theirs), [0, 1, 3, 4, 5]);
    }

    #[test]
    fn no_more_are_under_way_than_the_broker_keeps_answers() {
        let (ours, mut theirs) = pair();
        let mut outgoing = Outgoing::new(ours);
        (0..100).for_each(|serial| outgoing.ask(serial, status(serial)));
        assert_eq!(read(&mut theirs).len(), MOST_UNDER_WAY);
        outgoing.answered(70);
        assert_eq!(read(&mut theirs), [] as [u32; 0], "one that had not been sent");
        outgoing.answered(0);
        assert_eq!(read(&mut theirs), [64]);
    }

    #[test]
    fn a_question_that_was_never_sent_is_withdrawn() {
        let (ours, mut theirs) = pair();
        let mut outgoing = Outgoing::new(ours);
        (0..100).for_each(|serial| outgoing.ask(serial, status(serial)));
        assert_eq!(read(&mut theirs).len(), MOST_UNDER_WAY);
        assert!(!outgoing.withdraw(0) && !outgoing.withdraw(63), "the broker has them");
        assert!(outgoing.withdraw(64) && !outgoing.withdraw(64));
        outgoing.lose();
        assert!(!outgoing.withdraw(1), "the same broker may have it");
        let (ours, mut theirs) = pair();
        outgoing.resume(ours, b"");
        read(&mut theirs);
        outgoing.answered(0);
        assert_eq!(read(&mut theirs), [65]);
        assert!(!outgoing.withdraw(65) && outgoing.withdraw(66));
        let (ours, mut theirs) = pair();
        outgoing.begin_anew(ours, VecDeque::from([(200, status(200))]));
        assert!(!outgoing.withdraw(200) && outgoing.withdraw(1), "whom it was sent to is gone");
        outgoing.answered(200);
        outgoing.go_on();
        assert_eq!(read(&mut theirs)[..3], [200, 2, 3]);
    }

    #[test]
    fn a_socket_that_fails_is_lost_and_nothing_with_it() {
        let (ours, theirs) = pair();
        drop(theirs);
        let mut outgoing = Outgoing::new(ours);
        outgoing.ask(1, status(1));
        let (ours, mut theirs) = pair();
        outgoing.resume(ours, b"");
        assert_eq!(read(&mut theirs), [1]);
    }

    #[test]
    fn at_another_broker_the_session_comes_first() {
        let (ours, _theirs) = pair();
        let mut outgoing = Outgoing::new(ours);
        outgoing.ask(1, status(1));
        outgoing.ask(2, ClientFrame::Unsubscribe { serial: 2, subscription: 7 });
        outgoing.lose();
        for _ in 0..2 {
            let (ours, mut theirs) = pair();
            outgoing.begin_anew(ours, VecDeque::from([(10, status(10)), (11, status(11))]));
            assert_eq!(read(&mut theirs), [10, 11]);
            outgoing.ask(3, status(3));
            outgoing.answered(10);
            assert_eq!(read(&mut theirs), [] as [u32; 0]);
            outgoing.lose();
        }
        let (ours, mut theirs) = pair();
        outgoing.begin_anew(ours, VecDeque::from([(10, status(10))]));
        outgoing.answered(10);
        outgoing.go_on();
        assert_eq!(read(&mut theirs), [10, 1, 3, 3], "what was to be ended there has ended");
    }
}

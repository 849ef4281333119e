//! The sending half of the control socket: control requests, which are kept until their replies come and sent again
//! when the socket was lost before (S6 in `actors.md`).

use crate::wire::control::ClientFrame;
use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Requests that may be outstanding at a time: the broker keeps as many replies. Further ones wait here.
const OUTSTANDING_MAX: usize = 64;

/// The sending half of the control socket.
#[derive(Debug)]
pub(crate) struct ControlQueue {
    /// `None` while there is no connection.
    socket: Option<Arc<UnixStream>>,
    /// Requests without a reply, by their serials, in order.
    requests: VecDeque<(u32, ClientFrame)>,
    /// So many of them, the first, went over this socket.
    outstanding: usize,
    /// So many of them, the first, went over this socket or over one before it, to the same broker.
    sent: usize,
    /// Requests held back until the session is restored at another broker; `None` outside of a restore.
    deferred: Option<VecDeque<(u32, ClientFrame)>>,
}

impl ControlQueue {
    pub(crate) fn new(socket: Arc<UnixStream>) -> ControlQueue {
        ControlQueue { socket: Some(socket), requests: VecDeque::new(), outstanding: 0, sent: 0, deferred: None }
    }

    /// Sends a request, now or in its turn.
    pub(crate) fn send(&mut self, serial: u32, request: ClientFrame) {
        match &mut self.deferred {
            Some(deferred) => deferred.push_back((serial, request)),
            None => self.requests.push_back((serial, request)),
        }
        self.send_more();
    }

    /// The reply to a request has come: removes and returns the request.
    pub(crate) fn complete(&mut self, serial: u32) -> Option<ClientFrame> {
        let at = self.requests.iter().position(|(known, _)| *known == serial)?;
        let request = self.requests.remove(at);
        self.outstanding -= usize::from(at < self.outstanding);
        self.sent -= usize::from(at < self.sent);
        self.send_more();
        request.map(|(_, request)| request)
    }

    /// The reply to this request is not wanted any more. `true`: it was never sent, and will not be.
    pub(crate) fn withdraw(&mut self, serial: u32) -> bool {
        // Mostly dropped soon after it was sent: search from the back.
        let at = |queue: &VecDeque<(u32, ClientFrame)>| queue.iter().rposition(|(known, _)| *known == serial);
        if let Some(deferred) = &mut self.deferred
            && let Some(at) = at(deferred)
        {
            // The broker that may have it is gone.
            deferred.remove(at);
            return true;
        }
        let resend = at(&self.requests).filter(|at| *at >= self.sent);
        resend.is_some_and(|at| self.requests.remove(at).is_some())
    }

    /// Another broker has greeted the client: these requests come first, others when the session is restored.
    pub(crate) fn restart(&mut self, socket: Arc<UnixStream>, first: VecDeque<(u32, ClientFrame)>) {
        let requests = std::mem::replace(&mut self.requests, first);
        // If there is something in it already, the last restore did not complete, and `requests` were its own.
        self.deferred.get_or_insert(requests);
        (self.socket, self.outstanding, self.sent) = (Some(socket), 0, 0);
        self.send_more();
    }

    /// The session is restored. What was to be ended at the broker before has ended with it.
    pub(crate) fn resume_deferred(&mut self) {
        let ends = |frame: &ClientFrame| matches!(frame, ClientFrame::Unsubscribe { .. } | ClientFrame::Unserve { .. });
        let deferred = self.deferred.take().unwrap_or_default();
        self.requests.extend(deferred.into_iter().filter(|(_, request)| !ends(request)));
        self.send_more();
    }

    /// Sends a frame without a reply. Whether it arrives is not known.
    pub(crate) fn send_frame(&mut self, frame: &[u8]) {
        let Some(socket) = &self.socket else { return };
        if (&**socket).write_all(frame).is_err() {
            self.disconnect();
        }
    }

    /// The socket is lost. Its reader sees its end, if it did not see it first.
    pub(crate) fn disconnect(&mut self) {
        self.outstanding = 0;
        if let Some(socket) = self.socket.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// The session goes on over another socket: says `first`, then sends the requests again.
    pub(crate) fn resume(&mut self, socket: Arc<UnixStream>, first: &[u8]) {
        (self.socket, self.outstanding) = (Some(socket), 0);
        self.send_frame(first);
        self.send_more();
    }

    fn send_more(&mut self) {
        while self.outstanding < OUTSTANDING_MAX.min(self.requests.len()) {
            let Some(socket) = &self.socket else { return };
            // Names and patterns in requests are never too long to encode.
            let request = self.requests[self.outstanding].1.encode().unwrap_or_default();
            if (&**socket).write_all(&request).is_err() {
                return self.disconnect();
            }
            self.outstanding += 1;
            self.sent = self.sent.max(self.outstanding);
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
    fn outstanding_requests_are_sent_again_in_their_order() {
        let (ours, mut theirs) = pair();
        let mut control = ControlQueue::new(ours);
        (1..=4).for_each(|serial| control.send(serial, status(serial)));
        assert_eq!(read(&mut theirs), [1, 2, 3, 4]);
        assert_eq!(control.complete(2), Some(status(2)));
        control.disconnect();
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "the other side sees the end");
        control.send(5, status(5));
        control.send_frame(b"x");
        let (ours, mut theirs) = pair();
        control.resume(ours, &ClientFrame::Resumed.encode().unwrap());
        assert_eq!(read(&mut theirs), [0, 1, 3, 4, 5]);
    }

    #[test]
    fn no_more_are_outstanding_than_the_broker_keeps_replies() {
        let (ours, mut theirs) = pair();
        let mut control = ControlQueue::new(ours);
        (0..100).for_each(|serial| control.send(serial, status(serial)));
        assert_eq!(read(&mut theirs).len(), OUTSTANDING_MAX);
        control.complete(70);
        assert_eq!(read(&mut theirs), [] as [u32; 0], "one that had not been sent");
        control.complete(0);
        assert_eq!(read(&mut theirs), [64]);
    }

    #[test]
    fn a_request_that_was_never_sent_is_withdrawn() {
        let (ours, mut theirs) = pair();
        let mut control = ControlQueue::new(ours);
        (0..100).for_each(|serial| control.send(serial, status(serial)));
        assert_eq!(read(&mut theirs).len(), OUTSTANDING_MAX);
        assert!(!control.withdraw(0) && !control.withdraw(63), "the broker has them");
        assert!(control.withdraw(64) && !control.withdraw(64));
        control.disconnect();
        assert!(!control.withdraw(1), "the same broker may have it");
        let (ours, mut theirs) = pair();
        control.resume(ours, b"");
        read(&mut theirs);
        control.complete(0);
        assert_eq!(read(&mut theirs), [65]);
        assert!(!control.withdraw(65) && control.withdraw(66));
        let (ours, mut theirs) = pair();
        control.restart(ours, VecDeque::from([(200, status(200))]));
        assert!(!control.withdraw(200) && control.withdraw(1), "the broker that had it is gone");
        control.complete(200);
        control.resume_deferred();
        assert_eq!(read(&mut theirs)[..3], [200, 2, 3]);
    }

    #[test]
    fn a_socket_that_fails_is_lost_and_nothing_with_it() {
        let (ours, theirs) = pair();
        drop(theirs);
        let mut control = ControlQueue::new(ours);
        control.send(1, status(1));
        let (ours, mut theirs) = pair();
        control.resume(ours, b"");
        assert_eq!(read(&mut theirs), [1]);
    }

    #[test]
    fn at_another_broker_the_session_comes_first() {
        let (ours, _theirs) = pair();
        let mut control = ControlQueue::new(ours);
        control.send(1, status(1));
        control.send(2, ClientFrame::Unsubscribe { serial: 2, subscription: 7 });
        control.disconnect();
        for _ in 0..2 {
            let (ours, mut theirs) = pair();
            control.restart(ours, VecDeque::from([(10, status(10)), (11, status(11))]));
            assert_eq!(read(&mut theirs), [10, 11]);
            control.send(3, status(3));
            control.complete(10);
            assert_eq!(read(&mut theirs), [] as [u32; 0]);
            control.disconnect();
        }
        let (ours, mut theirs) = pair();
        control.restart(ours, VecDeque::from([(10, status(10))]));
        control.complete(10);
        control.resume_deferred();
        assert_eq!(read(&mut theirs), [10, 1, 3, 3], "what was to be ended there has ended");
    }
}

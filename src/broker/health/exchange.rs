//! A connection of the endpoints as the HTTP library sees it: one request at a time, and a limit of time to read.
//!
//! The library decodes every request that it has read, and keeps their responses in memory while the client does not
//! read. So it gets no more than the head of one request; what follows stays in the kernel until the response is
//! written. The client's next requests (pipelining) then make it wait, not the broker.
//!
//! | state | reads | ends when |
//! |---|---|---|
//! | `Head` | up to the end of the next head | that is found |
//! | `Handled` | nothing | the body of the response has been passed to the library |
//! | `Answered` | nothing | the socket has taken everything |
//! | `Refused` | everything: until the library closes, it reads the rest of a refused body | - |

use super::connections::{Connection, Connections};
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::web::Bytes;
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Bytes that are read at a time.
const CHUNK: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Handled,
    Answered,
    Refused,
}

/// What the socket and the handlers of a connection share.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) connection: Rc<Connection>,
    state: Cell<State>,
}

impl Exchange {
    /// The request is refused because of its body: no further request is read.
    pub(super) fn refuse_body(&self) {
        self.state.set(State::Refused);
    }

    fn step(&self, from: State, to: State) -> bool {
        let steps = self.state.get() == from;
        if steps {
            self.state.set(to);
        }
        steps
    }
}

/// A socket of which the library reads one head at a time.
pub(super) struct Socket<T> {
    stream: T,
    exchange: Rc<Exchange>,
    head: HeadEnd,
    /// Read, and not passed on: it follows a head.
    ahead: Vec<u8>,
    unread_timeout: Duration,
    /// Runs while the client reads nothing.
    unread: Option<Pin<Box<Sleep>>>,
}

impl<T> Socket<T> {
    /// A client that reads nothing for `unread_timeout` is disconnected.
    pub(super) fn new(stream: T, connections: &Connections, unread_timeout: Duration) -> Socket<T> {
        let exchange = Rc::new(Exchange { connection: connections.enter(), state: Cell::new(State::Head) });
        Socket { stream, exchange, head: HeadEnd::default(), ahead: Vec::new(), unread_timeout, unread: None }
    }

    pub(super) fn stream(&self) -> &T {
        &self.stream
    }

    pub(super) fn exchange(&self) -> &Rc<Exchange> {
        &self.exchange
    }

    fn check(&self, context: &Context<'_>) -> io::Result<()> {
        match self.exchange.connection.is_closed(context.waker()) {
            true => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "closed to make room")),
            false => Ok(()),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Socket<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(context)?;
        let state = this.exchange.state.get();
        if matches!(state, State::Handled | State::Answered) {
            // `poll_flush` wakes the task.
            return Poll::Pending;
        }
        if this.ahead.is_empty() {
            let mut chunk = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut chunk))?;
            this.ahead.extend_from_slice(chunk.filled());
        }
        let next = &this.ahead[..this.ahead.len().min(into.remaining())];
        let end = if state == State::Head { this.head.find(next) } else { None };
        let taken = end.unwrap_or(next.len());
        into.put_slice(&next[..taken]);
        this.ahead.drain(..taken);
        if end.is_some() {
            this.exchange.state.set(State::Handled);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Socket<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(context)?;
        if let Poll::Ready(written) = Pin::new(&mut this.stream).poll_write(context, bytes) {
            this.unread = None;
            return Poll::Ready(written);
        }
        let timeout = this.unread_timeout;
        let unread = this.unread.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(unread.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the response is not read")))
    }

    /// The library calls it when the socket has taken all that it had to write.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(context)?;
        ready!(Pin::new(&mut this.stream).poll_flush(context))?;
        this.exchange.connection.wrote();
        if this.exchange.step(State::Answered, State::Head) {
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}

/// The body of a response. Its bytes count as unread from when the library takes them.
pub(super) struct Answer {
    body: BoxBody,
    exchange: Rc<Exchange>,
}

impl Answer {
    pub(super) fn new(body: BoxBody, exchange: Rc<Exchange>) -> Answer {
        Answer { body, exchange }
    }
}

impl MessageBody for Answer {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let next = ready!(Pin::new(&mut self.body).poll_next(context));
        if let Some(Ok(bytes)) = &next {
            self.exchange.connection.owes(bytes.len());
        }
        Poll::Ready(next)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.exchange.step(State::Handled, State::Answered);
    }
}

/// Finds the end of a request's head: the first empty line after one that is not, as the library's parser does.
#[derive(Debug, Default)]
struct HeadEnd {
    /// A line of the head was seen.
    has_begun: bool,
    /// The present line has a character.
    has_text: bool,
}

impl HeadEnd {
    /// The number of bytes up to the end of the head, that included. After it the next head begins.
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' if self.has_begun && !self.has_text => {
                    *self = HeadEnd::default();
                    return Some(at + 1);
                }
                b'\n' => self.has_text = false,
                b'\r' => {}
                _ => (self.has_begun, self.has_text) = (true, true),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    fn heads(parts: &[&[u8]]) -> Vec<usize> {
        let (mut head, mut found, mut before) = (HeadEnd::default(), Vec::new(), 0);
        for part in parts {
            let mut from = 0;
            while let Some(end) = head.find(&part[from..]) {
                from += end;
                found.push(before + from);
            }
            before += part.len();
        }
        found
    }

    #[test]
    fn a_head_ends_at_the_same_place_however_it_is_split() {
        let text = b"\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET /\nA: b\n\n\n\r\nGET";
        for at in 0..text.len() {
            let (a, b) = text.split_at(at);
            assert_eq!(heads(&[a, b]), [30, 42], "split at {at}");
        }
        assert_eq!(heads(&[b"\n\r\n\n"]), [0; 0], "empty lines before a head are none");
    }

    fn socket(connections: &Connections) -> (Socket<DuplexStream>, DuplexStream) {
        let (ours, theirs) = duplex(64);
        (Socket::new(ours, connections, Duration::from_secs(5)), theirs)
    }

    async fn read_now(socket: &mut Socket<DuplexStream>) -> Option<String> {
        let mut bytes = [0; 100];
        let read = poll_fn(|context| {
            let mut into = ReadBuf::new(&mut bytes);
            Poll::Ready(match Pin::new(&mut *socket).poll_read(context, &mut into) {
                Poll::Ready(result) => Some(result.map(|()| into.filled().len())),
                Poll::Pending => None,
            })
        });
        let read = read.await?.unwrap();
        Some(String::from_utf8_lossy(&bytes[..read]).into_owned())
    }

    #[actix::test]
    async fn the_next_request_is_read_when_the_response_is_written() {
        let (mut socket, mut client) = socket(&Connections::new(4, 100));
        client.write_all(b"GET /a\n\nGET /b\n\n").await.unwrap();
        assert_eq!(read_now(&mut socket).await.as_deref(), Some("GET /a\n\n"));
        assert_eq!(read_now(&mut socket).await, None, "it is being handled");
        socket.flush().await.unwrap();
        assert_eq!(read_now(&mut socket).await, None, "there was nothing to flush");
        let mut answer = Answer::new(BoxBody::new("hello"), socket.exchange().clone());
        let body = poll_fn(|context| Pin::new(&mut answer).poll_next(context)).await.unwrap().unwrap();
        socket.write_all(&body).await.unwrap();
        socket.flush().await.unwrap();
        assert_eq!(read_now(&mut socket).await, None, "there may be more of the body");
        drop(answer);
        assert_eq!(read_now(&mut socket).await, None);
        socket.flush().await.unwrap();
        assert_eq!(read_now(&mut socket).await.as_deref(), Some("GET /b\n\n"));
    }

    #[actix::test]
    async fn a_refused_body_is_read_to_its_end() {
        let (mut socket, mut client) = socket(&Connections::new(4, 100));
        client.write_all(b"PUT /\n\none\n\ntwo\n\n").await.unwrap();
        assert_eq!(read_now(&mut socket).await.as_deref(), Some("PUT /\n\n"));
        socket.exchange().refuse_body();
        drop(Answer::new(BoxBody::new("no"), socket.exchange().clone()));
        socket.flush().await.unwrap();
        assert_eq!(read_now(&mut socket).await.as_deref(), Some("one\n\ntwo\n\n"));
    }

    #[actix::test]
    async fn who_gives_way_can_do_nothing_more() {
        let connections = Connections::new(1, 100);
        let (mut first, _client) = socket(&connections);
        first.write_all(b"fine").await.unwrap();
        let (_second, _other) = socket(&connections);
        let kinds = [
            first.read(&mut [0; 8]).await.unwrap_err().kind(),
            first.write(b"a").await.unwrap_err().kind(),
            first.flush().await.unwrap_err().kind(),
            first.shutdown().await.unwrap_err().kind(),
        ];
        assert_eq!(kinds, [io::ErrorKind::ConnectionAborted; 4]);
    }
}

//! Frames over a Unix stream.

use crate::shm::descriptors;
use crate::wire::codec::{CodecError, FrameDecoder};
use crate::wire::control::{BrokerFrame, CLIENT_FRAME_BYTES_MAX};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The timeout of the final frame, in either direction.
pub(super) const FINAL_FRAME_TIMEOUT: Duration = Duration::from_millis(500);

/// The control socket of one connection. A cancelled read loses nothing; after a write that was cancelled within a
/// frame nothing more can be written.
#[derive(Debug)]
pub(in crate::broker) struct FrameStream {
    stream: Arc<UnixStream>,
    decoder: FrameDecoder,
    /// A frame was written in part.
    is_torn: bool,
}

/// A stream on its way to another thread.
#[derive(Debug)]
pub(in crate::broker) struct Detached {
    socket: std::os::unix::net::UnixStream,
    decoder: FrameDecoder,
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub(in crate::broker) enum ReadError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Codec(#[from] CodecError),
}

impl FrameStream {
    /// No valid frame of a client reaches the limit; it is also what a client can make the broker keep of one that it
    /// does not complete.
    pub(in crate::broker) fn new(stream: UnixStream) -> FrameStream {
        FrameStream { stream: stream.into(), decoder: FrameDecoder::new(CLIENT_FRAME_BYTES_MAX), is_torn: false }
    }

    /// Removes the stream from this thread's runtime. `None`: its socket is shared, or the system refuses.
    pub(in crate::broker) fn detach(self) -> Option<Detached> {
        let FrameStream { stream, decoder, .. } = self;
        let socket = Arc::into_inner(stream)?.into_std().ok()?;
        Some(Detached { socket, decoder })
    }

    /// Registers a detached stream with this thread's runtime.
    ///
    /// # Errors
    ///
    /// If the system cannot watch it.
    pub(in crate::broker) fn attach(detached: Detached) -> io::Result<FrameStream> {
        let Detached { socket, decoder } = detached;
        Ok(FrameStream { stream: UnixStream::from_std(socket)?.into(), decoder, is_torn: false })
    }

    /// The socket.
    pub(in crate::broker) fn socket(&self) -> &Arc<UnixStream> {
        &self.stream
    }

    /// The body of the next frame; `None` at an end between two frames.
    ///
    /// Descriptors that come along are dropped by the kernel, because `read` makes no room for them.
    pub(in crate::broker) async fn read(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        loop {
            if let Some(body) = self.decoder.next_frame()? {
                return Ok(Some(body.to_vec()));
            }
            self.stream.readable().await?;
            // On the stack during a read only: an idle connection holds no buffer.
            let mut buffer = [0; 2048];
            match self.stream.try_read(&mut buffer) {
                Ok(0) => {
                    self.decoder.finish()?;
                    return Ok(None);
                }
                Ok(n) => self.decoder.push(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends bytes, and descriptors with the first of them.
    pub(in crate::broker) async fn write(&mut self, mut bytes: &[u8], mut fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if self.is_torn {
            return Err(io::Error::other("a frame was cut off"));
        }
        while !bytes.is_empty() {
            self.stream.writable().await?;
            let send = || descriptors::send(self.stream.as_fd(), bytes, fds);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Ok(n) => {
                    (bytes, fds) = (&bytes[n..], &[]);
                    self.is_torn = !bytes.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Sends a frame, with descriptors.
pub(super) async fn send(stream: &mut FrameStream, frame: &BrokerFrame, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    stream.write(&frame.encode().map_err(io::Error::other)?, fds).await
}

/// Sends the last frame, within [`FINAL_FRAME_TIMEOUT`].
pub(super) async fn send_final_frame(stream: &mut FrameStream, frame: &BrokerFrame) {
    let Ok(bytes) = frame.encode() else { return };
    let _ = tokio::time::timeout(FINAL_FRAME_TIMEOUT, stream.write(&bytes, &[])).await;
}

//! stdin and stdout, each in a thread of its own: reads and writes there block.

use super::super::failure::{Code, Failure};
use super::super::output::Out;
use super::protocol::Event;
use crate::shm::stdio::stdin_was_closed;
use std::io::{self, BufRead, BufReader, Read};
use std::thread::JoinHandle;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Lines read ahead.
const AHEAD: usize = 64;
/// Events that wait for the reader of stdout; then whatever produces them waits.
const BEHIND: usize = 256;

/// What was read.
#[derive(Debug)]
pub(super) enum Input {
    Line { number: u64, text: Vec<u8> },
    TooLong { number: u64, limit: usize },
    Failed(io::Error),
}

/// Reads lines of at most `limit` bytes. The channel ends with the input.
///
/// # Errors
///
/// If stdin is closed, or there can be no thread.
pub(super) fn read(limit: usize) -> Result<Receiver<Input>, Failure> {
    if stdin_was_closed() {
        return Err(Failure::new(Code::Usage, "cannot read stdin: it is closed"));
    }
    let (lines, received) = channel(AHEAD);
    let read = move || {
        let mut stdin = BufReader::new(io::stdin());
        for number in 1.. {
            let input = match next_line(&mut stdin, limit) {
                Ok(None) => return,
                Ok(Some(Some(text))) if text.trim_ascii().is_empty() => continue,
                Ok(Some(Some(text))) => Input::Line { number, text },
                Ok(Some(None)) => Input::TooLong { number, limit },
                Err(error) => Input::Failed(error),
            };
            let is_last = matches!(input, Input::Failed(_));
            if lines.blocking_send(input).is_err() || is_last {
                return;
            }
        }
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read).map_err(no_thread)?;
    Ok(received)
}

/// The next line without its end; `Some(None)` for one that is too long and was skipped, `None` at the end.
fn next_line(from: &mut impl BufRead, limit: usize) -> io::Result<Option<Option<Vec<u8>>>> {
    let mut text = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    if from.by_ref().take(most).read_until(b'\n', &mut text)? == 0 {
        return Ok(None);
    }
    if text.last() == Some(&b'\n') {
        text.pop();
    } else if text.len() > limit {
        from.skip_until(b'\n')?;
        return Ok(Some(None));
    }
    Ok(Some(Some(text)))
}

/// The writer of stdout.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) events: Sender<Event>,
    /// Ends when no sender is left, or when stdout fails.
    pub(super) writer: JoinHandle<Result<(), Failure>>,
}

/// Writes events, each at once.
///
/// # Errors
///
/// If stdout is closed, or there can be no thread.
pub(super) fn write() -> Result<Output, Failure> {
    let mut out = Out::new()?;
    let (events, mut received) = channel::<Event>(BEHIND);
    let write = move || {
        while let Some(event) = received.blocking_recv() {
            out.write(&event.line())?;
            // What waits goes out together.
            while let Ok(event) = received.try_recv() {
                out.write(&event.line())?;
            }
            out.flush()?;
        }
        Ok(())
    };
    let writer = std::thread::Builder::new().name("stdout".to_owned()).spawn(write).map_err(no_thread)?;
    Ok(Output { events, writer })
}

#[allow(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn no_thread(error: io::Error) -> Failure {
    Failure::new(Code::Unavailable, format!("cannot start a thread: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_the_next_one_is_whole() {
        let mut from = BufReader::new(&b"abc\n12345\n1234\n\nend"[..]);
        let mut next = || next_line(&mut from, 4).unwrap();
        assert_eq!(next(), Some(Some(b"abc".to_vec())));
        assert_eq!(next(), Some(None));
        assert_eq!(next(), Some(Some(b"1234".to_vec())));
        assert_eq!(next(), Some(Some(Vec::new())));
        assert_eq!(next(), Some(Some(b"end".to_vec())));
        assert_eq!(next(), None);
    }
}

//! The base protocol: a header, an empty line, and as many bytes of JSON as the header says.
//!
//! `lsp-server` reads it too, but allocates whatever length a header states and ends at the first message that it does
//! not understand. Here a length has a limit, and a message that is too long is skipped.

use std::io::{self, BufRead, ErrorKind, Read};

/// The longest line of a header, and the most lines.
const HEADER_LINE_MAX: u64 = 1024;
const HEADER_LINES_MAX: usize = 32;

/// What a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// The bytes of a message.
    Message(Vec<u8>),
    /// A message with more bytes than the limit; it was skipped.
    TooLong { length: u64 },
}

/// Reads the next frame; `None` at the end of input.
///
/// # Errors
///
/// If the header is not understood: then the beginning of the next message is unknown. If reading fails.
pub(super) fn read_frame(input: &mut impl BufRead, max_bytes: u64) -> io::Result<Option<Frame>> {
    let Some(length) = read_header(input)? else { return Ok(None) };
    if length > max_bytes {
        let skipped = io::copy(&mut input.take(length), &mut io::sink())?;
        return Ok((skipped == length).then_some(Frame::TooLong { length }));
    }
    let mut body = Vec::new();
    // Grows with what comes, not with what the header says.
    input.take(length).read_to_end(&mut body)?;
    Ok((body.len() as u64 == length).then_some(Frame::Message(body)))
}

/// The length that a header states; `None` at the end of input.
fn read_header(input: &mut impl BufRead) -> io::Result<Option<u64>> {
    let mut length = None;
    for _ in 0..HEADER_LINES_MAX {
        let mut line = Vec::new();
        input.take(HEADER_LINE_MAX).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        let Some(text) = line.strip_suffix(b"\n") else {
            // The end of input within a header is an end, too.
            return if line.len() as u64 == HEADER_LINE_MAX { Err(malformed(&line)) } else { Ok(None) };
        };
        let text = std::str::from_utf8(text).map_err(|_| malformed(&line))?.trim_end_matches('\r');
        if text.is_empty() {
            return length.map(Some).ok_or_else(|| invalid("header without Content-Length".to_owned()));
        }
        let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let (name, value) =
            text.split_once(':').filter(|(name, _)| is_name(name.trim())).ok_or_else(|| malformed(&line))?;
        if name.trim().eq_ignore_ascii_case("Content-Length") {
            length = Some(value.trim().parse().map_err(|_| malformed(&line))?);
        }
    }
    Err(invalid(format!("header with more than {HEADER_LINES_MAX} lines")))
}

fn malformed(line: &[u8]) -> io::Error {
    let start: String = String::from_utf8_lossy(line).chars().take(80).collect();
    invalid(format!("malformed header: {start:?}"))
}

fn invalid(message: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(bytes: &[u8]) -> (Vec<Frame>, Option<String>) {
        let (mut input, mut frames) = (bytes, Vec::new());
        loop {
            match read_frame(&mut input, 10) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, None),
                Err(error) => return (frames, Some(error.to_string())),
            }
        }
    }

    #[test]
    fn frames_are_read_one_after_the_other() {
        let text = b"Content-Length: 2\r\n\r\n{}content-length:3\nContent-Type: x\n\n[1]Content-Length: 0\r\n\r\n";
        let message = |text: &str| Frame::Message(text.as_bytes().to_vec());
        assert_eq!(all(text), (vec![message("{}"), message("[1]"), message("")], None));
    }

    #[test]
    fn a_message_beyond_the_limit_is_skipped() {
        let (frames, error) = all(b"Content-Length: 11\r\n\r\n0123456789aContent-Length: 2\r\n\r\n{}");
        assert_eq!(frames, [Frame::TooLong { length: 11 }, Frame::Message(b"{}".to_vec())]);
        assert_eq!(error, None);
    }

    #[test]
    fn a_header_that_is_not_understood_is_an_error_that_names_it() {
        for (text, named) in [
            ("garbage\r\n\r\n", "malformed header: \"garbage\\r\\n\""),
            ("Content-Length: x\r\n\r\n", "malformed header: \"Content-Length: x"),
            ("Content-Length: -1\r\n\r\n", "malformed header"),
            ("Content-Length: 99999999999999999999999\r\n\r\n", "malformed header"),
            ("Content-Type: x\r\n\r\n{}", "header without Content-Length"),
            ("{\"jsonrpc\": \"2.0\", \"id\": 1}\n", "header"),
        ] {
            let (_, error) = all(text.as_bytes());
            assert!(error.as_deref().is_some_and(|error| error.contains(named)), "{text:?}: {error:?}");
        }
        assert!(all(&[b'x'; 5000]).1.is_some_and(|error| error.contains("malformed header")));
        assert!(all("a: b\n".repeat(100).as_bytes()).1.is_some_and(|error| error.contains("more than 32 lines")));
        assert!(all(&[0xff, b':', b'1', b'\n']).1.is_some());
    }

    #[test]
    fn a_length_that_is_a_lie_costs_no_memory() {
        let huge = format!("Content-Length: {}\r\n\r\n{{}}", u64::MAX);
        assert_eq!(read_frame(&mut huge.as_bytes(), u64::MAX).unwrap(), None);
    }

    proptest! {
        #[test]
        fn an_input_that_is_cut_off_is_an_end(at in 0usize..23) {
            let text = b"Content-Length: 2\r\n\r\n{}";
            prop_assert_eq!(all(&text[..at]), (vec![], None));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = all(&bytes);
        }
    }
}

//! Reads the chunks of a streamed reply as typed messages.
//!
//! A chunk is a message. A program that prints its reply (`lapce-ipc reply … -- COMMAND`) writes JSON lines, and a
//! chunk then is what was printed so far: several lines, or a part of one.

use super::completions::{Failure, FailureKind, Part};
use crate::wire::typed::{CompletionChunk, ErrorMessage, Form, Message, TypedError};
use std::time::Duration;

/// The longest line.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// The reader of one reply.
#[derive(Debug)]
pub(super) struct Reader {
    call: u64,
    /// The beginning of a line.
    rest: Vec<u8>,
    is_finished: bool,
}

impl Reader {
    pub(super) fn new(call: u64) -> Reader {
        Reader { call, rest: Vec::new(), is_finished: false }
    }

    /// The parts in a chunk.
    ///
    /// # Errors
    ///
    /// The error that the engine has sent, or why the chunk is not understood.
    pub(super) fn chunk(&mut self, chunk: &[u8]) -> Result<Vec<Part>, Failure> {
        if self.rest.is_empty() {
            match Message::decode_any(chunk) {
                Ok((message, _)) => return Ok(vec![self.part(message)?]),
                // It may be a part of a line, or several.
                Err(TypedError::Json { .. }) => {}
                Err(error) => return Err(garbage(&error.to_string())),
            }
        }
        self.rest.extend_from_slice(chunk);
        let mut parts = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            parts.extend(self.line(&line)?);
        }
        if self.rest.len() > LINE_BYTES_MAX {
            return Err(garbage(&format!("a line has more than {LINE_BYTES_MAX} bytes")));
        }
        Ok(parts)
    }

    /// The reply has ended.
    ///
    /// # Errors
    ///
    /// If it was cut off: its last message had no `finish`.
    pub(super) fn end(&mut self) -> Result<Option<Part>, Failure> {
        let rest = std::mem::take(&mut self.rest);
        let last = self.line(&rest)?;
        if !self.is_finished {
            return Err(garbage("it ended before its last chunk"));
        }
        Ok(last)
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<Part>, Failure> {
        if line.trim_ascii().is_empty() {
            return Ok(None);
        }
        let (message, form) = Message::decode_any(line).map_err(|error| garbage(&error.to_string()))?;
        match form {
            Form::Json => self.part(message).map(Some),
            Form::Binary => Err(garbage("a binary message within JSON lines")),
        }
    }

    fn part(&mut self, message: Message) -> Result<Part, Failure> {
        match message {
            Message::CompletionChunk(CompletionChunk { id, .. }) if id != self.call => {
                Err(garbage(&format!("a chunk is for request {id}, not {}", self.call)))
            }
            Message::CompletionChunk(_) if self.is_finished => Err(garbage("a chunk follows the last one")),
            Message::CompletionChunk(CompletionChunk { text, finish, .. }) => {
                self.is_finished = finish.is_some();
                Ok(Part { text, finish })
            }
            Message::Error(ErrorMessage { message, retry_after_ms, .. }) => Err(Failure {
                retry_after: retry_after_ms.map(|ms| Duration::from_millis(ms.into())),
                ..Failure::new(FailureKind::Engine, format!("the engine reports: {message}"))
            }),
            _ => Err(garbage("a message of another kind than a completion's")),
        }
    }
}

fn garbage(problem: &str) -> Failure {
    Failure::new(FailureKind::Engine, format!("invalid reply of the engine: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::typed::{ErrorCode, FinishReason, Heartbeat};
    use proptest::prelude::*;

    fn chunk(id: u64, text: &str, finish: Option<FinishReason>) -> Message {
        Message::CompletionChunk(CompletionChunk { id, index: 0, text: text.into(), finish })
    }

    fn read(chunks: &[&[u8]]) -> Result<String, String> {
        let mut reader = Reader::new(7);
        let mut text = String::new();
        for chunk in chunks {
            text.extend(reader.chunk(chunk).map_err(|failure| failure.message)?.into_iter().map(|part| part.text));
        }
        text.extend(reader.end().map_err(|failure| failure.message)?.map(|part| part.text));
        Ok(text)
    }

    #[test]
    fn both_forms_are_read() {
        let end = Some(FinishReason::Stop);
        for form in [Form::Binary, Form::Json] {
            let chunks = [chunk(7, "a", None), chunk(7, "b", end)].map(|chunk| chunk.encode_as(form).unwrap());
            assert_eq!(read(&[&chunks[0], &chunks[1]]), Ok("ab".into()), "{form:?}");
        }
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let (json, end) = (|message: Message| message.encode_as(Form::Json).unwrap(), Some(FinishReason::Stop));
        let error = Message::Error(ErrorMessage {
            id: Some(7),
            code: ErrorCode::Unavailable,
            message: "the model is being loaded".into(),
            retry_after_ms: Some(2000),
        });
        let of = |messages: Vec<Vec<u8>>| read(&messages.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap_err();
        let cases = [
            (of(vec![json(chunk(7, "a", None))]), "ended before its last chunk"),
            (of(vec![]), "ended before its last chunk"),
            (of(vec![json(chunk(8, "a", end))]), "for request 8, not 7"),
            (of(vec![json(chunk(7, "a", end)), json(chunk(7, "b", None))]), "follows the last one"),
            (of(vec![json(Message::Heartbeat(Heartbeat { sequence: 0, sent_ms: 0 }))]), "another kind"),
            (of(vec![b"garbage".to_vec()]), "version"),
            (of(vec![b"{\"completion_chunk\": {\"id\"\n".to_vec()]), "invalid typed message"),
            (of(vec![json(error)]), "the engine reports: the model is being loaded"),
        ];
        for (message, named) in cases {
            assert!(message.contains(named), "{message:?} names {named:?}");
        }
        let endless = vec![b'{'; LINE_BYTES_MAX + 1];
        assert!(read(&[&endless]).unwrap_err().contains("more than"));
    }

    proptest! {
        #[test]
        fn lines_may_be_cut_anywhere(
            text in "(a|é|\n){0,6}", cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let lines: Vec<u8> = [chunk(7, &text, None), chunk(7, "!", Some(FinishReason::Length))]
                .iter()
                .flat_map(|chunk| [chunk.encode_as(Form::Json).unwrap(), b"\n".to_vec()].concat())
                .collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(lines.len())).collect();
            cuts.extend([0, lines.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &lines[pair[0]..pair[1]]);
            let pieces: Vec<&[u8]> = pieces.filter(|piece| !piece.is_empty()).collect();
            prop_assert_eq!(read(&pieces), Ok(format!("{text}!")));
        }

        #[test]
        fn any_bytes_are_survived(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..5)) {
            let _ = read(&chunks.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }
    }
}

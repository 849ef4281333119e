//! The message to send: `DATA`, `-` for stdin, `@FILE`; or `--data TEXT`, whatever that begins with. Without any of
//! these, stdin is read unless it is a terminal.

use super::failure::{Code, Failure};
use super::output::plain;
use crate::shm::stdio::stdin_was_closed;
use clap::Args;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The message argument.
#[derive(Debug, Args)]
pub(super) struct DataArgs {
    /// The message; `-` reads stdin, `@FILE` a file. By default stdin is read, or the message is empty if stdin is a
    /// terminal
    #[arg(value_name = "DATA | - | @FILE")]
    data: Option<OsString>,
    /// Send TEXT literally, even if it is `-` or starts with `@`
    #[arg(long = "data", value_name = "TEXT", conflicts_with = "data", allow_hyphen_values = true)]
    text: Option<OsString>,
}

impl DataArgs {
    pub(super) fn get(&self) -> Data {
        match &self.text {
            Some(text) => Data::Literal(text.clone().into_vec()),
            None => Data::new(self.data.as_ref(), io::stdin().is_terminal()),
        }
    }
}

/// The source of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Data {
    Literal(Vec<u8>),
    Stdin,
    File(PathBuf),
}

impl Data {
    /// Reads an argument; without one, the message comes from stdin, or is empty if that is a terminal.
    pub(super) fn new(argument: Option<&OsString>, stdin_is_terminal: bool) -> Data {
        let argument = match argument {
            Some(argument) => argument.clone(),
            None if stdin_is_terminal => OsString::new(),
            None => return Data::Stdin,
        };
        match argument.as_bytes() {
            b"-" => Data::Stdin,
            [b'@', path @ ..] => Data::File(OsString::from_vec(path.to_vec()).into()),
            _ => Data::Literal(argument.into_vec()),
        }
    }

    /// The message, of at most `max` bytes; no more is read.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is larger.
    pub(super) fn read(self, max: u32) -> Result<Vec<u8>, Failure> {
        let (what, bytes) = match self {
            // The library says how long it is.
            Data::Literal(bytes) => return Ok(bytes),
            Data::Stdin if stdin_was_closed() => {
                let failure = Failure::new(Code::Usage, "cannot read stdin: it is closed");
                return Err(failure.hint("--data TEXT sends TEXT, --data '' an empty message"));
            }
            Data::Stdin => ("stdin".to_owned(), read(io::stdin().lock(), max)),
            Data::File(path) if path.as_os_str().is_empty() => {
                let failure = Failure::new(Code::Usage, "`@` without a file name");
                return Err(failure.hint("@FILE reads a file; --data @ sends the text `@`"));
            }
            Data::File(path) => (plain(&path.to_string_lossy()), File::open(&path).and_then(|file| read(file, max))),
        };
        let bytes = bytes.map_err(|error| Failure::new(Code::Usage, format!("cannot read {what}: {error}")))?;
        if bytes.len() as u64 > u64::from(max) {
            return Err(Failure::new(Code::TooLarge, format!("{what} is larger than max_message_size, {max} bytes")));
        }
        Ok(bytes)
    }
}

fn read(from: impl Read, max: u32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(u64::from(max) + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_told_apart() {
        let of = |text: &str| Data::new(Some(&text.into()), false);
        assert_eq!(Data::new(None, true), Data::Literal(Vec::new()));
        assert_eq!(Data::new(None, false), Data::Stdin);
        assert_eq!(of(""), Data::Literal(Vec::new()));
        assert_eq!(of("hello"), Data::Literal(b"hello".to_vec()));
        assert_eq!(of("-"), Data::Stdin);
        assert_eq!(of("@a/b"), Data::File("a/b".into()));
        assert_eq!(of("a@b"), Data::Literal(b"a@b".to_vec()));
        let bytes = OsString::from_vec(vec![0xff, 0xfe]);
        assert_eq!(Data::new(Some(&bytes), false), Data::Literal(vec![0xff, 0xfe]));
    }

    #[test]
    fn no_more_is_read_than_may_be_sent() {
        assert_eq!(read(io::repeat(1), 10).unwrap().len(), 11);
    }
}

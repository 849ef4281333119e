//! What is to be sent: `DATA`, `-` for stdin, `@FILE`.

use super::exit::{Code, Failure};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Where a message comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Data {
    Literal(Vec<u8>),
    Stdin,
    File(PathBuf),
}

impl Data {
    /// Reads an argument; none stands for an empty message.
    pub(super) fn new(argument: Option<&OsString>) -> Data {
        let argument = argument.cloned().unwrap_or_default();
        match argument.as_bytes() {
            b"-" => Data::Stdin,
            [b'@', path @ ..] => Data::File(OsString::from_vec(path.to_vec()).into()),
            _ => Data::Literal(argument.into_vec()),
        }
    }

    /// The message, which may have `max` bytes; no more than that is read.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is larger.
    pub(super) fn read(self, max: u32) -> Result<Vec<u8>, Failure> {
        let (what, bytes) = match self {
            // The library says how long it is.
            Data::Literal(bytes) => return Ok(bytes),
            Data::Stdin => ("stdin".to_owned(), read(io::stdin().lock(), max)),
            Data::File(path) => (path.display().to_string(), File::open(&path).and_then(|file| read(file, max))),
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
        let of = |text: &str| Data::new(Some(&text.into()));
        assert_eq!(Data::new(None), Data::Literal(Vec::new()));
        assert_eq!(of("hello"), Data::Literal(b"hello".to_vec()));
        assert_eq!(of("-"), Data::Stdin);
        assert_eq!(of("@a/b"), Data::File("a/b".into()));
        assert_eq!(of("a@b"), Data::Literal(b"a@b".to_vec()));
        let bytes = OsString::from_vec(vec![0xff, 0xfe]);
        assert_eq!(Data::new(Some(&bytes)), Data::Literal(vec![0xff, 0xfe]));
    }

    #[test]
    fn no_more_is_read_than_may_be_sent() {
        assert_eq!(read(io::repeat(1), 10).unwrap().len(), 11);
    }
}

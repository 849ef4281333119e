//! The encoding of values: the only place that calls bincode.
//!
//! # Layout
//!
//! The encoding has no self-description; both ends know the type. Everything is little endian and of fixed width,
//! without padding or alignment:
//!
//! | value | bytes |
//! |---|---|
//! | `u8` `u16` `u32` `u64` | 1, 2, 4, 8; the least significant first |
//! | `f32` | the 4 bytes of its IEEE 754 bits, as a `u32` |
//! | `bool` | one byte, 0 or 1; anything else is an error |
//! | text, names, topics, patterns | its length in bytes as a `u64`, then that many bytes of UTF-8 |
//! | list | the number of items as a `u64`, then the items |
//! | option | one byte: 0 for none, 1 and then the value; anything else is an error |
//! | array of known size, tuple, struct | its items or fields in order, nothing else |
//! | enum | the number of the variant, counted from 0, as a `u32`, then its fields in order |
//!
//! So each value has exactly one encoding. Bytes after the value are an error, too.
//!
//! # Frames
//!
//! On the control socket each value travels as a frame: the length of the body in bytes as a `u32`, then the body.
//! The length does not count itself. A length of zero, or above the receiver's limit, is an error, and since no
//! receiver can tell where the next frame would begin, it ends the connection.
//!
//! # Memory that a hostile peer can take
//!
//! A length is trusted only as far as its bytes have arrived. [`FrameDecoder`] holds what arrived; [`decode`] is
//! given whole slices and stops at the first length that leads beyond them. Until it does, a text may reserve 4 KiB,
//! 256 KiB or 16 MiB, whichever is the first that would hold the input (untouched, so no page of it is resident), and
//! a list 1 MiB.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::enc::write::Writer;
use bincode::error::{DecodeError, EncodeError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::name::shown;

/// No value may be longer than this in bytes, encoded, whatever limit the caller gives.
pub const HARD_LIMIT: usize = 16 * 1024 * 1024;

/// The length prefix of a frame, in bytes.
pub const FRAME_PREFIX_BYTES: usize = 4;

/// The buffer that an empty frame decoder keeps, in bytes. It frees the rest, or a thousand quiet connections would
/// each keep the size of their largest frame.
const IDLE_BUFFER_BYTES_MAX: usize = 1024;

/// Why bytes are no value, or why a value cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A value needs more bytes than allowed; nothing was sent.
    #[error("value exceeds the limit of {limit} bytes")]
    ValueTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// A slice is longer than allowed; it was not decoded.
    #[error("{found} bytes exceed the limit of {limit}")]
    InputTooLarge {
        /// The length of the slice in bytes.
        found: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The bytes end before the value does.
    #[error("value is cut off after {found} bytes")]
    Truncated {
        /// The number of bytes.
        found: usize,
    },
    /// The value ends before the bytes do.
    #[error("{count} bytes left after the value")]
    TrailingBytes {
        /// The number of bytes left.
        count: usize,
    },
    /// The bytes are no value of this type. The reason is escaped and short.
    #[error("malformed value: {reason}")]
    Malformed {
        /// The error.
        reason: String,
    },
    /// A frame announces no body.
    #[error("frame of length zero")]
    EmptyFrame,
    /// A frame announces a body that is longer than allowed.
    #[error("frame announces {announced} bytes, limit is {limit}")]
    FrameTooLarge {
        /// The length that the frame announces in bytes.
        announced: u32,
        /// The limit in bytes.
        limit: usize,
    },
    /// The stream ended inside a frame.
    #[error("stream ended {found} bytes into a frame")]
    PartialFrame {
        /// The bytes of the frame that had arrived, its prefix included.
        found: usize,
    },
}

/// Encodes a value, without a length prefix.
///
/// ```
/// use lapce_ipc::wire::codec;
///
/// let bytes = codec::encode(&(7u16, "hi"))?;
/// assert_eq!(bytes, [7, 0, 2, 0, 0, 0, 0, 0, 0, 0, b'h', b'i']);
/// assert_eq!(codec::decode::<(u16, String)>(&bytes)?, (7, "hi".into()));
/// # Ok::<(), lapce_ipc::wire::CodecError>(())
/// ```
///
/// # Errors
/// [`CodecError::ValueTooLarge`] beyond [`HARD_LIMIT`].
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    encode_limited(value, HARD_LIMIT)
}

/// Encodes a value into at most `limit` bytes, without a length prefix.
///
/// # Errors
/// [`CodecError::ValueTooLarge`] beyond `limit` or [`HARD_LIMIT`], whichever is smaller.
pub fn encode_limited<T: Serialize + ?Sized>(value: &T, limit: usize) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    append(value, limit.min(HARD_LIMIT), &mut out)?;
    Ok(out)
}

/// Decodes a value that takes up all of `bytes`.
///
/// # Errors
/// A [`CodecError`] with the reason. A slice beyond [`HARD_LIMIT`] is not decoded.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_limited(bytes, HARD_LIMIT)
}

/// Decodes a value that takes up all of `bytes`, at most `limit`.
///
/// # Errors
/// A [`CodecError`] with the reason. A slice beyond `limit` or [`HARD_LIMIT`] is not decoded.
pub fn decode_limited<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, CodecError> {
    let limit = limit.min(HARD_LIMIT);
    if bytes.len() > limit {
        return Err(CodecError::InputTooLarge { found: bytes.len(), limit });
    }
    // bincode reserves memory for the announced length of a text, up to its constant limit. The smallest limit that
    // fits keeps the memory in proportion to the input.
    if bytes.len() <= SMALL {
        decode_within::<T, SMALL>(bytes)
    } else if bytes.len() <= MEDIUM {
        decode_within::<T, MEDIUM>(bytes)
    } else {
        decode_within::<T, HARD_LIMIT>(bytes)
    }
}

/// Encodes a value as a frame: a length prefix, and a body of at most `limit` bytes.
///
/// # Errors
/// [`CodecError::ValueTooLarge`] beyond `limit` or [`HARD_LIMIT`], whichever is smaller.
pub fn encode_frame<T: Serialize + ?Sized>(value: &T, limit: usize) -> Result<Vec<u8>, CodecError> {
    let mut out = vec![0; FRAME_PREFIX_BYTES];
    append(value, limit.min(HARD_LIMIT), &mut out)?;
    let (prefix, body) = out.split_at_mut(FRAME_PREFIX_BYTES);
    // HARD_LIMIT fits in a u32, so this cannot fail.
    let length = u32::try_from(body.len()).map_err(|_| CodecError::ValueTooLarge { limit })?;
    prefix.copy_from_slice(&length.to_le_bytes());
    Ok(out)
}

const SMALL: usize = 4 * 1024;
const MEDIUM: usize = 256 * 1024;

type Config<const LIMIT: usize> = Configuration<LittleEndian, Fixint, Limit<LIMIT>>;

fn config<const LIMIT: usize>() -> Config<LIMIT> {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<LIMIT>()
}

fn decode_within<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, config::<LIMIT>()).map_err(|error| explain(error, bytes.len()))?;
    match bytes.len() - used {
        0 => Ok(value),
        count => Err(CodecError::TrailingBytes { count }),
    }
}

/// The errors of bincode show internals, and their display is their debug form; these name facts about the bytes.
fn explain(error: DecodeError, found: usize) -> CodecError {
    let reason = match error {
        // The input is never longer than the limit, so a length over the limit leads beyond the input.
        DecodeError::UnexpectedEnd { .. } | DecodeError::LimitExceeded => {
            return CodecError::Truncated { found };
        }
        DecodeError::OutsideUsizeRange(_) => return CodecError::Truncated { found },
        // The text comes from this project's types, which escape values, or from serde about the number of a variant.
        DecodeError::OtherString(reason) => reason,
        DecodeError::Utf8 { inner } => format!("text is not UTF-8: {inner}"),
        DecodeError::InvalidBooleanValue(value) => format!("bool is {value}, expected 0 or 1"),
        DecodeError::UnexpectedVariant { found, .. } => format!("option tag is {found}, expected 0 or 1"),
        other => shown(&format!("{other:?}")),
    };
    CodecError::Malformed { reason }
}

/// Appends at most `limit` bytes to `out`.
fn append<T: Serialize + ?Sized>(value: &T, limit: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let writer = Capped { left: limit, out };
    bincode::serde::encode_into_writer(value, writer, config::<HARD_LIMIT>()).map_err(|error| match error {
        EncodeError::UnexpectedEnd => CodecError::ValueTooLarge { limit },
        other => CodecError::Malformed { reason: shown(&format!("{other:?}")) },
    })
}

/// A vector with a limit, because bincode applies its own limit to decoding only.
struct Capped<'a> {
    left: usize,
    out: &'a mut Vec<u8>,
}

impl Writer for Capped<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.left = self.left.checked_sub(bytes.len()).ok_or(EncodeError::UnexpectedEnd)?;
        self.out.extend_from_slice(bytes);
        Ok(())
    }
}

/// Splits a stream of bytes into the bodies of frames, however the transport has fragmented it.
///
/// After each [`push`](Self::push), take frames until [`next_frame`](Self::next_frame) returns none: then the decoder
/// holds less than one frame, and its buffer is at most twice the bytes that arrived for it. The first error is final;
/// every later call returns it again.
///
/// ```
/// use lapce_ipc::wire::FrameDecoder;
///
/// let mut decoder = FrameDecoder::new(4096);
/// decoder.push(&[2, 0, 0]);
/// assert_eq!(decoder.next_frame()?, None);
/// decoder.push(&[0, 0xaa, 0xbb, 1, 0]);
/// assert_eq!(decoder.next_frame()?, Some(&[0xaa, 0xbb][..]));
/// assert_eq!(decoder.next_frame()?, None);
/// assert!(decoder.finish().is_err(), "the stream ends inside a frame");
/// # Ok::<(), lapce_ipc::wire::CodecError>(())
/// ```
#[derive(Debug)]
pub struct FrameDecoder {
    limit: usize,
    buffer: Vec<u8>,
    /// The start of the next frame in the buffer; the bytes before it were returned.
    start: usize,
    failed: Option<CodecError>,
}

impl FrameDecoder {
    /// A decoder for frames whose bodies have at most `limit` bytes, and never more than [`HARD_LIMIT`].
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.min(HARD_LIMIT), buffer: Vec::new(), start: 0, failed: None }
    }

    /// Appends bytes. After an error they are ignored.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.drain(..self.start);
            self.start = 0;
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The body of the next frame, or none until more bytes arrive.
    ///
    /// # Errors
    /// [`CodecError::EmptyFrame`] and [`CodecError::FrameTooLarge`], as soon as the prefix has arrived.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, CodecError> {
        match self.next_length() {
            Ok(Some(length)) => {
                let body = self.start + FRAME_PREFIX_BYTES;
                self.start = body + length;
                Ok(Some(&self.buffer[body..self.start]))
            }
            Ok(None) => {
                if self.buffered() == 0 {
                    self.start = 0;
                    self.buffer.clear();
                    self.buffer.shrink_to(IDLE_BUFFER_BYTES_MAX);
                }
                Ok(None)
            }
            Err(error) => {
                self.failed = Some(error.clone());
                self.buffer = Vec::new();
                self.start = 0;
                Err(error)
            }
        }
    }

    /// The number of bytes not yet returned.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Whether the stream may end here.
    ///
    /// # Errors
    /// [`CodecError::PartialFrame`] inside a frame, and the decoder's error if it has failed.
    pub fn finish(&self) -> Result<(), CodecError> {
        match (&self.failed, self.buffered()) {
            (Some(error), _) => Err(error.clone()),
            (None, 0) => Ok(()),
            (None, found) => Err(CodecError::PartialFrame { found }),
        }
    }

    /// The length of the body of the next frame if all of it is here.
    fn next_length(&self) -> Result<Option<usize>, CodecError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let Some((prefix, rest)) = self.buffer[self.start..].split_first_chunk::<FRAME_PREFIX_BYTES>() else {
            return Ok(None);
        };
        let announced = u32::from_le_bytes(*prefix);
        match usize::try_from(announced) {
            Ok(0) => Err(CodecError::EmptyFrame),
            Ok(length) if length <= self.limit => Ok((rest.len() >= length).then_some(length)),
            _ => Err(CodecError::FrameTooLarge { announced, limit: self.limit }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(decoder: &mut FrameDecoder, frames: &mut Vec<Vec<u8>>) -> Result<(), CodecError> {
        while let Some(body) = decoder.next_frame()? {
            frames.push(body.to_vec());
        }
        Ok(())
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let value = (1u8, 2u16, 3u32, 4u64, 1.0f32, true, "é", vec![5u16], (Some(6u8), None::<u8>), [7u8; 2]);
        let mut expected = vec![1, 2, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x3f, 1];
        expected.extend([2, 0, 0, 0, 0, 0, 0, 0, 0xc3, 0xa9, 1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1, 6, 0, 7, 7]);
        assert_eq!(encode(&value).unwrap(), expected);
    }

    #[test]
    fn limits_are_exact() {
        let text = "x".repeat(92); // and 8 bytes of length
        assert_eq!(encode_limited(&text, 100).unwrap().len(), 100);
        assert_eq!(encode_limited(&text, 99), Err(CodecError::ValueTooLarge { limit: 99 }));
        assert_eq!(encode_frame(&text, 100).unwrap()[..4], [100, 0, 0, 0]);
        assert_eq!(encode_frame(&text, 99), Err(CodecError::ValueTooLarge { limit: 99 }));
        let bytes = encode(&text).unwrap();
        assert_eq!(decode_limited::<String>(&bytes, 100).unwrap(), text);
        let error = decode_limited::<String>(&bytes, 99).unwrap_err();
        assert_eq!(error, CodecError::InputTooLarge { found: 100, limit: 99 });

        for size in [SMALL, MEDIUM, HARD_LIMIT] {
            for size in [size, size + 1] {
                let text = "x".repeat(size - 8);
                let encoded = encode(&text);
                if size > HARD_LIMIT {
                    assert_eq!(encoded, Err(CodecError::ValueTooLarge { limit: HARD_LIMIT }));
                } else {
                    assert_eq!(decode::<String>(&encoded.unwrap()).as_ref(), Ok(&text), "{size}");
                }
            }
        }
        let error = decode::<String>(&vec![0; HARD_LIMIT + 1]).unwrap_err();
        assert_eq!(error, CodecError::InputTooLarge { found: HARD_LIMIT + 1, limit: HARD_LIMIT });
    }

    #[test]
    fn each_malformation_says_what_it_is() {
        assert_eq!(decode::<u32>(&[1, 2, 3]), Err(CodecError::Truncated { found: 3 }));
        assert_eq!(decode::<u32>(&[1, 2, 3, 4, 5]), Err(CodecError::TrailingBytes { count: 1 }));
        for length in [3u64, 5000, u64::MAX] {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend([b'a'; 2]);
            assert_eq!(decode::<String>(&bytes), Err(CodecError::Truncated { found: 10 }), "{length}");
            assert_eq!(decode::<Vec<u16>>(&bytes), Err(CodecError::Truncated { found: 10 }), "{length}");
        }
        let text = |result: Result<String, CodecError>| result.unwrap_err().to_string();
        assert_eq!(text(decode::<bool>(&[2]).map(|_| String::new())), "malformed value: bool is 2, expected 0 or 1");
        assert_eq!(
            text(decode::<Option<u8>>(&[2, 0]).map(|_| String::new())),
            "malformed value: option tag is 2, expected 0 or 1"
        );
        let error = text(decode::<String>(&[1, 0, 0, 0, 0, 0, 0, 0, 0xff]));
        assert!(error.starts_with("malformed value: text is not UTF-8: "), "{error}");
    }

    #[test]
    fn a_bad_length_is_final_and_holds_no_memory() {
        let mut decoder = FrameDecoder::new(100);
        decoder.push(&[100, 0, 0, 0]);
        assert_eq!(decoder.next_frame(), Ok(None));
        let mut decoder = FrameDecoder::new(100);
        decoder.push(&[101, 0, 0, 0]);
        let error = CodecError::FrameTooLarge { announced: 101, limit: 100 };
        assert_eq!(decoder.next_frame(), Err(error.clone()));
        decoder.push(&[1, 0, 0, 0, 7]);
        assert_eq!(decoder.next_frame(), Err(error.clone()));
        assert_eq!(decoder.finish(), Err(error));
        assert_eq!(decoder.buffer.capacity(), 0);

        let mut decoder = FrameDecoder::new(usize::MAX);
        decoder.push(&[0xff; 4]);
        let error = CodecError::FrameTooLarge { announced: u32::MAX, limit: HARD_LIMIT };
        assert_eq!(decoder.next_frame(), Err(error));

        let mut decoder = FrameDecoder::new(100);
        decoder.push(&[1, 0, 0, 0, 9, 0, 0, 0, 0]);
        assert_eq!(decoder.next_frame(), Ok(Some(&[9][..])));
        assert_eq!(decoder.next_frame(), Err(CodecError::EmptyFrame));
    }

    #[test]
    fn memory_follows_what_arrived() {
        let mut decoder = FrameDecoder::new(HARD_LIMIT);
        decoder.push(&u32::try_from(HARD_LIMIT).unwrap().to_le_bytes());
        decoder.push(&[0; 60]);
        assert_eq!(decoder.next_frame(), Ok(None));
        assert!(decoder.buffer.capacity() <= 128, "{}", decoder.buffer.capacity());

        let mut decoder = FrameDecoder::new(HARD_LIMIT);
        decoder.push(&encode_frame(&"x".repeat(100_000), HARD_LIMIT).unwrap());
        assert!(decoder.next_frame().unwrap().is_some());
        assert_eq!(decoder.next_frame(), Ok(None));
        assert!(decoder.buffer.capacity() <= IDLE_BUFFER_BYTES_MAX, "{}", decoder.buffer.capacity());
    }

    proptest! {
        #[test]
        fn splitting_changes_nothing(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            tail in prop::collection::vec(any::<u8>(), 0..6),
            cuts in prop::collection::vec(1usize..20, 1..8),
        ) {
            let mut stream = Vec::new();
            for body in &bodies {
                stream.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
                stream.extend(body);
            }
            stream.extend(&tail);

            let (mut whole, mut whole_frames) = (FrameDecoder::new(40), Vec::new());
            whole.push(&stream);
            let whole_result = drain(&mut whole, &mut whole_frames);
            prop_assert_eq!(&whole_frames[..bodies.len()], &bodies[..]);

            for sizes in [&[1][..], &cuts[..]] {
                let (mut split, mut frames, mut result) = (FrameDecoder::new(40), Vec::new(), Ok(()));
                let mut rest = &stream[..];
                for size in sizes.iter().cycle() {
                    let (piece, after) = rest.split_at((*size).min(rest.len()));
                    split.push(piece);
                    result = drain(&mut split, &mut frames);
                    rest = after;
                    if rest.is_empty() {
                        break;
                    }
                }
                prop_assert_eq!(&frames, &whole_frames);
                prop_assert_eq!(&result, &whole_result);
                prop_assert_eq!(split.finish(), whole.finish());
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = FrameDecoder::new(64);
            decoder.push(&bytes);
            let _ = drain(&mut decoder, &mut Vec::new());
            if let Ok(value) = decode::<Vec<(Option<String>, bool)>>(&bytes) {
                prop_assert_eq!(encode(&value).unwrap(), bytes);
            }
        }
    }
}

//! The version of a first frame before it is decoded, and the flags of a Hello.

use super::MAGIC;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

/// A flag of a Hello: the client reconnects to the next broker and then sends
/// [`ClientFrame::Restored`](super::ClientFrame::Restored). Publishes wait for it there.
pub const RECONNECTS: u32 = 1;

/// Reads the version from the body of a first frame of any version.
///
/// # Errors
/// A [`HelloError`] if this is not a Hello of any version.
pub fn peek_hello(body: &[u8]) -> Result<u16, HelloError> {
    let Some((tag, rest)) = body.split_first_chunk() else { return Err(HelloError::Short { found: body.len() }) };
    match u32::from_le_bytes(*tag) {
        0 => {}
        variant => return Err(HelloError::NotHello { variant }),
    }
    let Some((magic, rest)) = rest.split_first_chunk() else { return Err(HelloError::Short { found: body.len() }) };
    if *magic != MAGIC {
        return Err(HelloError::Magic);
    }
    let Some((version, _)) = rest.split_first_chunk() else { return Err(HelloError::Short { found: body.len() }) };
    Ok(u16::from_le_bytes(*version))
}

/// The first frame is not a Hello of any version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HelloError {
    /// Too short for any Hello.
    #[error("hello is cut off after {found} bytes")]
    Short {
        /// How many bytes there were.
        found: usize,
    },
    /// Another frame than a Hello.
    #[error("first frame is variant {variant}, expected a hello")]
    NotHello {
        /// The number of the variant.
        variant: u32,
    },
    /// The magic is wrong: the peer speaks another protocol.
    #[error("hello has the wrong magic")]
    Magic,
}

/// Rejects any other magic.
pub(super) fn magic<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 8], D::Error> {
    match <[u8; 8]>::deserialize(deserializer)? {
        MAGIC => Ok(MAGIC),
        _ => Err(serde::de::Error::custom(HelloError::Magic)),
    }
}

//! The keys of publishers: by key, topic and sequence number a subscriber recognises a message that is sent again
//! (S11).
//!
//! 1. **P1, vouched for.** A key is a keyed hash (SipHash-2-4) of what the kernel says of a client's process (user,
//!    process id, start) and of the client's nonce. So the same nonce in another process is another publisher; and to
//!    find a nonce that hits the key of another client takes about 2^64 connections, because only a broker knows the
//!    secret of the hash.
//! 2. **P2, lasting.** One process and one nonce have one key: over a resume, over another session, and at each later
//!    broker with the same secret. Two connections of one process with one nonce share it: they harm only themselves.
//! 3. **P3, secret.** The secret is as old as its file (`broker::session::publishers`), which each broker at the socket
//!    reads. It is neither sent nor logged. With another secret all keys are others: messages that are sent again just
//!    then may arrive twice, none is lost.
//! 4. **P4, connection ids.** The id of a connection is 31 bits of the key, for people. The router gives another one
//!    if it is taken, so nothing that must last rests on it.

use siphasher::sip::SipHasher24;
use std::fmt::{self, Write};

/// Bytes of a secret.
pub(crate) const SECRET_BYTES: usize = 16;
/// Bytes of a secret as text.
pub(crate) const TEXT_BYTES: usize = HEADER.len() + 2 * SECRET_BYTES + 1;
const HEADER: &str = "lapce-ipc publishers 1 ";

/// One instance of a client in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Publisher {
    pub(crate) uid: u32,
    /// 0: unknown.
    pub(crate) pid: u32,
    /// When the process started, in the kernel's clock ticks; 0: unknown.
    pub(crate) start: u64,
    /// The client's choice.
    pub(crate) nonce: u64,
}

/// The secret of the hash.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// Of random bytes.
    pub(crate) fn new(bytes: [u8; SECRET_BYTES]) -> Secret {
        Secret(bytes)
    }

    /// Parses the text of a file. `None`: it is another text.
    pub(crate) fn parse(text: &[u8]) -> Option<Secret> {
        let digits = text.strip_prefix(HEADER.as_bytes())?.strip_suffix(b"\n")?;
        let (pairs, []) = digits.as_chunks::<2>() else { return None };
        let mut bytes = [0; SECRET_BYTES];
        if pairs.len() != bytes.len() {
            return None;
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Secret(bytes))
    }

    /// As text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::with_capacity(TEXT_BYTES);
        text.push_str(HEADER);
        for byte in self.0 {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
        text
    }

    /// The key of a publisher; never 0, which is the broker.
    pub(crate) fn key(&self, publisher: &Publisher) -> u64 {
        let Publisher { uid, pid, start, nonce } = publisher;
        let mut input = [0; 24];
        input[..4].copy_from_slice(&uid.to_le_bytes());
        input[4..8].copy_from_slice(&pid.to_le_bytes());
        input[8..16].copy_from_slice(&start.to_le_bytes());
        input[16..].copy_from_slice(&nonce.to_le_bytes());
        SipHasher24::new_with_key(&self.0).hash(&input).max(1)
    }
}

/// Its bytes reach no log.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The value of a lower-case hexadecimal digit.
fn digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// The id of a connection by the key of its publisher: positive as an `i32`, for people and other languages. 0 is the
/// broker's.
pub(crate) fn connection_id(key: u64) -> u32 {
    (key ^ (key >> 32)) as u32 & 0x7fff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn publisher() -> impl Strategy<Value = Publisher> {
        // Few values of each, so that all but one are often the same.
        (0..3u32, 0..3u32, 0..3u64, 0..3u64).prop_map(|(uid, pid, start, nonce)| Publisher { uid, pid, start, nonce })
    }

    #[test]
    fn the_key_is_siphash_2_4() {
        // The 24 bytes 0, 1, 2 … under the key 0, 1, 2 …: a line of the reference vectors. A later version must make
        // the same keys, because its clients may have been another version's.
        let bytes: [u8; 24] = std::array::from_fn(|n| n as u8);
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (uid, pid) = (word(0) as u32, (word(0) >> 32) as u32);
        let counts = Publisher { uid, pid, start: word(8), nonce: word(16) };
        let secret = Secret::new(std::array::from_fn(|n| n as u8));
        assert_eq!(secret.key(&counts), 0xb8ad_50c6_f649_af94);
        assert_eq!(secret.text(), "lapce-ipc publishers 1 000102030405060708090a0b0c0d0e0f\n");
    }

    #[test]
    fn another_text_is_no_secret() {
        let text = Secret::new([0xab; SECRET_BYTES]).text();
        assert_eq!(text.len(), TEXT_BYTES);
        for bad in [
            String::new(),
            text.trim_end().to_owned(),
            format!("{text}\n"),
            format!(" {text}"),
            text.replace("ab\n", "\n"),
            text.replace("ab\n", "abab\n"),
            text.replace("ab\n", "a\n"),
            text.replace("ab\n", "aB\n"),
            text.replace("ab\n", "ag\n"),
            text.replace("publishers 1", "publishers 2"),
        ] {
            assert_eq!(Secret::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret::new([7; SECRET_BYTES])), "Secret(..)");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(bytes: [u8; SECRET_BYTES]) {
            let secret = Secret::new(bytes);
            prop_assert_eq!(Secret::parse(secret.text().as_bytes()), Some(secret));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80), headed: bool) {
            let text = [if headed { HEADER.as_bytes() } else { b"" }, &bytes].concat();
            if let Some(secret) = Secret::parse(&text) {
                prop_assert_eq!(secret.text().into_bytes(), text);
            }
        }

        #[test]
        fn each_publisher_has_a_key_of_its_own(
            bytes: [u8; SECRET_BYTES],
            all in prop::collection::vec(publisher(), 1..40),
        ) {
            let mut known = HashMap::new();
            for publisher in all {
                let key = Secret::new(bytes).key(&publisher);
                prop_assert_eq!(*known.entry(key).or_insert(publisher), publisher);
                prop_assert!(key != 0 && connection_id(key) <= 0x7fff_ffff);
            }
        }

        #[test]
        fn another_secret_makes_other_keys(bytes: [[u8; SECRET_BYTES]; 2], publisher in publisher()) {
            prop_assume!(bytes[0] != bytes[1]);
            let [one, other] = bytes.map(|bytes| Secret::new(bytes).key(&publisher));
            prop_assert_ne!(one, other);
        }
    }
}

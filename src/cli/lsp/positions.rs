//! Positions of the protocol and offsets in a text.
//!
//! A position is a line and a column; the column counts UTF-16 units unless client and server have agreed on another
//! encoding. A line ends with `\n`, `\r\n` or `\r`. A column behind the end of its line means the end of the line, as
//! the protocol says.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A position of the protocol, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) line: u32,
    pub(super) character: u32,
}

/// A range of the protocol; its end is exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Range {
    pub(super) start: Position,
    pub(super) end: Position,
}

/// The unit in which columns are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    /// The default of the protocol.
    #[default]
    Utf16,
    Utf32,
}

impl Encoding {
    /// The first one that a client lists and this server has.
    pub(super) fn negotiate(offered: &[String]) -> Encoding {
        let known = |name: &String| match name.as_str() {
            "utf-8" => Some(Encoding::Utf8),
            "utf-16" => Some(Encoding::Utf16),
            "utf-32" => Some(Encoding::Utf32),
            _ => None,
        };
        offered.iter().find_map(known).unwrap_or_default()
    }

    /// The name in the protocol.
    pub(super) fn name(self) -> &'static str {
        match self {
            Encoding::Utf8 => "utf-8",
            Encoding::Utf16 => "utf-16",
            Encoding::Utf32 => "utf-32",
        }
    }

    fn units(self, c: char) -> usize {
        match self {
            Encoding::Utf8 => c.len_utf8(),
            Encoding::Utf16 => c.len_utf16(),
            Encoding::Utf32 => 1,
        }
    }
}

/// Why a position is none in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PositionError {
    /// The text has fewer lines.
    Line { line: u32, lines: usize },
    /// Between the two units of a surrogate pair, or between the bytes of a character.
    InsideCharacter { position: Position, encoding: Encoding },
}

impl fmt::Display for PositionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PositionError::Line { line, lines } => {
                write!(f, "position out of range: line {line}, the document has {lines} lines")
            }
            PositionError::InsideCharacter { position: Position { line, character }, encoding } => {
                write!(f, "invalid position: {line}:{character} ({}) is inside a character", encoding.name())
            }
        }
    }
}

fn is_line_end(byte: u8) -> bool {
    byte == b'\n' || byte == b'\r'
}

/// Where the line that contains `from` ends, its line end not included.
pub(super) fn end_of_line(text: &str, from: usize) -> usize {
    let rest = text.as_bytes()[from..].iter().position(|byte| is_line_end(*byte));
    rest.map_or(text.len(), |at| from + at)
}

/// Where the line that contains `from` begins.
pub(super) fn start_of_line(text: &str, from: usize) -> usize {
    text.as_bytes()[..from].iter().rposition(|byte| is_line_end(*byte)).map_or(0, |at| at + 1)
}

/// The first offset of a line; the number of lines if there are fewer.
fn line_start(text: &str, line: u32) -> Result<usize, usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    for found in 0..line as usize {
        let end = end_of_line(text, at);
        at = match bytes.get(end) {
            None => return Err(found + 1),
            Some(b'\r') if bytes.get(end + 1) == Some(&b'\n') => end + 2,
            Some(_) => end + 1,
        };
    }
    Ok(at)
}

/// The offset of a position.
///
/// # Errors
///
/// If the text has no such line, or the position is inside a character.
pub(super) fn offset(text: &str, position: Position, encoding: Encoding) -> Result<usize, PositionError> {
    let start = line_start(text, position.line).map_err(|lines| PositionError::Line { line: position.line, lines })?;
    let line = &text[start..end_of_line(text, start)];
    let (wanted, mut units) = (position.character as usize, 0);
    for (at, c) in line.char_indices() {
        if units == wanted {
            return Ok(start + at);
        }
        units += encoding.units(c);
        if units > wanted {
            return Err(PositionError::InsideCharacter { position, encoding });
        }
    }
    Ok(start + line.len())
}

/// The offset of an end of an edit: a line behind the last means the end of the text, as editors use it.
///
/// # Errors
///
/// If the position is inside a character.
pub(super) fn edit_offset(text: &str, position: Position, encoding: Encoding) -> Result<usize, PositionError> {
    match offset(text, position, encoding) {
        Err(PositionError::Line { .. }) => Ok(text.len()),
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(line: u32, character: u32) -> Position {
        Position { line, character }
    }

    #[test]
    fn positions_count_the_units_of_their_encoding() {
        let text = "a😀b\r\né\rx\n";
        let cases = [
            (Encoding::Utf16, at(0, 0), Ok(0)),
            (Encoding::Utf16, at(0, 1), Ok(1)),
            (Encoding::Utf16, at(0, 3), Ok(5)),
            (Encoding::Utf16, at(0, 4), Ok(6)),
            (Encoding::Utf16, at(0, 99), Ok(6)),
            (Encoding::Utf16, at(1, 1), Ok(10)),
            (Encoding::Utf16, at(2, 0), Ok(11)),
            (Encoding::Utf16, at(3, 0), Ok(13)),
            (Encoding::Utf16, at(4, 0), Err(PositionError::Line { line: 4, lines: 4 })),
            (Encoding::Utf8, at(0, 5), Ok(5)),
            (Encoding::Utf32, at(0, 2), Ok(5)),
        ];
        for (encoding, position, expected) in cases {
            assert_eq!(offset(text, position, encoding), expected, "{encoding:?} {position:?}");
        }
    }

    #[test]
    fn positions_inside_a_character_are_errors() {
        for (encoding, character) in [(Encoding::Utf16, 2), (Encoding::Utf8, 2), (Encoding::Utf8, 4)] {
            let error = offset("a😀b", at(0, character), encoding).unwrap_err();
            assert!(matches!(error, PositionError::InsideCharacter { .. }), "{encoding:?} {character}: {error}");
        }
    }

    #[test]
    fn an_edit_may_end_behind_the_last_line() {
        assert_eq!(edit_offset("a\nb", at(2, 0), Encoding::Utf16), Ok(3));
        assert_eq!(edit_offset("a\nb", at(u32::MAX, u32::MAX), Encoding::Utf16), Ok(3));
    }

    #[test]
    fn the_first_encoding_that_both_have_is_used() {
        let offered = |names: &[&str]| Encoding::negotiate(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert_eq!(offered(&[]), Encoding::Utf16);
        assert_eq!(offered(&["utf-7", "utf-32", "utf-8"]), Encoding::Utf32);
        assert_eq!(offered(&["utf-8", "utf-16"]), Encoding::Utf8);
    }

    /// All positions of a text by walking over it once.
    fn oracle(text: &str, encoding: Encoding) -> Vec<(Position, usize)> {
        let (mut found, mut here) = (vec![(at(0, 0), 0)], at(0, 0));
        for (index, c) in text.char_indices() {
            let next = text[index + c.len_utf8()..].chars().next();
            here = match c {
                '\n' => at(here.line + 1, 0),
                '\r' if next != Some('\n') => at(here.line + 1, 0),
                // Between the two there is no position.
                '\r' => here,
                _ => at(here.line, here.character + encoding.units(c) as u32),
            };
            if c != '\r' || next != Some('\n') {
                found.push((here, index + c.len_utf8()));
            }
        }
        found
    }

    proptest! {
        #[test]
        fn offsets_agree_with_a_walk_over_the_text(text in "(a|é|😀|\r|\n|\r\n| ){0,40}") {
            for encoding in [Encoding::Utf8, Encoding::Utf16, Encoding::Utf32] {
                for (position, expected) in oracle(&text, encoding) {
                    prop_assert_eq!(offset(&text, position, encoding), Ok(expected), "{:?} {:?}", encoding, position);
                }
            }
        }

        #[test]
        fn any_position_is_an_error_or_a_character_boundary(
            text in "(a|é|😀|\r|\n){0,20}", line in 0u32..30, character in 0u32..30,
        ) {
            for encoding in [Encoding::Utf8, Encoding::Utf16, Encoding::Utf32] {
                if let Ok(found) = offset(&text, at(line, character), encoding) {
                    prop_assert!(text.is_char_boundary(found));
                }
            }
        }
    }
}

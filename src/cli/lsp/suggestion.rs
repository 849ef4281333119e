//! From what a model has written to the text that an editor inserts, and what remains of it while the user types.
//!
//! Editors differ. Lapce shows the whole text at the cursor, but strips what stands between the cursor and the end of
//! the line if the text begins with it; Neovim inserts at the cursor; VS Code shows nothing if the text does not fit.
//! So the text is made such that all show the same: only new text, for an empty range at the cursor.
//!
//! 1. Markers of fill-in-the-middle models are removed: leading ones, and everything from the first other one on.
//! 2. Line ends become those of the document.
//! 3. Line breaks at the end are removed, with the white space behind them. Indentation is kept.
//! 4. An end of the text with which the text behind the cursor begins is cut, unless its brackets or quotes belong to
//!    the text itself.
//! 5. Brackets that close what the document has opened are cut, with what follows them, if they stand behind the cursor
//!    already: editors add them when a user types the opening one.
//! 6. If the text then begins with the rest of the line, an editor would need to replace that rest: white space is
//!    cut, otherwise there is no suggestion.

use super::super::fim;
use super::positions::end_of_line;

/// Further texts that models use to delimit prefix, suffix and end.
const FURTHER: &[&str] =
    &["<|cursor|>", "<|eot_id|>", "<file_sep>", "<PRE>", "<SUF>", "<MID>", "<EOT>", "[PREFIX]", "[SUFFIX]", "[MIDDLE]"];

/// All markers.
fn markers() -> impl Iterator<Item = &'static str> {
    fim::MARKERS.iter().chain(FURTHER).copied()
}

/// Bytes of a cut marker at the end of a text by which it is recognised: `<|fi`.
const PART_OF_MARKER: usize = 4;

/// The longest repetition of the text behind the cursor that is looked for.
const OVERLAP_MAX: usize = 4096;

/// Steps 1 to 3: independent of the text behind the cursor.
pub(super) fn clean(raw: &str, crlf: bool) -> String {
    let text = without_markers(raw).replace("\r\n", "\n").replace('\r', "\n");
    let end = text.trim_end();
    let text = match text[end.len()..].find('\n') {
        Some(at) => &text[..end.len() + at],
        None => &text,
    };
    if crlf { text.replace('\n', "\r\n") } else { text.to_owned() }
}

/// Steps 4 to 6. `after` is the text behind the cursor.
pub(super) fn fit<'a>(text: &'a str, after: &str) -> &'a str {
    let text = without_closing(without_overlap(text, after), after);
    match &after[..end_of_line(after, 0)] {
        "" => text,
        // What is left of it must not begin with it either.
        rest if rest.trim().is_empty() => text.trim_start_matches(rest),
        rest if text.starts_with(rest) => "",
        _ => text,
    }
}

fn without_markers(raw: &str) -> &str {
    let mut text = raw;
    // White space before a leading marker belongs to the marker, other white space is indentation.
    while let Some(rest) = markers().find_map(|marker| text.trim_start().strip_prefix(marker)) {
        text = rest;
    }
    let end = markers().filter_map(|marker| text.find(marker)).min().unwrap_or(text.len());
    let text = &text[..end];
    let parts = markers().flat_map(|marker| {
        (PART_OF_MARKER..marker.len()).filter(|len| marker.is_char_boundary(*len)).map(|len| &marker[..len])
    });
    parts.filter_map(|part| text.strip_suffix(part)).min_by_key(|rest| rest.len()).unwrap_or(text)
}

fn without_overlap<'a>(text: &'a str, after: &str) -> &'a str {
    let longest = text.len().min(after.len()).min(OVERLAP_MAX);
    let starts = (text.len() - longest..text.len()).filter(|at| text.is_char_boundary(*at));
    let mut overlaps = starts.filter(|at| after.starts_with(&text[*at..]));
    overlaps.find(|at| !belongs_to(&text[..*at], &text[*at..])).map_or(text, |at| &text[..at])
}

/// Whether the end of a text closes what the text before it has opened: then it is not the end that stands behind the
/// cursor already.
fn belongs_to(kept: &str, end: &str) -> bool {
    let closes = end.contains([')', ']', '}']);
    let quote = |quote: char| end.contains(quote) && kept.matches(quote).count() % 2 == 1;
    (closes && has_open_bracket(kept)) || ['"', '\'', '`'].into_iter().any(quote)
}

fn has_open_bracket(text: &str) -> bool {
    brackets(text).0
}

/// Whether a bracket is left open, and those that close what the text has not opened.
fn brackets(text: &str) -> (bool, Vec<(usize, char)>) {
    let (mut open, mut foreign) = (Vec::new(), Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => open.push(')'),
            '[' => open.push(']'),
            '{' => open.push('}'),
            ')' | ']' | '}' if open.last() == Some(&c) => _ = open.pop(),
            ')' | ']' | '}' => foreign.push((at, c)),
            _ => {}
        }
    }
    (!open.is_empty(), foreign)
}

fn without_closing<'a>(text: &'a str, after: &str) -> &'a str {
    let (is_open, foreign) = brackets(text);
    let there: Vec<char> = after.chars().take_while(|c| [')', ']', '}'].contains(c)).take(foreign.len()).collect();
    if is_open || there.is_empty() {
        return text;
    }
    let ends = &foreign[foreign.len() - there.len()..];
    let are_the_same = ends.iter().map(|(_, c)| *c).eq(there);
    if are_the_same { &text[..ends[0].0] } else { text }
}

/// The closing one of a pair that editors insert with the opening one.
fn closing(c: char) -> Option<char> {
    match c {
        '(' => Some(')'),
        '[' => Some(']'),
        '{' => Some('}'),
        '"' | '\'' | '`' => Some(c),
        _ => None,
    }
}

/// A suggestion for a document, and how much of it the user has typed since.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) uri: String,
    /// Where it begins.
    at: usize,
    /// From [`clean`].
    text: String,
    /// Bytes of the text that the document has by now.
    typed: usize,
}

impl Known {
    pub(super) fn new(uri: String, at: usize, text: String) -> Known {
        Known { uri, at, text, typed: 0 }
    }

    /// What is left of it for a cursor there; `None`: it is for another place, or all of it is typed.
    pub(super) fn rest(&self, cursor: usize) -> Option<&str> {
        let rest = &self.text[self.typed..];
        (cursor == self.at + self.typed && !rest.is_empty()).then_some(rest)
    }

    /// Follows a change of the document. `false`: the suggestion no longer holds.
    pub(super) fn follow(&mut self, start: usize, end: usize, inserted: &str) -> bool {
        let cursor = self.at + self.typed;
        let rest = &self.text[self.typed..];
        if (start, end) == (cursor, cursor) {
            if rest.starts_with(inserted) {
                self.typed += inserted.len();
                return true;
            }
            // The editor has added the closing one of a pair.
            let mut pair = inserted.chars();
            let (Some(first), Some(second), None) = (pair.next(), pair.next(), pair.next()) else { return false };
            let is_pair = closing(first) == Some(second) && rest.starts_with(first);
            self.typed += if is_pair { first.len_utf8() } else { 0 };
            return is_pair;
        }
        // What was typed of it is deleted again.
        let is_taken_back = end == cursor && (self.at..cursor).contains(&start) && inserted.is_empty();
        if is_taken_back {
            self.typed = start - self.at;
        }
        is_taken_back
    }
}

#[cfg(test)]
#[path = "suggestion_tests.rs"]
mod tests;

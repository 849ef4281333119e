//! The texts of the open documents, as the client has sent them.
//!
//! A client may never close a document (Lapce does not), so the store has a limit in bytes and forgets the document
//! that was used least recently. A document is also *out of sync* when a change could not be applied: from then on the
//! text here would differ from the editor's, so requests for it are errors until the client sends the whole text again.

use super::positions::{Encoding, Position, PositionError, Range, edit_offset};
use serde::Deserialize;
use std::collections::HashMap;

/// What an entry takes besides its texts, roughly.
const ENTRY_BYTES: usize = 256;

/// A change of a document: of a range, or of the whole text.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Change {
    #[serde(default)]
    pub(super) range: Option<Range>,
    pub(super) text: String,
}

/// An applied change, in offsets of the text before it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Edit<'a> {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) inserted: &'a str,
}

/// An open document.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) language: String,
    /// The client's version. No version comes with a request for a completion.
    pub(super) version: i64,
    /// Changes with the text, and is never used twice.
    pub(super) revision: u64,
    text: Result<String, String>,
    used: u64,
}

impl Document {
    /// The text.
    ///
    /// # Errors
    ///
    /// Why it is not known.
    pub(super) fn text(&self) -> Result<&str, &str> {
        self.text.as_deref().map_err(String::as_str)
    }
}

/// The documents.
#[derive(Debug)]
pub(super) struct Documents {
    max_bytes: usize,
    bytes: usize,
    /// Counts uses and changes.
    clock: u64,
    by_uri: HashMap<String, Document>,
}

impl Documents {
    pub(super) fn new(max_bytes: usize) -> Documents {
        Documents { max_bytes, bytes: 0, clock: 0, by_uri: HashMap::new() }
    }

    /// The client has opened a document, or sends its whole text again.
    pub(super) fn open(&mut self, uri: &str, language: String, version: i64, text: String) {
        self.close(uri);
        self.clock += 1;
        let document = Document { language, version, revision: self.clock, text: Ok(text), used: self.clock };
        self.insert(uri, document);
    }

    /// Applies the changes in order. Each applied one is passed to `applied`.
    pub(super) fn change(
        &mut self,
        uri: &str,
        version: i64,
        changes: &[Change],
        encoding: Encoding,
        mut applied: impl FnMut(&Edit<'_>),
    ) {
        let Some(mut document) = self.take(uri) else { return };
        self.clock += 1;
        (document.version, document.revision, document.used) = (version, self.clock, self.clock);
        for change in changes {
            if let Err(reason) = apply(&mut document.text, change, encoding, &mut applied) {
                document.text = Err(reason);
            }
        }
        self.insert(uri, document);
    }

    /// The client has closed it.
    pub(super) fn close(&mut self, uri: &str) {
        self.take(uri);
    }

    /// A change of this document was not understood.
    pub(super) fn lose_sync(&mut self, uri: &str, reason: &str) {
        if let Some(mut document) = self.take(uri) {
            self.clock += 1;
            (document.revision, document.text) = (self.clock, Err(out_of_sync(reason)));
            self.insert(uri, document);
        }
    }

    /// A message was lost, and it may have changed any document.
    pub(super) fn lose_sync_of_all(&mut self, reason: &str) {
        let uris: Vec<_> = self.by_uri.keys().cloned().collect();
        for uri in uris {
            self.lose_sync(&uri, reason);
        }
    }

    /// A document that is being used.
    pub(super) fn get(&mut self, uri: &str) -> Option<&Document> {
        self.clock += 1;
        let used = self.clock;
        let document = self.by_uri.get_mut(uri)?;
        document.used = used;
        Some(document)
    }

    fn take(&mut self, uri: &str) -> Option<Document> {
        let document = self.by_uri.remove(uri)?;
        self.bytes -= size(uri, &document);
        Some(document)
    }

    /// Stores a document, and forgets others to have room for it.
    fn insert(&mut self, uri: &str, mut document: Document) {
        if size(uri, &document) > self.max_bytes {
            let length = document.text.as_ref().map_or(0, String::len);
            document.text = Err(format!("the document has {length} bytes, the limit is {}", self.max_bytes));
        }
        self.bytes += size(uri, &document);
        self.by_uri.insert(uri.to_owned(), document);
        while self.bytes > self.max_bytes {
            let oldest = self.by_uri.iter().min_by_key(|(_, document)| document.used);
            let Some(oldest) = oldest.map(|(uri, _)| uri.clone()) else { return };
            self.take(&oldest);
        }
    }
}

fn size(uri: &str, document: &Document) -> usize {
    let text = document.text.as_ref().map_or(0, String::len);
    ENTRY_BYTES + uri.len() + document.language.len() + text
}

fn out_of_sync(reason: &str) -> String {
    format!("the document is out of sync: {reason}")
}

/// Applies one change to a text.
fn apply(
    text: &mut Result<String, String>,
    change: &Change,
    encoding: Encoding,
    applied: &mut impl FnMut(&Edit<'_>),
) -> Result<(), String> {
    let Some(range) = change.range else {
        let end = text.as_ref().map_or(0, String::len);
        applied(&Edit { start: 0, end, inserted: &change.text });
        *text = Ok(change.text.clone());
        return Ok(());
    };
    // Out of sync already: the reason stays.
    let Ok(known) = text else { return Ok(()) };
    let find = |position: Position| edit_offset(known, position, encoding);
    let failed = |error: PositionError| out_of_sync(&format!("a change could not be applied: {error}"));
    let (start, end) = (find(range.start).map_err(failed)?, find(range.end).map_err(failed)?);
    if start > end {
        return Err(out_of_sync("a change ends before it starts"));
    }
    applied(&Edit { start, end, inserted: &change.text });
    known.replace_range(start..end, &change.text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn position(line: u32, character: u32) -> Position {
        Position { line, character }
    }

    fn change(start: (u32, u32), end: (u32, u32), text: &str) -> Change {
        let range = Range { start: position(start.0, start.1), end: position(end.0, end.1) };
        Change { range: Some(range), text: text.to_owned() }
    }

    fn text(documents: &mut Documents, uri: &str) -> Result<String, String> {
        let document = documents.get(uri).ok_or("not open")?;
        document.text().map(str::to_owned).map_err(str::to_owned)
    }

    fn opened(max_bytes: usize, texts: &[(&str, &str)]) -> Documents {
        let mut documents = Documents::new(max_bytes);
        for (uri, text) in texts {
            documents.open(uri, "rust".into(), 1, (*text).to_owned());
        }
        documents
    }

    #[test]
    fn changes_are_applied_in_order_and_passed_on() {
        let mut documents = opened(10_000, &[("a", "one\r\ntwo 😀\n")]);
        let before = documents.get("a").unwrap().revision;
        let mut edits = Vec::new();
        let changes = [change((1, 4), (1, 6), "x"), change((0, 3), (1, 0), " "), change((0, 9), (9, 9), "!")];
        documents.change("a", 7, &changes, Encoding::Utf16, |edit| edits.push((edit.start, edit.end)));
        assert_eq!(text(&mut documents, "a").unwrap(), "one two x!");
        assert_eq!(edits, [(9, 13), (3, 5), (9, 10)]);
        let document = documents.get("a").unwrap();
        assert_eq!((document.version, document.revision > before), (7, true));
    }

    #[test]
    fn a_change_inside_a_surrogate_pair_ends_the_sync_until_the_whole_text_comes() {
        let mut documents = opened(10_000, &[("a", "😀")]);
        documents.change("a", 2, &[change((0, 1), (0, 2), "x")], Encoding::Utf16, |_| {});
        let reason = text(&mut documents, "a").unwrap_err();
        assert!(reason.contains("out of sync") && reason.contains("0:1 (utf-16)"), "{reason}");
        documents.change("a", 3, &[change((0, 0), (0, 0), "x")], Encoding::Utf16, |_| {});
        assert_eq!(text(&mut documents, "a").unwrap_err(), reason);
        let whole = Change { range: None, text: "whole".into() };
        documents.change("a", 4, &[whole, change((0, 0), (0, 1), "W")], Encoding::Utf16, |_| {});
        assert_eq!(text(&mut documents, "a").unwrap(), "Whole");
    }

    #[test]
    fn a_reversed_range_ends_the_sync() {
        let mut documents = opened(10_000, &[("a", "abc")]);
        documents.change("a", 2, &[change((0, 2), (0, 1), "")], Encoding::Utf16, |_| {});
        assert!(text(&mut documents, "a").unwrap_err().contains("ends before it starts"));
    }

    #[test]
    fn the_least_recently_used_is_forgotten_at_the_limit() {
        let hundred = "x".repeat(100);
        let one = ENTRY_BYTES + 1 + 4 + 100;
        let mut documents = opened(3 * one, &[("a", &hundred), ("b", &hundred), ("c", &hundred)]);
        assert!(documents.get("a").is_some());
        documents.open("d", "rust".into(), 1, hundred.clone());
        assert!(documents.get("b").is_none());
        assert!(["a", "c", "d"].iter().all(|uri| documents.get(uri).is_some()));
        assert_eq!(documents.bytes, 3 * one);
        // One that grows pushes others out, too.
        documents.change("d", 2, &[change((0, 0), (0, 0), "y")], Encoding::Utf16, |_| {});
        assert!(documents.get("a").is_none() && documents.get("d").is_some());
        for uri in ["a", "b", "c", "d"] {
            documents.close(uri);
        }
        assert_eq!(documents.bytes, 0);
    }

    #[test]
    fn a_document_beyond_the_limit_is_named_with_its_size_and_costs_nothing() {
        let mut documents = opened(1000, &[("a", "small")]);
        documents.open("big", "text".into(), 1, "x".repeat(5000));
        assert_eq!(text(&mut documents, "big").unwrap_err(), "the document has 5000 bytes, the limit is 1000");
        assert_eq!(text(&mut documents, "a").unwrap(), "small");
        for n in 0..100 {
            documents.open(&format!("big{n}"), "text".into(), 1, "x".repeat(5000));
        }
        assert!(documents.bytes <= 1000);
    }

    #[test]
    fn a_lost_message_ends_the_sync_of_all() {
        let mut documents = opened(10_000, &[("a", "x"), ("b", "y")]);
        documents.lose_sync_of_all("a message was not understood");
        assert!(["a", "b"].iter().all(|uri| text(&mut documents, uri).unwrap_err().contains("out of sync")));
    }

    proptest! {
        /// The oracle splits the text into characters and joins it again.
        #[test]
        fn edits_agree_with_a_naive_editor(
            start in "(a|é|😀|\n){0,12}",
            edits in prop::collection::vec(
                (any::<prop::sample::Index>(), any::<prop::sample::Index>(), "(b|ü|𝄞|\n){0,4}"),
                0..12,
            ),
        ) {
            let mut documents = opened(100_000, &[("a", &start)]);
            let mut oracle: Vec<char> = start.chars().collect();
            for (version, (a, b, inserted)) in edits.into_iter().enumerate() {
                let (a, b) = (a.index(oracle.len() + 1), b.index(oracle.len() + 1));
                let (from, to) = (a.min(b), a.max(b));
                let place = |at: usize| {
                    let line = oracle[..at].iter().filter(|c| **c == '\n').count();
                    let since = oracle[..at].iter().rposition(|c| *c == '\n').map_or(0, |at| at + 1);
                    (line as u32, oracle[since..at].iter().map(|c| c.len_utf16()).sum::<usize>() as u32)
                };
                let change = change(place(from), place(to), &inserted);
                documents.change("a", version as i64, &[change], Encoding::Utf16, |_| {});
                oracle.splice(from..to, inserted.chars());
                prop_assert_eq!(text(&mut documents, "a").unwrap(), oracle.iter().collect::<String>());
            }
        }
    }
}

//! The table of cases that editors show alike, and typing through a suggestion.

use super::*;
use proptest::prelude::*;

fn suggested(raw: &str, after: &str) -> String {
    fit(&clean(raw, after.contains("\r\n")), after).to_owned()
}

/// Lapce: the text, without the rest of the line if it begins with it.
fn lapce<'a>(text: &'a str, after: &str) -> &'a str {
    text.strip_prefix(&after[..end_of_line(after, 0)]).unwrap_or(text)
}

/// What the model wrote, what stands behind the cursor, what is suggested.
const CASES: &[(&str, &str, &str)] = &[
    ("hello", "", "hello"),
    ("println!(\"hi\");", "\n}", "println!(\"hi\");"),
    // Indentation is kept.
    ("    return 1", "\n", "    return 1"),
    ("    ", "\n", "    "),
    ("{\n    x\n}", "\n", "{\n    x\n}"),
    // Line breaks at the end.
    ("foo();\n", "\n}", "foo();"),
    ("foo();\n\n", "bar", "foo();"),
    ("foo();\n    ", "", "foo();"),
    ("\n\n", "", ""),
    // The suffix is repeated.
    ("a, b)", ")", "a, b"),
    ("a, b);", ");\nnext();\n", "a, b"),
    ("a, b);\nnext();", ");\nnext();\nmore();\n", "a, b"),
    ("if x {\n    y();\n}\n}", "\n}\n", "if x {\n    y();\n}"),
    ("hello\"", "\", x)", "hello"),
    ("a\", \"b\"", "\"", "a\", \"b"),
    ("5;\nlet y = 6;", ";\n", "5;\nlet y = 6"),
    ("same", "same", ""),
    // What the text itself has opened stays closed.
    ("bar()", ")", "bar()"),
    ("if x {\n    y();\n}", "\n}\n", "if x {\n    y();\n}"),
    ("\"x\"", "\"y\"", "\"x\""),
    ("[1, 2]", "]", "[1, 2]"),
    // Brackets that are there already.
    ("a, b);", ")", "a, b"),
    ("a));", "))", "a"),
    ("a));", ")", "a)"),
    ("a) + bar(b", ")", "a) + bar(b"),
    ("a]", ")", "a]"),
    (") {", ")", ""),
    // It begins with the rest of the line.
    (";\nlet y = 6;", ";\n", ""),
    ("  x", "  \n", "x"),
    ("  a", " \n", "a"),
    // Line ends.
    ("a\nb", "\r\nz", "a\r\nb"),
    ("a\r\nb\rc", "", "a\nb\nc"),
    ("a\r\n", "\r\nz", "a"),
    // Markers.
    ("foo<|endoftext|>bar", "", "foo"),
    ("<|fim_middle|>foo<|fim_pad|>", "", "foo"),
    (" <PRE> <MID>    foo <EOT>", "", "    foo "),
    ("foo<|fim_suf", "", "foo"),
    ("foo<｜fim▁e", "", "foo"),
    ("a < b", "", "a < b"),
    ("a <| b", "", "a <| b"),
    ("x[", "", "x["),
    ("<file_sep>", "", ""),
    // Characters of several bytes.
    ("größe😀)", "😀)", "größe"),
    ("", "x", ""),
];

#[test]
fn the_table_of_cases() {
    for (raw, after, expected) in CASES {
        assert_eq!(suggested(raw, after), *expected, "{raw:?} before {after:?}");
    }
}

#[test]
fn lapce_and_the_others_show_the_same() {
    for (raw, after, _) in CASES {
        let text = suggested(raw, after);
        assert_eq!(lapce(&text, after), text, "{raw:?} before {after:?}");
    }
}

fn known(text: &str) -> Known {
    Known::new("file:///a".into(), 10, text.into())
}

#[test]
fn typing_the_suggestion_leaves_the_rest() {
    let mut known = known("hello");
    assert_eq!(known.rest(10), Some("hello"));
    assert_eq!(known.rest(11), None, "the cursor is elsewhere");
    assert!(known.follow(10, 10, "he"));
    assert_eq!((known.rest(12), known.rest(10)), (Some("llo"), None));
    assert!(known.follow(12, 12, "llo"));
    assert_eq!(known.rest(15), None, "all of it is typed");
    assert!(known.follow(13, 15, ""), "deleted again");
    assert_eq!(known.rest(13), Some("lo"));
    assert!(known.follow(10, 13, ""));
    assert_eq!(known.rest(10), Some("hello"));
}

#[test]
fn other_changes_end_the_suggestion() {
    for (start, end, inserted) in [(10, 10, "x"), (9, 10, ""), (9, 9, "h"), (11, 11, "h"), (10, 11, "h"), (0, 0, "x")] {
        assert!(!known("hello").follow(start, end, inserted), "{start}..{end} {inserted:?}");
    }
}

#[test]
fn a_bracket_that_the_editor_closes_is_typed_through() {
    let mut known = known("(a, b);");
    assert!(known.follow(10, 10, "()"));
    assert_eq!(known.rest(11), Some("a, b);"));
    assert_eq!(fit(known.rest(11).unwrap(), ")\n"), "a, b");
    assert!(!Known::new("file:///a".into(), 10, "[x]".into()).follow(10, 10, "()"));
}

proptest! {
    #[test]
    fn every_editor_shows_the_same(
        raw in "(a|\\(|\\)|\"| |\n|é|<PRE>){0,20}", after in "(a|\\)|\"| |\n|\r\n|é){0,10}",
    ) {
        let text = suggested(&raw, &after);
        prop_assert_eq!(lapce(&text, &after), &text);
        prop_assert!(!markers().any(|marker| text.contains(marker)));
    }

    /// The oracle: a document in which the user types, and the whole text of the suggestion.
    #[test]
    fn what_is_left_completes_what_was_typed(
        text in "(a|é|😀|\n){1,10}", steps in prop::collection::vec((any::<bool>(), 1usize..4), 0..20),
    ) {
        let before = "0123456789";
        let mut document = before.to_owned();
        let mut known = Known::new("file:///a".into(), 10, text.clone());
        for (types, count) in steps {
            let typed = document.len() - 10;
            let (start, end, inserted) = if types {
                let more: String = text[typed..].chars().take(count).collect();
                (document.len(), document.len(), more)
            } else {
                let gone: usize = document[10..].chars().rev().take(count).map(char::len_utf8).sum();
                (document.len() - gone, document.len(), String::new())
            };
            prop_assert!(start == end && inserted.is_empty() || known.follow(start, end, &inserted));
            document.replace_range(start..end, &inserted);
            match known.rest(document.len()) {
                Some(rest) => prop_assert_eq!(format!("{document}{rest}"), format!("{before}{text}")),
                None => prop_assert_eq!(&document[10..], &text),
            }
        }
    }
}

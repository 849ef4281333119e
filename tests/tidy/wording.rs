//! A ratchet on vague words: pronouns where a noun would say more. Their number may only fall.

use super::source::File;

/// Vague words left in the texts of the repository. Lower it when the test says so; never raise it.
const VAGUE_MAX: usize = 290;
/// How far the number may stay behind what is true, so that a single line needs no change here.
const SLACK: usize = 40;

const VAGUE: &[&str] = &["who", "whom", "whoever", "somebody", "anybody", "nobody", "everybody", "what there is"];

/// Files that quote such words: this one, and the history.
const QUOTES: &[&str] = &["tests/tidy/wording.rs", "CHANGELOG.md", "CONTRIBUTING.md"];

/// The vague words of a text.
fn vague(text: &str) -> usize {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let count = |phrase: &&str| {
        let phrase: Vec<&str> = phrase.split(' ').collect();
        words.windows(phrase.len()).filter(|window| *window == phrase).count()
    };
    VAGUE.iter().map(count).sum()
}

#[test]
fn vague_words_become_fewer() {
    let files = super::repository();
    let counted = |file: &&File| !QUOTES.contains(&file.path.as_str()) && !file.path.starts_with("fuzz/");
    let mut counts: Vec<(usize, &str)> =
        files.iter().filter(counted).map(|file| (vague(&file.text), file.path.as_str())).collect();
    let total: usize = counts.iter().map(|(count, _)| count).sum();
    counts.sort_by(|a, b| b.cmp(a));
    let most: Vec<String> = counts.iter().take(20).map(|(count, path)| format!("{count:4} {path}")).collect();
    let words = VAGUE.join(", ");
    assert!(
        total <= VAGUE_MAX,
        "{total} vague words ({words}), {VAGUE_MAX} are allowed: name the thing instead (\"the client\", \"a \
         subscriber\", \"no thread\"). Most are in\n{}",
        most.join("\n")
    );
    assert!(
        total + SLACK >= VAGUE_MAX,
        "only {total} vague words are left: set VAGUE_MAX in tests/tidy/wording.rs to {total}"
    );
}

#[test]
fn vague_words_are_counted_as_words() {
    assert_eq!(vague("Nobody knows who; whose is not one. What there is, somebody's."), 4);
    assert_eq!(vague("whole anybody_else \"who\""), 2);
    assert_eq!(vague("the client returns"), 0);
}

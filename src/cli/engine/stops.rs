//! Ends a text where a stop text begins, also if it comes in pieces.

/// A text that arrives in pieces. What could be the beginning of a stop text is held back until the next piece.
#[derive(Debug)]
pub(super) struct Stops {
    stops: Vec<String>,
    held: String,
    has_ended: bool,
}

impl Stops {
    /// Empty stop texts are ignored.
    pub(super) fn new(stops: impl IntoIterator<Item = String>) -> Stops {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Stops { stops, held: String::new(), has_ended: false }
    }

    /// Takes a piece, and returns what can be passed on.
    pub(super) fn push(&mut self, piece: &str) -> String {
        if self.has_ended {
            return String::new();
        }
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.has_ended = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let longest = self.stops.iter().map(String::len).max().unwrap_or_default();
        // No stop text begins further ahead than it is long.
        let from = self.held.len().saturating_sub(longest);
        let at = self.held.char_indices().map(|(at, _)| at).filter(|at| *at >= from).find(begins);
        let rest = self.held.split_off(at.unwrap_or(self.held.len()));
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop text has come.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// What was held back, when no more comes.
    pub(super) fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of pieces, and whether it ended at a stop text.
    fn through(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut filter = Stops::new(stops.iter().map(|stop| (*stop).to_owned()));
        let mut text: String = pieces.iter().map(|piece| filter.push(piece)).collect();
        text += &filter.rest();
        (text, filter.has_ended())
    }

    #[test]
    fn a_stop_text_ends_the_text_however_it_is_split() {
        let text = "fn a() {}<|fim_middle|>leaked";
        for width in 1..text.len() {
            let pieces: Vec<&str> = text.as_bytes().chunks(width).map(|p| std::str::from_utf8(p).unwrap()).collect();
            assert_eq!(through(&["\n\n", "<|fim_middle|>"], &pieces), ("fn a() {}".to_owned(), true), "{width}");
        }
    }

    #[test]
    fn the_beginning_of_a_stop_text_is_not_lost() {
        assert_eq!(through(&["<|end|>"], &["a <", "| b", " <|en"]), ("a <| b <|en".to_owned(), false));
        assert_eq!(through(&["aab"], &["a", "a", "a", "b", "x"]), ("a".to_owned(), true));
    }

    #[test]
    fn the_first_of_several_stop_texts_counts() {
        assert_eq!(through(&["two", "one"], &["zero one two"]), ("zero ".to_owned(), true));
        assert_eq!(through(&[""], &["all"]), ("all".to_owned(), false));
    }

    #[test]
    fn characters_of_several_bytes_are_held_back_whole() {
        assert_eq!(through(&["<｜end▁of｜>"], &["ä✓<｜", "end", "▁of｜>x"]), ("ä✓".to_owned(), true));
        assert_eq!(through(&["✓✗"], &["ü✓", "ü"]), ("ü✓ü".to_owned(), false));
    }

    #[test]
    fn text_is_not_held_back_longer_than_needed() {
        let mut filter = Stops::new(["<|fim_middle|>".to_owned()]);
        assert_eq!(filter.push("hello"), "hello");
        assert_eq!(filter.push(" <"), " ");
        assert_eq!(filter.push("b"), "<b");
    }
}

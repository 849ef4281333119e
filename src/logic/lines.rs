//! Lines of bounded length out of a stream of bytes that another process writes.

/// Collects bytes up to the end of a line. What exceeds the limit is dropped, and the line ends with `…`.
#[derive(Debug)]
pub(crate) struct Lines {
    line: Vec<u8>,
    max: usize,
    is_cut: bool,
}

impl Lines {
    /// Lines of `max` bytes at most.
    pub(crate) fn new(max: usize) -> Lines {
        Lines { line: Vec::new(), max, is_cut: false }
    }

    /// Takes the next bytes, and passes each complete line on. Empty lines are left out.
    pub(crate) fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = part.strip_suffix(b"\n").unwrap_or(part);
            let taken = text.len().min(self.max - self.line.len());
            self.is_cut |= taken < text.len();
            self.line.extend_from_slice(&text[..taken]);
            if text.len() < part.len() {
                self.finish(&mut each);
            }
        }
    }

    /// The end of the stream: passes a line on that has no end.
    pub(crate) fn finish(&mut self, mut each: impl FnMut(&str)) {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        let text = String::from_utf8_lossy(line);
        match (text.is_empty(), self.is_cut) {
            (true, _) => {}
            (false, false) => each(&text),
            (false, true) => each(&format!("{text}…")),
        }
        self.line.clear();
        self.is_cut = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(max: usize, parts: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut all) = (Lines::new(max), Vec::new());
        for part in parts {
            lines.push(part, |line| all.push(line.to_owned()));
        }
        lines.finish(|line| all.push(line.to_owned()));
        all
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_are_split() {
        let text = b"one\r\ntwo\n\nthree";
        for at in 0..text.len() {
            let (a, b) = text.split_at(at);
            assert_eq!(lines(100, &[a, b]), ["one", "two", "three"], "split at {at}");
        }
    }

    #[test]
    fn a_line_without_end_takes_no_more_memory_than_its_limit() {
        let (mut lines, mut all) = (Lines::new(8), Vec::new());
        for _ in 0..1000 {
            lines.push(&[b'x'; 1000], |_| panic!("no line has ended"));
        }
        assert_eq!(lines.line.len(), 8);
        lines.push(b"\nnext\n", |line| all.push(line.to_owned()));
        assert_eq!(all, ["xxxxxxxx…", "next"]);
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_such() {
        assert_eq!(lines(100, &[b"a\xffb\n"]), ["a\u{fffd}b"]);
    }
}

//! A source file as the rules see it: code without comments and literals, and the paths that it names.

pub(crate) struct File {
    /// Relative to the root, with slashes.
    pub(crate) path: String,
    pub(crate) text: String,
    /// Of the code only; empty for other files than Rust.
    pub(crate) tokens: Vec<Token>,
}

pub(crate) struct Token {
    pub(crate) line: usize,
    /// A word, `::`, or one character.
    pub(crate) text: String,
}

pub(crate) struct CodePath {
    pub(crate) line: usize,
    pub(crate) segments: Vec<String>,
    /// Stands in a `use` or `extern crate`.
    pub(crate) imported: bool,
}

impl File {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let tokens = if path.ends_with(".rs") { tokens(&strip(text)) } else { Vec::new() };
        Self { path: path.to_owned(), text: text.to_owned(), tokens }
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    pub(crate) fn in_src(&self) -> bool {
        self.is_rust() && self.path.starts_with("src/")
    }

    /// `shm` for both `src/shm.rs` and `src/shm/ring.rs`; `lib` for the root, `bin` for programs.
    pub(crate) fn module(&self) -> String {
        let inside = self.path.trim_start_matches("src/");
        inside.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned()
    }

    /// How many modules deep the file is: 1 for `src/shm.rs` and `src/shm/mod.rs`, 2 for `src/shm/ring.rs`.
    pub(crate) fn depth(&self) -> usize {
        let inside = self.path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        inside.split('/').count()
    }

    pub(crate) fn paths(&self) -> Vec<CodePath> {
        let mut found = Vec::new();
        let mut imported = false;
        let mut at = 0;
        while at < self.tokens.len() {
            let word = self.tokens[at].text.as_str();
            match word {
                "use" => imported = true,
                ";" => imported = false,
                "crate" if at > 0 && self.tokens[at - 1].text == "extern" => imported = true,
                _ if starts_path(&self.tokens, at) => {
                    at = self.read_path(at, &[], imported, &mut found);
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
        found
    }

    /// Reads the path that begins at `at`, groups in braces expanded, and returns the first token behind it.
    fn read_path(&self, mut at: usize, prefix: &[String], imported: bool, found: &mut Vec<CodePath>) -> usize {
        let line = self.tokens[at].line;
        let mut segments = prefix.to_vec();
        loop {
            match self.text_at(at) {
                "{" => {
                    at += 1;
                    while !matches!(self.text_at(at), "}" | "") {
                        if is_word(self.text_at(at)) || matches!(self.text_at(at), "{" | "*") {
                            at = self.read_path(at, &segments, imported, found);
                        }
                        if self.text_at(at) == "as" {
                            at += 1; // and the new name, which is no path of its own
                        }
                        if self.text_at(at) != "}" {
                            at += 1;
                        }
                    }
                    return at + 1;
                }
                "self" if !prefix.is_empty() => {} // `a::{self}` is `a`
                word => segments.push(word.trim_start_matches("r#").to_owned()),
            }
            at += 1;
            let goes_on = is_word(self.text_at(at + 1)) || matches!(self.text_at(at + 1), "{" | "*");
            if self.text_at(at) != "::" || !goes_on {
                break;
            }
            at += 1;
        }
        found.push(CodePath { line, segments, imported });
        at
    }

    fn text_at(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| token.text.as_str())
    }
}

/// A word begins a path unless it continues one (`a::word`, `<T>::word`) or names a field or method (`a.word`).
fn starts_path(tokens: &[Token], at: usize) -> bool {
    let before = |distance: usize| at.checked_sub(distance).map_or("", |index| tokens[index].text.as_str());
    let continues = before(1) == "::" && (is_word(before(2)) || before(2) == ">") && before(2) != "use";
    is_word(&tokens[at].text) && !continues && before(1) != "."
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

fn tokens(code: &str) -> Vec<Token> {
    let mut found = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let chars: Vec<char> = line.chars().collect();
        let mut at = 0;
        while at < chars.len() {
            let start = at;
            let word = |at: usize| chars.get(at).is_some_and(|c| c.is_alphanumeric() || *c == '_');
            if word(at) {
                if chars[at] == 'r' && chars.get(at + 1) == Some(&'#') && word(at + 2) {
                    at += 2;
                }
                while word(at) {
                    at += 1;
                }
            } else if chars[at] == ':' && chars.get(at + 1) == Some(&':') {
                at += 2;
            } else {
                at += 1;
            }
            if !chars[start].is_whitespace() {
                found.push(Token { line: index + 1, text: chars[start..at].iter().collect() });
            }
        }
    }
    found
}

/// Blanks comments, strings and characters; lines and columns stay where they are.
pub(crate) fn strip(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_or_comment_end(&chars, at);
        if let Some(end) = end {
            code.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
            continue;
        }
        // A word is taken whole, so that the `b` of `grab"` is not taken for the prefix of a literal.
        let start = at;
        while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '_') {
            at += 1;
        }
        at = at.max(start + 1);
        code.extend(&chars[start..at]);
    }
    code
}

/// Where the comment or literal that begins at `at` ends, if one does.
fn literal_or_comment_end(chars: &[char], at: usize) -> Option<usize> {
    let get = |index: usize| chars.get(index).copied().unwrap_or('\0');
    if get(at) == '/' && get(at + 1) == '/' {
        return Some((at..chars.len()).find(|index| chars[*index] == '\n').unwrap_or(chars.len()));
    }
    if get(at) == '/' && get(at + 1) == '*' {
        return Some(block_comment_end(chars, at));
    }
    let prefix = match (get(at), get(at + 1)) {
        ('b' | 'c', 'r') => 2,
        ('b' | 'c' | 'r', _) => 1,
        _ => 0,
    };
    let raw = prefix > 0 && get(at + prefix - 1) == 'r';
    let hashes = if raw { (at + prefix..chars.len()).take_while(|index| chars[*index] == '#').count() } else { 0 };
    let quote = at + prefix + hashes;
    match get(quote) {
        '"' if raw => {
            let closes =
                |index: &usize| chars[*index] == '"' && (1..=hashes).all(|distance| get(index + distance) == '#');
            Some((quote + 1..chars.len()).find(closes).map_or(chars.len(), |index| index + 1 + hashes))
        }
        '"' => Some(quoted_end(chars, quote, '"')),
        // `'a'` and `'\n'` are characters; `'a` is a lifetime.
        '\'' if hashes == 0 && !raw && (get(quote + 1) == '\\' || get(quote + 2) == '\'') => {
            Some(quoted_end(chars, quote, '\''))
        }
        _ => None,
    }
}

fn quoted_end(chars: &[char], quote: usize, mark: char) -> usize {
    let mut at = quote + 1;
    while at < chars.len() && chars[at] != mark {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    break;
                }
            }
            _ => at += 1,
        }
    }
    at.min(chars.len())
}

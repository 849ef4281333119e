//! The house rules, executed over the sources: layers, unsafe, atomics, size and shape of files.
//!
//! Rules are textual on purpose. Clippy resolves names, and `clippy.toml` uses it for what needs that; here the *path*
//! that the author wrote is the point: `crate::sync::AtomicU64` is welcome where `std::sync::atomic::AtomicU64` is
//! not, though both are the same type outside loom.
//!
//! Reading order: the tables (they are the architecture), the rules, the repository test, then the small lexer that
//! blanks comments and literals and collects paths, and last a test per rule that a bad example is caught.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

// ---------------------------------------------------------------------------------------------------------- tables

/// Which module may use which. A module may always use itself, and only modules that stand above it.
const LAYERS: &[(&str, &[&str])] = &[
    ("sync", &[]),
    ("shm", &["sync"]),
    ("wire", &[]),
    ("config", &["wire"]), // names in the configuration are checked by wire's grammar
    ("metrics", &[]),
    ("client", &["shm", "wire", "sync"]),
    ("routing", &["wire"]),
    ("broker", &["shm", "wire", "config", "metrics", "routing", "sync"]), // never client
    ("cli", ALL),
];

/// May use every module, as the files in `src/bin/` may.
const ALL: &[&str] = &["*"];

/// Which module, or which single file, may name which crate. Every dependency in Cargo.toml has a row.
const CRATES: &[(&str, &[&str])] = &[
    ("actix", &["broker"]),
    ("actix_web", &["broker"]),
    ("base64", &["cli"]),
    ("bincode", &["src/wire/codec.rs"]),
    ("clap", &["cli", "bin"]),
    ("crossbeam_queue", &["client", "broker"]),
    ("env_logger", &["broker", "cli", "bin"]),
    ("hdrhistogram", &["cli"]),
    ("listenfd", &["broker"]),
    ("log", ALL),
    // The tests build the models.
    ("loom", &["sync", "src/shm/ring/loom_tests.rs", "src/shm/ring/loom_tests/fixture.rs"]),
    ("memmap2", &["shm"]),
    ("prometheus", &["metrics", "broker"]),
    ("rustix", &["sync", "shm", "config", "metrics", "client", "broker", "cli", "bin"]), // wire and routing are pure
    ("sd_notify", &["broker"]),
    ("serde", ALL),
    ("serde_json", ALL), // also a development dependency: unit tests anywhere may read JSON
    ("thiserror", ALL),
    ("tokio", &["client", "broker", "cli", "bin"]),
    ("toml", &["config"]),
];

/// Files that a rule leaves out: rule, file, reason. An entry that is no longer needed is an error.
const EXEMPT: &[(&str, &str, &str)] = &[("atomics", "src/sync.rs", "the switch itself")];

/// Lines that a file under `src/` may have.
const LINES_MAX: usize = 500;
/// Columns that a line of code may have.
const COLUMNS_MAX: usize = 120;

const RULES: &[Rule] = &[
    Rule { name: "layers", applies: |file| file.in_src(), check: layers },
    Rule { name: "crates", applies: |file| file.in_src(), check: crates },
    Rule { name: "unsafe", applies: |file| file.is_rust() && !file.path.starts_with("src/shm/"), check: no_unsafe },
    Rule { name: "atomics", applies: |file| file.in_src(), check: atomics },
    Rule { name: "lines", applies: |file| file.in_src(), check: lines },
    Rule { name: "text", applies: |_| true, check: text },
    Rule { name: "unfinished", applies: |file| file.is_rust(), check: unfinished },
    Rule { name: "hosts", applies: |_| true, check: hosts },
    Rule { name: "sleep", applies: is_test_without_leave_to_sleep, check: sleep },
];

// ----------------------------------------------------------------------------------------------------------- rules

struct Rule {
    name: &'static str,
    applies: fn(&File) -> bool,
    check: fn(&File) -> Vec<Finding>,
}

/// A line number and what is wrong there.
type Finding = (usize, String);

fn layers(file: &File) -> Vec<Finding> {
    let module = file.module();
    if module == "lib" || module == "bin" {
        return Vec::new(); // lib.rs is the map of all modules; a program stands above them
    }
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
        return vec![(1, format!("module `{module}` is not in the layer table of tests/tidy.rs and actors.md"))];
    };
    let mut found = Vec::new();
    for path in file.paths() {
        let supers = path.segments.iter().take_while(|segment| *segment == "super").count();
        let known = |name: &str| LAYERS.iter().any(|(module, _)| *module == name);
        let used = match path.segments.first().map(String::as_str) {
            Some("crate") => path.segments.get(1),
            // `super::super::client` reaches the root as well as `crate::client` does.
            Some("super") if supers >= file.depth() => path.segments.get(supers).filter(|name| known(name)),
            _ => None,
        };
        let Some(used) = used else { continue };
        if !known(used) {
            found.push((path.line, format!("`crate::{used}` hides a layer; name the module that owns it")));
        } else if *used != module && *allowed != ALL && !allowed.contains(&used.as_str()) {
            found.push((path.line, format!("`{module}` must not use `{used}`")));
        }
    }
    found
}

fn crates(file: &File) -> Vec<Finding> {
    let module = file.module();
    let mut found = Vec::new();
    for path in file.paths() {
        let Some((name, places)) = CRATES.iter().find(|(name, _)| path.segments[0] == *name) else {
            continue;
        };
        let names_a_crate = path.segments.len() > 1 || path.imported;
        let allowed = *places == ALL || places.iter().any(|place| *place == module || *place == file.path);
        if names_a_crate && !allowed {
            found.push((path.line, format!("`{name}` belongs in {}", places.join(", "))));
        }
    }
    found
}

fn no_unsafe(file: &File) -> Vec<Finding> {
    let words = file.tokens.iter().filter(|token| token.text == "unsafe");
    words.map(|token| (token.line, "unsafe lives in src/shm/".to_owned())).collect()
}

fn atomics(file: &File) -> Vec<Finding> {
    let mut found = Vec::new();
    for path in file.paths() {
        let segments: Vec<&str> = path.segments.iter().map(String::as_str).collect();
        match segments[..] {
            ["std" | "core", "sync", "atomic", ..] => {
                found.push((path.line, "take atomics from `crate::sync`, so that loom sees them".to_owned()));
            }
            ["std" | "core"] | ["std" | "core", "*"] | ["std" | "core", "sync"] | ["std" | "core", "sync", "*"] => {
                found.push((path.line, format!("import from `{}` by name; this could hide atomics", segments[0])));
            }
            _ => {}
        }
    }
    found
}

fn lines(file: &File) -> Vec<Finding> {
    let count = file.text.lines().count();
    if count <= LINES_MAX {
        return Vec::new();
    }
    vec![(count, format!("{count} lines are more than {LINES_MAX}: one idea per file, or a reason in EXEMPT"))]
}

fn text(file: &File) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        if line.contains('\t') {
            found.push((index + 1, "tab".to_owned()));
        }
        if line.ends_with(char::is_whitespace) {
            found.push((index + 1, "white space at the end of the line".to_owned()));
        }
        let columns = line.chars().count();
        let is_code = file.is_rust() || [".html", ".css", ".js"].iter().any(|kind| file.path.ends_with(kind));
        if is_code && columns > COLUMNS_MAX {
            found.push((index + 1, format!("{columns} columns are more than {COLUMNS_MAX}")));
        }
    }
    if !file.text.is_empty() && (!file.text.ends_with('\n') || file.text.ends_with("\n\n")) {
        found.push((file.text.lines().count(), "the file must end with exactly one newline".to_owned()));
    }
    found
}

fn unfinished(file: &File) -> Vec<Finding> {
    let mut found = Vec::new();
    for pair in file.tokens.windows(2) {
        if ["todo", "unimplemented", "dbg"].contains(&pair[0].text.as_str()) && pair[1].text == "!" {
            found.push((pair[0].line, format!("`{}!` is not for the main branch", pair[0].text)));
        }
    }
    found
}

/// Where packages come from is the user's configuration, not ours; so comments count as well.
fn hosts(file: &File) -> Vec<Finding> {
    // In two halves, so that this file passes its own rule.
    let hosts = [("crates", ".io"), ("npmjs", ".org"), ("npmjs", ".com"), ("pypi", ".org"), ("golang", ".org")];
    let mut found = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for (name, domain) in hosts {
            let host = format!("{name}{domain}");
            if line.to_lowercase().contains(&host) {
                found.push((index + 1, format!("names the registry host {host}")));
            }
        }
    }
    found
}

fn is_test_without_leave_to_sleep(file: &File) -> bool {
    let may_sleep = file.path.starts_with("tests/support/") || file.path == "tests/support.rs";
    file.is_rust() && file.path.starts_with("tests/") && !may_sleep
}

/// A test that sleeps is slow when it is right and flaky when it is not: wait for the event, by tests/support.
fn sleep(file: &File) -> Vec<Finding> {
    let mut found = Vec::new();
    for path in file.paths() {
        if path.segments.windows(2).any(|pair| pair == ["thread", "sleep"]) {
            found.push((path.line, "wait for the event with a helper of tests/support, do not sleep".to_owned()));
        }
    }
    found
}

// ------------------------------------------------------------------------------------------------- the repository

/// Runs one rule over the whole repository, and reports all that it finds at once.
fn enforce(name: &str) {
    let rule = RULES.iter().find(|rule| rule.name == name).expect("a rule of that name");
    let exempt: BTreeSet<&str> = EXEMPT.iter().filter(|entry| entry.0 == name).map(|entry| entry.1).collect();
    let files = repository();
    let mut report = String::new();
    for file in files.iter().filter(|file| (rule.applies)(file)) {
        let found = (rule.check)(file);
        if exempt.contains(file.path.as_str()) {
            if found.is_empty() {
                report += &format!("{}: no longer needs its exemption from `{name}`\n", file.path);
            }
            continue;
        }
        for (line, what) in found {
            report += &format!("{}:{line}: {what}\n", file.path);
        }
    }
    for path in exempt {
        if !files.iter().any(|file| file.path == path && (rule.applies)(file)) {
            report += &format!("{path}: is exempt from `{name}`, but there is no such file\n");
        }
    }
    assert!(report.is_empty(), "house rule `{name}` is broken:\n{report}");
}

/// Every text file that people write, below the root of the package.
fn repository() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let generated = ["target", ".git", "corpus", "artifacts", "node_modules"].contains(&name.as_str());
            if path.is_dir() && !path.is_symlink() && !generated {
                folders.push(path);
            } else if path.is_file() && is_text(&name) {
                let text = fs::read_to_string(&path).expect("UTF-8 text");
                let relative = path.strip_prefix(root).expect("a path below the root").to_string_lossy();
                files.push(File::new(&relative, &text));
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "found no sources below {}", root.display());
    files
}

fn is_text(name: &str) -> bool {
    let known = ["rs", "toml", "md", "sh", "yml", "yaml", "json", "html", "css", "js"];
    name == "run" || name.rsplit_once('.').is_some_and(|(_, extension)| known.contains(&extension))
}

#[test]
fn modules_use_only_what_stands_below_them() {
    enforce("layers");
}

#[test]
fn crates_are_named_only_where_they_belong() {
    enforce("crates");
}

#[test]
fn unsafe_lives_in_shm() {
    enforce("unsafe");
}

#[test]
fn atomics_come_from_the_switch() {
    enforce("atomics");
}

#[test]
fn files_are_short() {
    enforce("lines");
}

#[test]
fn text_is_clean() {
    enforce("text");
}

#[test]
fn nothing_is_left_unfinished() {
    enforce("unfinished");
}

#[test]
fn no_registry_host_is_named() {
    enforce("hosts");
}

#[test]
fn tests_do_not_sleep() {
    enforce("sleep");
}

#[test]
fn the_layer_table_points_one_way() {
    for (index, (module, uses)) in LAYERS.iter().enumerate() {
        for used in uses.iter().filter(|_| *uses != ALL) {
            let above = LAYERS[..index].iter().any(|(name, _)| name == used);
            assert!(above, "`{module}` uses `{used}`, which does not stand above it in the table");
        }
    }
}

#[test]
fn every_exemption_names_a_rule_and_a_reason() {
    for (rule, path, reason) in EXEMPT {
        assert!(RULES.iter().any(|known| known.name == *rule), "{path}: there is no rule `{rule}`");
        assert!(!reason.is_empty(), "{path}: exempt from `{rule}` without a reason");
    }
}

#[test]
fn every_dependency_has_a_row() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).expect("Cargo.toml");
    let dependencies = dependencies(&manifest);
    assert!(dependencies.contains("serde"), "could not read the dependencies out of Cargo.toml");
    for name in dependencies {
        let row = CRATES.iter().any(|(known, _)| *known == name);
        assert!(row, "`{name}` has no row in CRATES: say which modules may name it");
    }
}

/// Crate names out of the dependency tables of a manifest, development dependencies left out.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line == "[dependencies]" || (line.starts_with("[target.") && line.ends_with(".dependencies]"));
        } else if let Some((name, _)) = line.split_once('=').filter(|_| inside && !line.starts_with('#')) {
            names.insert(name.trim().replace('-', "_"));
        }
    }
    names
}

#[test]
fn actors_md_shows_the_same_layers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("actors.md");
    let document = fs::read_to_string(path).expect("actors.md, the architecture document");
    let documented = documented_layers(&document);
    let mut report = String::new();
    for (module, uses) in LAYERS {
        let here: BTreeSet<String> = uses.iter().map(|name| (*name).to_owned()).collect();
        match documented.get(*module) {
            None => report += &format!("`{module}` has no row in actors.md\n"),
            Some(there) if *there != here => {
                report += &format!("`{module}` may use {here:?} here, {there:?} in actors.md\n");
            }
            Some(_) => {}
        }
    }
    for module in documented.keys().filter(|name| !LAYERS.iter().any(|(known, _)| known == name)) {
        report += &format!("`{module}` has a row in actors.md only\n");
    }
    assert!(report.is_empty(), "`## Layers` in actors.md and LAYERS in tests/tidy.rs differ:\n{report}");
}

/// The table under `## Layers`: module, and the modules in back-ticks in its second column (`*` for the word "all").
fn documented_layers(document: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut table = BTreeMap::new();
    let section = document.lines().skip_while(|line| line.trim() != "## Layers").skip(1);
    for line in section.take_while(|line| !line.starts_with("# ") && !line.starts_with("## ")) {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let [module, uses, ..] = cells[..] else { continue };
        let Some(module) = module.strip_prefix('`').and_then(|rest| rest.split('`').next()) else {
            continue;
        };
        let quoted = uses.split('`').skip(1).step_by(2);
        let mut used: BTreeSet<String> =
            quoted.filter(|name| LAYERS.iter().any(|(known, _)| known == name)).map(str::to_owned).collect();
        if uses == "all" {
            used.insert("*".to_owned());
        }
        table.insert(module.to_owned(), used);
    }
    table
}

// ------------------------------------------------------------------------------------------------------- the lexer

struct File {
    /// Relative to the root, with slashes.
    path: String,
    text: String,
    /// Of the code only; empty for other files than Rust.
    tokens: Vec<Token>,
}

struct Token {
    line: usize,
    /// A word, `::`, or one character.
    text: String,
}

struct CodePath {
    line: usize,
    segments: Vec<String>,
    /// Stands in a `use` or `extern crate`.
    imported: bool,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        let tokens = if path.ends_with(".rs") { tokens(&strip(text)) } else { Vec::new() };
        Self { path: path.to_owned(), text: text.to_owned(), tokens }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn in_src(&self) -> bool {
        self.is_rust() && self.path.starts_with("src/")
    }

    /// `shm` for both `src/shm.rs` and `src/shm/ring.rs`; `lib` for the root, `bin` for programs.
    fn module(&self) -> String {
        let inside = self.path.trim_start_matches("src/");
        inside.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned()
    }

    /// How many modules deep the file is: 1 for `src/shm.rs` and `src/shm/mod.rs`, 2 for `src/shm/ring.rs`.
    fn depth(&self) -> usize {
        let inside = self.path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        inside.split('/').count()
    }

    fn paths(&self) -> Vec<CodePath> {
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
fn strip(source: &str) -> String {
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

// ------------------------------------------------------------------------------------------------- bad examples

/// The lines on which a rule complains about a made-up file; none if the rule does not look at such a file.
fn complaints(rule: &str, path: &str, text: &str) -> Vec<usize> {
    let rule = RULES.iter().find(|known| known.name == rule).expect("a rule of that name");
    let file = File::new(path, text);
    if !(rule.applies)(&file) {
        return Vec::new();
    }
    let lines: BTreeSet<usize> = (rule.check)(&file).into_iter().map(|(line, _)| line).collect();
    lines.into_iter().collect()
}

#[test]
fn strip_blanks_comments_and_literals_and_keeps_the_rest_in_place() {
    for (source, code) in [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */ d */ e", "a                   e"),
        ("a /* b\nc */ d", "a     \n     d"),
        (r#"f("b // \" c", d)"#, r#"f(           , d)"#),
        (r##"f(r#"a " b"#, c)"##, r##"f(          , c)"##),
        (r#"f(b"a", br"b\", c"c")"#, "f(    ,       ,     )"),
        (r"f('a', '\'', b'\\', 'é')", "f(   ,     ,      ,    )"),
        ("f::<'a>(x: &'a str)", "f::<'a>(x: &'a str)"),
        ("'outer: loop { break 'outer }", "'outer: loop { break 'outer }"),
        ("r#unsafe; grab; bar", "r#unsafe; grab; bar"),
        ("\"not closed", "           "),
    ] {
        assert_eq!(strip(source).trim_end(), code.trim_end(), "of {source:?}");
        assert_eq!(strip(source).chars().count(), source.chars().count(), "of {source:?}");
    }
}

#[test]
fn paths_are_found_with_groups_expanded() {
    let source = "use a::{self, b::{c, d as e}, f::*};\nlet x = <g::H as i::J>::k(l::m::<n::O>(), p.q::<R>());\n\
                  use ::s::t;";
    let file = File::new("src/x.rs", source);
    let paths: Vec<String> = file.paths().iter().map(|path| path.segments.join("::")).collect();
    for wanted in ["a", "a::b::c", "a::b::d", "a::f::*", "g::H", "i::J", "l::m", "n::O", "R", "s::t"] {
        assert!(paths.iter().any(|path| path == wanted), "no {wanted} in {paths:?}");
    }
    for unwanted in ["e", "k", "q", "t", "b::c", "c"] {
        assert!(!paths.iter().any(|path| path == unwanted), "{unwanted} in {paths:?}");
    }
}

#[test]
fn a_use_across_layers_is_caught() {
    let caught = |path: &str, text: &str| complaints("layers", path, text) == [1];
    assert!(caught("src/broker/router.rs", "use crate::client::Client;"));
    assert!(caught("src/broker/router.rs", "use crate::{wire::Header, client::Client};"));
    assert!(caught("src/broker/router.rs", "fn f() { crate::client::connect() }"));
    assert!(caught("src/broker/router.rs", "use super::super::client::Client;"));
    assert!(caught("src/broker/mod.rs", "use super::client::Client;"));
    assert!(caught("src/wire/topic.rs", "use crate::sync::AtomicU64;"));
    assert!(caught("src/wire.rs", "macro_rules! m { () => { $crate::shm::f() } }"));
    assert!(caught("src/routing/breaker.rs", "use crate::config::Breaker;"));
    assert!(caught("src/client/mod.rs", "use crate::Broker;"), "through a re-export of the root");
    assert!(caught("src/client/mod.rs", "use crate::*;"), "through a glob");
    assert!(caught("src/util/mod.rs", "fn f() {}"), "a module that the table does not know");
}

#[test]
fn a_use_that_the_table_allows_is_not_caught() {
    let fine = |path: &str, text: &str| complaints("layers", path, text).is_empty();
    assert!(fine("src/broker/router.rs", "use crate::{shm::Ring, wire, routing::Table, broker::Tick};"));
    assert!(fine("src/broker/router.rs", "// use crate::client::Client;\nconst A: &str = \"crate::client\";"));
    assert!(fine("src/broker/router.rs", "use super::client::Peer;"), "a submodule of broker itself");
    assert!(fine("src/cli/bench.rs", "use crate::{broker::Broker, client::Client};"));
    assert!(fine("src/bin/lapce-ipc.rs", "use lapce_ipc::cli;"));
    assert!(fine("src/lib.rs", "pub use crate::client::Client;"));
}

#[test]
fn a_crate_in_the_wrong_place_is_caught() {
    let caught = |path: &str, text: &str| complaints("crates", path, text) == [1];
    assert!(caught("src/routing/breaker.rs", "use actix::prelude::*;"));
    assert!(caught("src/client/mod.rs", "use {actix_web::web};"));
    assert!(caught("src/broker/mod.rs", "#[derive(clap::Parser)]"));
    assert!(caught("src/cli/mod.rs", "fn f() { ::prometheus::gather() }"));
    assert!(caught("src/shm/ring.rs", "use loom::thread;"));
    assert!(caught("src/client/mod.rs", "extern crate memmap2;"));
    assert!(caught("src/wire/header.rs", "use bincode as b;"));
    assert!(caught("src/wire/header.rs", "use rustix::fd::OwnedFd;"));
    assert!(caught("src/cli/mod.rs", "fn f() { toml::from_str(x) }"));
    let fine = |path: &str, text: &str| complaints("crates", path, text).is_empty();
    assert!(fine("src/wire/codec.rs", "use bincode::config;"));
    assert!(fine("src/broker/mod.rs", "use actix::Actor;"));
    assert!(fine("src/cli/mod.rs", "let toml = config.toml; crate::config::toml::read(toml)"));
}

#[test]
fn unsafe_outside_shm_is_caught() {
    assert_eq!(complaints("unsafe", "src/client/mod.rs", "fn f() {}\nunsafe fn g() {}"), [2]);
    assert_eq!(complaints("unsafe", "tests/a.rs", "#[unsafe(no_mangle)]"), [1]);
    let fine = "#![deny(unsafe_op_in_unsafe_fn)]\n// unsafe\nconst A: &str = \"unsafe\"; /* unsafe */";
    assert!(complaints("unsafe", "src/client/mod.rs", fine).is_empty());
    assert!(complaints("unsafe", "src/shm/map.rs", "unsafe { f() }").is_empty());
}

#[test]
fn atomics_past_the_switch_are_caught() {
    let caught = |text: &str| complaints("atomics", "src/broker/mod.rs", text) == [1];
    assert!(caught("use std::sync::atomic::AtomicU64;"));
    assert!(caught("use core::sync::atomic::{AtomicU64, Ordering};"));
    assert!(caught("use std::{sync::{Arc, atomic::AtomicU64}};"));
    assert!(caught("static A: std::sync::atomic::AtomicU64 = f();"));
    assert!(caught("use std::sync;"));
    assert!(caught("use std::sync::{self};"));
    assert!(caught("use std::sync::*;"));
    assert!(caught("use std as s;"));
    assert!(!caught("use std::sync::{Arc, Mutex};"));
    assert!(!caught("use crate::sync::atomic::AtomicU64;"));
}

#[test]
fn files_and_lines_out_of_shape_are_caught() {
    assert_eq!(complaints("lines", "src/wire/a.rs", &"x\n".repeat(LINES_MAX + 1)), [LINES_MAX + 1]);
    assert!(complaints("lines", "src/wire/a.rs", &"x\n".repeat(LINES_MAX)).is_empty());
    assert_eq!(complaints("text", "src/a.rs", "a\n\tb\n"), [2]);
    assert_eq!(complaints("text", "README.md", "a \nb\n"), [1]);
    assert_eq!(complaints("text", "src/a.rs", "a\nb"), [2]);
    assert_eq!(complaints("text", "src/a.rs", "a\n\n"), [2]);
    for path in ["src/a.rs", "src/a.js", "src/a.css"] {
        assert_eq!(complaints("text", path, &format!("{}\n", "é".repeat(COLUMNS_MAX + 1))), [1], "{path}");
    }
    assert!(complaints("text", "src/a.rs", &format!("{}\n", "é".repeat(COLUMNS_MAX))).is_empty());
    assert!(complaints("text", "README.md", &format!("{}\n", "x".repeat(COLUMNS_MAX + 1))).is_empty());
}

#[test]
fn unfinished_work_is_caught() {
    assert_eq!(complaints("unfinished", "src/a.rs", "todo!();\nunimplemented!();\ndbg!(x);"), [1, 2, 3]);
    assert!(complaints("unfinished", "src/a.rs", "// todo!()\nlet todo = \"dbg!\";").is_empty());
}

#[test]
fn a_registry_host_is_caught() {
    let host = ["index.", "crates", ".io"].concat();
    assert_eq!(complaints("hosts", "deny.toml", &format!("# a\nallow = \"https://{host}/\"")), [2]);
    assert_eq!(complaints("hosts", "src/a.rs", &format!("// see {}", host.to_uppercase())), [1]);
}

#[test]
fn a_sleeping_test_is_caught() {
    for text in ["std::thread::sleep(t);", "use std::{thread::sleep};", "thread::sleep(t);"] {
        assert_eq!(complaints("sleep", "tests/a.rs", text), [1], "{text}");
    }
    assert!(complaints("sleep", "tests/support/mod.rs", "thread::sleep(t);").is_empty());
    assert!(complaints("sleep", "src/client/mod.rs", "thread::sleep(t);").is_empty());
}

#[test]
fn the_documented_table_is_read_as_written() {
    let document = "# A\n## Layers\n\nSome prose.\n\n| module | may use | holds |\n|---|---|---|\n\
                    | `sync` | std or loom | the switch |\n| `shm` | `sync`, `memmap2` | rings |\n\
                    | `cli` | all | `wire` |\n\
                    ## Next\n| `x` | `shm` | y |\n";
    let table = documented_layers(document);
    let row = |module: &str| table[module].iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(table.len(), 3);
    assert!(row("sync").is_empty());
    assert_eq!(row("shm"), ["sync"]);
    assert_eq!(row("cli"), ["*"]);
}

#[test]
fn dependencies_are_read_out_of_a_manifest() {
    let manifest = "[features]\na = []\n[dependencies]\n# b = 1\nlog = \"0.4\"\nactix-web = { version = \"4\" }\n\
                    [target.'cfg(x)'.dependencies]\nloom = \"0.7\"\n[dev-dependencies]\nproptest = \"1\"\n";
    let found: Vec<String> = dependencies(manifest).into_iter().collect();
    assert_eq!(found, ["actix_web", "log", "loom"]);
}

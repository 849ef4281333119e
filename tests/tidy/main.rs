//! The house rules, executed over the sources: layers, unsafe, atomics, size and shape of files.
//!
//! Rules are textual on purpose. Clippy resolves names, and `clippy.toml` uses it for what needs that; here the *path*
//! that the author wrote is the point: `crate::sync::AtomicU64` is welcome where `std::sync::atomic::AtomicU64` is
//! not, though both are the same type outside loom.
//!
//! Reading order: the tables (they are the architecture), the rules, the repository's tests. `source` is the small
//! lexer that blanks comments and literals and collects paths; `examples` shows for each rule that a bad one is caught.

mod circles;
mod examples;
mod rooms;
mod source;
mod wording;

use source::File;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;

// ---------------------------------------------------------------------------------------------------------- tables

/// Which module may use which. A module may always use itself, and only modules that stand above it.
const LAYERS: &[(&str, &[&str])] = &[
    ("sync", &[]),
    ("shm", &["sync"]),
    ("wire", &[]),
    ("config", &["shm", "wire"]), // the ring's constants, and the grammar of names
    ("metrics", &[]),
    ("logic", &["wire", "sync"]),
    ("client", &["shm", "wire", "logic", "sync"]), // of `logic` the backoff
    ("broker", &["shm", "wire", "config", "metrics", "logic", "sync"]), // never client
    ("cli", ALL),
];

/// May use every module, as the files in `src/bin/` may.
const ALL: &[&str] = &["*"];

/// Which module, or which single file, may name which crate. Every dependency in Cargo.toml has a row.
const CRATES: &[(&str, &[&str])] = &[
    ("actix", &["broker"]),
    ("actix_http", &["src/broker/health/server.rs"]),
    ("actix_service", &["src/broker/health/server.rs"]),
    ("actix_web", &["broker", "cli"]),
    ("base64", &["cli"]),
    ("bincode", &["src/wire/codec.rs"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("crossbeam_queue", &["broker"]),
    ("env_logger", &["cli"]),
    ("futures_core", &["client", "cli"]),
    ("hdrhistogram", &["cli"]),
    ("libc", &["shm"]),
    ("listenfd", &["broker"]),
    ("log", ALL),
    // The tests build the models.
    (
        "loom",
        &[
            "sync",
            "src/shm/ring/loom_tests.rs",
            "src/shm/ring/loom_tests/fixture.rs",
            "src/logic/breaker/loom_tests.rs",
        ],
    ),
    ("lsp_server", &["cli"]),
    ("memmap2", &["shm"]),
    ("nix", &["broker", "cli"]),
    ("prometheus", &["metrics", "broker"]),
    ("rustc_hash", &["client"]), // ids and names that the program itself chooses
    ("rustix", &["shm", "config", "client", "broker", "cli"]), // wire and logic are pure
    ("reqwest", &["cli"]),
    ("rustls", &["cli"]),
    ("sd_notify", &["broker"]),
    ("serde", ALL),
    ("serde_json", ALL), // also a development dependency: unit tests anywhere may read JSON
    ("signal_hook", &["cli"]),
    ("siphasher", &["src/logic/session/publisher.rs"]),
    ("sse_stream", &["cli"]),
    ("strsim", &["config"]),
    ("subtle", &["broker"]),
    ("thiserror", ALL),
    ("tokio", &["client", "broker", "cli"]),
    ("toml", &["config", "cli"]),
];

/// Files that a rule leaves out: rule, file, reason. An entry that is no longer needed is an error.
const EXEMPT: &[(&str, &str, &str)] = &[
    ("atomics", "src/sync.rs", "the switch itself"),
    ("atomics", "src/sync/counted.rs", "counts the uses of the machine's"),
    ("locks", "src/shm/ring/loom_tests/fixture.rs", "a lock of the models' fixture"),
];

/// Files of a layer that may stand in circles of modules (`circles`): layer, files, reason. The number may only fall.
const CIRCLES: &[(&str, usize, &str)] = &[];

/// Lines that a file under `src/` may have.
const LINES_MAX: usize = 500;
const ARCHITECTURE_LINES_MAX: usize = 400;
/// Columns that a line of code may have.
const COLUMNS_MAX: usize = 120;

const RULES: &[Rule] = &[
    Rule { name: "layers", applies: |file| file.in_src(), check: layers },
    Rule { name: "crates", applies: |file| file.in_src(), check: crates },
    Rule { name: "unsafe", applies: |file| file.is_rust() && !file.path.starts_with("src/shm/"), check: no_unsafe },
    Rule { name: "atomics", applies: |file| file.in_src(), check: atomics },
    Rule { name: "locks", applies: is_on_the_hot_path, check: locks },
    Rule { name: "lines", applies: |file| file.in_src() || file.path == "actors.md", check: lines },
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
        return vec![(1, format!("module `{module}` is not in the layer table of tests/tidy and actors.md"))];
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

fn is_on_the_hot_path(file: &File) -> bool {
    ["src/client/", "src/broker/router/", "src/logic/", "src/shm/"].iter().any(|folder| file.path.starts_with(folder))
}

fn locks(file: &File) -> Vec<Finding> {
    let mut found = Vec::new();
    for path in file.paths() {
        if let ["std", "sync", "Mutex" | "RwLock", ..] =
            path.segments.iter().map(String::as_str).collect::<Vec<_>>()[..]
        {
            found.push((path.line, "take locks from `crate::sync`, so that tests can count them".to_owned()));
        }
    }
    found
}

fn lines(file: &File) -> Vec<Finding> {
    let count = file.text.lines().count();
    let max = if file.path == "actors.md" { ARCHITECTURE_LINES_MAX } else { LINES_MAX };
    if count <= max {
        return Vec::new();
    }
    vec![(count, format!("{count} lines are more than {max}: one idea per file, or a reason in EXEMPT"))]
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
fn locks_of_the_hot_path_come_from_the_switch() {
    enforce("locks");
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

/// Prints them edge by edge: `cargo test --test tidy no_circles -- --nocapture`.
#[test]
fn no_circles_of_modules_within_a_layer() {
    let graph = circles::Graph::new(&repository());
    let mut files: BTreeMap<String, usize> = CIRCLES.iter().map(|(layer, ..)| ((*layer).to_owned(), 0)).collect();
    for circle in graph.circles() {
        let edges = graph.edges_within(&circle).join("\n  ");
        let _ = writeln!(std::io::stdout(), "circle of {} files:\n  {edges}", circle.len());
        let layer = circle[0].split('/').nth(1).unwrap_or_default().to_owned();
        *files.entry(layer).or_default() += circle.len();
    }
    for (layer, found) in files {
        let allowed = CIRCLES.iter().find(|(name, ..)| *name == layer).map_or(0, |(_, allowed, _)| *allowed);
        assert!(found <= allowed, "{found} files of `{layer}` import each other in circles; {allowed} may");
        assert!(found == allowed, "{found} files of `{layer}` stand in circles, {allowed} may: lower it in CIRCLES");
    }
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
fn every_permission_is_used() {
    let files = repository();
    let uses = |of: &dyn Fn(&File) -> bool, path: &dyn Fn(&[String]) -> bool| {
        files.iter().any(|file| file.in_src() && of(file) && file.paths().iter().any(|found| path(&found.segments)))
    };
    let mut report = String::new();
    for (module, used) in LAYERS.iter().flat_map(|(module, uses)| uses.iter().map(move |used| (module, used))) {
        let names = |path: &[String]| path.len() > 1 && path[0] == "crate" && path[1] == *used;
        if *used != "*" && !uses(&|file| file.module() == *module, &names) {
            report += &format!("LAYERS: `{module}` does not use `{used}`\n");
        }
    }
    for (name, place) in CRATES.iter().flat_map(|(name, places)| places.iter().map(move |place| (name, place))) {
        let of = |file: &File| *place == "*" || file.module() == *place || file.path == *place;
        if !uses(&of, &|path| path[0] == *name) {
            report += &format!("CRATES: `{place}` does not use `{name}`\n");
        }
    }
    assert!(report.is_empty(), "permissions that nothing needs:\n{report}");
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

/// Lines that *Life of a publish* and *Life of a request* may have each, without their titles.
const LIFE_LINES_MAX: usize = 25;

#[test]
fn the_lives_in_actors_md_name_functions_that_exist() {
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("actors.md")).expect("actors.md");
    let files = repository();
    let mut report = String::new();
    for title in ["## Life of a publish", "## Life of a request"] {
        let steps = life(&document, title);
        assert!(steps.len() > 10, "`{title}` has {} steps", steps.len());
        assert!(steps.len() <= LIFE_LINES_MAX, "`{title}` has more than {LIFE_LINES_MAX} lines");
        for (path, functions) in steps {
            let Some(file) = files.iter().find(|file| file.path == path) else {
                report += &format!("{title}: there is no file {path}\n");
                continue;
            };
            assert!(!functions.is_empty(), "{title}: {path} has no function");
            for function in functions {
                let defined = file.tokens.windows(2).any(|pair| pair[0].text == "fn" && pair[1].text == function);
                if !defined {
                    report += &format!("{title}: {path} has no function `{function}`\n");
                }
            }
        }
    }
    assert!(report.is_empty(), "actors.md is not up to date:\n{report}");
}

/// The steps of a section: a file, and functions in it.
fn life(document: &str, title: &str) -> Vec<(String, Vec<String>)> {
    let section = document.lines().skip_while(|line| *line != title).skip(1);
    let rows = section.take_while(|line| !line.starts_with("## ")).filter(|line| line.contains("| `src/"));
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let step = |row: &str| {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        (quoted(cells[cells.len() - 2]).concat(), quoted(cells[cells.len() - 1]))
    };
    rows.map(step).collect()
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
    assert!(report.is_empty(), "`## Layers` in actors.md and LAYERS in tests/tidy differ:\n{report}");
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

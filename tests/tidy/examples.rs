//! Bad examples: each rule catches one, and leaves a good one alone.

use super::source::{File, strip};
use super::{COLUMNS_MAX, LINES_MAX, RULES, dependencies, documented_layers};
use std::collections::BTreeSet;

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
    assert!(caught("src/logic/breaker.rs", "use crate::config::Breaker;"));
    assert!(caught("src/client/mod.rs", "use crate::Broker;"), "through a re-export of the root");
    assert!(caught("src/client/mod.rs", "use crate::*;"), "through a glob");
    assert!(caught("src/util/mod.rs", "fn f() {}"), "a module that the table does not know");
}

#[test]
fn a_use_that_the_table_allows_is_not_caught() {
    let fine = |path: &str, text: &str| complaints("layers", path, text).is_empty();
    assert!(fine("src/broker/router.rs", "use crate::{shm::Ring, wire, logic::Table, broker::Tick};"));
    assert!(fine("src/broker/router.rs", "// use crate::client::Client;\nconst A: &str = \"crate::client\";"));
    assert!(fine("src/broker/router.rs", "use super::client::Peer;"), "a submodule of broker itself");
    assert!(fine("src/cli/bench.rs", "use crate::{broker::Broker, client::Client};"));
    assert!(fine("src/bin/lapce-ipc.rs", "use lapce_ipc::cli;"));
    assert!(fine("src/lib.rs", "pub use crate::client::Client;"));
}

#[test]
fn a_crate_in_the_wrong_place_is_caught() {
    let caught = |path: &str, text: &str| complaints("crates", path, text) == [1];
    assert!(caught("src/logic/breaker.rs", "use actix::prelude::*;"));
    assert!(caught("src/client/mod.rs", "use {actix_web::web};"));
    assert!(caught("src/broker/mod.rs", "#[derive(clap::Parser)]"));
    assert!(caught("src/cli/mod.rs", "fn f() { ::prometheus::gather() }"));
    assert!(caught("src/shm/ring.rs", "use loom::thread;"));
    assert!(caught("src/client/mod.rs", "extern crate memmap2;"));
    assert!(caught("src/wire/header.rs", "use bincode as b;"));
    assert!(caught("src/wire/header.rs", "use rustix::fd::OwnedFd;"));
    assert!(caught("src/broker/mod.rs", "fn f() { toml::from_str(x) }"));
    let fine = |path: &str, text: &str| complaints("crates", path, text).is_empty();
    assert!(fine("src/wire/codec.rs", "use bincode::config;"));
    assert!(fine("src/broker/mod.rs", "use actix::Actor;"));
    assert!(fine("src/broker/mod.rs", "let toml = config.toml; crate::config::toml::read(toml)"));
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
fn locks_past_the_switch_are_caught_on_the_hot_path() {
    let caught = |path: &str, text: &str| complaints("locks", path, text) == [1];
    assert!(caught("src/client/data/lane.rs", "use std::sync::{Arc, Mutex};"));
    assert!(caught("src/broker/router/state.rs", "struct A(std::sync::RwLock<u64>);"));
    assert!(!caught("src/client/data/lane.rs", "use std::sync::{Arc, MutexGuard};"));
    assert!(!caught("src/client/data/lane.rs", "use crate::sync::Mutex;"));
    assert!(!caught("src/broker/health/location.rs", "use std::sync::Mutex;"));
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

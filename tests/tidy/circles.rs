//! Circles of modules within a layer: files that import each other, directly or by way of others.
//!
//! The graph: one node for each file below `src/`; an edge from a file to each file whose items it names. A path is
//! resolved as far as it names files. A name that a file re-exports (`pub use`) leads to the file that it comes from,
//! and the `pub use` itself is no edge: it lists names, it does not need them. Test modules are left out.
//! The circles are the strongly connected components of more than one node (Tarjan, 1972).

use super::source::{File, Token};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(crate) struct Graph {
    /// `broker::router::state` to its file.
    files: BTreeMap<String, String>,
    /// The module that a re-exported name comes from, by module and name.
    exports: BTreeMap<(String, String), String>,
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    pub(crate) fn new(files: &[File]) -> Graph {
        let mut graph = Graph::default();
        let sources: Vec<_> = files.iter().filter(|file| file.in_src() && !is_outside(file)).collect();
        for file in &sources {
            graph.files.insert(module(&file.path), file.path.clone());
        }
        let mut named = Vec::new();
        for file in &sources {
            let here = module(&file.path);
            let exported = re_exports(file);
            let tests = inline_tests(file);
            for path in file.paths().into_iter().filter(|path| !contains(&tests, path.line)) {
                // `mod child;`, or a variable with the name of a child.
                if path.segments.len() == 1 && !path.imported {
                    continue;
                }
                let Some(absolute) = graph.absolute(&here, &path.segments) else { continue };
                if path.imported && contains(&exported, path.line) {
                    let name = path.segments.last().cloned().unwrap_or_default();
                    graph.exports.insert((here.clone(), name), absolute.join("::"));
                } else {
                    named.push((here.clone(), absolute));
                }
            }
        }
        for (here, path) in named {
            let there = graph.owner(&path);
            if there != here {
                graph.edges.entry(here).or_default().insert(there);
            }
        }
        graph
    }

    /// A path as it is written in a module, from the crate's root; `None` if it leads out of the crate.
    fn absolute(&self, here: &str, segments: &[String]) -> Option<Vec<String>> {
        let here: Vec<String> = here.split("::").map(str::to_owned).collect();
        let first = segments.first()?.as_str();
        let supers = segments.iter().take_while(|segment| *segment == "super").count();
        let (base, rest) = match first {
            "crate" => (Vec::new(), &segments[1..]),
            "self" => (here, &segments[1..]),
            "super" => (here[..here.len().checked_sub(supers)?].to_vec(), &segments[supers..]),
            _ if self.files.contains_key(&format!("{}::{first}", here.join("::"))) => (here, segments),
            _ => return None,
        };
        Some([base, rest.to_vec()].concat())
    }

    /// The file that owns what a path names, re-exports followed.
    fn owner(&self, path: &[String]) -> String {
        let mut path = path.to_vec();
        for _ in 0..8 {
            let known = |len: &usize| self.files.contains_key(&path[..*len].join("::"));
            let Some(len) = (1..=path.len()).rev().find(known) else { break };
            let module = path[..len].join("::");
            let name = path.get(len).cloned().unwrap_or_default();
            let Some(from) = self.exports.get(&(module.clone(), name)) else { return module };
            path = from.split("::").map(str::to_owned).chain(path[len + 1..].iter().cloned()).collect();
        }
        path.join("::")
    }

    /// Each use of another file, as the two modules.
    pub(crate) fn edges(&self) -> impl Iterator<Item = (&str, &str)> {
        self.edges.iter().flat_map(|(from, targets)| targets.iter().map(|to| (from.as_str(), to.as_str())))
    }

    /// All circles, the largest first: the files of each in order.
    pub(crate) fn circles(&self) -> Vec<Vec<String>> {
        let mut search = Search::new(self);
        for module in self.files.keys() {
            if !search.index.contains_key(module) {
                search.visit(module);
            }
        }
        let mut found = search.found;
        found.sort_by_key(|circle| (usize::MAX - circle.len(), circle.clone()));
        found
    }

    /// The edges of a circle, as `from -> to` lines.
    pub(crate) fn edges_within(&self, circle: &[String]) -> Vec<String> {
        let path = |module: &String| self.files.get(module).cloned().unwrap_or_default();
        let inside = |module: &String| circle.contains(&path(module));
        let mut lines = Vec::new();
        for (from, targets) in self.edges.iter().filter(|(from, _)| inside(from)) {
            lines.extend(targets.iter().filter(|to| inside(to)).map(|to| format!("{} -> {}", path(from), path(to))));
        }
        lines
    }
}

/// Tarjan's search for strongly connected components.
struct Search<'a> {
    graph: &'a Graph,
    index: BTreeMap<String, usize>,
    low: BTreeMap<String, usize>,
    stack: Vec<String>,
    found: Vec<Vec<String>>,
}

impl<'a> Search<'a> {
    fn new(graph: &'a Graph) -> Self {
        Search { graph, index: BTreeMap::new(), low: BTreeMap::new(), stack: Vec::new(), found: Vec::new() }
    }

    fn visit(&mut self, module: &str) {
        let index = self.index.len();
        self.index.insert(module.to_owned(), index);
        self.low.insert(module.to_owned(), index);
        self.stack.push(module.to_owned());
        for next in self.graph.edges.get(module).into_iter().flatten() {
            let low = if !self.index.contains_key(next) {
                self.visit(next);
                self.low[next]
            } else if self.stack.contains(next) {
                self.index[next]
            } else {
                continue;
            };
            let least = low.min(self.low[module]);
            self.low.insert(module.to_owned(), least);
        }
        if self.low[module] == index {
            let at = self.stack.iter().position(|on| on == module).expect("it is on the stack");
            let component = self.stack.split_off(at);
            if component.len() > 1 {
                let mut files: Vec<_> = component.iter().filter_map(|on| self.graph.files.get(on).cloned()).collect();
                files.sort();
                self.found.push(files);
            }
        }
    }
}

/// `broker::router` for both `src/broker/router.rs` and `src/broker/router/mod.rs`.
fn module(path: &str) -> String {
    path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::")
}

/// The root lists all modules; programs and tests stand outside.
fn is_outside(file: &File) -> bool {
    let is_test = |part: &str| part.trim_end_matches(".rs").split('_').any(|word| word == "tests" || word == "test");
    file.path == "src/lib.rs" || file.path.starts_with("src/bin/") || file.path.split('/').any(is_test)
}

/// The first and last lines of each `pub use`.
fn re_exports(file: &File) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (at, token) in file.tokens.iter().enumerate().filter(|(_, token)| token.text == "use") {
        if at > 0 && ["pub", ")"].contains(&file.tokens[at - 1].text.as_str()) {
            let end = file.tokens[at..].iter().find(|token| token.text == ";");
            found.push((token.line, end.map_or(token.line, |end| end.line)));
        }
    }
    found
}

/// The first and last lines of `mod tests { … }`.
fn inline_tests(file: &File) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (at, words) in file.tokens.windows(3).enumerate() {
        if words[0].text == "mod" && words[1].text == "tests" && words[2].text == "{" {
            let mut depth = 0;
            let closes = |token: &&Token| {
                depth += i32::from(token.text == "{") - i32::from(token.text == "}");
                depth == 0
            };
            let end = file.tokens[at + 2..].iter().find(closes).map_or(usize::MAX, |end| end.line);
            found.push((words[0].line, end));
        }
    }
    found
}

fn contains(ranges: &[(usize, usize)], line: usize) -> bool {
    ranges.iter().any(|(first, last)| (*first..=*last).contains(&line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let files: Vec<_> = files.iter().map(|(path, text)| File::new(path, text)).collect();
        Graph::new(&files).circles()
    }

    #[test]
    fn files_that_import_each_other_are_a_circle() {
        let found = circles(&[
            ("src/a/mod.rs", "mod x;\nmod y;\nmod z;\n"),
            ("src/a/x.rs", "use super::y::Y;\n"),
            ("src/a/y.rs", "fn f() { crate::a::z::g() }\n"),
            ("src/a/z.rs", "use super::{x::X};\n"),
            ("src/a/free.rs", "use super::x::X;\n"),
        ]);
        assert_eq!(found, [["src/a/x.rs", "src/a/y.rs", "src/a/z.rs"]]);
    }

    #[test]
    fn a_list_of_names_makes_no_circle_but_leads_to_where_they_come_from() {
        let found = circles(&[
            ("src/a/mod.rs", "mod x;\nmod y;\npub use x::X;\npub(crate) use self::y::Y;\n"),
            ("src/a/x.rs", "use super::Y;\n"),
            ("src/a/y.rs", "struct Y;\n"),
        ]);
        assert!(found.is_empty(), "{found:?}");
        let found = circles(&[
            ("src/a/mod.rs", "mod x;\nmod y;\npub use x::X;\npub(crate) use self::y::Y;\n"),
            ("src/a/x.rs", "use super::Y;\n"),
            ("src/a/y.rs", "use crate::a::X;\n"),
        ]);
        assert_eq!(found, [["src/a/x.rs", "src/a/y.rs"]]);
    }

    #[test]
    fn a_parent_that_uses_its_child_is_in_a_circle_if_the_child_uses_it() {
        let found = circles(&[
            ("src/a.rs", "mod x;\nstruct A(x::X);\n"),
            ("src/a/x.rs", "use super::A;\n"),
            ("src/a/y.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n    use super::*;\n    use super::super::A;\n}\n"),
            ("src/a/tests.rs", "use super::x::X;\n"),
        ]);
        assert_eq!(found, [["src/a.rs", "src/a/x.rs"]]);
    }
}

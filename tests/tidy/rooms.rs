//! Rooms: the folders of a layer, which use each other one way only. Files beside them list names.

use super::circles::Graph;
use super::repository;
use std::collections::BTreeSet;

/// The rooms of a layer from the bottom up, and which rooms below it each may use: layer, room, rooms.
const ROOMS: &[(&str, &str, &[&str])] = &[
    ("client", "error", &[]),
    ("client", "data", &["error"]),
    ("client", "connect", &["error"]),
    ("client", "connection", &["error", "data", "connect"]),
    ("client", "reconnect", &["error", "data", "connect", "connection"]),
    ("client", "engine", &["error", "data", "connection", "reconnect"]),
    ("client", "api", &["error", "data", "connect", "connection", "engine"]),
    ("client", "asynchronous", &["error", "data", "connection", "engine", "api"]),
];

/// The layer and the room of a module: `client::data::lane` is in room `data` of `client`.
fn room(module: &str) -> Option<(&str, &str)> {
    let mut parts = module.split("::");
    let (layer, room) = (parts.next()?, parts.next()?);
    ROOMS.iter().any(|(known, ..)| *known == layer).then_some((layer, room))
}

fn report(graph: &Graph) -> String {
    let mut report = String::new();
    let mut used = BTreeSet::new();
    for (from, to) in graph.edges() {
        let (Some((layer, here)), Some((other, there))) = (room(from), room(to)) else { continue };
        if layer != other || here == there {
            continue;
        }
        match ROOMS.iter().find(|(known, name, _)| (*known, *name) == (layer, here)) {
            None => report += &format!("{from}: `{here}` has no row in ROOMS\n"),
            Some((.., allowed)) if !allowed.contains(&there) => {
                report += &format!("{from}: `{here}` must not use `{there}` ({to})\n");
            }
            Some(_) => _ = used.insert((layer, here, there)),
        }
    }
    for (layer, room, allowed) in ROOMS {
        for there in allowed.iter().filter(|there| !used.contains(&(*layer, *room, **there))) {
            report += &format!("ROOMS: `{room}` of `{layer}` does not use `{there}`\n");
        }
    }
    report
}

#[test]
fn rooms_use_only_what_stands_below_them() {
    let report = report(&Graph::new(&repository()));
    assert!(report.is_empty(), "the rooms of a layer:\n{report}");
}

#[test]
fn the_table_of_rooms_points_one_way() {
    for (index, (layer, room, uses)) in ROOMS.iter().enumerate() {
        for used in *uses {
            let above = ROOMS[..index].iter().any(|(known, name, _)| (known, name) == (layer, used));
            assert!(above, "`{room}` uses `{used}`, which does not stand above it in the table");
        }
    }
}

#[test]
fn a_room_that_uses_one_above_it_is_found() {
    use super::source::File;
    let file = |path: &str, text: &str| File::new(path, text);
    let graph = Graph::new(&[
        file("src/client/mod.rs", "mod data;\nmod api;\nmod odd;\n"),
        file("src/client/data/mod.rs", "pub(crate) mod lane;\n"),
        file("src/client/data/lane.rs", "use crate::client::api::publish::Publisher;\n"),
        file("src/client/api/mod.rs", "pub(crate) mod publish;\n"),
        file("src/client/api/publish.rs", "struct Publisher;\n"),
        file("src/client/odd.rs", "use super::data::lane::Lane;\n"),
    ]);
    let report = report(&graph);
    assert!(report.contains("client::data::lane: `data` must not use `api` (client::api::publish)"), "{report}");
    assert!(report.contains("client::odd: `odd` has no row in ROOMS"), "{report}");
    assert!(report.contains("ROOMS: `data` of `client` does not use `error`"), "{report}");
}

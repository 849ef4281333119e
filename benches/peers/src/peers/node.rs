//! Node.js: JSON lines over a Unix socket, both ends in JavaScript (`node.js` beside this file).

use crate::error::Result;
use crate::peer::{About, Peer, Requester, Scene, external, version_of};
use crate::work::{Sink, Source};
use std::fs;
use std::process::Command;

const PROGRAM: &str = "node";

pub(crate) struct Node;

impl Peer for Node {
    fn about(&self) -> About {
        About {
            key: "node",
            name: "Node.js",
            version: version_of(PROGRAM).unwrap_or_default(),
            path: "end to end over a Unix socket, a line of JSON for each message",
            processes: 2,
            wait: "the event loop, which blocks in epoll",
            compares: "no broker: what an extension host in JavaScript commonly does; text and JSON in place of bytes, \
                       one thread for each end",
        }
    }

    fn missing(&self) -> Option<String> {
        version_of(PROGRAM).is_none().then(|| format!("{PROGRAM} is not on PATH"))
    }

    fn end(&self, scene: &Scene, role: &[String]) -> Result<Command> {
        let script = scene.path("node.js");
        fs::write(&script, include_str!("node.js"))?;
        let mut command = external(PROGRAM);
        command.arg(script).args(role);
        Ok(command)
    }

    // Its ends are not this program.

    fn respond(&self, _scene: &Scene) -> Result<()> {
        Err(IN_JAVASCRIPT.into())
    }

    fn connect(&self, _scene: &Scene) -> Result<Box<dyn Requester>> {
        Err(IN_JAVASCRIPT.into())
    }

    fn send(&self, _scene: &Scene, _source: &mut Source) -> Result<()> {
        Err(IN_JAVASCRIPT.into())
    }

    fn receive(&self, _scene: &Scene, _sink: &mut Sink) -> Result<()> {
        Err(IN_JAVASCRIPT.into())
    }
}

const IN_JAVASCRIPT: &str = "the ends of this peer are in node.js";

//! One end of a measurement, in a process of its own.
//!
//! It tells the driver on stdout, line by line: `ready`, `start` and `end` of the measured time, `result JSON`. It ends
//! when the driver closes its stdin or ends itself.

use crate::error::Result;
use crate::peer::{Peer, Scene, say};
use crate::peers;
use crate::work::{Caller, Figures, Sink, Source, TOKENS};
use clap::ValueEnum;
use rustix::process::{Signal, set_parent_process_death_signal};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// The broker, of a peer whose broker is a library
    Broker,
    Respond,
    /// One request at a time
    Request,
    /// As `request`; each reply is a stream
    Stream,
    /// Connections without traffic
    Connect,
    Send,
    Receive,
}

#[derive(clap::Args)]
pub(crate) struct Options {
    peer: String,
    role: Role,
    folder: PathBuf,
    /// Bytes of a message
    size: usize,
    /// Measured time, in milliseconds
    milliseconds: u64,
    /// Connections
    count: u32,
}

impl Options {
    /// The command line of a role.
    pub(crate) fn arguments(peer: &dyn Peer, role: Role, scene: &Scene, time: Duration, count: u32) -> Vec<String> {
        let role = role.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let (key, folder) = (peer.about().key.to_owned(), scene.folder.to_string_lossy().into_owned());
        let (size, time) = (scene.size.to_string(), time.as_millis().to_string());
        vec!["role".to_owned(), key, role, folder, size, time, count.to_string()]
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    // No end outlives a driver that is killed.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let found = peers::all().iter().find(|peer| peer.about().key == options.peer);
    let peer = *found.ok_or_else(|| format!("no such peer: {}", options.peer))?;
    let scene = Scene { folder: options.folder.clone(), size: options.size };
    let time = Duration::from_millis(options.milliseconds);
    match options.role {
        Role::Broker => peer.serve_broker(&scene),
        Role::Respond => peer.respond(&scene),
        Role::Request => request(peer, &scene, Caller::new(options.size, 0, time)),
        Role::Stream => request(peer, &scene, Caller::new(options.size, TOKENS, time)),
        Role::Connect => connect(peer, &scene, options.count),
        Role::Send => peer.send(&scene, &mut Source::new(options.size, time)),
        Role::Receive => {
            let mut sink = Sink::new(options.size, time);
            peer.receive(&scene, &mut sink)?;
            report(sink.figures().ok_or("the last message did not arrive")?, &scene)
        }
    }
}

fn request(peer: &dyn Peer, scene: &Scene, mut caller: Caller) -> Result<()> {
    let mut requester = peer.connect(scene)?;
    requester.run(&mut caller)?;
    report(caller.figures()?, scene)
}

/// Opens connections beside a first one, each used once.
fn connect(peer: &dyn Peer, scene: &Scene, count: u32) -> Result<()> {
    let open = || {
        let mut requester = peer.connect(scene)?;
        requester.run(&mut Caller::once(scene.size))?;
        Result::Ok(requester)
    };
    let _first = open()?;
    say("start");
    let _connections = (0..count).map(|_| open()).collect::<Result<Vec<_>>>()?;
    say("end");
    report(Figures::default(), scene)
}

fn report(figures: Figures, scene: &Scene) -> Result<()> {
    say(&format!("result {}", serde_json::to_string(&figures)?));
    scene.wait_for_end();
    Ok(())
}

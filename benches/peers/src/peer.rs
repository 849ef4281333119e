//! What a peer implements: one file below `peers/` for each.

use crate::error::Result;
use crate::role::{Options, Role};
use crate::work::{Caller, Sink, Source};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A way to exchange messages between processes of one machine.
///
/// The driver starts a peer's broker, if it has one, and each end as a process of its own. The ends are this program
/// again, in a role that calls one of the methods below. A method moves messages, and nothing else: `work` makes them,
/// checks every byte of them, and takes the times.
pub(crate) trait Peer: Sync {
    fn about(&self) -> About;

    /// Why the peer cannot be measured on this machine, if it cannot.
    fn missing(&self) -> Option<String> {
        None
    }

    /// What sets this run apart from a usual one; it stands below the tables.
    fn caveat(&self) -> Option<String> {
        None
    }

    /// The broker.
    fn broker(&self, _scene: &Scene) -> Result<Option<Command>> {
        Ok(None)
    }

    /// Is the broker, for a peer whose broker is a library: [`Peer::broker`] then starts this program in that role.
    fn serve_broker(&self, _scene: &Scene) -> Result<()> {
        Err("the peer has no broker of its own".into())
    }

    /// Whether the broker accepts connections.
    fn is_ready(&self, _scene: &Scene) -> bool {
        true
    }

    /// The command of an end: this program, with these arguments.
    fn end(&self, scene: &Scene, role: &[String]) -> Result<Command> {
        let _ = scene;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(role);
        Ok(command)
    }

    /// Replies to requests with [`crate::work::replies`]. It calls [`Scene::ready`] when requests may arrive, and runs
    /// until the process is terminated.
    fn respond(&self, scene: &Scene) -> Result<()>;

    /// One more connection to the responder.
    fn connect(&self, scene: &Scene) -> Result<Box<dyn Requester>>;

    /// Sends all of `source` one way, then calls [`Scene::wait_for_end`].
    fn send(&self, scene: &Scene, source: &mut Source) -> Result<()>;

    /// Receives until `sink` is done. It calls [`Scene::ready`] when messages may arrive.
    fn receive(&self, scene: &Scene, sink: &mut Sink) -> Result<()>;

    /// Removes what killed processes leave outside of the scene's folder.
    fn clean(&self, _scene: &Scene) {}
}

/// A connection to the responder.
pub(crate) trait Requester {
    /// Sends each request of `caller`, and hands it the replies.
    fn run(&mut self, caller: &mut Caller) -> Result<()>;
}

/// What a reader of the tables has to know about a peer.
pub(crate) struct About {
    /// On the command line and in the JSON file.
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) version: String,
    /// The way of a message.
    pub(crate) path: &'static str,
    /// Processes that a message passes, both ends included.
    pub(crate) processes: u32,
    /// How an end waits for a message.
    pub(crate) wait: &'static str,
    /// What its figures do and do not compare.
    pub(crate) compares: &'static str,
}

/// The place of one run: a folder of its own, and the size of the messages.
pub(crate) struct Scene {
    pub(crate) folder: PathBuf,
    /// Of a message, in bytes.
    pub(crate) size: usize,
}

impl Scene {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// As [`Scene::path`], for interfaces that take text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// Tells the driver that the other end may start.
    pub(crate) fn ready(&self) {
        say("ready");
    }

    /// Waits until the driver has all it needs, and ends this process.
    pub(crate) fn wait_for_end(&self) {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
    }
}

/// Writes a line for the driver.
pub(crate) fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    // The driver is gone if this fails, and then its end is ours.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// The version of a crate in this package's lock file.
pub(crate) fn locked(name: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    let (_, package) = lock.split_once(&format!("name = \"{name}\"\nversion = \"")).unwrap_or(("", "?\""));
    package.split('"').next().unwrap_or("?").to_owned()
}

/// The first number of what `program --version` prints, as `1.14.10`; nothing where the program is missing.
pub(crate) fn version_of(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.split_whitespace().map(|word| word.trim_start_matches('v')).find(is_version).map(str::to_owned)
}

/// The broker of a peer whose broker is a library: this program, in that role.
pub(crate) fn own_broker(peer: &dyn Peer, scene: &Scene) -> Result<Command> {
    peer.end(scene, &Options::arguments(peer, Role::Broker, scene, Duration::ZERO, 0))
}

/// A program that is not ours, as a child that ends with the driver.
pub(crate) fn external(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program.as_ref());
    command
}

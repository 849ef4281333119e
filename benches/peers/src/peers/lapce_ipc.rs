//! lapce-ipc: its broker as a process, a service for requests, a topic one way.
//!
//! A message passes the broker: two rings in shared memory, and a copy out of each.

use crate::error::Result;
use crate::peer::{About, Peer, Requester, Scene, external, locked};
use crate::work::{Caller, Sink, Source, asks_for_stream, replies};
use lapce_ipc::client::{Client, WaitStrategy};
use std::path::PathBuf;
use std::process::Command;

/// The variable with the path of the broker's program; by default the product's release build.
const BROKER: &str = "PEERS_LAPCE_IPC_BROKER";

pub(crate) static ADAPTIVE: LapceIpc = LapceIpc { wait: WaitStrategy::Adaptive };
pub(crate) static BLOCK: LapceIpc = LapceIpc { wait: WaitStrategy::Block };

pub(crate) struct LapceIpc {
    wait: WaitStrategy,
}

impl LapceIpc {
    fn client(&self, scene: &Scene) -> Result<Client> {
        Ok(Client::builder().socket(scene.path("broker.sock")).wait(self.wait).no_reconnect().connect()?)
    }
}

impl Peer for LapceIpc {
    fn about(&self) -> About {
        let (key, name, wait) = match self.wait {
            WaitStrategy::Block => ("lapce_ipc_block", "lapce-ipc, block", "blocks in epoll; the broker spins briefly"),
            _ => ("lapce_ipc", "lapce-ipc", "spins briefly, then blocks in epoll (the default)"),
        };
        About {
            key,
            name,
            version: locked("lapce-ipc"),
            path: "through its broker, over shared memory",
            processes: 3,
            wait,
            compares: "a broker between the ends: each message is routed by name, and copied twice",
        }
    }

    fn missing(&self) -> Option<String> {
        let program = program();
        (!program.exists()).then(|| format!("{} is missing: cargo build --release", program.display()))
    }

    fn caveat(&self) -> Option<String> {
        std::env::var_os(BROKER).map(|_| format!("its broker is the program of {BROKER}, not this commit's"))
    }

    fn broker(&self, scene: &Scene) -> Result<Option<Command>> {
        let mut command = external(program());
        command.arg("--socket").arg(scene.path("broker.sock")).args(["--health-addr", "127.0.0.1:0"]);
        command.env("RUST_LOG", "warn");
        Ok(Some(command))
    }

    fn is_ready(&self, scene: &Scene) -> bool {
        self.client(scene).is_ok()
    }

    fn respond(&self, scene: &Scene) -> Result<()> {
        let client = self.client(scene)?;
        let service = client.serve("bench.service")?;
        scene.ready();
        for request in service {
            let mut request = request?;
            let payload = request.take_payload();
            if asks_for_stream(&payload) {
                for reply in replies(&payload)? {
                    request.chunk(reply)?;
                }
                request.finish()?;
            } else {
                request.reply(payload)?;
            }
        }
        Ok(())
    }

    fn connect(&self, scene: &Scene) -> Result<Box<dyn Requester>> {
        Ok(Box::new(Connection(self.client(scene)?)))
    }

    fn send(&self, scene: &Scene, source: &mut Source) -> Result<()> {
        let client = self.client(scene)?;
        let publisher = client.publisher("bench.topic")?;
        while let Some(message) = source.next() {
            publisher.publish(message)?;
        }
        scene.wait_for_end();
        Ok(())
    }

    fn receive(&self, scene: &Scene, sink: &mut Sink) -> Result<()> {
        let client = self.client(scene)?;
        let mut subscription = client.subscribe("bench.topic")?;
        scene.ready();
        let mut message = Vec::new();
        while !sink.is_done() {
            subscription.read_next(|view| {
                message.resize(view.len(), 0);
                view.copy_to(0, &mut message);
            })?;
            sink.take(&message)?;
        }
        Ok(())
    }
}

struct Connection(Client);

impl Requester for Connection {
    fn run(&mut self, caller: &mut Caller) -> Result<()> {
        let wants_stream = caller.wants_stream();
        while let Some(request) = caller.next() {
            if wants_stream {
                for token in self.0.request_stream("bench.service", request)? {
                    caller.take(&token?)?;
                }
            } else {
                let reply = self.0.request("bench.service", request)?;
                caller.take(&reply)?;
            }
        }
        Ok(())
    }
}

fn program() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/release/ipc_server_main");
    std::env::var_os(BROKER).map_or_else(|| PathBuf::from(default), PathBuf::from)
}

//! NATS: nats-server from Debian, and the client `async-nats`.
//!
//! Core NATS: request and reply over the client's inbox, publish and subscribe one way. A server disconnects a
//! subscriber that reads too slowly, and the client drops messages beyond its buffer, so one way a window of
//! acknowledgements keeps publisher and subscriber together.

use crate::error::Result;
use crate::peer::{About, Peer, Requester, Scene, external, locked, version_of};
use crate::runtime::block_on;
use crate::work::{Caller, Sink, Source, Window, replies};
use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt;
use std::fs;
use std::process::Command;

const SERVER: &str = "nats-server";

pub(crate) struct Nats;

impl Nats {
    async fn client(scene: &Scene) -> Result<Client> {
        let url = url(scene).ok_or("the server does not listen")?;
        let client = ConnectOptions::new().connect(url).await?;
        client.flush().await?;
        Ok(client)
    }
}

impl Peer for Nats {
    fn about(&self) -> About {
        About {
            key: "nats",
            name: "NATS",
            version: format!("{}, async-nats {}", version_of(SERVER).unwrap_or_default(), locked("async-nats")),
            path: "through nats-server, over TCP on the loopback interface",
            processes: 3,
            wait: "blocks in epoll",
            compares: "a broker for networks: messages cross TCP, and clusters and accounts are there for distances \
                       that the others do not cover; one way, with an acknowledgement of every 1,024 messages, because \
                       it drops messages of a fast publisher",
        }
    }

    fn missing(&self) -> Option<String> {
        version_of(SERVER).is_none().then(|| format!("{SERVER} is not installed"))
    }

    fn broker(&self, scene: &Scene) -> Result<Option<Command>> {
        let mut command = external(SERVER);
        command.args(["--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir"]).arg(&scene.folder);
        Ok(Some(command))
    }

    fn is_ready(&self, scene: &Scene) -> bool {
        url(scene).is_some() && block_on(Self::client(scene)).is_ok()
    }

    fn respond(&self, scene: &Scene) -> Result<()> {
        block_on(async {
            let client = Self::client(scene).await?;
            let mut requests = client.subscribe("bench.service").await?;
            client.flush().await?;
            scene.ready();
            while let Some(request) = requests.next().await {
                let reply_to = request.reply.ok_or("a request without a subject for its reply")?;
                for reply in replies(&request.payload)? {
                    client.publish(reply_to.clone(), reply.as_ref().to_vec().into()).await?;
                }
            }
            Ok(())
        })
    }

    fn connect(&self, scene: &Scene) -> Result<Box<dyn Requester>> {
        Ok(Box::new(Connection(block_on(Self::client(scene))?)))
    }

    fn send(&self, scene: &Scene, source: &mut Source) -> Result<()> {
        block_on(async {
            let client = Self::client(scene).await?;
            let mut acknowledgements = client.subscribe("bench.acknowledged").await?;
            client.flush().await?;
            let mut window = Window::default();
            while let Some(message) = source.next() {
                client.publish("bench.topic", message.to_vec().into()).await?;
                window.sent();
                while window.is_full() {
                    acknowledgements.next().await.ok_or("the connection ended")?;
                    window.acknowledged();
                }
            }
            client.flush().await?;
            scene.wait_for_end();
            Ok(())
        })
    }

    fn receive(&self, scene: &Scene, sink: &mut Sink) -> Result<()> {
        block_on(async {
            let client = Self::client(scene).await?;
            let mut messages = client.subscribe("bench.topic").await?;
            client.flush().await?;
            scene.ready();
            while !sink.is_done() {
                let message = messages.next().await.ok_or("the connection ended")?;
                sink.take(&message.payload)?;
                if Window::is_due(sink.received()) {
                    client.publish("bench.acknowledged", Vec::new().into()).await?;
                }
            }
            Ok(())
        })
    }
}

struct Connection(Client);

impl Requester for Connection {
    fn run(&mut self, caller: &mut Caller) -> Result<()> {
        block_on(async {
            let inbox = self.0.new_inbox();
            let mut tokens = if caller.wants_stream() { Some(self.0.subscribe(inbox.clone()).await?) } else { None };
            while let Some(request) = caller.next() {
                let request = request.to_vec().into();
                let Some(tokens) = &mut tokens else {
                    let reply = self.0.request("bench.service", request).await?;
                    caller.take(&reply.payload)?;
                    continue;
                };
                self.0.publish_with_reply("bench.service", inbox.clone(), request).await?;
                while caller.waits() {
                    caller.take(&tokens.next().await.ok_or("the connection ended")?.payload)?;
                }
            }
            Ok(())
        })
    }
}

/// The address at which the server listens: it writes it to a file, once it does.
fn url(scene: &Scene) -> Option<String> {
    let mut entries = fs::read_dir(&scene.folder).ok()?.filter_map(std::result::Result::ok);
    let file = entries.find(|entry| entry.path().extension().is_some_and(|extension| extension == "ports"))?;
    let ports: serde_json::Value = serde_json::from_slice(&fs::read(file.path()).ok()?).ok()?;
    Some(ports["nats"][0].as_str()?.to_owned())
}

//! BUS/RT: its broker, a library in Rust on tokio, as a process, and its asynchronous client, over a Unix socket.
//!
//! Requests are messages from one client to another, with the quality `Realtime`, which writes at once; one way,
//! with the quality `No`, which gathers messages in a buffer. Its topics are slower than these direct messages.

use crate::error::{Error, Result};
use crate::peer::{About, Peer, Requester, Scene, locked, own_broker};
use crate::runtime::block_on;
use crate::work::{Caller, Sink, Source, Window, replies};
use busrt::broker::{Broker, ServerConfig};
use busrt::client::AsyncClient;
use busrt::ipc::{Client, Config};
use busrt::{EventChannel, QoS};
use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

const RESPONDER: &str = "responder";
const SENDER: &str = "sender";
const RECEIVER: &str = "receiver";
/// Of the clients one way; the default of 8 KiB shares each system call between fewer messages.
const BUFFER_BYTES: usize = 64 * 1024;
/// Longer than any pause of this machine.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct BusRt;

impl BusRt {
    async fn client(scene: &Scene, name: &str) -> Result<(Client, EventChannel)> {
        let config = Config::new(&scene.text("broker.sock"), name).timeout(TIMEOUT);
        let config = if [SENDER, RECEIVER].contains(&name) { config.buf_size(BUFFER_BYTES) } else { config };
        let mut client = Client::connect(&config).await.map_err(text)?;
        let events = client.take_event_channel().ok_or("no event channel")?;
        Ok((client, events))
    }
}

impl Peer for BusRt {
    fn about(&self) -> About {
        About {
            key: "busrt",
            name: "BUS/RT",
            version: locked("busrt"),
            path: "through its broker, over a Unix socket",
            processes: 3,
            wait: "blocks in epoll",
            compares: "a broker in Rust for one machine, the nearest relative here; one way, direct messages in place \
                       of a topic, with an acknowledgement of every 1,024 messages",
        }
    }

    fn broker(&self, scene: &Scene) -> Result<Option<Command>> {
        own_broker(self, scene).map(Some)
    }

    fn serve_broker(&self, scene: &Scene) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut broker = Broker::new();
            let config = ServerConfig::new().timeout(TIMEOUT);
            broker.spawn_unix_server(&scene.text("broker.sock"), config).await.map_err(text)?;
            std::future::pending::<()>().await;
            Ok(())
        })
    }

    fn is_ready(&self, scene: &Scene) -> bool {
        UnixStream::connect(scene.path("broker.sock")).is_ok()
    }

    fn respond(&self, scene: &Scene) -> Result<()> {
        block_on(async {
            let (mut client, requests) = Self::client(scene, RESPONDER).await?;
            scene.ready();
            while let Ok(request) = requests.recv().await {
                let mut replies = replies(request.payload())?.peekable();
                while let Some(reply) = replies.next() {
                    // Tokens go through the buffer; the last one takes them along.
                    let qos = if replies.peek().is_some() { QoS::No } else { QoS::Realtime };
                    client.send(request.sender(), reply.as_ref().into(), qos).await.map_err(text)?;
                }
            }
            Ok(())
        })
    }

    fn connect(&self, scene: &Scene) -> Result<Box<dyn Requester>> {
        thread_local! {
            static CONNECTIONS: Cell<u32> = const { Cell::new(0) };
        }
        let number = CONNECTIONS.replace(CONNECTIONS.get() + 1);
        let name = format!("requester-{}-{number}", std::process::id());
        let (client, replies) = block_on(Self::client(scene, &name))?;
        Ok(Box::new(Connection { client, replies }))
    }

    fn send(&self, scene: &Scene, source: &mut Source) -> Result<()> {
        block_on(async {
            let (mut client, acknowledgements) = Self::client(scene, SENDER).await?;
            let mut window = Window::default();
            while let Some(message) = source.next() {
                client.send(RECEIVER, message.into(), QoS::No).await.map_err(text)?;
                window.sent();
                while window.is_full() {
                    acknowledgements.recv().await?;
                    window.acknowledged();
                }
            }
            client.ping().await.map_err(text)?; // behind the messages, and flushes them
            scene.wait_for_end();
            Ok(())
        })
    }

    fn receive(&self, scene: &Scene, sink: &mut Sink) -> Result<()> {
        block_on(async {
            let (mut client, messages) = Self::client(scene, RECEIVER).await?;
            scene.ready();
            while !sink.is_done() {
                sink.take(messages.recv().await?.payload())?;
                if Window::is_due(sink.received()) {
                    client.send(SENDER, [].as_slice().into(), QoS::Realtime).await.map_err(text)?;
                }
            }
            Ok(())
        })
    }
}

struct Connection {
    client: Client,
    replies: EventChannel,
}

impl Requester for Connection {
    fn run(&mut self, caller: &mut Caller) -> Result<()> {
        block_on(async {
            while let Some(request) = caller.next() {
                self.client.send(RESPONDER, request.into(), QoS::Realtime).await.map_err(text)?;
                while caller.waits() {
                    caller.take(self.replies.recv().await?.payload())?;
                }
            }
            Ok(())
        })
    }
}

/// Its error does not implement `Sync`.
fn text(error: busrt::Error) -> Error {
    error.to_string().into()
}

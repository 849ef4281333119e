//! D-Bus: dbus-daemon from Debian with a bus of its own, and the client `zbus`.
//!
//! Requests are method calls; a streamed reply is a signal for each token, to the caller alone, before the call
//! returns; one way, a signal on the bus, for which the receiver has a match rule. Messages are byte arrays.

use crate::error::Result;
use crate::peer::{About, Peer, Requester, Scene, external, locked, version_of};
use crate::runtime::block_on;
use crate::work::{Caller, Sink, Source, Window, asks_for_stream, replies};
use futures_util::StreamExt;
use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;
use zbus::connection::Builder;
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream};

const DAEMON: &str = "dbus-daemon";
const SERVICE: &str = "bench.Service";
const PATH: &str = "/bench";
const INTERFACE: &str = "bench.Interface";

pub(crate) struct DBus;

impl DBus {
    async fn connection(scene: &Scene) -> Result<Connection> {
        Ok(Builder::address(address(scene).as_str()).build().await?)
    }
}

impl Peer for DBus {
    fn about(&self) -> About {
        About {
            key: "dbus",
            name: "D-Bus",
            version: format!("{DAEMON} {}, zbus {}", version_of(DAEMON).unwrap_or_default(), locked("zbus")),
            path: "through dbus-daemon, over a Unix socket",
            processes: 3,
            wait: "blocks in epoll",
            compares: "the bus of desktops and systemd: typed and named calls, a policy for each message; not made for \
                       throughput; one way, with an acknowledgement of every 1,024 messages",
        }
    }

    fn missing(&self) -> Option<String> {
        version_of(DAEMON).is_none().then(|| format!("{DAEMON} is not installed"))
    }

    fn broker(&self, scene: &Scene) -> Result<Option<Command>> {
        let config = scene.path("bus.conf");
        let listen = address(scene);
        let text = format!(
            "<busconfig><type>session</type><listen>{listen}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow send_destination=\"*\"/><allow receive_sender=\"*\"/>\
             <allow own=\"*\"/></policy></busconfig>\n"
        );
        fs::write(&config, text)?;
        let mut command = external(DAEMON);
        command.arg("--nofork").arg("--nopidfile").arg("--config-file").arg(config);
        Ok(Some(command))
    }

    fn is_ready(&self, scene: &Scene) -> bool {
        UnixStream::connect(scene.path("bus.sock")).is_ok()
    }

    fn respond(&self, scene: &Scene) -> Result<()> {
        block_on(async {
            let connection = Self::connection(scene).await?;
            let mut calls = MessageStream::from(&connection);
            connection.request_name(SERVICE).await?;
            scene.ready();
            while let Some(call) = calls.next().await {
                let call = call?;
                if call.message_type() != Type::MethodCall {
                    continue;
                }
                let (header, body) = (call.header(), call.body());
                let request: &[u8] = body.deserialize()?;
                if asks_for_stream(request) {
                    let caller = header.sender().ok_or("a call without a sender")?;
                    for token in replies(request)? {
                        connection.emit_signal(Some(caller), PATH, INTERFACE, "Token", &token.as_ref()).await?;
                    }
                    connection.reply(&header, &()).await?;
                } else {
                    connection.reply(&header, &request).await?;
                }
            }
            Ok(())
        })
    }

    fn connect(&self, scene: &Scene) -> Result<Box<dyn Requester>> {
        Ok(Box::new(Requests(block_on(Self::connection(scene))?)))
    }

    fn send(&self, scene: &Scene, source: &mut Source) -> Result<()> {
        block_on(async {
            let connection = Self::connection(scene).await?;
            let mut acknowledgements = signals(&connection, "Acknowledged").await?;
            let mut window = Window::default();
            while let Some(message) = source.next() {
                connection.emit_signal(None::<&str>, PATH, INTERFACE, "Message", &message).await?;
                window.sent();
                while window.is_full() {
                    acknowledgements.next().await.ok_or("the connection ended")??;
                    window.acknowledged();
                }
            }
            scene.wait_for_end();
            Ok(())
        })
    }

    fn receive(&self, scene: &Scene, sink: &mut Sink) -> Result<()> {
        block_on(async {
            let connection = Self::connection(scene).await?;
            let mut messages = signals(&connection, "Message").await?;
            scene.ready();
            while !sink.is_done() {
                let message = messages.next().await.ok_or("the connection ended")??;
                sink.take(message.body().deserialize()?)?;
                if Window::is_due(sink.received()) {
                    connection.emit_signal(None::<&str>, PATH, INTERFACE, "Acknowledged", &()).await?;
                }
            }
            Ok(())
        })
    }
}

struct Requests(Connection);

impl Requester for Requests {
    fn run(&mut self, caller: &mut Caller) -> Result<()> {
        block_on(async {
            let wants_stream = caller.wants_stream();
            while let Some(request) = caller.next() {
                if !wants_stream {
                    let reply = self.0.call_method(Some(SERVICE), PATH, Some(INTERFACE), "Echo", &request).await?;
                    caller.take(reply.body().deserialize()?)?;
                    continue;
                }
                let call = Message::method_call(PATH, "Tokens").destination(SERVICE).interface(INTERFACE);
                let mut messages = MessageStream::from(&self.0);
                self.0.send(&call.build(&request)?).await?;
                while caller.waits() {
                    let message = messages.next().await.ok_or("the connection ended")??;
                    if message.message_type() == Type::Signal && message.header().interface().is_some_and(is_ours) {
                        caller.take(message.body().deserialize()?)?;
                    }
                }
            }
            Ok(())
        })
    }
}

fn is_ours(interface: &zbus::names::InterfaceName<'_>) -> bool {
    interface == INTERFACE
}

async fn signals(connection: &Connection, member: &str) -> Result<MessageStream> {
    let rule = format!("type='signal',interface='{INTERFACE}',member='{member}'");
    Ok(MessageStream::for_match_rule(rule.as_str(), connection, None).await?)
}

fn address(scene: &Scene) -> String {
    format!("unix:path={}", scene.text("bus.sock"))
}

//! iceoryx2: request and response, and publish and subscribe, over shared memory that both ends map.
//!
//! There is no broker and, in these patterns, no wake: a receiver polls. That is how its own benchmarks measure.
//! Events, which wake a receiver, are a service of their own, and cost what a wake costs.

use crate::error::Result;
use crate::peer::{About, Peer, Requester, Scene, locked};
use crate::work::{Caller, Sink, Source, replies};
use iceoryx2::port::client::Client;
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::{publish_subscribe, request_response};
use std::fs;
use std::hint::spin_loop;
use std::path::PathBuf;
use std::thread;

/// Clients of the service: those whose memory is measured, and some more.
const CLIENTS: usize = 128;
/// Tokens, or messages one way, that may be unread: a whole reply, for a sender with a full buffer gives up its core.
const UNREAD: usize = 1024;

type Bytes = [u8];
type Requests = request_response::PortFactory<ipc::Service, Bytes, (), Bytes, ()>;
type Topic = publish_subscribe::PortFactory<ipc::Service, Bytes, ()>;

pub(crate) struct Iceoryx2;

impl Peer for Iceoryx2 {
    fn about(&self) -> About {
        About {
            key: "iceoryx2",
            name: "iceoryx2",
            version: locked("iceoryx2"),
            path: "end to end over shared memory that both ends map",
            processes: 2,
            wait: "polls: each end uses a core",
            compares: "no broker, and no wake of a waiting receiver, at the price of a core for each end; the ends map \
                       each other's memory, and so trust each other",
        }
    }

    fn respond(&self, scene: &Scene) -> Result<()> {
        let service = requests(scene)?;
        let server = service
            .server_builder()
            .initial_max_slice_len(scene.size.max(1024))
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()?;
        scene.ready();
        let mut poll = Poll::default();
        loop {
            let Some(request) = server.receive()? else {
                poll.pause();
                continue;
            };
            poll = Poll::default();
            for reply in replies(request.payload())? {
                let reply = reply.as_ref();
                request.loan_slice_uninit(reply.len())?.write_from_slice(reply).send()?;
            }
        }
    }

    fn connect(&self, scene: &Scene) -> Result<Box<dyn Requester>> {
        let service = requests(scene)?;
        let client = service.client_builder().initial_max_slice_len(scene.size.max(1024)).create()?;
        Ok(Box::new(Connection { client, _service: service }))
    }

    fn send(&self, scene: &Scene, source: &mut Source) -> Result<()> {
        let topic = topic(scene)?;
        let publisher = topic
            .publisher_builder()
            .initial_max_slice_len(scene.size)
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()?;
        let mut is_connected = false;
        while let Some(message) = source.next() {
            publisher.loan_slice_uninit(message.len())?.write_from_slice(message).send()?;
            // A publisher waits only for a subscriber that has mapped its memory, which it does when it first receives.
            while !is_connected {
                is_connected = connected(scene).exists();
            }
        }
        scene.wait_for_end();
        Ok(())
    }

    fn receive(&self, scene: &Scene, sink: &mut Sink) -> Result<()> {
        let topic = topic(scene)?;
        let subscriber = topic.subscriber_builder().create()?;
        scene.ready();
        let mut poll = Poll::default();
        while !sink.is_done() {
            let Some(message) = subscriber.receive()? else {
                poll.pause();
                continue;
            };
            poll = Poll::default();
            sink.take(message.payload())?;
            if sink.received() == 1 {
                fs::write(connected(scene), "")?;
            }
        }
        Ok(())
    }

    fn clean(&self, scene: &Scene) {
        let prefix = prefix(scene);
        for entry in fs::read_dir("/dev/shm").into_iter().flatten().filter_map(std::result::Result::ok) {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

struct Connection {
    client: Client<ipc::Service, Bytes, (), Bytes, ()>,
    _service: Requests,
}

impl Requester for Connection {
    fn run(&mut self, caller: &mut Caller) -> Result<()> {
        while let Some(request) = caller.next() {
            let pending = self.client.loan_slice_uninit(request.len())?.write_from_slice(request).send()?;
            let mut poll = Poll::default();
            while caller.waits() {
                match pending.receive()? {
                    Some(reply) => caller.take(reply.payload())?,
                    None => poll.pause(),
                }
            }
        }
        Ok(())
    }
}

/// Polling that gives way now and then: on a machine with other work both ends may share a core.
#[derive(Default)]
struct Poll {
    looks: u32,
}

impl Poll {
    const LOOKS: u32 = 50;

    fn pause(&mut self) {
        self.looks += 1;
        if self.looks.is_multiple_of(Self::LOOKS) {
            thread::yield_now();
        } else {
            spin_loop();
        }
    }
}

/// Exists when the receiver has got its first message.
fn connected(scene: &Scene) -> PathBuf {
    scene.path(&format!("connected-{}", scene.size))
}

/// All files of a run begin with it; `run` removes them if the driver is killed.
fn prefix(scene: &Scene) -> String {
    scene.folder.file_name().unwrap_or_default().to_string_lossy().replace('-', "_") + "_"
}

/// A node for each connection, as those of different processes have.
fn node(scene: &Scene) -> Result<Node<ipc::Service>> {
    set_log_level(LogLevel::Error);
    let mut config = Config::default();
    config.global.prefix = FileName::new(prefix(scene).as_bytes())?;
    config.global.set_root_path(&Path::new(scene.folder.as_os_str().as_encoded_bytes())?);
    Ok(NodeBuilder::new().config(&config).signal_handling_mode(SignalHandlingMode::Disabled).create()?)
}

fn requests(scene: &Scene) -> Result<Requests> {
    let service = node(scene)?
        .service_builder(&"bench/service".try_into()?)
        .request_response::<Bytes, Bytes>()
        .max_clients(CLIENTS)
        .max_nodes(CLIENTS + 2)
        .max_servers(1)
        .max_active_requests_per_client(1)
        .max_response_buffer_size(UNREAD)
        .enable_safe_overflow_for_responses(false)
        .open_or_create()?;
    Ok(service)
}

fn topic(scene: &Scene) -> Result<Topic> {
    let topic = node(scene)?
        .service_builder(&format!("bench/topic/{}", scene.size).as_str().try_into()?)
        .publish_subscribe::<Bytes>()
        .enable_safe_overflow(false)
        .subscriber_max_buffer_size(UNREAD)
        .max_publishers(1)
        .max_subscribers(1)
        .open_or_create()?;
    Ok(topic)
}

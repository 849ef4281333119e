//! `Acceptor`: lets connections in. It counts them by permits, which their actors hold and give back by ending.

use super::connection::{Admitted, Broker, ConnectionActor, all_taken};
use super::stream::FrameStream;
use crate::shm::peer::{self, Credentials};
use crate::wire::control::{BrokerFrame, PROTOCOL_VERSION, RefusedCode};
use actix::prelude::*;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// How long to wait when the system has no descriptor for the next connection.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(100);
/// How long a refused client may take to read why.
const REFUSAL: Duration = Duration::from_secs(1);
/// The most refused clients that are being told at a time; further ones are closed without a word.
const MOST_REFUSALS: usize = 16;
/// The most connections that may say hello though all are taken, because a session waits for its peer (S8).
const MOST_RESUMING: usize = 16;

/// The acceptor.
pub(super) struct Acceptor {
    listener: Option<std::os::unix::net::UnixListener>,
    broker: Arc<Broker>,
    workers: Vec<ArbiterHandle>,
}

impl Acceptor {
    pub(super) fn new(
        listener: std::os::unix::net::UnixListener,
        broker: Arc<Broker>,
        workers: Vec<ArbiterHandle>,
    ) -> Acceptor {
        Acceptor { listener: Some(listener), broker, workers }
    }
}

impl Actor for Acceptor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(listener) = self.listener.take() else { return ctx.stop() };
        let accept = accept(listener, self.broker.clone(), self.workers.clone());
        ctx.spawn(accept.into_actor(self).map(|result, _, ctx| {
            if let Err(error) = result {
                log::error!("acceptor ends reason={error:?}");
            }
            ctx.stop();
        }));
    }
}

/// Accepts until the broker drains.
async fn accept(
    listener: std::os::unix::net::UnixListener,
    broker: Arc<Broker>,
    workers: Vec<ArbiterHandle>,
) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let refusals = Arc::new(tokio::sync::Semaphore::new(MOST_REFUSALS));
    let resuming = Arc::new(tokio::sync::Semaphore::new(MOST_RESUMING));
    let mut phase = broker.phase.clone();
    let mut next = workers.iter().cycle();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|phase| phase.is_ending()) => return Ok(()),
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!("connection not accepted reason={error:?}");
                tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
                continue;
            }
        };
        let refused = match admit(&stream, &broker, &resuming) {
            Ok((peer, admitted)) => {
                let Some(worker) = next.next() else { return Ok(()) };
                let (stream, broker) = (stream.into_std()?, broker.clone());
                worker.spawn_fn(move || {
                    ConnectionActor::new(stream, peer, admitted, broker).start();
                });
                continue;
            }
            Err(refused) => refused,
        };
        log::warn!("connection refused reason={:?}", refused.1);
        if let Ok(permit) = refusals.clone().try_acquire_owned() {
            actix::spawn(async move {
                let _permit = permit;
                refuse(stream, refused).await;
            });
        }
    }
}

/// Whether a connection may come in.
fn admit(
    stream: &UnixStream,
    broker: &Broker,
    resuming: &Arc<tokio::sync::Semaphore>,
) -> Result<(Credentials, Admitted), (RefusedCode, String)> {
    let peer = peer::credentials(stream.as_fd()).map_err(|error| (RefusedCode::NotAllowed, error.to_string()))?;
    if peer.uid != peer::own_uid() && !broker.config.ipc.allowed_uids.contains(&peer.uid) {
        return Err((RefusedCode::NotAllowed, format!("user {} may not connect", peer.uid)));
    }
    if let Ok(permit) = broker.permits.clone().try_acquire_owned() {
        return Ok((peer, Admitted { permit: Some(permit), _resuming: None }));
    }
    if broker.sessions.somebody_waits()
        && let Ok(resuming) = resuming.clone().try_acquire_owned()
    {
        return Ok((peer, Admitted { permit: None, _resuming: Some(resuming) }));
    }
    Err((RefusedCode::TooManyConnections, all_taken(broker)))
}

async fn refuse(stream: UnixStream, (code, message): (RefusedCode, String)) {
    let refused = BrokerFrame::Refused { code, message, version: PROTOCOL_VERSION };
    let Ok(bytes) = refused.encode() else { return };
    let mut stream = FrameStream::new(stream, 1);
    let _ = tokio::time::timeout(REFUSAL, stream.write(&bytes, &[])).await;
}

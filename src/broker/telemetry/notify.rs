//! Messages to the service manager, if one is listening (`NOTIFY_SOCKET`, see `sd_notify(3)`).
//!
//! | message | when |
//! |---|---|
//! | `READY=1` | the broker is ready for the first time, as `/ready` reports it |
//! | `STATUS=` | the status text changes |
//! | `WATCHDOG=1` | twice in each `WATCHDOG_USEC`, while no thread is so late that the watchdog may abort the process |
//! | `RELOADING=1`, `MONOTONIC_USEC=` | a reload begins; `READY=1` follows, also if the configuration is invalid |
//! | `STOPPING=1`, `EXTEND_TIMEOUT_USEC=` | the broker is shutting down, and how long that may take |
//!
//! A thread of its own sends, so a manager that does not read delays no other thread. A message that finds the queue
//! full is dropped.

use crate::broker::context::Broker;
use crate::broker::health;
use crate::broker::router::ProbeRouter;
use crate::sync::{AtomicU64, Ordering};
use sd_notify::NotifyState;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

/// The capacity of the queue, in messages.
const QUEUE: usize = 16;
/// The interval of readiness checks, until the broker is ready.
const READY_INTERVAL: Duration = Duration::from_millis(20);
/// The interval of checks for a changed status.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a stop may take beyond the drain, until connections and actors have ended.
const BEYOND_DRAIN: Duration = Duration::from_secs(10);

/// One datagram.
#[derive(Debug)]
enum Message {
    Ready(String),
    Status(String),
    Alive,
    Reloading,
    Reloaded,
    Stopping { status: String, within: Duration },
}

/// The connection to the service manager; without one, nothing is sent. Clones share it.
#[derive(Clone, Debug)]
pub(in crate::broker) struct Notify {
    queue: Option<SyncSender<Message>>,
    /// The interval of heartbeats.
    alive_every: Option<Duration>,
    /// 1 once `READY=1` was sent: before that a reload must not send it.
    is_ready: Arc<AtomicU64>,
}

impl Notify {
    /// Connects to the service manager of the environment.
    ///
    /// # Errors
    ///
    /// If the system refuses a thread.
    pub(in crate::broker) fn from_env() -> io::Result<Notify> {
        if std::env::var_os("NOTIFY_SOCKET").is_none_or(|socket| socket.is_empty()) {
            return Ok(Notify { queue: None, alive_every: None, is_ready: Arc::default() });
        }
        let (queue, messages) = sync_channel(QUEUE);
        let send = move || {
            let mut failed = false;
            for message in messages {
                let sent = send(&message);
                if let (Err(error), false) = (&sent, failed) {
                    log::warn!("cannot notify the service manager reason={:?}", error.to_string());
                }
                // One line is enough until a message is sent again.
                failed = sent.is_err();
            }
        };
        std::thread::Builder::new().name("notify".to_owned()).spawn(send)?;
        let within = sd_notify::watchdog_enabled().filter(|within| !within.is_zero());
        let alive_every = within.map(|within| within / 2);
        Ok(Notify { queue: Some(queue), alive_every, is_ready: Arc::default() })
    }

    /// The interval in which [`Notify::alive`] must be called; `None`: it need not be.
    pub(in crate::broker) fn alive_every(&self) -> Option<Duration> {
        self.alive_every
    }

    /// Reports that no thread is stuck.
    pub(in crate::broker) fn alive(&self) {
        self.tell(Message::Alive);
    }

    /// Reports that a reload begins.
    pub(in crate::broker) fn reloading(&self) {
        self.tell_if_ready(Message::Reloading);
    }

    /// Reports that a reload has ended.
    pub(in crate::broker) fn reloaded(&self) {
        self.tell_if_ready(Message::Reloaded);
    }

    fn tell_if_ready(&self, message: Message) {
        if self.is_ready.load(Ordering::Relaxed) > 0 {
            self.tell(message);
        }
    }

    /// Reports that the broker is shutting down, and extends the manager's timeout by the drain.
    pub(in crate::broker) fn stopping(&self, why: &str, drain: Duration) {
        let status = format!("{why}: draining, at most {} ms", drain.as_millis());
        self.tell(Message::Stopping { status, within: drain + BEYOND_DRAIN });
    }

    fn tell(&self, message: Message) {
        if let Some(queue) = &self.queue {
            let _ = queue.try_send(message);
        }
    }

    /// Reports readiness, then each change of the status.
    pub(in crate::broker) async fn follow(self, broker: Arc<Broker>) {
        if self.queue.is_none() {
            return;
        }
        loop {
            let router_snapshot = broker.router.send(ProbeRouter { connections: false }).await;
            if health::snapshot(&broker, None, router_snapshot.is_ok()).unready().is_empty() {
                break;
            }
            tokio::time::sleep(READY_INTERVAL).await;
        }
        let mut sent = status(&broker);
        self.tell(Message::Ready(sent.clone()));
        self.is_ready.store(1, Ordering::Relaxed);
        loop {
            tokio::time::sleep(STATUS_INTERVAL).await;
            let status = status(&broker);
            if status != sent {
                self.tell(Message::Status(status.clone()));
                sent = status;
            }
        }
    }
}

/// The status text. It needs no probe of the router, because the watchdog knows whether the router responds.
fn status(broker: &Broker) -> String {
    let snapshot = health::snapshot(broker, None, true);
    let mut parts = snapshot.unready();
    if broker.late_non_vital.load(Ordering::Relaxed) > 0 {
        parts.push("the health endpoints are stuck".to_owned());
    }
    match parts.is_empty() {
        true => format!("{} connections on {}", snapshot.connections, broker.config().ipc.socket_path.display()),
        false => parts.join("; "),
    }
}

fn send(message: &Message) -> io::Result<()> {
    match message {
        Message::Ready(status) => sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&line(status))]),
        Message::Status(status) => sd_notify::notify(&[NotifyState::Status(&line(status))]),
        Message::Reloading => sd_notify::notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?]),
        Message::Reloaded => sd_notify::notify(&[NotifyState::Ready]),
        Message::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
        Message::Stopping { status, within } => {
            let within = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
            let states =
                [NotifyState::Stopping, NotifyState::Status(&line(status)), NotifyState::ExtendTimeoutUsec(within)];
            sd_notify::notify(&states)
        }
    }
}

/// Removes control characters, because a newline ends a field of the message.
fn line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

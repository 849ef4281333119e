//! The status of the broker over the control socket, so that `status` works without HTTP.
//!
//! Part of the wire format: the order of the fields is that on the wire. Their names are those of `status --json`.

use serde::{Deserialize, Serialize};

use crate::wire::name::Name;

/// The next page of a status, or of the breakers: [`ClientFrame::NextPage`](super::ClientFrame::NextPage) requests it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageToken {
    /// The snapshot that is read. The broker keeps it for two seconds.
    pub snapshot: u64,
    /// The page of it.
    pub page: u32,
}

/// The longest body of a frame with a page, in bytes. Each entry of a list is much shorter.
pub const PAGE_BYTES_MAX: usize = 256 * 1024;

/// The state of the broker, for `status`.
///
/// It travels in pages: the first has everything but the lists, and each has a part of the lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The broker's uptime, in milliseconds.
    pub uptime_ms: u64,
    /// The broker's version.
    pub version: String,
    /// The broker's process.
    pub pid: u32,
    /// The path of the control socket.
    pub socket: String,
    /// The configuration file in use; none stands for the defaults.
    pub config_file: Option<String>,
    /// Whether the broker is draining.
    pub draining: bool,
    /// Every connection.
    pub connections: Vec<ConnectionStatus>,
    /// Every service that has or had a responder.
    pub services: Vec<ServiceStatus>,
    /// Counters by their names.
    pub counters: Vec<(String, u64)>,
    /// Leased slots of the shared budget.
    pub slots_used: u32,
    /// Slots of the shared budget in all.
    pub slots_total: u32,
    /// Topics interned.
    pub topics: u32,
    /// Subscriptions of all connections.
    pub subscriptions: u32,
    /// The supervision tree.
    pub actors: Vec<ActorStatus>,
    /// Latencies. (Boxed, so that frames stay small.)
    pub latency: Box<LatencyStatus>,
    /// The address of the health endpoints.
    pub health: Box<HealthStatus>,
    /// Why clients cannot reach the control socket, if they cannot: it was removed.
    pub socket_lost: Option<String>,
    /// Sessions of the last broker for which publishes wait.
    pub awaited_sessions: u32,
    /// What each user holds of what users share, by user and quota.
    pub holdings: Vec<HoldingStatus>,
}

impl StatusReport {
    /// Adds the lists of the next page.
    pub(crate) fn append(&mut self, page: StatusReport) {
        // Each field is named, so that a new list is not forgotten.
        let StatusReport {
            connections,
            services,
            counters,
            actors,
            holdings,
            uptime_ms: _,
            version: _,
            pid: _,
            socket: _,
            config_file: _,
            draining: _,
            slots_used: _,
            slots_total: _,
            topics: _,
            subscriptions: _,
            latency: _,
            health: _,
            socket_lost: _,
            awaited_sessions: _,
        } = page;
        self.connections.extend(connections);
        self.services.extend(services);
        self.counters.extend(counters);
        self.actors.extend(actors);
        self.holdings.extend(holdings);
    }
}

/// The address of the health endpoints: a TCP address or a Unix socket, or none, with the reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthStatus {
    /// The TCP address and port that are bound.
    pub address: Option<String>,
    /// The path of the Unix socket.
    pub socket: Option<String>,
    /// Why they are not listening, if they are not.
    pub reason: Option<String>,
    /// The file with the token that requests need, if they do.
    pub token_file: Option<String>,
}

/// Latencies since the broker started. (In the JSON of `status --json` times are in seconds.)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyStatus {
    /// The time of messages in the broker; sampled.
    pub in_broker: QuantileStatus,
    /// From a request to its reply, as the broker sees it. Without the broker's own echo.
    pub round_trip: QuantileStatus,
    /// From a request to the first chunk of its reply.
    pub first_chunk: QuantileStatus,
}

/// A distribution of times, estimated from buckets whose bounds double.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuantileStatus {
    /// The number of observations.
    pub count: u64,
    /// The median, in nanoseconds.
    pub p50_ns: u64,
    /// The 95th percentile, in nanoseconds.
    pub p95_ns: u64,
    /// The 99th percentile, in nanoseconds.
    pub p99_ns: u64,
}

/// What one user holds of something that users share, in a [`StatusReport`]. There is an entry while it holds some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldingStatus {
    /// The user.
    pub uid: u32,
    /// Its quota, if the entry is about the clients in one: they count as a user of their own.
    pub quota: Option<String>,
    /// What is held: `connections`, `subscriptions`, `slots`, ...
    pub resource: String,
    /// How much of it.
    pub held: u64,
    /// The most that the user may hold now, while the others hold what they hold.
    pub limit: u64,
    /// The key of the limit in the configuration, if it has one.
    pub key: Option<String>,
}

/// One connection in a [`StatusReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// Its number.
    pub id: u32,
    /// The client's name for itself.
    pub name: Name,
    /// The client's process; 0, and `null` in JSON, if it is unknown: it runs in another PID namespace.
    #[serde(with = "known_pid")]
    pub pid: u32,
    /// The client's user.
    pub uid: u32,
    /// The quota that the client is in, by its name.
    pub quota: Option<String>,
    /// The connection's age, in milliseconds.
    pub age_ms: u64,
    /// The number of its subscriptions.
    pub subscriptions: u32,
    /// Services that it offers: the first ones, whose names fit 2 KiB.
    pub services: Vec<Name>,
    /// The number of services that it offers.
    pub services_offered: u32,
    /// Messages from the client.
    pub messages_in: u64,
    /// Messages to the client.
    pub messages_out: u64,
    /// Payload from the client, in bytes.
    pub bytes_in: u64,
    /// Payload to the client, in bytes.
    pub bytes_out: u64,
    /// Messages dropped for lack of credit.
    pub dropped: u64,
    /// Bytes in the backlog of the client.
    pub backlog_bytes: u64,
    /// Requests of the client without an outcome yet.
    pub requests_outstanding: u64,
    /// Its state.
    pub state: SessionState,
    /// Used credit of its subscriptions, in bytes.
    pub credit_used_bytes: u64,
    /// Credit of its subscriptions, in bytes.
    pub credit_bytes: u64,
}

/// The state of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Its client is connected.
    #[default]
    Connected,
    /// Its client is connected; its publishes wait for credit of a subscription.
    Waiting,
    /// Its socket was lost; its client may resume the session.
    AwaitingPeer,
    /// Its client has disconnected; its last messages are being routed.
    Ending,
}

impl SessionState {
    /// The text in JSON and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            SessionState::Connected => "connected",
            SessionState::Waiting => "waiting",
            SessionState::AwaitingPeer => "awaiting_peer",
            SessionState::Ending => "ending",
        }
    }
}

/// One service in a [`StatusReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: Name,
    /// The number of its responders.
    pub responders: u32,
    /// Requests with a responder.
    pub outstanding: u32,
    /// Requests that wait for a responder.
    pub pending: u32,
    /// Requests so far.
    pub requests: u64,
    /// Requests so far that failed.
    pub failures: u64,
}

/// One actor in a [`StatusReport`], or all actors of one kind that come and go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorStatus {
    /// Its name, as in the log.
    pub name: String,
    /// Its supervisor.
    pub supervisor: String,
    /// Its state.
    pub state: ActorState,
    /// The number of restarts.
    pub restarts: u64,
    /// The number of failures: errors and panics.
    pub failures: u64,
    /// Why it ended the last time.
    pub last_reason: Option<String>,
}

/// The state of an actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorState {
    /// It is running; for actors of one kind: always.
    Running,
    /// It has ended, and will be restarted.
    Restarting {
        /// The time until then, in milliseconds.
        next_in_ms: u64,
    },
    /// It reached its restart limit.
    GaveUp,
    /// It was stopped.
    Stopped,
}

/// A process id; 0 is `null` in JSON, and a plain number in binary form.
mod known_pid {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(super) fn serialize<S: Serializer>(pid: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => Some(*pid).filter(|pid| *pid != 0).serialize(serializer),
            false => pid.serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        match deserializer.is_human_readable() {
            true => Ok(Option::deserialize(deserializer)?.unwrap_or(0)),
            false => u32::deserialize(deserializer),
        }
    }
}

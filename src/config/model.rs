//! Every key: its section, type, default, range and meaning. To add a key, add it here, and run the test
//! `config_toml_is_current` as it says.
//!
//! Counts and bytes are `u32` (nothing here is larger, and it widens without loss), times are `u64`; the unit of a time
//! is the last word of its key's name. The first line of a key's documentation is what `--check-config` prints.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::entries::{Engine, Quota, Upstream};
use super::key::{Key, Rule, Section, integer, section};
use super::value::{Setting, Value};

section! {
    /// The control socket and its connections.
    Ipc {
        /// The Unix socket where clients connect.
        /// `--socket` and `LAPCE_IPC_SOCKET` come before it. Clients do not read it: if it is not the default, set
        /// `LAPCE_IPC_SOCKET` for them.
        socket_path: PathBuf = PathBuf::from("/tmp/lapce_ipc.sock"), Rule::SocketPath;
        /// Limit of connections of one user; further ones are refused with a reason.
        /// See `limits.user_share_percent`. Sessions that wait for their client to reconnect count too.
        max_connections: u32 = 1000, integer(1, 100_000, "connections");
        /// The largest message, of any kind; a larger one is an error at its sender.
        max_message_size: u32 = 10_485_760, integer(1, 1 << 30, "bytes");
        /// User ids that may connect besides the broker's own user and root.
        /// `shared_memory.permissions` must give these users access to the socket, too.
        allowed_uids: Vec<u32> = Vec::new(), Rule::List { of: &integer(0, u32::MAX as u64 - 1, ""), max: 256 };
        /// Limit of the handshake's duration; a slower connection is closed.
        handshake_timeout_ms: u64 = 2000, integer(10, 600_000, "ms");
        /// How long to keep delivering accepted messages after a stop request.
        drain_timeout_ms: u64 = 2000, integer(0, 600_000, "ms");
        /// Threads that serve the control sockets.
        /// Messages do not pass through them, so one is enough for most machines.
        worker_threads: u32 = 1, integer(1, 64, "threads");
        /// User ids that may administrate: set breakers, dial upstreams, reload the configuration.
        /// The broker's own user and root always may; other users that may connect may not.
        operator_uids: Vec<u32> = Vec::new(), Rule::List { of: &integer(0, u32::MAX as u64 - 1, ""), max: 256 };
    }
}

section! {
    /// The shared memory segments, one per connection.
    /// The rings of a user's connections share one budget of `num_slots` × `slot_size`.
    SharedMemory {
        /// The largest payload of one record; larger messages are sent as several records.
        /// A topic name is sent as one record, so the minimum is the longest name.
        slot_size: u32 = 1024, Rule::MultipleOf8 { min: 256, max: 65_536, unit: "bytes" };
        /// Slots of `slot_size` that all connections of one user share; 1024 of 1 KiB are 1 MiB.
        /// All users together lease up to ten times as many, and one at most a tenth of what the others leave.
        num_slots: u32 = 1024, integer(1, 1 << 20, "slots");
        /// The mode of the socket and of the segments.
        /// 384 is 0600: only the broker's own user. Execute bits are refused: neither is executed.
        permissions: u32 = 0o600, Rule::Mode;
        /// Slots that one ring may lease at most while it is busy.
        max_window_slots: u32 = 512, integer(1, 1 << 20, "slots");
        /// Interval at which the memory that clients use is compared with their leases.
        audit_interval_ms: u64 = 5000, integer(10, 3_600_000, "ms");
        /// Whether the broker's process may be traced, and leaves a core dump when it aborts.
        /// If not, no other process of its user can open the segments of its clients through `/proc` or a debugger;
        /// only root can debug it or list its descriptors.
        allow_dumps: bool = false, Rule::Flag;
    }
}

section! {
    /// Flow control: credit and timeouts of receivers that do not keep up.
    Delivery {
        /// How long a publish waits for a `block` subscriber before that subscription is evicted as a slow consumer.
        /// A message of several records restarts the timeout at each MiB read, or 64 KiB while no slot is free for the
        /// receiver's ring. A `drop_*` subscription delays such a message for as long, then loses it.
        slow_consumer_timeout_ms: u64 = 1000, integer(1, 600_000, "ms");
        /// Default and maximum credit of a subscription.
        subscription_credit_bytes: u32 = 1_048_576, integer(256, 1 << 30, "bytes");
        /// Initial credit of each direction of a call.
        stream_credit_bytes: u32 = 65_536, integer(256, 1 << 30, "bytes");
        /// How long a publish waits for a `drop_*` subscriber without room before the message is dropped.
        /// Each message read restarts the time, but a slow subscriber delays publishers for a tenth of the time at
        /// most. 0 drops at once.
        drop_grace_ms: u64 = 100, integer(0, 1000, "ms");
        /// How long publishes of other users wait for one user's subscriptions in ten seconds, all waits together.
        /// When it is used up, a `block` subscription of that user that makes one wait is evicted at once. 10000: no
        /// limit of its own.
        user_wait_ms: u64 = 100, integer(0, 10_000, "ms");
    }
}

section! {
    /// Limits on all state that clients can create in the broker.
    Limits {
        /// Topics of one user. See `user_share_percent`.
        max_topics: u32 = 65_536, integer(1, 1 << 24, "topics");
        /// Subscriptions of one user. See `user_share_percent`.
        /// All users together hold at most 1,048,576.
        max_subscriptions: u32 = 65_536, integer(1, 1 << 20, "subscriptions");
        /// Routes (pairs of a topic and a matching subscription) that are remembered for one user.
        /// Each takes 8 bytes. Others are searched for with each publish. See `user_share_percent`.
        max_routes: u32 = 1_048_576, integer(1, 1 << 28, "pairs");
        /// Topics per connection.
        max_topics_per_connection: u32 = 8192, integer(1, 1 << 24, "topics");
        /// Subscriptions per connection.
        max_subscriptions_per_connection: u32 = 1024, integer(1, 1 << 20, "subscriptions");
        /// Services of one user. See `user_share_percent`.
        max_services: u32 = 1024, integer(1, 1 << 20, "services");
        /// The part that one user may hold of what the other users leave: of topics, services, calls and others.
        /// A user that is alone may hold the whole limit; all users together hold up to `100 / user_share_percent`
        /// times as much, so that each user that comes later still finds some. 100: one user may take all.
        /// For connections it stays what it was when the broker started.
        user_share_percent: u32 = 90, integer(1, 100, "%");
        /// The part of the router's time that one user's subscriptions may take from publishes of other users.
        /// Beyond it that user's `drop_*` subscriptions lose messages, and publishes wait for its `block` ones (for
        /// `user_wait_ms`). While other users are connected, it is also the part of a processor's time that one user's
        /// new connections may take; beyond it they wait before their handshake. 100: no limit.
        user_work_percent: u32 = 5, integer(1, 100, "%");
        /// The part of the router's time that one user's control requests may take while other users are connected.
        /// These are, for example, subscribing, serving and the first use of a name. Further requests of the user
        /// wait. The share of two seconds can be saved up. 100: no limit.
        user_control_percent: u32 = 5, integer(1, 100, "%");
        /// Outstanding requests per connection; further ones fail with `Overloaded`.
        max_requests_per_connection: u32 = 4096, integer(1, 1 << 20, "requests");
        /// Outstanding requests per responder.
        /// When all responders of a service are at this limit, further requests fail with `Overloaded`.
        /// While clients of other users are connected, a user may hold its share of them.
        max_requests_per_responder: u32 = 1024, integer(1, 1 << 20, "requests");
        /// Default deadline of a request.
        default_request_timeout_ms: u64 = 30_000, integer(1, 86_400_000, "ms");
        /// The longest deadline of a request.
        /// Longer ones are shortened to it; `lapce-ipc request --timeout` refuses them.
        max_request_timeout_ms: u64 = 600_000, integer(1, 86_400_000, "ms");
        /// Memory in the broker for one connection that does not drain its ring; more closes it.
        /// `drop_oldest` subscriptions of a connection may hold as much again; more drops their oldest messages.
        max_backlog_bytes: u32 = 4_194_304, integer(65_536, 1 << 30, "bytes");
        /// The same for all connections of one user together; more closes the one that holds most.
        /// Its `drop_oldest` subscriptions may hold as much again; then none holds more than it does. See
        /// `user_share_percent`.
        max_user_backlog_bytes: u32 = 33_554_432, integer(65_536, 1 << 30, "bytes");
        /// Longest time between two parts of a request's body, while the responder has space for the next one.
        /// The request then fails with `DeadlineExceeded`, and its place at the responder is free.
        request_body_idle_ms: u64 = 10_000, integer(10, 86_400_000, "ms");
        /// Empty doorbell rings per second, at most; more close the client's connection.
        max_rings_without_progress: u32 = 1000, integer(10, 1_000_000, "rings");
        /// How long a responder that let a deadline pass gets no call while another of its service can take it.
        /// Then one call probes it; each further deadline doubles the time.
        probe_delay_ms: u64 = 1000, integer(1, 3_600_000, "ms");
        /// Longest time between two such probes.
        max_probe_delay_ms: u64 = 60_000, integer(1, 3_600_000, "ms");
        /// Default limit of the time to the first chunk of a stream.
        stream_first_chunk_ms: u64 = 60_000, integer(1, 86_400_000, "ms");
        /// Default limit of the time between chunks of a stream.
        /// A stream has a deadline for all of it only if its request names one.
        stream_idle_ms: u64 = 30_000, integer(1, 86_400_000, "ms");
    }
}

section! {
    /// The router's trade-off between CPU and latency.
    Router {
        /// How the router waits while its rings are empty.
        /// `adaptive` spins while a peer is awake on another CPU, then sleeps; `busy` never sleeps and costs one core;
        /// `block` sleeps at once. With `adaptive` and `block` an idle broker costs no CPU.
        wait: WaitStrategy = WaitStrategy::Adaptive, Rule::Choice(WaitStrategy::WORDS);
        /// The longest time that `adaptive` spins before it sleeps; it adapts below that.
        spin_max_us: u64 = 50, integer(0, 10_000, "µs");
        /// Records that the router takes from one lane before it serves the next connection.
        /// Of messages that it routes with one decision, up to four times as many.
        batch_records: u32 = 64, integer(1, 4096, "records");
        /// The longest time that the router routes before it reads its mailbox.
        turn_max_us: u64 = 50, integer(1, 10_000, "µs");
    }
}

section! {
    /// Restarts of failed actors, and the resume window of sessions.
    Restart {
        /// Delay before the first restart; each further restart doubles it (exponential backoff).
        initial_delay_ms: u64 = 100, integer(0, 600_000, "ms");
        /// The longest delay between restarts.
        max_delay_ms: u64 = 5000, integer(0, 600_000, "ms");
        /// Random jitter, as a fraction of the delay; it keeps restarts apart.
        jitter: f64 = 0.2, Rule::Float { min: 0.0, max: 1.0 };
        /// Restart limit: the supervisor gives up after so many restarts within `period_secs`.
        max_restarts: u32 = 10, integer(0, 1_000_000, "restarts");
        /// The sliding period of the restart limit.
        period_secs: u64 = 60, integer(1, 86_400, "s");
        /// After running this long, an actor's restart delay is reset.
        stable_secs: u64 = 30, integer(0, 86_400, "s");
        /// Resume window: how long a session waits for a client that lost its socket.
        resume_window_ms: u64 = 5000, integer(0, 600_000, "ms");
        /// After a restart of the broker, how long publishes wait at most for the subscribers to come back.
        restart_grace_ms: u64 = 2000, integer(0, 600_000, "ms");
        /// How long a thread may be stuck before the process aborts, for the service manager to restart it.
        watchdog_abort_ms: u64 = 10_000, integer(100, 3_600_000, "ms");
        /// Restarts of one connection within `connection_period_secs` after which it is given up.
        /// A lost socket is one, and so is a panic. The client is refused with the reason when it comes back.
        connection_max_restarts: u32 = 1000, integer(1, 1_000_000, "restarts");
        /// The period in which restarts of a connection are counted.
        connection_period_secs: u64 = 60, integer(1, 86_400, "s");
    }
}

section! {
    /// Circuit breakers of services.
    CircuitBreaker {
        /// Consecutive failures that open the breaker.
        failure_threshold: u32 = 5, integer(1, 1_000_000, "failures");
        /// Successful probes that close a half-open breaker.
        success_threshold: u32 = 2, integer(1, 1_000_000, "successes");
        /// How long a breaker stays open; each failed probe doubles it.
        timeout_secs: u64 = 60, integer(1, 86_400, "s");
        /// The longest time that a breaker stays open.
        max_timeout_secs: u64 = 600, integer(1, 86_400, "s");
        /// Probes that a half-open breaker admits: the requests that decide a trial.
        half_open_max_requests: u32 = 3, integer(1, 1_000_000, "requests");
    }
}

section! {
    /// The HTTP endpoints `/health`, `/ready`, `/live` and `/metrics`.
    HealthServer {
        /// The TCP port; 0 lets the system choose, and the log shows it.
        port: u16 = 9090, integer(0, 65_535, "");
        /// The address to listen on.
        /// The default is the loopback address: every client that reaches the port can read the names, process ids and
        /// counters of the connected programs.
        host: String = String::from("127.0.0.1"), Rule::Host;
        /// Whether the broker refuses to start when it cannot listen here.
        required: bool = false, Rule::Flag;
        /// Accepted values of the `Host` header besides the loopback names and `host`.
        /// The check protects against DNS rebinding.
        allowed_hosts: Vec<String> = Vec::new(), Rule::List { of: &Rule::Host, max: 64 };
        /// A file whose first line is the bearer token that readers must send; empty for none.
        /// The file is refused if it is readable by all users, or writable by users other than its owner.
        token_file: String = String::new(), Rule::FileOrNone;
        /// Limit of HTTP connections; a further one replaces the connection that has been idle longest.
        /// So idle or slow clients cannot keep a probe from reading `/live`.
        max_connections: u32 = 128, integer(4, 10_000, "connections");
        /// How long a client may take to send the head of a request; a slower one gets 408.
        /// A head of more than 96 headers or 128 KiB is refused.
        request_timeout_ms: u64 = 3000, integer(100, 600_000, "ms");
        /// Keep-alive: how long an idle connection stays open for the next request.
        idle_timeout_secs: u64 = 15, integer(1, 3600, "s");
        /// How long a client may leave a response unread before its connection is closed.
        unread_timeout_secs: u64 = 10, integer(1, 3600, "s");
        /// Limit of the bytes of responses that all clients together leave unread, beside one response.
        /// At the limit, connections whose responses have been unread longest are closed. One connection has one
        /// response at a time: its next request is read when that is sent.
        max_unread_bytes: u64 = 16_777_216, integer(65_536, 1_073_741_824, "bytes");
        /// Limit of `/events` streams, including those of status pages; further ones are refused.
        max_streams: u32 = 16, integer(0, 64, "");
        /// A Unix socket to listen on instead of `host` and `port`; empty for none.
        /// Its mode is `shared_memory.permissions`, and only users that may connect to the broker get responses:
        /// `curl --unix-socket PATH http://localhost/health`. Browsers and Prometheus need TCP.
        socket_path: String = String::new(), Rule::SocketOrNone;
        /// Whether readers must send a token even without a `token_file`.
        /// The broker then creates a file with a new token beside its control socket (`.token` appended, mode 0600),
        /// which `lapce-ipc status` shows.
        require_token: bool = false, Rule::Flag;
    }
}

section! {
    /// Metrics for Prometheus.
    Metrics {
        /// Whether metrics are exported, at `/metrics` and in the log.
        enable: bool = true, Rule::Flag;
        /// Interval of the one-line summary in the log, which is skipped without traffic.
        export_interval_secs: u64 = 10, integer(1, 3600, "s");
    }
}

section! {
    /// The log on stderr.
    Logging {
        /// Log level: a level, then `MODULE=LEVEL` for single modules, separated by commas.
        /// Levels are error, warn, info, debug, trace and off. The variable RUST_LOG outranks this key.
        level: String = String::from("info"), Rule::LogLevels;
        /// Connections shorter than this that close in order are logged at debug only; 0 logs all at info.
        /// So the connections of commands do not fill the journal. Events and counters include them.
        short_connection_ms: u64 = 5000, integer(0, 3_600_000, "ms");
        /// Log lines per second of each kind that clients can cause, and of each engine.
        /// One user can cause at most half of those that the others leave, and always one. A further line for
        /// each user counts the suppressed ones.
        max_lines_per_second: u32 = 50, integer(1, 100_000, "lines");
    }
}

/// How a thread waits for a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WaitStrategy {
    /// Spin while the peer is awake on another CPU, then sleep.
    Adaptive,
    /// Never sleep.
    Busy,
    /// Sleep at once.
    Block,
}

impl WaitStrategy {
    const ALL: [Self; 3] = [Self::Adaptive, Self::Busy, Self::Block];
    const WORDS: &'static [&'static str] = &[Self::ALL[0].as_str(), Self::ALL[1].as_str(), Self::ALL[2].as_str()];

    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Busy => "busy",
            Self::Block => "block",
        }
    }
}

impl Setting for WaitStrategy {
    fn to_value(&self) -> Value {
        Value::Text(self.as_str().to_owned())
    }
    fn from_value(value: &Value) -> Option<Self> {
        let Value::Text(text) = value else { return None };
        Self::ALL.into_iter().find(|strategy| strategy.as_str() == text)
    }
}

impl SharedMemory {
    /// The budget of all rings together, in bytes.
    pub fn budget_bytes(&self) -> u64 {
        u64::from(self.num_slots) * u64::from(self.slot_size)
    }
}

/// The overrides of a table `[circuit_breaker.services.NAME]`; see [`Config::breaker_for`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BreakerOverrides {
    pub(super) values: BTreeMap<&'static str, Value>,
}

/// The overrides of `[restart]` in the table of an upstream or an engine; see [`Config::restart_for`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RestartOverrides {
    pub(super) values: BTreeMap<&'static str, Value>,
}

impl RestartOverrides {
    /// The keys of `[restart]` that may stand in the table of an upstream or an engine.
    pub(super) const KEYS: &[&str] =
        &["initial_delay_ms", "max_delay_ms", "jitter", "max_restarts", "period_secs", "stable_secs"];

    /// The key of that name, if it is one of them.
    pub(super) fn key(name: &str) -> Option<&'static Key> {
        Restart::default().key(name).filter(|key| Self::KEYS.contains(&key.name))
    }
}

/// Declares the configuration: its sections, by name.
macro_rules! config {
    ($( $name:ident: $section:ident; )+) => {
        /// The whole configuration: a struct for each table of the file, a field for each key.
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct Config {
            $(
                #[doc = concat!("`[", stringify!($name), "]`")]
                pub $name: $section,
            )+
            /// `[circuit_breaker.services.NAME]`: overrides per service.
            pub breaker_services: BTreeMap<String, BreakerOverrides>,
            /// `[[upstream]]`: programs to dial.
            pub upstream: Vec<Upstream>,
            /// Overrides of `[restart]` per upstream, by name.
            pub upstream_restart: BTreeMap<String, RestartOverrides>,
            /// `[[engine]]`: programs to run.
            pub engine: Vec<Engine>,
            /// Overrides of `[restart]` per engine, by name.
            pub engine_restart: BTreeMap<String, RestartOverrides>,
            /// `[[quota]]`: clients that count as a user of their own.
            pub quota: Vec<Quota>,
        }

        /// A section's name and documentation.
        #[derive(Debug, Clone, Copy)]
        pub(super) struct About {
            pub(super) name: &'static str,
            pub(super) doc: &'static str,
        }

        /// Every section, in the order of the file.
        pub(super) const SECTIONS: &[About] = &[
            $( About { name: stringify!($name), doc: $section::ABOUT } ),+
        ];

        impl Config {
            pub(super) fn section(&self, name: &str) -> Option<&dyn Section> {
                match name {
                    $( stringify!($name) => Some(&self.$name), )+
                    _ => None,
                }
            }

            pub(super) fn section_mut(&mut self, name: &str) -> Option<&mut dyn Section> {
                match name {
                    $( stringify!($name) => Some(&mut self.$name), )+
                    _ => None,
                }
            }
        }
    };
}

config! {
    ipc: Ipc;
    shared_memory: SharedMemory;
    delivery: Delivery;
    limits: Limits;
    router: Router;
    restart: Restart;
    circuit_breaker: CircuitBreaker;
    health_server: HealthServer;
    metrics: Metrics;
    logging: Logging;
}

impl Config {
    /// The breaker's settings for a service: `[circuit_breaker]` with the overrides of its table.
    ///
    /// ```
    /// # use lapce_ipc::config::Config;
    /// assert_eq!(Config::default().breaker_for("ai.complete").failure_threshold, 5);
    /// ```
    pub fn breaker_for(&self, service: &str) -> CircuitBreaker {
        let mut breaker = self.circuit_breaker.clone();
        for (name, value) in self.breaker_services.get(service).iter().flat_map(|own| &own.values) {
            breaker.put(name, value);
        }
        breaker
    }

    /// The redial settings of an upstream: `[restart]` with the overrides of its table. `max_restarts` is 0, no limit,
    /// unless its table sets it.
    ///
    /// ```
    /// # use lapce_ipc::config::Config;
    /// assert_eq!(Config::default().restart_for("workspace").max_restarts, 0);
    /// ```
    pub fn restart_for(&self, upstream: &str) -> Restart {
        let mut restart = Restart { max_restarts: 0, ..self.restart.clone() };
        for (name, value) in self.upstream_restart.get(upstream).iter().flat_map(|own| &own.values) {
            restart.put(name, value);
        }
        restart
    }

    /// The restart settings of an engine: `[restart]` with the overrides of its table.
    ///
    /// ```
    /// # use lapce_ipc::config::Config;
    /// assert_eq!(Config::default().engine_restart_for("local").max_restarts, 10);
    /// ```
    pub fn engine_restart_for(&self, engine: &str) -> Restart {
        let mut restart = self.restart.clone();
        for (name, value) in self.engine_restart.get(engine).iter().flat_map(|own| &own.values) {
            restart.put(name, value);
        }
        restart
    }

    /// The value of a key by its full name, `ipc.max_connections`.
    ///
    /// ```
    /// # use lapce_ipc::config::Config;
    /// assert_eq!(Config::default().get("ipc.max_connections").unwrap().to_string(), "1000");
    /// ```
    pub fn get(&self, key: &str) -> Option<Value> {
        let (section, name) = key.split_once('.')?;
        self.section(section)?.get(name)
    }
}

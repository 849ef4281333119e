//! Every key: its section, type, default, range and meaning. To add a key, add it here, and run the test
//! `config_toml_is_current` as it says.
//!
//! Counts and bytes are `u32` (nothing here is larger, and it widens without loss), times are `u64`; the unit of a time
//! is the last word of its key's name. The first line of a key's documentation is what `--check-config` prints.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::key::{Key, Rule, Section, integer, section};
use super::value::{Setting, Value};

section! {
    /// The control socket, and what one connection may do there.
    Ipc {
        /// The Unix socket where clients connect.
        /// `--socket` and `LAPCE_IPC_SOCKET` come before it. Clients do not read it: if it is not the default, set
        /// `LAPCE_IPC_SOCKET` for them.
        socket_path: PathBuf = PathBuf::from("/tmp/lapce_ipc.sock"), Rule::SocketPath;
        /// Connections at a time; the next is refused with a reason.
        /// Sessions that wait for their peer to come back count too.
        max_connections: u32 = 1000, integer(1, 100_000, "connections");
        /// The largest message, whatever carries it; a larger one is an error at its sender.
        max_message_size: u32 = 10_485_760, integer(1, 1 << 30, "bytes");
        /// Users who may connect besides the broker's own and root.
        /// For others than the owner to reach the socket, `shared_memory.permissions` must let them, too.
        allowed_uids: Vec<u32> = Vec::new(), Rule::List { of: &integer(0, u32::MAX as u64 - 1, ""), max: 256 };
        /// How long a new connection may take to say hello before it is closed.
        handshake_timeout_ms: u64 = 2000, integer(10, 600_000, "ms");
        /// How long a broker that was told to stop goes on to deliver what it has taken.
        drain_timeout_ms: u64 = 2000, integer(0, 600_000, "ms");
        /// The largest frame on the control socket; a larger one ends its connection.
        max_control_frame_bytes: u32 = 65_536, integer(4096, 16 << 20, "bytes");
        /// Threads that serve the control sockets.
        /// Messages do not pass through them, so one is enough for most machines.
        worker_threads: u32 = 1, integer(1, 64, "threads");
        /// Users who may give orders that change others: set breakers, dial upstreams, reload the configuration.
        /// The broker's own user and root always may; others who may connect may not.
        operator_uids: Vec<u32> = Vec::new(), Rule::List { of: &integer(0, u32::MAX as u64 - 1, ""), max: 256 };
    }
}

section! {
    /// The segments that messages pass through: one for each connection.
    /// What they hold at a time comes out of one budget of `num_slots` × `slot_size`.
    SharedMemory {
        /// The largest payload of one record; larger messages go as several.
        /// The name of a topic goes as one record, so it is not less than the longest name.
        slot_size: u32 = 1024, Rule::MultipleOf8 { min: 256, max: 65_536, unit: "bytes" };
        /// How many slots of `slot_size` all connections share; 1024 of 1 KiB are 1 MiB.
        num_slots: u32 = 1024, integer(1, 1 << 20, "slots");
        /// The mode of the socket and of the segments.
        /// 384 is 0600: only the broker's own user. Nobody executes either of them, so the execute bits are refused.
        permissions: u32 = 0o600, Rule::Mode;
        /// The largest part of the `num_slots` that one ring may lease while it is busy.
        max_window_slots: u32 = 512, integer(1, 1 << 20, "slots");
        /// How often the memory that clients really use is compared with what they have leased.
        audit_interval_ms: u64 = 5000, integer(10, 3_600_000, "ms");
    }
}

section! {
    /// Flow control: how much may be under way to a receiver that does not take it.
    Delivery {
        /// How long a publish waits for a `block` subscriber before that subscription is evicted.
        /// While a message of several records is delivered, each MiB that is taken gives as long again. A subscription
        /// that drops instead of waiting keeps such a message waiting as long, and then does without it.
        slow_consumer_timeout_ms: u64 = 1000, integer(1, 600_000, "ms");
        /// Credit of a subscription that asks for none, and the most that one may ask for.
        subscription_credit_bytes: u32 = 1_048_576, integer(256, 1 << 30, "bytes");
        /// Credit that each direction of a call begins with.
        stream_credit_bytes: u32 = 65_536, integer(256, 1 << 30, "bytes");
        /// How long a publish waits for a `drop_*` subscriber that has no room and makes no progress.
        /// A subscriber that goes on reading gets this time anew, but a slow one delays publishers for at most a tenth
        /// of the time. Then it does without the message. 0 drops at once.
        drop_grace_ms: u64 = 100, integer(0, 1000, "ms");
    }
}

section! {
    /// Limits on everything that a client can make the broker keep.
    Limits {
        /// Topics known at a time, of all connections.
        max_topics: u32 = 65_536, integer(1, 1 << 24, "topics");
        /// Pairs of a topic and a subscription that gets it, known at a time, of all connections.
        /// Each takes 12 bytes, and when a client with many subscriptions leaves, all are looked through.
        max_routes: u32 = 1_048_576, integer(1, 1 << 28, "pairs");
        /// Topics that one connection may know.
        max_topics_per_connection: u32 = 8192, integer(1, 1 << 24, "topics");
        /// Subscriptions that one connection may hold.
        max_subscriptions_per_connection: u32 = 1024, integer(1, 1 << 20, "subscriptions");
        /// Services known at a time, of all connections.
        max_services: u32 = 1024, integer(1, 1 << 20, "services");
        /// Requests that one connection may have outstanding; the next is answered `Overloaded`.
        max_requests_per_connection: u32 = 4096, integer(1, 1 << 20, "requests");
        /// Requests that one responder may have under way.
        /// Others of its service are asked first; when all have as many, the next is answered `Overloaded`.
        max_requests_per_responder: u32 = 1024, integer(1, 1 << 20, "requests");
        /// Deadline of a request that names none.
        /// For a stream that names none it is the time to the first chunk, and from each chunk to the next.
        default_request_timeout_ms: u64 = 30_000, integer(1, 86_400_000, "ms");
        /// The longest deadline that a request may name.
        /// A longer one is shortened to it; `lapce-ipc request --timeout` refuses it.
        max_request_timeout_ms: u64 = 600_000, integer(1, 86_400_000, "ms");
        /// What the broker holds for one connection that does not drain its ring.
        max_backlog_bytes: u32 = 4_194_304, integer(65_536, 1 << 30, "bytes");
        /// Rings of a client's doorbell in a second that bring no record; more end its connection.
        max_rings_without_progress: u32 = 1000, integer(10, 1_000_000, "rings");
    }
}

section! {
    /// How the router trades CPU for latency.
    Router {
        /// How the router waits when its rings are dry.
        /// `adaptive` spins while a peer is awake on another CPU, then sleeps; `busy` never sleeps and costs one core;
        /// `block` sleeps at once. With `adaptive` and `block` an idle broker costs no CPU.
        wait: WaitStrategy = WaitStrategy::Adaptive, Rule::Choice(WaitStrategy::WORDS);
        /// The longest that `adaptive` spins before it sleeps; it finds the right time below by itself.
        spin_max_us: u64 = 50, integer(0, 10_000, "µs");
        /// Records that one connection's turn may route before the next has its turn.
        batch_records: u32 = 64, integer(1, 4096, "records");
        /// The longest that the router routes before it looks at its mailbox.
        turn_max_us: u64 = 50, integer(1, 10_000, "µs");
    }
}

section! {
    /// How actors that fail are started again, and how long sessions outlive their socket.
    Restart {
        /// Delay before the first restart; each further one doubles it.
        initial_delay_ms: u64 = 100, integer(0, 600_000, "ms");
        /// The longest delay between restarts.
        max_delay_ms: u64 = 5000, integer(0, 600_000, "ms");
        /// How far chance moves a delay, as a part of it, so that not all come back at once.
        jitter: f64 = 0.2, Rule::Float { min: 0.0, max: 1.0 };
        /// Restarts within `period_secs` after which the supervisor gives up.
        max_restarts: u32 = 10, integer(0, 1_000_000, "restarts");
        /// The period in which restarts are counted.
        period_secs: u64 = 60, integer(1, 86_400, "s");
        /// An actor that has run for so long begins again with the first delay.
        stable_secs: u64 = 30, integer(0, 86_400, "s");
        /// How long a session waits for a peer that lost only its socket.
        resume_window_ms: u64 = 5000, integer(0, 600_000, "ms");
        /// After a restart of the broker, how long a message that is sent again waits for its subscriber.
        restart_grace_ms: u64 = 2000, integer(0, 600_000, "ms");
        /// How long a thread may hang before the process aborts, for systemd to start it anew.
        watchdog_abort_ms: u64 = 10_000, integer(100, 3_600_000, "ms");
    }
}

section! {
    /// When a service that fails is given a rest.
    CircuitBreaker {
        /// Failures in a row that open the breaker.
        failure_threshold: u32 = 5, integer(1, 1_000_000, "failures");
        /// Successes of a half-open breaker that close it.
        success_threshold: u32 = 2, integer(1, 1_000_000, "successes");
        /// How long an open breaker stays open at first; each time that the trial fails it doubles.
        timeout_secs: u64 = 60, integer(1, 86_400, "s");
        /// The longest that a breaker stays open.
        max_timeout_secs: u64 = 600, integer(1, 86_400, "s");
        /// Requests that a half-open breaker lets through on trial.
        half_open_max_requests: u32 = 3, integer(1, 1_000_000, "requests");
    }
}

section! {
    /// The HTTP endpoints `/health`, `/ready`, `/live` and `/metrics`.
    HealthServer {
        /// The TCP port; 0 lets the system choose, and the log names it.
        port: u16 = 9090, integer(0, 65_535, "");
        /// The address to listen on.
        /// The original listened on 0.0.0.0. Here it is the loopback address, because the pages tell names and numbers
        /// of what runs on this machine, and whoever reaches the port may read them: open it to a network on purpose.
        host: String = String::from("127.0.0.1"), Rule::Host;
        /// Whether the broker refuses to start when it cannot listen here.
        required: bool = false, Rule::Flag;
        /// Values of the `Host` header that are answered besides the loopback names and `host`.
        /// A browser that was lured by a name of somebody else gets nothing.
        allowed_hosts: Vec<String> = Vec::new(), Rule::List { of: &Rule::Host, max: 64 };
        /// A file whose first line is a token that readers must send; empty for none.
        /// It is refused if everybody can read it, or others than its owner can write it.
        token_file: String = String::new(), Rule::FileOrNone;
        /// Connections at a time; when they are all taken, the next takes the place of the one that is quiet longest.
        /// So nobody keeps `/live` from being answered by holding connections open, whatever they are used for.
        max_connections: u32 = 128, integer(4, 10_000, "connections");
        /// How long a client may take to send the head of a request; 408 is the answer to one who takes longer.
        /// The head may have 96 headers and 128 KiB, which the library sets; a larger one is refused.
        request_timeout_ms: u64 = 3000, integer(100, 600_000, "ms");
        /// How long a connection is kept after an answer, for a next request.
        idle_timeout_secs: u64 = 15, integer(1, 3600, "s");
        /// How long a client may leave an answer unread before its connection is closed.
        unread_timeout_secs: u64 = 10, integer(1, 3600, "s");
        /// How many may follow `/events` at a time, as the status page does; more are refused.
        max_streams: u32 = 16, integer(0, 64, "");
        /// A Unix socket to listen on instead of `host` and `port`; empty for none.
        /// Its mode is `shared_memory.permissions`, and only users who may connect to the broker are answered, so no
        /// other user of this machine reads the pages: `curl --unix-socket PATH http://localhost/health`. A browser and
        /// Prometheus need TCP.
        socket_path: String = String::new(), Rule::SocketOrNone;
        /// Whether readers must send a token also if no `token_file` is named.
        /// The broker then makes the file with a new token: beside its control socket, with `.token` at its end, mode
        /// 0600. `lapce-ipc status` names it.
        require_token: bool = false, Rule::Flag;
    }
}

section! {
    /// What is counted for Prometheus.
    Metrics {
        /// Whether metrics are shown, at `/metrics` and in the log.
        enable: bool = true, Rule::Flag;
        /// How often the figures go to the log, in one line, if anything has happened.
        export_interval_secs: u64 = 10, integer(1, 3600, "s");
    }
}

section! {
    /// A program that listens, and that the broker dials: its services are offered here.
    Upstream {
        /// What it is called in the log and in the status; no other has the name.
        name: String = String::new(), Rule::Name;
        /// Its Unix socket.
        socket_path: PathBuf = PathBuf::new(), Rule::SocketPath;
        /// The services that it may offer; it is told so if it offers another one, and the log if one is missing.
        services: Vec<String> = Vec::new(), Rule::List { of: &Rule::Name, max: 1024 };
    }
}

/// How somebody waits for a ring.
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

/// What a table `[circuit_breaker.services.NAME]` changes for one service; see [`Config::breaker_for`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BreakerOverrides {
    pub(super) values: BTreeMap<&'static str, Value>,
}

/// What the table of an upstream changes of `[restart]` for its own dialling; see [`Config::restart_for`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RestartOverrides {
    pub(super) values: BTreeMap<&'static str, Value>,
}

impl RestartOverrides {
    /// The keys of `[restart]` that may stand in the table of an upstream.
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
            /// `[circuit_breaker.services.NAME]`: what is different for single services.
            pub breaker_services: BTreeMap<String, BreakerOverrides>,
            /// `[[upstream]]`: programs to dial.
            pub upstream: Vec<Upstream>,
            /// What of `[restart]` is different for single upstreams, by their names.
            pub upstream_restart: BTreeMap<String, RestartOverrides>,
        }

        /// A section's name, with what is known of it apart from its keys.
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
}

impl Config {
    /// The breaker's settings for a service: `[circuit_breaker]`, but for what its own table says.
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

    /// How an upstream is dialled again: `[restart]`, but for what its own table says. `max_restarts` is 0, without
    /// limit, unless its own table has one.
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

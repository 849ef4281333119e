//! Every family of metrics: name, kind, labels, and what it says.

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It does, until the process ends.
    Counter,
    /// It goes up and down.
    Gauge,
    /// A histogram.
    Histogram,
}

/// Samples of one name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) labels: &'static [&'static str],
    /// The `# HELP` text.
    pub(crate) help: &'static str,
}

/// Declares the families, and [`ALL`] of them.
macro_rules! families {
    ($( $id:ident: $kind:ident $name:literal $([$($label:literal),+])? = $help:literal; )+) => {
        $(
            #[doc = $help]
            pub(crate) static $id: Family =
                Family { name: $name, kind: Kind::$kind, labels: &[$($($label),+)?], help: $help };
        )+

        /// All of them.
        #[cfg_attr(not(test), allow(dead_code, reason = "tests hold them to the conventions"))]
        pub(crate) static ALL: &[&Family] = &[$( &$id ),+];
    };
}

families! {
    BUILD_INFO: Gauge "lapce_ipc_build_info" ["version"] = "Always 1; the broker's version is the label.";
    UPTIME: Gauge "lapce_ipc_uptime_seconds" = "Time since the broker started.";
    READY: Gauge "lapce_ipc_ready" = "1 if the broker is ready (/ready returns 200), else 0.";
    THREADS_LATE: Gauge "lapce_ipc_threads_late" = "Threads that have missed the watchdog's heartbeat for a second.";
    HEARTBEAT_AGE: Gauge "lapce_ipc_router_heartbeat_age_seconds"
        = "Time since the last reply of the router, which is the age of the router's metrics.";

    CONNECTIONS: Gauge "lapce_ipc_connections" = "Connections now, including those in the handshake.";
    CONNECTIONS_LIMIT: Gauge "lapce_ipc_connections_limit" = "Limit of connections of one user (ipc.max_connections).";
    CONNECTIONS_OPENED: Counter "lapce_ipc_connections_total" = "Connections accepted.";
    REFUSED: Counter "lapce_ipc_connections_refused_total" ["reason"]
        = "Connections refused before or during the handshake, by reason.";
    RESUMED: Counter "lapce_ipc_sessions_resumed_total"
        = "Sessions resumed by their client after a lost socket.";
    LOST: Counter "lapce_ipc_sessions_lost_total" ["reason"]
        = "Sessions that ended while waiting for their client to reconnect, by reason.";
    LOG_LINES_DROPPED: Counter "lapce_ipc_log_lines_dropped_total"
        = "Log lines dropped because the reader of stderr was too slow.";
    VIOLATIONS: Counter "lapce_ipc_connections_violated_total"
        = "Connections closed because the client violated the protocol or exceeded its memory.";

    PUBLISHED: Counter "lapce_ipc_messages_published_total" = "Messages published.";
    DELIVERED: Counter "lapce_ipc_messages_delivered_total" = "Messages delivered, counted once per subscription.";
    UNMATCHED: Counter "lapce_ipc_messages_unmatched_total" = "Messages without a matching subscription.";
    DROPPED: Counter "lapce_ipc_messages_dropped_total" ["policy"]
        = "Messages dropped by the router, by delivery policy. Drops of drop_oldest in the client's own queue are \
           not included.";
    ABORTED: Counter "lapce_ipc_messages_aborted_total" = "Partially delivered messages that were aborted.";
    EVICTED: Counter "lapce_ipc_subscriptions_evicted_total"
        = "Subscriptions evicted as slow consumers (policy block only).";
    PARKED: Counter "lapce_ipc_publishers_parked_total"
        = "Times that a publisher was blocked by a subscription (backpressure).";

    REQUESTS: Counter "lapce_ipc_requests_total" = "Requests accepted.";
    REQUESTS_FAILED: Counter "lapce_ipc_requests_failed_total" ["outcome"]
        = "Requests that ended without a reply, by outcome.";
    REPLIES: Counter "lapce_ipc_replies_total" = "Replies delivered to their requester.";
    REPLIES_LATE: Counter "lapce_ipc_replies_late_total"
        = "Replies or chunks that arrived after their request had ended.";
    CHUNKS: Counter "lapce_ipc_chunks_total" = "Chunks of streamed replies.";
    CANCELS: Counter "lapce_ipc_cancels_total" = "Requests cancelled by their requester.";

    IN_BROKER: Histogram "lapce_ipc_in_broker_seconds"
        = "Time in the broker of messages that no receiver delays, until the receivers are woken. \
           Sampled: all messages of every 16th router visit to a connection.";
    BATCHES: Histogram "lapce_ipc_batch_records"
        = "Records read per router visit to a connection. Sampled: every 16th visit.";
    ROUND_TRIP: Histogram "lapce_ipc_request_duration_seconds" ["service"]
        = "Time from a request to its reply, measured in the router, without the broker's own echo. \
           Services beyond the first 100, and forgotten ones, are summed up in `other`.";
    FIRST_CHUNK: Histogram "lapce_ipc_request_first_chunk_seconds" ["service"]
        = "Time from a request to the first chunk of its streamed reply, measured in the router.";

    RECORDS: Counter "lapce_ipc_records_total" = "Records read from clients' rings.";
    FRAGMENTS: Counter "lapce_ipc_fragments_total" = "Records that are part of a fragmented message.";
    BYTES: Counter "lapce_ipc_bytes_total" = "Payload bytes read from clients' rings.";
    POISON_MESSAGES: Counter "lapce_ipc_poison_messages_total"
        = "Poison messages quarantined: records and timers that killed the router twice.";
    RUNG: Counter "lapce_ipc_doorbells_rung_total" = "Wakes of sleeping clients.";
    LOOKS: Counter "lapce_ipc_doorbell_looks_total" = "Polls of the router's own doorbells.";
    PROBES: Counter "lapce_ipc_router_probes_total"
        = "Snapshots of the router, for metrics and the status; all readers at the same time share one.";
    PROBE_CPU: Counter "lapce_ipc_router_probe_cpu_seconds_total"
        = "CPU time of the router's thread spent on probes.";
    SLEEPS: Counter "lapce_ipc_router_sleeps_total" = "Times that the router went to sleep.";

    SLOTS_USED: Gauge "lapce_ipc_slots_used" = "Slots of the shared budget that are leased.";
    SLOTS_LIMIT: Gauge "lapce_ipc_slots_limit" = "Slots that all users together may lease.";
    USER_HELD: Gauge "lapce_ipc_user_held" ["uid", "quota", "resource"] = "What a user holds of what users share.";
    USER_LIMIT: Gauge "lapce_ipc_user_limit" ["uid", "quota", "resource"] = "The most that the user may hold now.";
    LEASES_REFUSED: Counter "lapce_ipc_leases_refused_total" = "Times that a ring found no slot or no memory.";
    TOPICS: Gauge "lapce_ipc_topics" = "Topics known to the broker.";
    SUBSCRIPTIONS: Gauge "lapce_ipc_subscriptions" = "Subscriptions of all connections.";

    SERVICE_RESPONDERS: Gauge "lapce_ipc_service_responders" ["service"] = "Responders that share the service.";
    SERVICE_OUTSTANDING: Gauge "lapce_ipc_service_requests_outstanding" ["service"]
        = "Requests assigned to a responder, without an outcome yet.";
    SERVICE_REQUESTS: Counter "lapce_ipc_service_requests_total" ["service"]
        = "Requests to the service. Services beyond the first 100 are summed up in `other`.";
    SERVICE_FAILURES: Counter "lapce_ipc_service_failures_total" ["service"]
        = "Requests to the service that failed.";
    BREAKER_STATE: Gauge "lapce_ipc_breaker_state" ["service", "state"]
        = "1 for the current state of the service's breaker; for `other` the number of breakers in that state.";
    BREAKER_OPENED: Counter "lapce_ipc_breaker_opened_total" ["service"] = "Times that the breaker opened.";
    BREAKER_TRANSITIONS: Counter "lapce_ipc_breaker_transitions_total" ["service", "state"]
        = "Transitions of the breaker into the state.";
    BREAKER_REJECTED: Counter "lapce_ipc_breaker_rejected_total" ["service"]
        = "Requests rejected by the breaker.";

    ACTOR_UP: Gauge "lapce_ipc_actor_up" ["actor"] = "1 if the actor is running, else 0.";
    UPSTREAM_CONNECTED: Gauge "lapce_ipc_upstream_connected" ["upstream"]
        = "1 if the upstream is connected, else 0.";
    ACTOR_RESTARTS: Counter "lapce_ipc_actor_restarts_total" ["actor", "reason"]
        = "Restarts of the actor, by reason: panic, failure, an end without failure, or a sibling's end.";
    ACTOR_FAILURES: Counter "lapce_ipc_actor_failures_total" ["actor"]
        = "Failures of the actor: errors and panics.";

    MEMORY: Gauge "lapce_ipc_memory_bytes" ["part"]
        = "Memory of the broker: resident, including shared memory, and page tables.";

    PROCESS_CPU: Counter "process_cpu_seconds_total" = "CPU time of the process.";
    PROCESS_MEMORY: Gauge "process_resident_memory_bytes"
        = "Resident memory of the process, including shared memory.";
    PROCESS_VIRTUAL: Gauge "process_virtual_memory_bytes" = "Virtual memory of the process.";
    PROCESS_THREADS: Gauge "process_threads" = "Threads of the process.";
    PROCESS_FDS: Gauge "process_open_fds" = "Open file descriptors of the process.";
    PROCESS_FDS_LIMIT: Gauge "process_max_fds" = "Limit of open file descriptors of the process.";
    PROCESS_STARTED: Gauge "process_start_time_seconds" = "Start time of the process, in seconds since the epoch.";
}

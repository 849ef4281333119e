//! Every family of metrics: name, kind, labels, and what it says.

/// Whether a figure only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It does, until the process ends.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often what was observed, by buckets.
    Histogram,
}

/// Figures of one name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) labels: &'static [&'static str],
    /// What is written beside it, for whoever reads the metrics.
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
    UPTIME: Gauge "lapce_ipc_uptime_seconds" = "How long the broker has been running.";
    READY: Gauge "lapce_ipc_ready" = "Whether the broker is ready: 1 or 0, as /ready says.";
    THREADS_LATE: Gauge "lapce_ipc_threads_late" = "Threads that have not answered the watchdog for a second.";
    HEARTBEAT_AGE: Gauge "lapce_ipc_router_heartbeat_age_seconds"
        = "Time since the router was last known to answer. The figures that are the router's are as old.";

    CONNECTIONS: Gauge "lapce_ipc_connections" = "Connections now, with those that are still saying hello.";
    CONNECTIONS_LIMIT: Gauge "lapce_ipc_connections_limit" = "The most connections at a time (ipc.max_connections).";
    CONNECTIONS_OPENED: Counter "lapce_ipc_connections_total" = "Connections that were taken in.";
    REFUSED: Counter "lapce_ipc_connections_refused_total" ["reason"]
        = "Connections that were refused at their hello or before, by reason.";
    RESUMED: Counter "lapce_ipc_sessions_resumed_total"
        = "Sessions that their client took up again after their socket was lost.";
    LOST: Counter "lapce_ipc_sessions_lost_total" ["reason"]
        = "Sessions that ended while they waited for their client, by reason.";
    LOG_LINES_DROPPED: Counter "lapce_ipc_log_lines_dropped_total"
        = "Lines of the log that were dropped, because the reader of stderr was too slow.";
    VIOLATIONS: Counter "lapce_ipc_connections_violated_total"
        = "Connections that were ended because the client broke the protocol or used more than it had.";

    PUBLISHED: Counter "lapce_ipc_messages_published_total" = "Messages that were published.";
    DELIVERED: Counter "lapce_ipc_messages_delivered_total" = "Messages given to subscriptions, each counted for each.";
    UNMATCHED: Counter "lapce_ipc_messages_unmatched_total" = "Messages that no subscription matched.";
    DROPPED: Counter "lapce_ipc_messages_dropped_total" ["policy"]
        = "Messages that a subscription lost at the router, by its policy. What drop_oldest drops in the \
           client's own queue is not known here.";
    ABORTED: Counter "lapce_ipc_messages_aborted_total" = "Messages that were cut off half way, at their receivers.";
    EVICTED: Counter "lapce_ipc_subscriptions_evicted_total"
        = "Subscriptions that were ended because they held publishers up for too long; only the policy block does.";
    PARKED: Counter "lapce_ipc_publishers_parked_total" = "How often a publisher had to wait for a subscription.";

    REQUESTS: Counter "lapce_ipc_requests_total" = "Requests that were taken in.";
    REQUESTS_FAILED: Counter "lapce_ipc_requests_failed_total" ["outcome"]
        = "Requests that ended without a reply, by outcome.";
    REPLIES: Counter "lapce_ipc_replies_total" = "Replies that went to their requester.";
    REPLIES_LATE: Counter "lapce_ipc_replies_late_total" = "Replies, or parts of them, whose request was over.";
    CHUNKS: Counter "lapce_ipc_chunks_total" = "Chunks of streamed replies.";
    CANCELS: Counter "lapce_ipc_cancels_total" = "Requests that their requester cancelled.";

    IN_BROKER: Histogram "lapce_ipc_in_broker_seconds"
        = "Time in the broker of a message that has not to wait for anybody, until its receivers are woken. \
           Of a sample: all messages of each 16th visit of the router to a connection, with the time of the visit.";
    BATCHES: Histogram "lapce_ipc_batch_records"
        = "Records that the router has taken in one visit to a connection; each 16th visit is counted.";
    ROUND_TRIP: Histogram "lapce_ipc_request_duration_seconds" ["service"]
        = "Time from a request to its reply, as the router sees it; the broker's own echo is no part of it. \
           Beyond 100 services, and of those that are forgotten, the rest is in `other`.";
    FIRST_CHUNK: Histogram "lapce_ipc_request_first_chunk_seconds" ["service"]
        = "Time from a request to the first chunk of its streamed reply, as the router sees it.";

    RECORDS: Counter "lapce_ipc_records_total" = "Records that the router has taken out of clients' rings.";
    FRAGMENTS: Counter "lapce_ipc_fragments_total" = "Those of the records that are a part of a message of several.";
    BYTES: Counter "lapce_ipc_bytes_total" = "Payload that the router has taken out of clients' rings, in bytes.";
    SET_ASIDE: Counter "lapce_ipc_records_set_aside_total" = "Records and timers that killed the router twice.";
    RUNG: Counter "lapce_ipc_doorbells_rung_total" = "How often a sleeping client was woken.";
    LOOKS: Counter "lapce_ipc_doorbell_looks_total" = "How often the router looked at its own bells.";
    SURVEYS: Counter "lapce_ipc_router_surveys_total"
        = "How often the router was asked for its figures; whoever asks within a tenth of a second gets the same ones.";
    SURVEY_CPU: Counter "lapce_ipc_router_survey_cpu_seconds_total"
        = "CPU time that these have cost the router's thread.";
    SLEEPS: Counter "lapce_ipc_router_sleeps_total" = "How often the router went to sleep.";

    SLOTS_USED: Gauge "lapce_ipc_slots_used" = "Slots of the shared budget that are lent out.";
    SLOTS_LIMIT: Gauge "lapce_ipc_slots_limit" = "Slots of the shared budget in all (shared_memory.num_slots).";
    LEASES_REFUSED: Counter "lapce_ipc_leases_refused_total" = "How often a ring could not grow.";
    TOPICS: Gauge "lapce_ipc_topics" = "Topics that are known.";
    SUBSCRIPTIONS: Gauge "lapce_ipc_subscriptions" = "Subscriptions of all connections.";

    SERVICE_RESPONDERS: Gauge "lapce_ipc_service_responders" ["service"] = "Who shares the service.";
    SERVICE_OUTSTANDING: Gauge "lapce_ipc_service_requests_outstanding" ["service"]
        = "Requests of the service that have a responder and no outcome.";
    SERVICE_REQUESTS: Counter "lapce_ipc_service_requests_total" ["service"]
        = "Requests to the service. Beyond 100 services the rest is in `other`.";
    SERVICE_FAILURES: Counter "lapce_ipc_service_failures_total" ["service"]
        = "Requests to the service that failed.";
    BREAKER_STATE: Gauge "lapce_ipc_breaker_state" ["service", "state"]
        = "1 for the state in which the service's breaker is; for `other` how many are in it.";
    BREAKER_OPENED: Counter "lapce_ipc_breaker_opened_total" ["service"] = "How often the breaker has opened.";
    BREAKER_TRANSITIONS: Counter "lapce_ipc_breaker_transitions_total" ["service", "state"]
        = "How often the breaker has come into the state.";
    BREAKER_REJECTED: Counter "lapce_ipc_breaker_rejected_total" ["service"]
        = "Requests that the breaker did not let through.";

    ACTOR_UP: Gauge "lapce_ipc_actor_up" ["actor"] = "Whether the actor runs: 1 or 0.";
    UPSTREAM_CONNECTED: Gauge "lapce_ipc_upstream_connected" ["upstream"]
        = "Whether the upstream is connected: 1 or 0.";
    ACTOR_RESTARTS: Counter "lapce_ipc_actor_restarts_total" ["actor", "reason"]
        = "How often the actor was started again: after a panic, a failure, an end without one, or because a sibling \
           had ended.";
    ACTOR_FAILURES: Counter "lapce_ipc_actor_failures_total" ["actor"]
        = "How often the actor failed, by an error or a panic.";

    MEMORY: Gauge "lapce_ipc_memory_bytes" ["part"]
        = "Memory of the broker: resident, with what it shares with its clients, and page tables. Both are its cost.";

    PROCESS_CPU: Counter "process_cpu_seconds_total" = "CPU time of the broker's process.";
    PROCESS_MEMORY: Gauge "process_resident_memory_bytes"
        = "Resident memory of the broker's process, with what it shares with its clients.";
    PROCESS_VIRTUAL: Gauge "process_virtual_memory_bytes" = "Address space of the broker's process.";
    PROCESS_THREADS: Gauge "process_threads" = "Threads of the broker's process.";
    PROCESS_FDS: Gauge "process_open_fds" = "Descriptors that the broker's process has open.";
    PROCESS_FDS_LIMIT: Gauge "process_max_fds" = "Descriptors that the broker's process may have open.";
    PROCESS_STARTED: Gauge "process_start_time_seconds" = "When the broker's process started, since the epoch.";
}

//! The router's limits, in the units that it counts in.

use crate::config::{CircuitBreaker, Config, WaitStrategy};
use crate::logic::breaker::{RuleBook, Rules};
use crate::logic::quotas::Quotas;
use crate::logic::services::ProbeDelays;
use crate::logic::shares::ShareLimits;
use crate::logic::work::WorkShare;
use crate::shm::layout::{CELL_BYTES, Geometry, GeometryError, MAX_EXTENSION_CELLS, PAGE_CELLS};
use std::sync::Arc;

const MS: u64 = 1_000_000;
/// The part of the cells of shared memory that a user may lease of what the others leave. A user that comes late needs
/// almost as many as one that is alone, or small rings make it slow (row `budget` of `tests/hostile_table.rs`).
const LEASE_PERCENT: u32 = 10;
/// Work for a user's subscriptions that can be saved up: the share of so much time.
const WORK_WINDOW: u64 = 100 * MS;

/// The router's limits. Times in nanoseconds, credit and windows in cells.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) geometry: Geometry,
    pub(crate) permissions: u32,
    pub(crate) max_connections: usize,
    pub(crate) max_message_size: u32,
    pub(crate) stream_credit: u32,
    pub(crate) subscription_credit: u32,
    pub(crate) slow_consumer_timeout: u64,
    pub(crate) default_request_timeout: u64,
    pub(crate) max_request_timeout: u64,
    pub(crate) stream_first_chunk: u64,
    pub(crate) stream_idle: u64,
    pub(crate) request_body_idle: u64,
    pub(crate) max_topics: usize,
    pub(crate) max_routes: usize,
    pub(crate) max_subscriptions: usize,
    pub(crate) max_topics_per_connection: usize,
    pub(crate) max_subscriptions_per_connection: usize,
    pub(crate) max_services: usize,
    pub(crate) user_share_percent: u32,
    pub(crate) max_requests_per_connection: u32,
    pub(crate) max_requests_per_responder: u32,
    pub(crate) max_backlog_bytes: usize,
    pub(crate) max_user_backlog_bytes: usize,
    pub(crate) max_rings_without_progress: u32,
    pub(crate) budget: usize,
    pub(crate) max_window: u32,
    pub(crate) audit_interval: u64,
    pub(crate) wait: WaitStrategy,
    pub(crate) spin_max: u64,
    pub(crate) batch_records: u32,
    pub(crate) turn_max: u64,
    /// What gates begin with until `BreakerActor` says otherwise.
    pub(crate) breakers: Arc<RuleBook>,
    pub(crate) drop_grace: u64,
    /// How long publishers wait for the subscriptions of another user in a period.
    pub(crate) user_wait: u64,
    /// Of the router's time, for a user's subscriptions to what others publish.
    pub(crate) user_work: WorkShare,
    /// When responders that let deadlines pass are probed.
    pub(crate) probe_delays: ProbeDelays,
    /// The names of quotas.
    pub(crate) quotas: Arc<Quotas>,
}

impl Settings {
    /// Converts what the configuration says.
    ///
    /// # Errors
    ///
    /// If the sizes of a segment are out of range, which a validated configuration excludes.
    pub(crate) fn new(config: &Config) -> Result<Settings, GeometryError> {
        let (shared, limits) = (&config.shared_memory, &config.limits);
        let cells = |bytes: u32| bytes / CELL_BYTES as u32;
        let max_window = shared.max_window_slots.saturating_mul(shared.slot_size) / CELL_BYTES as u32;
        let max_window = max_window.min(MAX_EXTENSION_CELLS) / PAGE_CELLS * PAGE_CELLS;
        Ok(Settings {
            geometry: Geometry::new(shared.slot_size, max_window)?,
            permissions: shared.permissions,
            max_connections: config.ipc.max_connections as usize,
            max_message_size: config.ipc.max_message_size,
            stream_credit: cells(config.delivery.stream_credit_bytes),
            subscription_credit: cells(config.delivery.subscription_credit_bytes),
            slow_consumer_timeout: config.delivery.slow_consumer_timeout_ms * MS,
            default_request_timeout: limits.default_request_timeout_ms * MS,
            max_request_timeout: limits.max_request_timeout_ms * MS,
            stream_first_chunk: limits.stream_first_chunk_ms * MS,
            stream_idle: limits.stream_idle_ms * MS,
            request_body_idle: limits.request_body_idle_ms * MS,
            max_topics: limits.max_topics as usize,
            max_routes: limits.max_routes as usize,
            max_subscriptions: limits.max_subscriptions as usize,
            max_topics_per_connection: limits.max_topics_per_connection as usize,
            max_subscriptions_per_connection: limits.max_subscriptions_per_connection as usize,
            max_services: limits.max_services as usize,
            user_share_percent: limits.user_share_percent,
            max_requests_per_connection: limits.max_requests_per_connection,
            max_requests_per_responder: limits.max_requests_per_responder,
            max_backlog_bytes: limits.max_backlog_bytes as usize,
            max_user_backlog_bytes: limits.max_user_backlog_bytes as usize,
            max_rings_without_progress: limits.max_rings_without_progress,
            budget: shared.num_slots as usize * shared.slot_size as usize / CELL_BYTES,
            max_window,
            audit_interval: shared.audit_interval_ms * MS,
            wait: config.router.wait,
            spin_max: config.router.spin_max_us * 1000,
            batch_records: config.router.batch_records,
            turn_max: config.router.turn_max_us * 1000,
            breakers: Arc::new(RuleBook {
                general: rules(&config.circuit_breaker),
                of_services: config
                    .breaker_services
                    .keys()
                    .map(|service| (service.clone(), rules(&config.breaker_for(service))))
                    .collect(),
            }),
            user_wait: config.delivery.user_wait_ms * MS,
            user_work: WorkShare { percent: limits.user_work_percent, window: WORK_WINDOW },
            drop_grace: config.delivery.drop_grace_ms * MS,
            probe_delays: ProbeDelays { first: limits.probe_delay_ms * MS, max: limits.max_probe_delay_ms * MS },
            quotas: quotas(&Quotas::default(), config),
        })
    }
}

impl Settings {
    /// What users may lease of shared memory, in cells.
    pub(crate) fn lease_shares(&self) -> ShareLimits {
        ShareLimits::of_one(self.budget, LEASE_PERCENT)
    }

    /// What users may hold of something finite, of which one that is alone may hold `each`.
    pub(crate) fn shares_of(&self, each: usize) -> ShareLimits {
        ShareLimits::of_one(each, self.user_share_percent)
    }
}

/// The quotas of a configuration that follows another one.
pub(crate) fn quotas(before: &Quotas, config: &Config) -> Arc<Quotas> {
    Arc::new(before.followed_by(config.quota.iter().map(|quota| (quota.name.as_str(), quota.clients.as_slice()))))
}

fn rules(breaker: &CircuitBreaker) -> Rules {
    Rules {
        failure_threshold: breaker.failure_threshold,
        success_threshold: breaker.success_threshold,
        half_open_max_requests: breaker.half_open_max_requests,
        timeout: breaker.timeout_secs * 1000 * MS,
        max_timeout: breaker.max_timeout_secs * 1000 * MS,
    }
}

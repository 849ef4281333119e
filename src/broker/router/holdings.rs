//! What each user holds of what users share, and the most that it may hold now.

use super::state::RouterState;
use crate::broker::telemetry::holdings::listed;
use crate::logic::shares::Holding;
use crate::shm::layout::CELL_BYTES;
use crate::wire::control::HoldingStatus;

impl RouterState {
    /// The entries of all resources that the router keeps the books of, by resource.
    pub(super) fn holdings(&self) -> Vec<HoldingStatus> {
        let (topics, services) = (self.pubsub.topics(), self.calls.services());
        let [records, overflow] = self.ports.egresses.waiting();
        let slot_cells = (self.ports.settings.geometry.slot_size() as usize / CELL_BYTES).max(1);
        let slots = self.ports.egresses.memory.shares().holdings().map(|cells| Holding {
            held: cells.held.div_ceil(slot_cells),
            most: cells.most / slot_cells,
            ..cells
        });
        let quotas = &*self.ports.settings.quotas;
        let waiting = Some("limits.max_user_backlog_bytes");
        listed(quotas, "topics", Some("limits.max_topics"), topics.shares().holdings())
            .chain(listed(quotas, "subscriptions", Some("limits.max_subscriptions"), topics.places().holdings()))
            .chain(listed(quotas, "routes", Some("limits.max_routes"), topics.routes().holdings()))
            .chain(listed(quotas, "services", Some("limits.max_services"), services.shares().holdings()))
            .chain(listed(quotas, "calls", None, services.users.calls()))
            .chain(listed(quotas, "slots", Some("shared_memory.num_slots"), slots))
            .chain(listed(quotas, "backlog_bytes", waiting, records.holdings()))
            .chain(listed(quotas, "overflow_bytes", waiting, overflow.holdings()))
            .collect()
    }
}

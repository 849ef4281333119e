//! Publish and subscribe: the bulk lane.
//!
//! | file | idea |
//! |---|---|
//! | `publish` | routes the records of the bulk lane |
//! | `run` | messages that are routed with one decision |
//! | `fragments` | the same of the fragments of one message |
//! | `chosen` | the decision for one subscription, and how it is carried out |
//! | `subscriptions` | control requests about topics and subscriptions |
//! | `drops` | subscriptions that drop: when a publish waits for them, and how their client is notified |
//! | `overflow` | the newest messages for subscriptions that drop the oldest |
//! | `abort` | messages whose rest will not come, and poison messages |
//! | `slow_consumers` | the slow consumer timeout |

mod abort;
mod chosen;
mod drops;
mod fragments;
mod overflow;
mod publish;
mod run;
mod slow_consumers;
mod subscriptions;

use super::egress::OverflowWork;
use super::settings::Settings;
use crate::logic::routing::arena::MAX_SHORT;
use crate::logic::routing::topics::Topics;
use crate::logic::shares::ShareLimits;
use chosen::Chosen;

/// Topics, their subscriptions, and the decisions for the current message.
pub(super) struct PubSub {
    topics: Topics,
    /// The decision for each subscription of the current message.
    chosen: Vec<Chosen>,
    /// The users whose subscriptions do not get the current message, because their account is overdrawn.
    passed_over: Vec<usize>,
    /// A timer is set to count what was dropped so.
    counts: bool,
    overflow: OverflowWork,
    /// The sequence number of the broker's own last message.
    system_sent: u64,
}

impl PubSub {
    pub(super) fn new(settings: &Settings) -> PubSub {
        let topics = Topics::new(limits(settings), settings.user_work);
        let (chosen, passed_over) = (Vec::new(), Vec::new());
        PubSub { topics, chosen, passed_over, counts: false, overflow: OverflowWork::default(), system_sent: 0 }
    }

    /// Applies other limits from now on; existing topics stay.
    pub(super) fn adopt(&mut self, settings: &Settings) {
        self.topics.adopt(limits(settings), settings.user_work);
    }

    pub(super) fn topics(&self) -> &Topics {
        &self.topics
    }

    /// The number of subscriptions that the last message was decided for.
    #[inline]
    pub(super) fn receivers(&self) -> usize {
        self.chosen.len()
    }

    /// After a restart of the router: the time without a router does not count against a subscription.
    pub(super) fn forget_graces(&mut self, now: u64) {
        self.topics.subscriptions.iter_mut().for_each(|subscription| subscription.grace.forget(now));
    }
}

/// What users may hold of topics, routes and subscriptions.
fn limits(settings: &Settings) -> [ShareLimits; 3] {
    let subscriptions = settings.shares_of(settings.max_subscriptions).within(MAX_SHORT);
    [settings.shares_of(settings.max_topics), settings.shares_of(settings.max_routes), subscriptions]
}

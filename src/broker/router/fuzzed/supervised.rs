//! A router that is supervised: one that dies by an injected fault is followed by another, over the same state.

use crate::broker::router::in_process::work;
use crate::broker::router::settings::Settings;
use crate::broker::router::state::RouterState;
use crate::broker::supervision::fault;
use crate::broker::telemetry::events::Events;
use crate::config::Config;
use crate::wire::control::{BrokerFrame, ClientFrame};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

pub(super) const MS: u64 = 1_000_000;

/// The state, which outlives each router.
pub(super) struct Supervised {
    pub(super) state: RouterState,
    requests: u64,
}

impl Supervised {
    /// `None`: the system has no descriptors.
    pub(super) fn new(config: &Config) -> Option<Supervised> {
        let settings = Settings::new(config).ok()?;
        Some(Supervised { state: RouterState::new(settings, Events::new(), 0).ok()?, requests: 0 })
    }

    /// What a session does with a control request of its client.
    pub(super) fn ask(&mut self, key: u32, id: u32, frame: ClientFrame) -> Option<BrokerFrame> {
        self.requests += 1;
        let number = self.requests;
        let reply = self.survive(|state| {
            let reply = state.handle_request(key, id, number, frame.clone());
            fault::point("router.answering", 0);
            reply
        });
        // It is sent to the client, whatever it has in it.
        if let Some(reply) = &reply {
            let frame = reply.encode().expect("a reply can be sent");
            assert_eq!(BrokerFrame::decode(&frame[4..]).as_ref(), Ok(reply));
        }
        reply
    }

    /// Routes until no work is left.
    pub(super) fn work(&mut self) {
        self.survive(work);
        self.state.ended.clear();
    }

    /// Lets time pass.
    pub(super) fn advance(&mut self, ns: u64) {
        let now = self.state.ports.now + ns;
        self.survive(|state| state.advance(now));
    }

    /// Does what a supervised router does: one that dies by an armed fault is followed by another, over the same state.
    pub(super) fn survive<T>(&mut self, mut act: impl FnMut(&mut RouterState) -> T) -> T {
        let injected = |reason: Box<dyn std::any::Any + Send>| {
            if reason.downcast_ref() != Some(&fault::armed::INJECTED) {
                resume_unwind(reason);
            }
        };
        loop {
            match catch_unwind(AssertUnwindSafe(|| act(&mut self.state))) {
                Ok(result) => return result,
                Err(reason) => injected(reason),
            }
            while let Err(reason) = catch_unwind(AssertUnwindSafe(|| self.state.recover())) {
                injected(reason);
            }
        }
    }
}

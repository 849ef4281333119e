//! A router, hostile clients, and a witness; and what must hold when all of them have ended.

use super::supervised::{MS, Supervised};
use super::witness::Witness;
use crate::broker::router::calls::ECHO;
use crate::broker::router::connection::CloseReason;
use crate::broker::router::in_process::ClientEnds;
use crate::broker::router::journal::Work;
use crate::broker::router::state::RouterState;
use crate::broker::supervision::fault;
use crate::config::Config;
use crate::logic::shares::Principal;
use crate::wire::control::{BrokerFrame, ClientFrame};
use std::time::{Duration, Instant};

/// How long the threads that give memory back may take.
const RECLAIM_TIME_MAX: Duration = Duration::from_secs(20);

/// A router, its clients, and a witness.
pub(in crate::broker) struct Machine {
    pub(super) router: Supervised,
    pub(super) config: Config,
    /// The connections of the hostile clients. A client that was closed may go on writing.
    pub(super) clients: Vec<ClientEnds>,
    pub(super) witness: Option<Witness>,
}

impl Machine {
    /// With small limits, so that a short program reaches them. `None`: the system has no descriptors.
    pub(in crate::broker) fn new(change: impl FnOnce(&mut Config)) -> Option<Machine> {
        let mut config = Config::default();
        (config.shared_memory.num_slots, config.shared_memory.max_window_slots) = (64, 32);
        (config.limits.max_topics, config.limits.max_routes) = (12, 24);
        (config.limits.max_services, config.limits.max_requests_per_connection) = (5, 16);
        (config.limits.max_subscriptions_per_connection, config.limits.max_backlog_bytes) = (6, 65_536);
        config.limits.max_user_backlog_bytes = 131_072;
        config.limits.max_rings_without_progress = 1_000_000;
        config.delivery.stream_credit_bytes = 4096;
        change(&mut config);
        let mut router = Supervised::new(&config)?;
        let witness = Some(Witness::attach(&mut router)?);
        Some(Machine { router, config, clients: Vec::new(), witness })
    }

    /// Adds a hostile client. `None`: the system has no descriptors.
    pub(in crate::broker) fn attach(&mut self, uid: u32) -> Option<usize> {
        self.clients.push(ClientEnds::attach_as(&mut self.router.state, Principal::of_uid(uid)).ok()?);
        Some(self.clients.len() - 1)
    }

    /// What a session does with a control request of a client.
    pub(in crate::broker) fn ask(&mut self, client: usize, frame: ClientFrame) -> Option<BrokerFrame> {
        let (key, id) = (self.clients[client].key, self.clients[client].id);
        self.router.ask(key, id, frame)
    }

    /// The id of a client's connection.
    pub(in crate::broker) fn id(&self, client: usize) -> u32 {
        self.clients[client].id
    }

    /// What a session tells the router at its end: of itself, or because its client broke the protocol.
    pub(in crate::broker) fn end(&mut self, client: usize, close: Option<CloseReason>) {
        let (key, id) = (self.clients[client].key, self.clients[client].id);
        self.router.survive(|state| match close.clone() {
            Some(close) => state.close(key, id, close),
            None => state.client_ended(key, id),
        });
    }

    /// Routes until no work is left and the witness has read everything.
    pub(in crate::broker) fn work(&mut self) {
        loop {
            self.router.work();
            let Some(mut witness) = self.witness.take() else { return };
            let has_read = witness.read();
            self.witness = Some(witness);
            if !has_read {
                return;
            }
        }
    }

    /// Lets time pass. The witness reads before: it is no slow consumer.
    pub(in crate::broker) fn pass(&mut self, ns: u64) {
        self.work();
        self.router.advance(ns);
        self.work();
    }

    /// Ends all clients, and checks that the witness has got everything and that nothing of them is left.
    pub(in crate::broker) fn finish(mut self) {
        fault::armed::disarm();
        self.router.state.ports.open_lanes();
        (0..self.clients.len()).for_each(|client| self.end(client, None));
        self.work();
        if let Some(witness) = self.witness.take() {
            witness.finish(&mut self.router);
        }
        self.work();
        self.check_books();
    }

    fn check_books(&mut self) {
        // As `BreakerActor` does: services whose breakers came to rest by an order go now.
        let rules = self.router.state.ports.settings.breakers.clone();
        self.router.state.calls.gates(rules);
        let RouterState { ports, pubsub, calls, free_keys, due, .. } = &self.router.state;
        assert!(ports.ingresses.iter().all(Option::is_none), "connections are left");
        assert!(ports.egresses.table.iter().all(Option::is_none), "egresses are left");
        let mut keys = free_keys.clone();
        keys.sort_unstable();
        assert!(keys.into_iter().eq(0..ports.ingresses.len() as u32), "each key is free once: {free_keys:?}");
        assert!(ports.schedule.is_idle() && ports.schedule.quiet().is_empty(), "the schedule has connections");
        assert!(ports.journal.source.is_none() && ports.journal.timer.is_none() && ports.journal.pump.is_none());
        assert!(matches!(ports.journal.work, Work::Undecided), "{:?}", ports.journal.work);
        assert_eq!(calls.outstanding(), 0, "calls are left");
        assert_eq!(calls.services().users.calls().count(), 0, "calls of users are left");
        assert_eq!((pubsub.topics().len(), pubsub.topics().subscriptions.len()), (0, 0), "topics, subscriptions");
        assert_eq!(
            (pubsub.topics().routes().held(), pubsub.topics().shares().held()),
            (0, 0),
            "routes, shares of topics"
        );
        assert_eq!(pubsub.topics().places().held(), 0, "shares of subscriptions");
        // A service outlives its users until its breaker is at rest.
        let left = calls.services().iter().filter(|service| service.name.as_str() != ECHO);
        for service in left.clone() {
            assert!(service.is_unused() && !service.gate.is_at_rest(), "{} is left", service.name);
        }
        assert_eq!(calls.services().shares().held(), left.count(), "shares of services");
        assert!(due.is_empty() && ports.egresses.dirty.is_empty() && ports.egresses.pending_close.is_empty());
        let until = Instant::now() + RECLAIM_TIME_MAX;
        while self.router.state.ports.egresses.memory.used() > 0 {
            assert!(Instant::now() < until, "{} cells are leased", self.router.state.ports.egresses.memory.used());
            std::thread::yield_now();
        }
        assert_eq!(self.router.state.ports.egresses.user_memory().len(), 0, "users hold memory");
        assert!(self.router.state.is_quiescent());
        // Deadlines, waits and looks at idle connections of those that were here: none may be surprised.
        self.pass(3_600_000 * MS);
        assert_eq!(self.router.state.ports.wheel.len(), 1, "timers besides the audit are left");
    }
}

//! Upstreams (`[[upstream]]`): their configuration, whether they are connected, and the services that they may offer.
//! `dialler` has their actor.

use crate::broker::supervision::supervisor::{self, NodeId, Tree};
use crate::config;
use crate::logic::supervision::restart::{Limits, NEVER};
use crate::sync::{AtomicU64, Ordering};
use crate::wire::control::{ActorState, ActorStatus, BrokerFrame, ClientFrame, FailedCode, UpstreamStatus};
use crate::wire::name::Name;
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Their supervisor in the tree: not the root, whose actors are vital.
const SUPERVISOR: &str = "upstreams";

/// One configured upstream.
#[derive(Debug)]
pub(in crate::broker) struct Upstream {
    pub(super) name: Name,
    pub(super) path: PathBuf,
    pub(super) services: Vec<Name>,
    pub(super) limits: Limits,
    pub(super) node: NodeId,
    /// Counts what ends the delay before the next dial.
    pub(super) retry_now: watch::Sender<u64>,
    /// Counts the commands to dial.
    pub(super) asked: watch::Sender<u64>,
    /// The number of its connection; 0: none.
    connection: AtomicU64,
}

impl Upstream {
    /// All that are configured, each with its node in the tree.
    pub(in crate::broker) fn all(config: &config::Config, tree: &Tree) -> Vec<Arc<Upstream>> {
        let upstream = |upstream: &config::Upstream| {
            let mut limits = supervisor::limits(&config.restart_for(&upstream.name));
            if limits.max_restarts == 0 {
                limits.max_restarts = NEVER;
            }
            // The configuration lets only names through.
            Some(Arc::new(Upstream {
                name: Name::parse(&upstream.name).ok()?,
                path: upstream.socket_path.clone(),
                services: upstream.services.iter().filter_map(|name| Name::parse(name).ok()).collect(),
                limits,
                node: tree.add(
                    &actor_name(&upstream.name),
                    SUPERVISOR,
                    (limits.max_restarts != NEVER).then_some(limits),
                ),
                retry_now: watch::Sender::default(),
                asked: watch::Sender::default(),
                connection: AtomicU64::new(0),
            }))
        };
        config.upstream.iter().filter_map(upstream).collect()
    }

    /// Ends the delay before the next dial.
    pub(super) fn end_backoff(&self) {
        self.retry_now.send_modify(|count| *count += 1);
    }

    /// The number of its connection, while it is connected.
    fn connection(&self) -> Option<u32> {
        u32::try_from(self.connection.load(Ordering::Relaxed)).ok().filter(|id| *id != 0)
    }

    fn status(&self, actors: &[ActorStatus]) -> UpstreamStatus {
        let name = actor_name(self.name.as_str());
        let actor = actors.iter().find(|actor| actor.name == name);
        UpstreamStatus {
            name: self.name.clone(),
            socket: self.path.display().to_string(),
            services: self.services.clone(),
            connection: self.connection(),
            state: actor.map_or(ActorState::Stopped, |actor| actor.state),
            restarts: actor.map_or(0, |actor| actor.restarts),
            last_reason: actor.and_then(|actor| actor.last_reason.clone()),
        }
    }
}

/// The name of an upstream's actor in the tree.
fn actor_name(upstream: &str) -> String {
    format!("upstream {upstream}")
}

/// The reply to [`ClientFrame::Upstreams`].
pub(super) fn list(upstreams: &[Arc<Upstream>], tree: &Tree, serial: u32) -> BrokerFrame {
    BrokerFrame::Upstreams { serial, upstreams: statuses(upstreams, tree) }
}

/// The state of all.
pub(in crate::broker) fn statuses(upstreams: &[Arc<Upstream>], tree: &Tree) -> Vec<UpstreamStatus> {
    let actors = tree.report();
    upstreams.iter().map(|upstream| upstream.status(&actors)).collect()
}

/// Handles [`ClientFrame::DialUpstream`]: ends the backoff, and restarts an upstream that was given up.
pub(super) fn dial(
    (upstreams, tree): (&[Arc<Upstream>], &Tree),
    connection: u32,
    serial: u32,
    name: &Name,
) -> BrokerFrame {
    let Some(upstream) = upstreams.iter().find(|upstream| upstream.name == *name) else {
        let message = format!("unknown upstream: {name}");
        return BrokerFrame::Failed { serial, code: FailedCode::Unknown, message };
    };
    if upstream.connection().is_none() {
        log::info!("upstream dialled on request upstream={name} connection={connection}");
        upstream.asked.send_modify(|count| *count += 1);
        upstream.end_backoff();
    }
    BrokerFrame::Upstreams { serial, upstreams: vec![upstream.status(&tree.report())] }
}

/// The state of a dialled session: the services that the peer is still to offer.
pub(super) struct Dialled {
    upstream: Arc<Upstream>,
    /// Services not yet offered.
    missing: RefCell<Vec<Name>>,
    within: Duration,
}

impl Drop for Dialled {
    /// Also after a panic.
    fn drop(&mut self) {
        self.upstream.connection.store(0, Ordering::Relaxed);
    }
}

impl Dialled {
    /// Of a process that was just dialled; its services are to be offered `within` this time.
    pub(super) fn new(upstream: Arc<Upstream>, within: Duration) -> Dialled {
        Dialled { missing: RefCell::new(upstream.services.clone()), upstream, within }
    }

    /// The handshake is complete.
    pub(super) fn connected(&self, id: u32) {
        self.upstream.connection.store(id.into(), Ordering::Relaxed);
        log::info!("upstream connected upstream={} connection={id}", self.upstream.name);
    }

    /// The error reply to a frame that this peer must not send.
    pub(super) fn refusal(&self, frame: &ClientFrame) -> Option<BrokerFrame> {
        let ClientFrame::Serve { serial, service, .. } = frame else { return None };
        if self.upstream.services.contains(service) {
            return None;
        }
        let name = &self.upstream.name;
        log::warn!("upstream service refused upstream={name} service={service} reason=not_configured");
        let message = format!("upstream {name} is not configured to offer {service}");
        Some(BrokerFrame::Failed { serial: *serial, code: FailedCode::NotAllowed, message })
    }

    /// A reply was sent.
    pub(super) fn answered(&self, offered: Option<&Name>, answer: &BrokerFrame) {
        if let (Some(offered), BrokerFrame::Serving { .. }) = (offered, answer) {
            self.missing.borrow_mut().retain(|missing| missing != offered);
        }
    }

    /// Logs missing services when the time for them is over; never returns.
    pub(super) async fn look_for_missing(&self, id: u32) -> std::convert::Infallible {
        tokio::time::sleep(self.within).await;
        let missing = self.missing.borrow().iter().map(Name::to_string).collect::<Vec<_>>().join(",");
        if !missing.is_empty() {
            let (name, ms) = (&self.upstream.name, self.within.as_millis());
            log::warn!(
                "upstream lacks configured services upstream={name} connection={id} missing={missing} waited_ms={ms}"
            );
        }
        std::future::pending().await
    }
}

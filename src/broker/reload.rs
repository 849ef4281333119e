//! Reloading the configuration: by SIGHUP, and by a client's request.
//!
//! The file is read as at the start, with the same overrides. An invalid file changes nothing. Live keys
//! (`config::reload` classifies them) are applied by the router first, in one message, then by `BreakerActor`, then by
//! all others, which read the current configuration when they need it.

use super::context::Broker;
use super::health::Access;
use super::router::{Adopt, Settings, quotas};
use super::telemetry::log_limit;
use crate::config;
use crate::wire::control::{BrokerFrame, FailedCode, ReloadReport};
use std::sync::Arc;

/// Reloads the configuration and logs the result.
///
/// # Errors
///
/// All problems of the configuration; the previous one stays in force.
pub(super) async fn reload(broker: &Broker, by: &str) -> Result<ReloadReport, String> {
    (broker.source.tell)(true);
    let result = try_reload(broker).await;
    (broker.source.tell)(false);
    match &result {
        Ok(ReloadReport { changed, needs_restart }) => {
            let changed = if changed.is_empty() { "none".to_owned() } else { changed.join(",") };
            log::info!("configuration reloaded by={by} changed={changed}");
            for key in needs_restart {
                log::warn!("configuration key needs a restart key={key}");
            }
        }
        Err(error) => {
            for line in error.lines() {
                log::error!("configuration reload failed by={by} reason={line:?}");
            }
        }
    }
    result
}

async fn try_reload(broker: &Broker) -> Result<ReloadReport, String> {
    let _turn = broker.source.turn.lock().await;
    let mut loaded = (broker.source.load)().map_err(|error| error.to_string())?;
    // Validated before any change.
    loaded.health_token().map_err(|error| error.to_string())?;
    let old = broker.config();
    if broker.source.has_inherited_socket {
        loaded.config.ipc.socket_path.clone_from(&old.ipc.socket_path);
    }
    let (changes, adopted) = config::adopt(&old, &loaded.config);
    let mut settings = Settings::new(&adopted).map_err(|error| error.to_string())?;
    settings.quotas = quotas(&broker.quotas(), &adopted);
    let (rules, quotas) = (settings.breakers.clone(), settings.quotas.clone());
    broker
        .router
        .send(Adopt(settings))
        .await
        .map_err(|error| format!("the router did not apply the configuration: {error}"))?;
    // The current path of the socket, not the one that needs a restart.
    loaded.config.ipc.socket_path.clone_from(&adopted.ipc.socket_path);
    let token = broker.location.token(&loaded).map_err(|error| error.to_string())?;
    broker.breaker.adopt(rules).await;
    broker.access.send_replace(Arc::new(Access::new(&adopted.health_server, token)));
    // The router knows their names by now.
    log_limit::set_quotas(quotas.clone());
    broker.quotas.send_replace(quotas);
    log_limit::set_limit(adopted.logging.max_lines_per_second);
    (broker.source.adopted)(&adopted);
    broker.config.send_replace(Arc::new(adopted));
    Ok(ReloadReport { changed: changes.live, needs_restart: changes.restart })
}

/// Handles a client's reload request.
pub(super) async fn handle_request(broker: &Broker, connection: u32, serial: u32) -> BrokerFrame {
    match reload(broker, &format!("connection {connection}")).await {
        Ok(report) => BrokerFrame::Reloaded { serial, report },
        Err(message) => BrokerFrame::Failed { serial, code: FailedCode::Configuration, message },
    }
}

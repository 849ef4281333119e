//! Operating the broker: its status, breakers, upstreams and configuration.

use super::client::Client;
use crate::client::connection::control_request::unexpected_reply;
use crate::client::connection::pages::{Paged, Reading};
use crate::client::engine::names::ask;
use crate::client::error::Result;
use crate::wire::control::UpstreamStatus;
use crate::wire::control::{BreakerOrder, BreakerStatus, BrokerFrame, ClientFrame, ReloadReport, StatusReport};
use crate::wire::name::Name;
use std::time::Duration;

impl Client {
    /// The status of the broker and its connections.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub fn status(&self) -> Result<StatusReport> {
        self.read_pages()
    }

    /// The breakers of all services that have or had a responder.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub fn breakers(&self) -> Result<Vec<BreakerStatus>> {
        self.read_pages()
    }

    fn read_pages<T: Paged>(&self) -> Result<T> {
        let mut reading = Reading::new();
        loop {
            if let Some(whole) = reading.take(ask(&self.connection, reading.request())?)? {
                return Ok(whole);
            }
        }
    }

    /// Sets the breaker of a service manually, for a time or until the next order. Returns its new state.
    ///
    /// # Errors
    ///
    /// [`Error::is_unknown`](crate::client::Error::is_unknown) if the service has no responder and never
    /// had one; if a time is given with [`BreakerOrder::Auto`]; if the connection has ended.
    ///
    /// ```no_run
    /// # use lapce_ipc::client::{BreakerOrder, Client};
    /// # use std::time::Duration;
    /// # let client = Client::connect()?;
    /// client.set_breaker("chat", BreakerOrder::Open, Some(Duration::from_secs(300)))?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn set_breaker(&self, service: &str, order: BreakerOrder, time: Option<Duration>) -> Result<BreakerStatus> {
        one_breaker(ask(&self.connection, set_breaker(service, order, time)?)?)
    }
}

/// The control request that sets a breaker.
pub(crate) fn set_breaker(
    service: &str,
    order: BreakerOrder,
    time: Option<Duration>,
) -> Result<impl FnOnce(u32) -> ClientFrame> {
    let service = Name::parse(service)?;
    // At least a millisecond, for 0 is without end.
    let for_ms = time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1));
    Ok(move |serial| ClientFrame::SetBreaker { serial, service, order, for_ms })
}

pub(crate) fn one_breaker(answer: BrokerFrame) -> Result<BreakerStatus> {
    match answer {
        BrokerFrame::Breakers { mut breakers, .. } if breakers.len() == 1 => Ok(breakers.remove(0)),
        other => Err(unexpected_reply(&other)),
    }
}

impl Client {
    /// The state of every process that the broker dials.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub fn upstreams(&self) -> Result<Vec<UpstreamStatus>> {
        upstreams(ask(&self.connection, |serial| ClientFrame::Upstreams { serial })?)
    }

    /// Dials an upstream at once instead of after its backoff, also one that was given up. Returns before the attempt
    /// ends; it has no effect if the upstream is connected.
    ///
    /// # Errors
    ///
    /// [`Error::is_unknown`](crate::client::Error::is_unknown) if the broker has no upstream of this name; if the
    /// connection has ended.
    pub fn dial_upstream(&self, name: &str) -> Result<UpstreamStatus> {
        one_upstream(ask(&self.connection, dial_upstream(name)?)?)
    }

    /// Reloads the broker's configuration: changes that need no restart take effect.
    ///
    /// # Errors
    ///
    /// If the configuration is invalid (the previous one stays in force); if this user is not permitted to
    /// ([`Error::is_not_allowed`](crate::client::Error::is_not_allowed)); if the connection has ended.
    pub fn reload(&self) -> Result<ReloadReport> {
        reloaded(ask(&self.connection, |serial| ClientFrame::Reload { serial })?)
    }
}

pub(crate) fn upstreams(answer: BrokerFrame) -> Result<Vec<UpstreamStatus>> {
    match answer {
        BrokerFrame::Upstreams { upstreams, .. } => Ok(upstreams),
        other => Err(unexpected_reply(&other)),
    }
}

/// The control request that dials an upstream.
pub(crate) fn dial_upstream(name: &str) -> Result<impl FnOnce(u32) -> ClientFrame> {
    let name = Name::parse(name)?;
    Ok(move |serial| ClientFrame::DialUpstream { serial, name })
}

pub(crate) fn one_upstream(answer: BrokerFrame) -> Result<UpstreamStatus> {
    match answer {
        BrokerFrame::Upstreams { mut upstreams, .. } if upstreams.len() == 1 => Ok(upstreams.remove(0)),
        other => Err(unexpected_reply(&other)),
    }
}

pub(crate) fn reloaded(answer: BrokerFrame) -> Result<ReloadReport> {
    match answer {
        BrokerFrame::Reloaded { report, .. } => Ok(report),
        other => Err(unexpected_reply(&other)),
    }
}

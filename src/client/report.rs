//! What the broker says of itself, and what it is told by hand.

use super::error::Result;
use super::inner::unexpected;
use super::{BreakerOrder, BreakerStatus, Client, Name, StatusReport};
use crate::wire::control::{BrokerFrame, ClientFrame};
use std::time::Duration;

impl Client {
    /// What the broker says of itself and its connections.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub fn status(&self) -> Result<StatusReport> {
        status(self.inner.ask(|serial| ClientFrame::Status { serial })?)
    }

    /// How the breakers of all services stand that have or had a responder.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub fn breakers(&self) -> Result<Vec<BreakerStatus>> {
        breakers(self.inner.ask(|serial| ClientFrame::Breakers { serial })?)
    }

    /// Sets the breaker of a service by hand, for a time or until it is set again. Answers how it stands now.
    ///
    /// # Errors
    ///
    /// [`Error::is_unknown`](super::Error::is_unknown) if nobody serves the service, nor has; if a time is given with
    /// [`BreakerOrder::Auto`]; if the connection has ended.
    ///
    /// ```no_run
    /// # use lapce_ipc::client::{BreakerOrder, Client};
    /// # use std::time::Duration;
    /// # let client = Client::connect()?;
    /// client.set_breaker("chat", BreakerOrder::Open, Some(Duration::from_secs(300)))?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn set_breaker(&self, service: &str, order: BreakerOrder, time: Option<Duration>) -> Result<BreakerStatus> {
        one_breaker(self.inner.ask(set_breaker(service, order, time)?)?)
    }
}

pub(super) fn status(answer: BrokerFrame) -> Result<StatusReport> {
    match answer {
        BrokerFrame::Status { report, .. } => Ok(report),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn breakers(answer: BrokerFrame) -> Result<Vec<BreakerStatus>> {
    match answer {
        BrokerFrame::Breakers { breakers, .. } => Ok(breakers),
        other => Err(unexpected(&other)),
    }
}

/// The question that sets a breaker.
pub(super) fn set_breaker(
    service: &str,
    order: BreakerOrder,
    time: Option<Duration>,
) -> Result<impl FnOnce(u32) -> ClientFrame> {
    let service = Name::parse(service)?;
    // At least a millisecond, for 0 is without end.
    let for_ms = time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1));
    Ok(move |serial| ClientFrame::SetBreaker { serial, service, order, for_ms })
}

pub(super) fn one_breaker(answer: BrokerFrame) -> Result<BreakerStatus> {
    match answer {
        BrokerFrame::Breakers { mut breakers, .. } if breakers.len() == 1 => Ok(breakers.remove(0)),
        other => Err(unexpected(&other)),
    }
}

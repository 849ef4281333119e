//! Operating the broker: the processes that it dials, its configuration.

use super::error::Result;
use super::inner::unexpected;
use super::{Client, Name, ReloadReport, UpstreamStatus};
use crate::wire::control::{BrokerFrame, ClientFrame};

impl Client {
    /// The state of every process that the broker dials.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub fn upstreams(&self) -> Result<Vec<UpstreamStatus>> {
        upstreams(self.inner.ask(|serial| ClientFrame::Upstreams { serial })?)
    }

    /// Dials an upstream at once instead of after its delay, also one that was given up. Returns before the attempt
    /// has ended; nothing happens if it is connected.
    ///
    /// # Errors
    ///
    /// [`Error::is_unknown`](super::Error::is_unknown) if the broker has no upstream of this name; if the connection
    /// has ended.
    pub fn dial_upstream(&self, name: &str) -> Result<UpstreamStatus> {
        one_upstream(self.inner.ask(dial_upstream(name)?)?)
    }

    /// Has the broker read its configuration again, and take up what needs no restart.
    ///
    /// # Errors
    ///
    /// If the configuration is wrong, and then the one before is in force; if our user may not order this
    /// ([`Error::is_not_allowed`](super::Error::is_not_allowed)); if the connection has ended.
    pub fn reload(&self) -> Result<ReloadReport> {
        reloaded(self.inner.ask(|serial| ClientFrame::Reload { serial })?)
    }
}

pub(super) fn upstreams(answer: BrokerFrame) -> Result<Vec<UpstreamStatus>> {
    match answer {
        BrokerFrame::Upstreams { upstreams, .. } => Ok(upstreams),
        other => Err(unexpected(&other)),
    }
}

/// The question that dials an upstream.
pub(super) fn dial_upstream(name: &str) -> Result<impl FnOnce(u32) -> ClientFrame> {
    let name = Name::parse(name)?;
    Ok(move |serial| ClientFrame::DialUpstream { serial, name })
}

pub(super) fn one_upstream(answer: BrokerFrame) -> Result<UpstreamStatus> {
    match answer {
        BrokerFrame::Upstreams { mut upstreams, .. } if upstreams.len() == 1 => Ok(upstreams.remove(0)),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn reloaded(answer: BrokerFrame) -> Result<ReloadReport> {
    match answer {
        BrokerFrame::Reloaded { report, .. } => Ok(report),
        other => Err(unexpected(&other)),
    }
}

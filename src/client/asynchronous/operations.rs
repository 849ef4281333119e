//! Operating the broker, for async programs.

use super::client::AsyncClient;
use super::wait::until;
use crate::client::api::operations;
use crate::client::connection::pages::{Paged, Reading};
use crate::client::error::Result;
use crate::wire::control::{BreakerOrder, BreakerStatus, ClientFrame, ReloadReport, StatusReport, UpstreamStatus};
use std::convert::Infallible;
use std::time::Duration;

impl AsyncClient {
    /// As [`Client::status`](crate::client::Client::status).
    ///
    /// # Errors
    ///
    /// As [`Client::status`](crate::client::Client::status).
    pub async fn status(&self) -> Result<StatusReport> {
        self.read_pages().await
    }

    /// As [`Client::breakers`](crate::client::Client::breakers).
    ///
    /// # Errors
    ///
    /// As [`Client::breakers`](crate::client::Client::breakers).
    pub async fn breakers(&self) -> Result<Vec<BreakerStatus>> {
        self.read_pages().await
    }

    async fn read_pages<T: Paged>(&self) -> Result<T> {
        let mut reading = Reading::new();
        loop {
            if let Some(whole) = reading.take(self.ask(None, reading.request()).await?)? {
                return Ok(whole);
            }
        }
    }

    /// As [`Client::set_breaker`](crate::client::Client::set_breaker).
    ///
    /// # Errors
    ///
    /// As [`Client::set_breaker`](crate::client::Client::set_breaker).
    pub async fn set_breaker(
        &self,
        service: &str,
        order: BreakerOrder,
        time: Option<Duration>,
    ) -> Result<BreakerStatus> {
        operations::one_breaker(self.ask(None, operations::set_breaker(service, order, time)?).await?)
    }

    /// As [`Client::upstreams`](crate::client::Client::upstreams).
    ///
    /// # Errors
    ///
    /// As [`Client::upstreams`](crate::client::Client::upstreams).
    pub async fn upstreams(&self) -> Result<Vec<UpstreamStatus>> {
        operations::upstreams(self.ask(None, |serial| ClientFrame::Upstreams { serial }).await?)
    }

    /// As [`Client::dial_upstream`](crate::client::Client::dial_upstream).
    ///
    /// # Errors
    ///
    /// As [`Client::dial_upstream`](crate::client::Client::dial_upstream).
    pub async fn dial_upstream(&self, name: &str) -> Result<UpstreamStatus> {
        operations::one_upstream(self.ask(None, operations::dial_upstream(name)?).await?)
    }

    /// As [`Client::reload`](crate::client::Client::reload).
    ///
    /// # Errors
    ///
    /// As [`Client::reload`](crate::client::Client::reload).
    pub async fn reload(&self) -> Result<ReloadReport> {
        operations::reloaded(self.ask(None, |serial| ClientFrame::Reload { serial }).await?)
    }

    /// As [`Client::closed`](crate::client::Client::closed): waits until the broker ends the connection.
    ///
    /// # Errors
    ///
    /// Always: the reason why the connection ended.
    pub async fn closed(&self) -> Result<Infallible> {
        until(&self.connection, || None).await
    }

    /// As [`Client::close`](crate::client::Client::close).
    pub fn close(&self) {
        self.connection.close_by_user();
    }
}

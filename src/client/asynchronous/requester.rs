//! A handle for many requests to one service, for async programs.

use super::client::AsyncClient;
use crate::client::connection::interning::Interned;
use crate::client::data::call_options::RequestOptions;
use crate::client::data::names::Callee;
use crate::client::error::Result;
#[cfg(doc)]
use crate::client::{Client, Requester};
use crate::wire::control::InternKind;
use std::sync::Arc;

impl AsyncClient {
    /// As [`Client::requester`].
    ///
    /// # Errors
    ///
    /// As [`Client::requester`].
    pub async fn requester(&self, service: &str) -> Result<AsyncRequester> {
        let interned = self.interned(InternKind::Service, service, true).await?;
        Ok(AsyncRequester { service: interned.into(), name: service.into(), client: self.clone() })
    }
}

/// Calls one service, whose name is looked up once, as [`Requester`] does. Tasks that share it call side by side.
#[derive(Clone, Debug)]
pub struct AsyncRequester {
    service: Arc<Interned>,
    name: Arc<str>,
    client: AsyncClient,
}

impl AsyncRequester {
    /// As [`Requester::call`]. A future that is dropped cancels the call.
    ///
    /// # Errors
    ///
    /// As [`Requester::call`].
    ///
    /// ```no_run
    /// # use lapce_ipc::client::asynchronous::AsyncClient;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), lapce_ipc::client::Error> {
    /// let echo = AsyncClient::connect().await?.requester("echo").await?;
    /// assert_eq!(echo.call("hi").await?, b"hi");
    /// # Ok(()) }
    /// ```
    pub async fn call(&self, payload: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        self.call_with(payload, RequestOptions::default()).await
    }

    /// As [`call`](AsyncRequester::call), with options.
    ///
    /// # Errors
    ///
    /// As [`Requester::call`].
    pub async fn call_with(&self, payload: impl AsRef<[u8]>, options: RequestOptions) -> Result<Vec<u8>> {
        let callee = Callee { name: &self.name, held: Some(self.service.name) };
        self.client.call(callee, payload.as_ref(), options).await
    }
}

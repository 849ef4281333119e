//! Control requests: each waits for its reply, and is withdrawn or ended when its handle is dropped.
//!
//! A request that was never sent is withdrawn. One that was is carried out, so what it makes must be ended: what waits
//! for a `Subscribed` or `Serving` is marked as dropped, and the reply, when it comes, is followed by the end (see
//! `frames`). Either way nothing stays behind here.

use super::shared::Connection;
use super::table::Table;
use crate::client::data::lock::lock;
use crate::client::error::{Error, Kind, Result};
use crate::wire::control::{BrokerFrame, ClientFrame};

/// A control request that waits for its reply. Dropped, it is withdrawn if it was not sent.
#[derive(Debug)]
pub(crate) struct ControlRequest<'a> {
    connection: &'a Connection,
    serial: u32,
}

impl ControlRequest<'_> {
    /// The reply, if it has come.
    pub(crate) fn reply(&self) -> Option<BrokerFrame> {
        lock(&self.connection.table).replies.get_mut(&self.serial)?.take()
    }
}

impl Drop for ControlRequest<'_> {
    fn drop(&mut self) {
        if !self.connection.is_ours() {
            return;
        }
        let mut table = lock(&self.connection.table);
        let reply = table.replies.remove(&self.serial);
        if reply == Some(None) && lock(&self.connection.control).withdraw(self.serial) {
            table.subscribing.remove(&self.serial);
            table.serving.remove(&self.serial);
        }
    }
}

/// Sends a control request. `request` is called with no lock held.
pub(crate) fn start(connection: &Connection, request: impl FnOnce(u32) -> ClientFrame) -> Result<ControlRequest<'_>> {
    connection.check_fork()?;
    let serial = connection.next_number() as u32;
    {
        let mut table = lock(&connection.table);
        if let Some(closed) = &table.closed {
            return Err(closed.clone());
        }
        table.replies.insert(serial, None);
    }
    let control_request = ControlRequest { connection, serial };
    let request = request(serial);
    lock(&connection.control).send(serial, request);
    Ok(control_request)
}

/// Sends a control request whose reply does not matter. `request` sees the table as it is when the request is sent;
/// `None`: there is nothing to request.
pub(crate) fn post(connection: &Connection, request: impl FnOnce(&mut Table, u32) -> Option<ClientFrame>) {
    if !connection.is_ours() {
        return;
    }
    let serial = connection.next_number() as u32;
    let mut table = lock(&connection.table);
    let request = request(&mut table, serial);
    if let Some(request) = request.filter(|_| table.closed.is_none()) {
        lock(&connection.control).send(serial, request);
    }
}

/// The error for a reply of another kind than the request expects.
pub(crate) fn unexpected_reply(frame: &BrokerFrame) -> Error {
    match frame {
        BrokerFrame::Failed { code, message, .. } => Kind::Failed { code: *code, message: message.clone() }.into(),
        other => Kind::Protocol(format!("unexpected reply {other:?}")).into(),
    }
}

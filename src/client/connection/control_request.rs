//! A question under way, and what becomes of it when nobody waits for its answer any more.
//!
//! A question that was never sent is withdrawn. One that was is carried out, so what it makes must be ended: what waits
//! for a `Subscribed` or `Serving` is marked as dropped, and the answer, when it comes, is followed by the end (see
//! `frames`). Either way nothing stays behind here.

use super::shared::Connection;
use super::table::Table;
use crate::client::data::lock::lock;
use crate::client::error::{Error, Kind, Result};
use crate::wire::control::{BrokerFrame, ClientFrame};

/// A question that waits for its answer, for as long as somebody holds this.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    connection: &'a Connection,
    serial: u32,
}

impl Asked<'_> {
    /// The answer, if it is there.
    pub(crate) fn answer(&self) -> Option<BrokerFrame> {
        lock(&self.connection.table).answers.get_mut(&self.serial)?.take()
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.connection.is_ours() {
            return;
        }
        let mut table = lock(&self.connection.table);
        let answer = table.answers.remove(&self.serial);
        if answer == Some(None) && lock(&self.connection.outgoing).withdraw(self.serial) {
            table.subscribing.remove(&self.serial);
            table.serving.remove(&self.serial);
        }
    }
}

/// Sends a control request. `question` is called with no lock held.
pub(crate) fn start(connection: &Connection, question: impl FnOnce(u32) -> ClientFrame) -> Result<Asked<'_>> {
    connection.check_fork()?;
    let serial = connection.next_number() as u32;
    {
        let mut table = lock(&connection.table);
        if let Some(closed) = &table.closed {
            return Err(closed.clone());
        }
        table.answers.insert(serial, None);
    }
    let asked = Asked { connection, serial };
    let question = question(serial);
    lock(&connection.outgoing).ask(serial, question);
    Ok(asked)
}

/// Sends a control request whose reply does not matter. `question` sees the table as it is when the request is sent;
/// `None`: there is nothing to request.
pub(crate) fn post(connection: &Connection, question: impl FnOnce(&mut Table, u32) -> Option<ClientFrame>) {
    if !connection.is_ours() {
        return;
    }
    let serial = connection.next_number() as u32;
    let mut table = lock(&connection.table);
    let question = question(&mut table, serial);
    if let Some(question) = question.filter(|_| table.closed.is_none()) {
        lock(&connection.outgoing).ask(serial, question);
    }
}

/// The error for a reply of another kind than the request expects.
pub(crate) fn unexpected(frame: &BrokerFrame) -> Error {
    match frame {
        BrokerFrame::Failed { code, message, .. } => Kind::Failed { code: *code, message: message.clone() }.into(),
        other => Kind::Protocol(format!("unexpected answer {other:?}")).into(),
    }
}

//! A question under way, and what becomes of it when nobody waits for its answer any more.
//!
//! A question that was never sent is withdrawn. One that was is carried out, so what it makes must be ended: what waits
//! for a `Subscribed` or `Serving` is marked as dropped, and the answer, when it comes, is followed by the end (see
//! `frames`). Either way nothing stays behind here.

use super::error::Result;
use super::inner::{Inner, lock};
use crate::wire::control::{BrokerFrame, ClientFrame};

/// A question that waits for its answer, for as long as somebody holds this.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    inner: &'a Inner,
    serial: u32,
}

impl Asked<'_> {
    /// The answer, if it is there.
    pub(super) fn answer(&self) -> Option<BrokerFrame> {
        lock(&self.inner.table).answers.get_mut(&self.serial)?.take()
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.inner.is_ours() {
            return;
        }
        let mut table = lock(&self.inner.table);
        let answer = table.answers.remove(&self.serial);
        if answer == Some(None) && lock(&self.inner.outgoing).withdraw(self.serial) {
            table.subscribing.remove(&self.serial);
            table.serving.remove(&self.serial);
        }
    }
}

impl Inner {
    /// Asks a question over the control socket. `question` is called with no lock held.
    pub(super) fn start_ask(&self, question: impl FnOnce(u32) -> ClientFrame) -> Result<Asked<'_>> {
        self.check_fork()?;
        let serial = self.next_number() as u32;
        {
            let mut table = lock(&self.table);
            if let Some(closed) = &table.closed {
                return Err(closed.clone());
            }
            table.answers.insert(serial, None);
        }
        let asked = Asked { inner: self, serial };
        let question = question(serial);
        lock(&self.outgoing).ask(serial, question);
        Ok(asked)
    }
}

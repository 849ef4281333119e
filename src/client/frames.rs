//! What comes over the control socket.

use super::error::Kind;
use super::inner::{Inner, lock};
use super::session;
use crate::sync::Ordering;
use crate::wire::control::{BrokerFrame, ClientFrame, InternKind};

/// Gives a frame to whom it is for.
pub(super) fn handle_frame(inner: &Inner, frame: BrokerFrame) {
    let mut table = lock(&inner.table);
    let table = &mut *table;
    let serial = match &frame {
        BrokerFrame::Subscribed { serial, subscription } => {
            if let Some(queue) = table.subscribing.remove(serial) {
                for (_, message) in table.orphans.extract_if(.., |(id, _)| id == subscription) {
                    queue.push(message, inner.limits.slot_size);
                }
                queue.id.store(u64::from(*subscription), Ordering::Relaxed);
                table.subscriptions.insert(*subscription, queue);
            }
            *serial
        }
        BrokerFrame::Serving { serial, service } => {
            if let Some(inbox) = table.serving.remove(serial) {
                for (_, arrived) in table.orphan_calls.extract_if(.., |(id, _)| id == service) {
                    inbox.push(arrived);
                }
                inbox.number.store(u64::from(*service), Ordering::Relaxed);
                table.inboxes.insert(*service, inbox);
            }
            *serial
        }
        BrokerFrame::Failed { serial, .. } => {
            table.subscribing.remove(serial);
            table.serving.remove(serial);
            *serial
        }
        BrokerFrame::Interned { serial, .. } | BrokerFrame::Done { serial } | BrokerFrame::Status { serial, .. } => {
            *serial
        }
        BrokerFrame::Closing { code, message } => {
            // In force at the end of file, when what was delivered before is sorted.
            table.closing = Some(Kind::Closed { code: *code, message: message.clone() }.into());
            return;
        }
        // That the broker drains needs nothing of us: what is under way is finished, and then it closes.
        BrokerFrame::Draining { .. } | BrokerFrame::Welcome { .. } | BrokerFrame::Refused { .. } => return,
    };
    if table.subscribing.is_empty() {
        table.orphans.clear();
    }
    let question = lock(&inner.outgoing).answered(serial);
    if let Some(what) = table.restoring.remove(&serial) {
        if let Err(error) = session::restored(table, what, &frame) {
            table.close(error);
        }
        return;
    }
    if let (BrokerFrame::Interned { .. }, Some(ClientFrame::Intern { kind, name, .. })) = (&frame, question) {
        // The broker numbers them from 0 on: that is how the next one can be asked for the same numbers.
        table.named[usize::from(kind == InternKind::Service)].push(name);
    }
    if let Some(answer) = table.answers.get_mut(&serial) {
        *answer = Some(frame);
    }
    table.wakers.drain(..).for_each(std::task::Waker::wake);
}

//! The status and the breakers, for clients that ask over the control socket: pages of a snapshot that all share.

use crate::broker::context::Broker;
use crate::broker::router::ProbeRouter;
use crate::broker::telemetry::pages::Pages;
use crate::broker::telemetry::report;
use crate::broker::telemetry::snapshots::Found;
use crate::wire::control::{BrokerFrame, ClientFrame, FailedCode, PageToken};
use std::io;

/// A request for a page.
#[derive(Clone, Copy, Debug)]
pub(super) enum PageRequest {
    Status(u32),
    Breakers(u32),
    Next(u32, PageToken),
}

impl PageRequest {
    /// The frame as such a request, if it is one.
    pub(super) fn of(frame: &ClientFrame) -> Option<PageRequest> {
        match *frame {
            ClientFrame::Status { serial } => Some(PageRequest::Status(serial)),
            ClientFrame::Breakers { serial } => Some(PageRequest::Breakers(serial)),
            ClientFrame::NextPage { serial, token } => Some(PageRequest::Next(serial, token)),
            _ => None,
        }
    }

    /// The frame that replies to it. `None`: the router has ended.
    pub(super) async fn reply(self, broker: &Broker) -> Option<io::Result<Vec<u8>>> {
        let (serial, pages) = match self {
            PageRequest::Next(serial, token) => {
                let page = broker.snapshots.further(token, serial);
                return Some(page.map_or_else(|| is_over(serial), Ok));
            }
            PageRequest::Status(serial) | PageRequest::Breakers(serial) => {
                (serial, broker.snapshots.take(async || find(broker).await).await?)
            }
        };
        Some(pages.and_then(|pages| {
            let page = if matches!(self, PageRequest::Breakers(_)) { pages.breakers() } else { Pages::STATUS };
            pages.frame(page, serial).ok_or_else(|| io::Error::other("a snapshot without pages"))
        }))
    }
}

/// Looks at the router, and adds what it does not know.
async fn find(broker: &Broker) -> Option<Found> {
    let mut seen = broker.router.send(ProbeRouter { connections: true }).await.ok()?;
    report::complete(&mut seen.report, broker);
    Some(Found { report: seen.report, breakers: seen.breakers, cost: seen.cost })
}

fn is_over(serial: u32) -> io::Result<Vec<u8>> {
    let message = "the snapshot is not kept any more: begin again with its first page".to_owned();
    BrokerFrame::Failed { serial, code: FailedCode::Unknown, message }.encode().map_err(io::Error::other)
}

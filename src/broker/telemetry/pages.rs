//! A snapshot of the status and of the breakers, cut into pages (`wire::control`): frames that are encoded once,
//! however many clients read them.
//!
//! The pages of the status come first, then those of the breakers. A list that is new in the status needs a line in
//! `status_pages` and one in `StatusReport::append`; its entries must be short.

use crate::wire::codec::{self, CodecError};
use crate::wire::control::{BreakerStatus, BrokerFrame, PAGE_BYTES_MAX, PageToken, StatusReport};
use serde::Serialize;

/// What a frame has beside the lists of its page, at most: variant, serial, token.
const FRAME_BYTES: usize = 32;
/// Where a frame has its serial: behind its length and its variant.
const SERIAL: std::ops::Range<usize> = 8..12;

/// The frames of a snapshot, without serials.
#[derive(Debug)]
pub(in crate::broker) struct Pages {
    frames: Vec<Box<[u8]>>,
    /// The number of the first page of the breakers.
    breakers_at: usize,
}

impl Pages {
    /// Cuts what the snapshot with this number has.
    ///
    /// # Errors
    ///
    /// If a page cannot be encoded: an entry is larger than any frame.
    pub(in crate::broker) fn new(
        snapshot: u64,
        report: StatusReport,
        breakers: Vec<BreakerStatus>,
    ) -> Result<Pages, CodecError> {
        let (status, breakers) = (status_pages(report), breaker_pages(breakers));
        let breakers_at = status.len();
        let end = breakers_at + breakers.len();
        let next = |page: usize, end| (page + 1 < end).then_some(PageToken { snapshot, page: page as u32 + 1 });
        let status = status.into_iter().enumerate().map(|(at, report)| {
            let next = next(at, breakers_at);
            BrokerFrame::Status { serial: 0, report, next }.encode()
        });
        let breakers = breakers.into_iter().enumerate().map(|(at, breakers)| {
            let next = next(breakers_at + at, end);
            BrokerFrame::Breakers { serial: 0, breakers, next }.encode()
        });
        let frames = status.chain(breakers).map(|frame| Ok(frame?.into_boxed_slice()));
        Ok(Pages { frames: frames.collect::<Result<_, CodecError>>()?, breakers_at })
    }

    /// The first page of the status.
    pub(in crate::broker) const STATUS: u32 = 0;

    /// The first page of the breakers.
    pub(in crate::broker) fn breakers(&self) -> u32 {
        self.breakers_at as u32
    }

    /// Whether a list has a second page.
    pub(in crate::broker) fn has_more(&self) -> bool {
        self.frames.len() > 2
    }

    /// The frame of a page, as the reply to the request with this serial.
    pub(in crate::broker) fn frame(&self, page: u32, serial: u32) -> Option<Vec<u8>> {
        let mut frame = self.frames.get(page as usize)?.to_vec();
        frame[SERIAL].copy_from_slice(&serial.to_le_bytes());
        Some(frame)
    }
}

/// Pages that are filled one after the other.
struct Filling<P> {
    pages: Vec<P>,
    /// Bytes that the last one may still take.
    left: usize,
}

impl<P: Default + Serialize> Filling<P> {
    fn new(first: P) -> Filling<P> {
        Filling { left: room(&first), pages: vec![first] }
    }

    /// Appends entries to a list of the last page, and of further ones.
    fn fill<T: Serialize>(&mut self, entries: Vec<T>, list: impl Fn(&mut P) -> &mut Vec<T>) {
        for entry in entries {
            let bytes = encoded_len(&entry);
            if bytes > self.left {
                self.left = room(&P::default());
                self.pages.push(P::default());
            }
            self.left = self.left.saturating_sub(bytes);
            if let Some(page) = self.pages.last_mut() {
                list(page).push(entry);
            }
        }
    }
}

/// What the lists of a page may take.
fn room(page: &impl Serialize) -> usize {
    PAGE_BYTES_MAX.saturating_sub(FRAME_BYTES + encoded_len(page))
}

fn encoded_len(value: &impl Serialize) -> usize {
    codec::encode(value).map_or(usize::MAX, |bytes| bytes.len())
}

fn status_pages(mut report: StatusReport) -> Vec<StatusReport> {
    let (connections, services) = (std::mem::take(&mut report.connections), std::mem::take(&mut report.services));
    let holdings = std::mem::take(&mut report.holdings);
    let (counters, actors) = (std::mem::take(&mut report.counters), std::mem::take(&mut report.actors));
    let mut filling = Filling::new(report);
    filling.fill(actors, |page| &mut page.actors);
    filling.fill(counters, |page| &mut page.counters);
    filling.fill(holdings, |page| &mut page.holdings);
    filling.fill(services, |page| &mut page.services);
    filling.fill(connections, |page| &mut page.connections);
    filling.pages
}

fn breaker_pages(breakers: Vec<BreakerStatus>) -> Vec<Vec<BreakerStatus>> {
    let mut filling = Filling::new(Vec::new());
    filling.fill(breakers, |page| page);
    filling.pages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::{
        ActorState, ActorStatus, BreakerState, ConnectionStatus, HoldingStatus, ServiceStatus, SessionState,
    };
    use crate::wire::name::Name;
    use proptest::prelude::*;

    fn name(number: usize, len: usize) -> Name {
        // Tokens have 64 bytes at most, the first one with the number.
        let text: Vec<String> = (0..len.min(240)).map(|at| if at % 50 == 49 { "." } else { "x" }.to_owned()).collect();
        Name::parse(&format!("n{number}{}y", text.concat())).unwrap()
    }

    fn report(connections: usize, services: usize, len: usize) -> StatusReport {
        StatusReport {
            uptime_ms: 1,
            socket: "s".repeat(100),
            connections: (0..connections)
                .map(|number| ConnectionStatus {
                    id: number as u32,
                    name: name(number, len),
                    pid: 1,
                    uid: 2,
                    quota: Some("q".repeat(len)),
                    age_ms: 3,
                    subscriptions: 4,
                    services: (0..number % 9).map(|number| name(number, len)).collect(),
                    services_offered: 1,
                    messages_in: 5,
                    messages_out: 6,
                    bytes_in: 7,
                    bytes_out: 8,
                    dropped: 9,
                    backlog_bytes: 10,
                    requests_outstanding: 11,
                    state: SessionState::Connected,
                    credit_used_bytes: 12,
                    credit_bytes: 13,
                })
                .collect(),
            services: (0..services)
                .map(|number| ServiceStatus {
                    name: name(number, len),
                    responders: 1,
                    outstanding: 2,
                    pending: 0,
                    requests: 3,
                    failures: 4,
                })
                .collect(),
            counters: vec![("records".to_owned(), 7)],
            holdings: (0..connections)
                .map(|number| HoldingStatus {
                    uid: number as u32,
                    quota: Some("q".repeat(len)),
                    resource: "connections".to_owned(),
                    held: 1,
                    limit: 2,
                    key: Some("ipc.max_connections".to_owned()),
                })
                .collect(),
            actors: vec![ActorStatus {
                name: "router".to_owned(),
                supervisor: "root".to_owned(),
                state: ActorState::Running,
                restarts: 0,
                failures: 0,
                last_reason: Some("r".repeat(1024)),
            }],
            ..StatusReport::default()
        }
    }

    fn breakers(count: usize, len: usize) -> Vec<BreakerStatus> {
        let one = |number| BreakerStatus {
            service: name(number, len),
            state: BreakerState::Closed,
            failures: 0,
            failed_trials: 0,
            probes: 0,
            successes: 0,
            ends_in_ms: Some(1),
            opened: 0,
            rejected: 0,
            failure_threshold: 1,
            success_threshold: 1,
            half_open_max_requests: 1,
        };
        (0..count).map(one).collect()
    }

    /// Reads pages from `page` on, as a client does.
    fn read<T>(pages: &Pages, mut page: u32, mut take: impl FnMut(BrokerFrame) -> (T, Option<PageToken>)) -> Vec<T> {
        let mut all = Vec::new();
        loop {
            let frame = pages.frame(page, 77).unwrap();
            assert!(frame.len() <= PAGE_BYTES_MAX + 4, "{} bytes", frame.len());
            let (part, next) = take(BrokerFrame::decode(&frame[4..]).unwrap());
            all.push(part);
            let Some(next) = next else { return all };
            assert_eq!(next, PageToken { snapshot: 5, page: page + 1 });
            page += 1;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_pages_are_the_whole(
            connections in 0usize..900, services in 0usize..1500, broken in 0usize..1500, len in 0usize..240,
        ) {
            let (whole, all_breakers) = (report(connections, services, len), breakers(broken, len));
            let pages = Pages::new(5, whole.clone(), all_breakers.clone()).unwrap();
            let status = read(&pages, Pages::STATUS, |frame| match frame {
                BrokerFrame::Status { serial: 77, report, next } => (report, next),
                other => panic!("{other:?}"),
            });
            let parts = status.len();
            let joined = status.into_iter().reduce(|mut joined, page| {
                joined.append(page);
                joined
            });
            prop_assert_eq!(joined, Some(whole.clone()));
            let parts_of_breakers = read(&pages, pages.breakers(), |frame| match frame {
                BrokerFrame::Breakers { serial: 77, breakers, next } => (breakers, next),
                other => panic!("{other:?}"),
            });
            prop_assert_eq!(pages.has_more(), parts + parts_of_breakers.len() > 2);
            prop_assert_eq!(parts_of_breakers.concat(), all_breakers);
            prop_assert_eq!(pages.frame(pages.frames.len() as u32, 1), None);
            // A page is begun when the one before is full, and not before.
            let bytes = codec::encode(&whole).unwrap().len();
            prop_assert!(parts <= bytes / (PAGE_BYTES_MAX - 8_192) + 1, "{bytes} bytes in {parts} pages");
        }
    }
}

//! Reading a status, or the breakers, page by page (`wire::control`).

use super::control_request::unexpected_reply;
use crate::client::error::Result;
use crate::wire::control::{BreakerStatus, BrokerFrame, ClientFrame, FailedCode, PageToken, StatusReport};

/// How often reading begins: a snapshot that the broker does not keep any more, or that belongs to another broker, is
/// followed by a new one.
const BEGINS_MAX: u32 = 5;

/// What is read in pages.
pub(crate) trait Paged: Sized {
    /// The request for the first page.
    fn first(serial: u32) -> ClientFrame;

    /// The page in a reply, and the token of the next one.
    fn page(reply: BrokerFrame) -> Result<(Self, Option<PageToken>)>;

    /// Adds the next page.
    fn append(&mut self, page: Self);
}

impl Paged for StatusReport {
    fn first(serial: u32) -> ClientFrame {
        ClientFrame::Status { serial }
    }

    fn page(reply: BrokerFrame) -> Result<(Self, Option<PageToken>)> {
        match reply {
            BrokerFrame::Status { report, next, .. } => Ok((report, next)),
            other => Err(unexpected_reply(&other)),
        }
    }

    fn append(&mut self, page: Self) {
        StatusReport::append(self, page);
    }
}

impl Paged for Vec<BreakerStatus> {
    fn first(serial: u32) -> ClientFrame {
        ClientFrame::Breakers { serial }
    }

    fn page(reply: BrokerFrame) -> Result<(Self, Option<PageToken>)> {
        match reply {
            BrokerFrame::Breakers { breakers, next, .. } => Ok((breakers, next)),
            other => Err(unexpected_reply(&other)),
        }
    }

    fn append(&mut self, page: Self) {
        self.extend(page);
    }
}

/// The pages so far.
#[derive(Debug)]
pub(crate) struct Reading<T> {
    pages: Option<T>,
    /// The next page; `None`: the first one.
    next: Option<PageToken>,
    begins: u32,
}

impl<T: Paged> Reading<T> {
    pub(crate) fn new() -> Reading<T> {
        Reading { pages: None, next: None, begins: 1 }
    }

    /// The request for the next page.
    pub(crate) fn request(&self) -> impl FnOnce(u32) -> ClientFrame + use<T> {
        let next = self.next;
        move |serial| next.map_or_else(|| T::first(serial), |token| ClientFrame::NextPage { serial, token })
    }

    /// Takes the reply to it. Returns the whole, when that was the last page.
    pub(crate) fn take(&mut self, reply: BrokerFrame) -> Result<Option<T>> {
        let is_over = matches!(reply, BrokerFrame::Failed { code: FailedCode::Unknown, .. });
        if is_over && self.next.is_some() && self.begins < BEGINS_MAX {
            *self = Reading { begins: self.begins + 1, ..Reading::new() };
            return Ok(None);
        }
        let (page, next) = T::page(reply)?;
        self.next = next;
        match &mut self.pages {
            Some(pages) => pages.append(page),
            None => self.pages = Some(page),
        }
        Ok(if next.is_none() { self.pages.take() } else { None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(topics: u32, counters: &[&str], next: Option<u32>) -> BrokerFrame {
        let counters = counters.iter().map(|name| ((*name).to_owned(), 1)).collect();
        let report = StatusReport { topics, counters, ..StatusReport::default() };
        BrokerFrame::Status { serial: 1, report, next: next.map(|page| PageToken { snapshot: 9, page }) }
    }

    fn is_over() -> BrokerFrame {
        BrokerFrame::Failed { serial: 1, code: FailedCode::Unknown, message: "over".to_owned() }
    }

    fn names(report: &StatusReport) -> Vec<&str> {
        report.counters.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn pages_are_joined_and_a_snapshot_that_is_over_is_begun_again() {
        let mut reading = Reading::<StatusReport>::new();
        assert_eq!(reading.request()(1), ClientFrame::Status { serial: 1 });
        assert_eq!(reading.take(page(4, &["old"], Some(1))).unwrap(), None);
        let token = PageToken { snapshot: 9, page: 1 };
        assert_eq!(reading.request()(2), ClientFrame::NextPage { serial: 2, token });
        assert_eq!(reading.take(is_over()).unwrap(), None);
        assert_eq!(reading.request()(3), ClientFrame::Status { serial: 3 });
        assert_eq!(reading.take(page(5, &["a", "b"], Some(1))).unwrap(), None);
        assert_eq!(reading.take(page(0, &["c"], Some(2))).unwrap(), None);
        let report = reading.take(page(0, &[], None)).unwrap().unwrap();
        assert_eq!((report.topics, names(&report)), (5, vec!["a", "b", "c"]));
    }

    #[test]
    fn reading_ends_with_an_error_at_last() {
        let mut reading = Reading::<Vec<BreakerStatus>>::new();
        assert!(reading.take(is_over()).unwrap_err().is_unknown(), "the first page is no snapshot");
        let mut begins = 0;
        let error = loop {
            let breakers = BrokerFrame::Breakers { serial: 1, breakers: Vec::new(), next: page_token() };
            assert_eq!(reading.take(breakers).unwrap(), None);
            begins += 1;
            if let Err(error) = reading.take(is_over()) {
                break error;
            }
        };
        assert!(error.is_unknown() && begins == BEGINS_MAX, "{error}, {begins}");
        assert!(reading.take(page(1, &[], None)).is_err(), "another kind of reply");
    }

    fn page_token() -> Option<PageToken> {
        Some(PageToken { snapshot: 1, page: 1 })
    }
}

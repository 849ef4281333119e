//! Why an engine did not reply.

use std::time::Duration;

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// The engine's: it counts at the breaker.
    Engine,
    /// The request's.
    Request,
    /// The engine has too much to do.
    Busy {
        /// When to try again, as the engine said.
        retry_after: Option<Duration>,
    },
}

/// A failed request, as the log and the requester get it: one line, without the key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) blame: Blame,
    /// The HTTP status, if it is the reason.
    pub(super) status: Option<u16>,
    /// There was no connection: the engine was restarted, perhaps with another model.
    pub(super) is_unreached: bool,
    pub(super) text: String,
}

impl Fault {
    pub(super) fn engine(text: impl Into<String>) -> Fault {
        Fault { blame: Blame::Engine, status: None, is_unreached: false, text: text.into() }
    }

    pub(super) fn request(text: impl Into<String>) -> Fault {
        Fault { blame: Blame::Request, status: None, is_unreached: false, text: text.into() }
    }

    /// The fault that an HTTP status is.
    pub(super) fn of_status(status: u16, retry_after: Option<Duration>, text: String) -> Fault {
        let blame = match status {
            400 | 413 | 422 => Blame::Request,
            429 | 503 => Blame::Busy { retry_after },
            // A wrong key, model or address and an engine in trouble: the next request fares no better.
            _ => Blame::Engine,
        };
        Fault { blame, status: Some(status), is_unreached: false, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fault_of_one_request_does_not_count() {
        let blame = |status| Fault::of_status(status, None, String::new()).blame;
        for status in [301, 401, 403, 404, 418, 500, 501, 502, 504] {
            assert_eq!(blame(status), Blame::Engine, "{status}");
        }
        for status in [400, 413, 422] {
            assert_eq!(blame(status), Blame::Request, "{status}");
        }
        for status in [429, 503] {
            assert_eq!(blame(status), Blame::Busy { retry_after: None }, "{status}");
        }
    }
}

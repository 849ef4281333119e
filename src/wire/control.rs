//! The frames of the control socket.
//!
//! A connection begins with one [`ClientFrame::Hello`] and its reply, [`BrokerFrame::Welcome`] or
//! [`BrokerFrame::Refused`] (after which the broker closes). The descriptors of the shared memory travel beside the
//! Welcome, as ancillary data. From then on the client sends control requests and the broker replies, each reply
//! carrying the `serial` of its request; the client chooses serials, and replies come in the order of the requests. A
//! reply means that the request is in force. [`BrokerFrame::Draining`] and [`BrokerFrame::Closing`] are not replies.
//!
//! | request | reply |
//! |---|---|
//! | `Hello` | `Welcome` or `Refused` |
//! | `Intern` | `Interned` or `Failed` |
//! | `Subscribe` | `Subscribed` or `Failed` |
//! | `Serve` | `Serving` or `Failed` |
//! | `Unsubscribe`, `Unserve` | `Done` or `Failed` |
//! | `Status` | `Status` or `Failed` |
//! | `Breakers`, `SetBreaker` | `Breakers` or `Failed` |
//! | `NextPage` | `Status`, `Breakers` or `Failed` |
//! | `Upstreams`, `DialUpstream` | `Upstreams` or `Failed` |
//! | `Reload` | `Reloaded` or `Failed` |
//! | `Bye` | none; the broker closes once it has drained the client's rings |
//! | `Resumed` | none |
//! | `Restored` | none |
//!
//! # Pages
//!
//! A status, and a list of breakers, is a snapshot that is as long as the broker has connections and services. So each
//! `Status` and `Breakers` has one page of it, of at most [`PAGE_BYTES_MAX`], and the token of the `next` one, if there
//! are more; `NextPage` requests that, and the lists of all pages are joined. All pages are of the same moment, after
//! the request for the first one came. The broker keeps the snapshot for two seconds; after that `NextPage` is
//! [`FailedCode::Unknown`], and the client begins again with the first page.
//!
//! # Resuming
//!
//! A client whose socket was lost without a `Bye`, and whose process lives, may connect again and say Hello with the
//! token of its last Welcome and its first nonce. The Welcome is then one of the same connection,
//! with a new token, **without descriptors**: segment, doorbells, rings and all numbers are unchanged, and the client
//! watches the new socket instead of the old one. It sends `Resumed`, then repeats, in their order, the requests
//! without a reply, at most 64. The broker recognizes an executed request by its `serial` and repeats the reply, so a
//! serial is used once in a session. [`RefusedCode::ResumeFailed`] means that the session has ended: send a Hello
//! without a token. [`RefusedCode::GivenUp`] means that its connection reached the restart limit.
//! [`RefusedCode::BadToken`] means that the session is in use by another connection.
//!
//! # The next broker
//!
//! A client that connects again when its broker was killed sets [`RECONNECTS`] in each Hello. At the next broker, where
//! it sends a Hello with the same nonce, from the same process, and without a token, it subscribes again and, after all
//! replies, sends `Restored`. The next broker holds publishes back until each such client with subscriptions has sent
//! `Restored` or `Bye` or its process has ended, but at most for `restart.restart_grace_ms`.
//!
//! # Layout
//!
//! Frames and primitives are laid out as in [`codec`]: a `u32` length, then the number of the variant as a `u32`, then
//! the fields in the order in which they are declared here. Variants are numbered from 0 in the order of declaration;
//! new ones are only ever appended, and a field is only added along with a new [`PROTOCOL_VERSION`]. (Version 1 is that
//! of the first release, which is still to come; until then it grows.)
//!
//! This is a client named `editor` that says hello, all 45 bytes of it:
//!
//! ```text
//! 29 00 00 00               length of the body: 41
//! 00 00 00 00               variant 0 of ClientFrame: Hello
//! 4c 41 50 43 45 49 50 43   magic: "LAPCEIPC"
//! 01 00                     version: 1
//! 06 00 00 00 00 00 00 00   name: 6 bytes follow,
//! 65 64 69 74 6f 72         "editor"
//! ef cd ab 89 67 45 23 01   nonce: 0x0123456789abcdef
//! 00 00 00 00               flags: none
//! 00                        resume: none
//! ```
//!
//! # Versions
//!
//! Two things are the same in all versions, past and to come, so that a mismatch is a clear error on both sides:
//!
//! - A Hello begins with variant 0, the magic and the version: 14 bytes, which [`peek_hello`] reads. What follows may
//!   differ, so the broker peeks before it decodes.
//! - A Refused is variant 1 of [`BrokerFrame`] and has the layout declared here. Codes that a client does not know are
//!   errors to its decoder; [`RefusedCode::Version`] is and remains code 0.

use serde::{Deserialize, Serialize};

use super::codec::{self, CodecError};
use super::name::{Name, Topic};
use super::pattern::Pattern;

mod breaker;
mod codes;
mod hello;
mod operations;
mod status;
mod token;

pub use breaker::{BreakerOrder, BreakerState, BreakerStatus};
pub use codes::{ClosingCode, FailedCode, RefusedCode};
pub use hello::{HelloError, RECONNECTS, peek_hello};
pub use operations::{ReloadReport, UpstreamStatus};
pub use status::{ActorState, ActorStatus, ConnectionStatus, HoldingStatus, LatencyStatus, QuantileStatus};
pub use status::{HealthStatus, PAGE_BYTES_MAX, PageToken, ServiceStatus, SessionState, StatusReport};
pub use token::Token;

/// The version of the protocol that this library speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// The first field of a Hello.
pub const MAGIC: [u8; 8] = *b"LAPCEIPC";

/// The longest body of a frame that a client may send, in bytes.
pub const CLIENT_FRAME_BYTES_MAX: usize = 4 * 1024;

/// The longest body of a frame that the broker may send, in bytes: the list of upstreams grows with the configuration.
pub const BROKER_FRAME_BYTES_MAX: usize = codec::HARD_LIMIT;

/// A frame from a client. The order of variants and fields is the wire format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientFrame {
    /// The first frame, and only the first.
    Hello {
        /// Always [`MAGIC`]; anything else does not decode.
        #[serde(deserialize_with = "hello::magic")]
        magic: [u8; 8],
        /// The version that the client speaks.
        version: u16,
        /// The client's name for itself.
        name: Name,
        /// Random, one per running instance of the client: tells a restarted client from a reconnected one. Along with
        /// what the kernel says of the process, the broker makes the key of the client's messages of it.
        nonce: u64,
        /// [`RECONNECTS`], or zero. Other bits are reserved.
        flags: u32,
        /// The token of the session to resume.
        resume: Option<Token>,
    },
    /// Requests a number for a topic or service on this connection.
    Intern {
        /// Repeated in the reply.
        serial: u32,
        /// The kind of `name`.
        kind: InternKind,
        /// A topic, or a service if [`Name::try_from`] takes it.
        name: Topic,
    },
    /// Subscribes to the messages on all matching topics.
    Subscribe {
        /// Repeated in the reply.
        serial: u32,
        /// Which topics.
        pattern: Pattern,
        /// The delivery policy: what happens to a message without credit.
        policy: DeliveryPolicy,
        /// The initial credit of the subscription, in cells.
        credit: u32,
    },
    /// Ends a subscription.
    Unsubscribe {
        /// Repeated in the reply.
        serial: u32,
        /// The number from [`BrokerFrame::Subscribed`].
        subscription: u32,
    },
    /// Offers a service.
    Serve {
        /// Repeated in the reply.
        serial: u32,
        /// Which service.
        service: Name,
        /// The limit of outstanding requests at this responder.
        max_in_flight: u32,
    },
    /// Ends an offer to serve.
    Unserve {
        /// Repeated in the reply.
        serial: u32,
        /// The number from [`BrokerFrame::Serving`].
        service: u32,
    },
    /// Requests a [`StatusReport`]: its first page.
    Status {
        /// Repeated in the reply.
        serial: u32,
    },
    /// Announces an orderly end; nothing follows.
    Bye,
    /// Requests the status of all breakers: the first page.
    Breakers {
        /// Repeated in the reply.
        serial: u32,
    },
    /// Gives a manual order to the breaker of one service.
    SetBreaker {
        /// Repeated in the reply.
        serial: u32,
        /// Which service.
        service: Name,
        /// The order.
        order: BreakerOrder,
        /// For how many milliseconds; 0 is until the next order. Always 0 with [`BreakerOrder::Auto`].
        for_ms: u64,
    },
    /// The Welcome of a resumed session has arrived: its previous token is void. No reply.
    Resumed,
    /// Requests the state of all upstreams.
    Upstreams {
        /// Repeated in the reply.
        serial: u32,
    },
    /// Dials an upstream at once instead of after its delay, also one that was given up.
    DialUpstream {
        /// Repeated in the reply.
        serial: u32,
        /// Its name in the configuration.
        name: Name,
    },
    /// Reloads the broker's configuration.
    Reload {
        /// Repeated in the reply.
        serial: u32,
    },
    /// After a Hello without a token: the subscriptions that the client had at the last broker are in force again, also
    /// if it had none. No reply.
    Restored,
    /// Requests a further page of a status, or of the breakers.
    NextPage {
        /// Repeated in the reply.
        serial: u32,
        /// From the page before.
        token: PageToken,
    },
}

impl ClientFrame {
    /// A Hello of this version.
    ///
    /// ```
    /// use lapce_ipc::wire::{ClientFrame, FrameDecoder, Name, control};
    ///
    /// let hello = ClientFrame::hello(Name::parse("editor")?, 42, None);
    /// let mut decoder = FrameDecoder::new(control::CLIENT_FRAME_BYTES_MAX);
    /// decoder.push(&hello.encode()?);
    /// let body = decoder.next_frame()?.unwrap();
    /// assert_eq!(control::peek_hello(body)?, control::PROTOCOL_VERSION);
    /// assert_eq!(ClientFrame::decode(body)?, hello);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn hello(name: Name, nonce: u64, resume: Option<Token>) -> Self {
        Self::Hello { magic: MAGIC, version: PROTOCOL_VERSION, name, nonce, flags: 0, resume }
    }

    /// The serial of a control request; `None` for other frames.
    #[must_use]
    pub fn serial(&self) -> Option<u32> {
        match self {
            Self::Intern { serial, .. }
            | Self::Subscribe { serial, .. }
            | Self::Unsubscribe { serial, .. }
            | Self::Serve { serial, .. }
            | Self::Unserve { serial, .. }
            | Self::Status { serial }
            | Self::Breakers { serial }
            | Self::SetBreaker { serial, .. }
            | Self::Upstreams { serial }
            | Self::DialUpstream { serial, .. }
            | Self::Reload { serial }
            | Self::NextPage { serial, .. } => Some(*serial),
            Self::Hello { .. } | Self::Bye | Self::Resumed | Self::Restored => None,
        }
    }

    /// The frame as it travels, length prefix included.
    ///
    /// # Errors
    /// [`CodecError::ValueTooLarge`] beyond [`CLIENT_FRAME_BYTES_MAX`], which no valid frame reaches.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode_frame(self, CLIENT_FRAME_BYTES_MAX)
    }

    /// Decodes the body of a frame, as [`codec::FrameDecoder`] returns it. Peek first: see [`peek_hello`].
    ///
    /// # Errors
    /// A [`CodecError`] that says why this is no frame of a client.
    pub fn decode(body: &[u8]) -> Result<Self, CodecError> {
        codec::decode_limited(body, CLIENT_FRAME_BYTES_MAX)
    }
}

/// The kind of name in [`ClientFrame::Intern`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InternKind {
    /// A topic to publish on.
    Topic,
    /// A service to send requests to.
    Service,
}

/// The delivery policy of a subscription: what happens to a message without credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryPolicy {
    /// It waits, and its publisher with it, until the subscription is evicted as a slow consumer.
    #[default]
    Block,
    /// It is dropped and counted.
    DropNewest,
    /// The oldest undelivered messages are dropped and counted, so that the newest stay: as many as fit the
    /// subscription's capacity, in cells of 128 bytes of which the header of each record takes a half. That holds for a
    /// client that does not read or is stopped, too, as far as the broker's `limits.max_backlog_bytes`, shared by its
    /// subscriptions, allows. While the broker holds newer messages, the client reads these before it gives out the
    /// next.
    DropOldest,
}

/// A frame from the broker. The order of variants and fields is the wire format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BrokerFrame {
    /// The connection is accepted. The descriptors travel beside this frame.
    Welcome {
        /// The version that the broker speaks: the client's.
        version: u16,
        /// The number of this connection, as in logs and status.
        connection: u32,
        /// The token that resumes this session.
        token: Token,
        /// The broker's name and version, for people.
        broker: String,
        /// The limits of this connection.
        limits: Limits,
        /// The geometry of the shared memory.
        geometry: Geometry,
    },
    /// The connection is refused; the broker closes the socket. The same in all versions.
    Refused {
        /// Why.
        code: RefusedCode,
        /// Why, for people.
        message: String,
        /// The version that the broker speaks.
        version: u16,
    },
    /// The reply to [`ClientFrame::Intern`].
    Interned {
        /// From the request.
        serial: u32,
        /// The number that stands for the name on this connection.
        id: u32,
    },
    /// The reply to [`ClientFrame::Subscribe`]: all messages published from now on are delivered.
    Subscribed {
        /// From the request.
        serial: u32,
        /// The number of the subscription on this connection.
        subscription: u32,
    },
    /// The reply to [`ClientFrame::Serve`]: requests may arrive from now on.
    Serving {
        /// From the request.
        serial: u32,
        /// The number of the offer on this connection.
        service: u32,
    },
    /// The reply to [`ClientFrame::Unsubscribe`] and [`ClientFrame::Unserve`].
    Done {
        /// From the request.
        serial: u32,
    },
    /// The error reply to any request; the connection stays open.
    Failed {
        /// From the request.
        serial: u32,
        /// Why.
        code: FailedCode,
        /// Why, for people.
        message: String,
    },
    /// The reply to [`ClientFrame::Status`], and to [`ClientFrame::NextPage`].
    Status {
        /// From the request.
        serial: u32,
        /// A page of the state of the broker.
        report: StatusReport,
        /// The next page; none behind the last one.
        next: Option<PageToken>,
    },
    /// The broker is shutting down: finish outstanding work, start nothing new.
    Draining {
        /// The time left, in milliseconds.
        deadline_ms: u32,
    },
    /// The last frame: the broker closes.
    Closing {
        /// Why.
        code: ClosingCode,
        /// Why, for people.
        message: String,
    },
    /// The reply to [`ClientFrame::Breakers`] and [`ClientFrame::NextPage`]; and to [`ClientFrame::SetBreaker`], with
    /// the one that was set.
    Breakers {
        /// From the request.
        serial: u32,
        /// One for each service that has or had a responder: a page of them.
        breakers: Vec<BreakerStatus>,
        /// The next page; none behind the last one.
        next: Option<PageToken>,
    },
    /// The reply to [`ClientFrame::Upstreams`]; and [`ClientFrame::DialUpstream`], with the one that is dialled.
    Upstreams {
        /// From the request.
        serial: u32,
        /// One for each `[[upstream]]`.
        upstreams: Vec<UpstreamStatus>,
    },
    /// The reply to [`ClientFrame::Reload`].
    Reloaded {
        /// From the request.
        serial: u32,
        /// The result.
        report: ReloadReport,
    },
}

impl BrokerFrame {
    /// The frame as it travels, length prefix included.
    ///
    /// ```
    /// use lapce_ipc::wire::BrokerFrame;
    ///
    /// let bytes = BrokerFrame::Done { serial: 7 }.encode()?;
    /// assert_eq!(bytes, [8, 0, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0]);
    /// assert_eq!(BrokerFrame::decode(&bytes[4..])?, BrokerFrame::Done { serial: 7 });
    /// # Ok::<(), lapce_ipc::wire::CodecError>(())
    /// ```
    ///
    /// # Errors
    /// [`CodecError::ValueTooLarge`] beyond [`BROKER_FRAME_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode_frame(self, BROKER_FRAME_BYTES_MAX)
    }

    /// Decodes the body of a frame, as [`codec::FrameDecoder`] returns it.
    ///
    /// # Errors
    /// A [`CodecError`] that says why this is no frame of a broker.
    pub fn decode(body: &[u8]) -> Result<Self, CodecError> {
        codec::decode_limited(body, BROKER_FRAME_BYTES_MAX)
    }
}

/// The limits of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The longest message, in bytes.
    pub max_message_size: u32,
    /// The largest payload of one record, in bytes.
    pub slot_size: u32,
    /// The credit of a stream at its start, in cells.
    pub stream_credit_cells: u32,
    /// The most credit of a subscription, in cells.
    pub subscription_credit_cells: u32,
    /// The deadline of a request that names none, in milliseconds.
    pub default_request_timeout_ms: u32,
    /// The longest deadline of a request, in milliseconds.
    pub max_request_timeout_ms: u32,
    /// The most requests outstanding at a time.
    pub max_requests: u32,
    /// The time to the first chunk of a stream that names none, in milliseconds.
    pub stream_first_chunk_ms: u32,
    /// The time between two chunks of a stream that names none, in milliseconds.
    pub stream_idle_ms: u32,
}

/// The geometry of a segment. The client trusts these values, not the segment's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    /// The size of the segment, in bytes.
    pub segment_bytes: u64,
    /// The nonce in the tags of the ring from the broker.
    pub nonce_egress: u64,
    /// The nonce in the tags of the bulk lane.
    pub nonce_bulk: u64,
    /// The nonce in the tags of the express lane.
    pub nonce_express: u64,
    /// The largest payload of one record, in bytes.
    pub slot_size: u32,
    /// The cells that each ring can gain beyond its base window.
    pub extension_cells: u32,
}

#[cfg(test)]
mod tests;

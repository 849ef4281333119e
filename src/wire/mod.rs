//! The data between a client and the broker, as pure bytes.
//!
//! Nothing here knows sockets, shared memory or time: each type is a value with a byte layout, and each decoder takes
//! untrusted bytes and returns a valid value, or an error that says what is wrong.
//!
//! | file | holds | travels |
//! |---|---|---|
//! | [`name`] | client, service and topic names | inside frames |
//! | [`pattern`] | subscription patterns and what they match | inside frames |
//! | [`codec`] | the encoding itself, and the length prefix | under all the others |
//! | [`control`] | the frames of the control socket | over the Unix socket |
//! | [`record`] | the header of a record | in the rings |
//! | [`typed`] | completion, chat, tools: the editor's traffic | as payload, end to end |
//!
//! The layout of primitives is in [`codec`], that of the frames in [`control`]; both are complete enough to speak the
//! protocol from another language. `tests/wire_golden.rs` holds the bytes of every frame, so that no change of a
//! layout goes unnoticed.

pub mod codec;
pub mod control;
pub mod name;
pub mod pattern;
pub mod record;
pub mod typed;

pub use codec::{CodecError, FrameDecoder};
pub use control::{BrokerFrame, ClientFrame, DeliveryPolicy, PROTOCOL_VERSION};
pub use name::{Name, NameError, Topic};
pub use pattern::Pattern;

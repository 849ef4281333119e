//! What all handles of a connection share, and the operations on it that never wait.

pub(crate) mod calls;
pub(crate) mod control_request;
pub(crate) mod dispatch;
pub(crate) mod frames;
pub(crate) mod interning;
pub(crate) mod link;
pub(crate) mod reader;
pub(crate) mod shared;
pub(crate) mod table;

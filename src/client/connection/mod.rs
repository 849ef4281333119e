//! The state that all handles of a connection share, and the operations on it that never block.
//!
//! | file | idea |
//! |---|---|
//! | `shared` | what all handles share, and the order of its locks |
//! | `table` | the receivers of what arrives |
//! | `reader`, `dispatch` | the consuming end of the egress ring; its records go to their receivers |
//! | `link`, `frames` | the receiving half of the control socket; its frames go to their receivers |
//! | `calls` | records of calls |
//! | `interning` | topics and services in use |
//! | `control_request` | control requests, and their end when a handle is dropped |
//! | `pages` | reading the status page by page |

pub(crate) mod calls;
pub(crate) mod control_request;
pub(crate) mod dispatch;
pub(crate) mod frames;
pub(crate) mod interning;
pub(crate) mod link;
pub(crate) mod pages;
pub(crate) mod reader;
pub(crate) mod shared;
pub(crate) mod table;

//! What users call.

pub(crate) mod builder;
pub(crate) mod client;
pub(crate) mod events;
pub(crate) mod listener;
pub(crate) mod loan;
pub(crate) mod operations;
pub(crate) mod publish;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod serve;
pub(crate) mod subscription;

//! A lost socket: attempts to reach the broker again, and the session restored at another broker.

pub(crate) mod attempts;
pub(crate) mod restore;

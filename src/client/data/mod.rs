//! The client's data: each file holds one idea with its rules, and none knows the connection.

pub(crate) mod call_options;
pub(crate) mod connection_state;
pub(crate) mod control_queue;
pub(crate) mod dedup;
pub(crate) mod id_hash;
pub(crate) mod incoming_call;
pub(crate) mod lag;
pub(crate) mod lane;
pub(crate) mod limits;
pub(crate) mod lock;
pub(crate) mod message;
pub(crate) mod names;
pub(crate) mod pending_call;
pub(crate) mod request_slots;
pub(crate) mod resend_queue;
pub(crate) mod subscription_queue;

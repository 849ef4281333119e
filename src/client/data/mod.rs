//! The client's data: each file holds one idea with its rules, and none knows the connection.
//!
//! | file | idea |
//! |---|---|
//! | `lane`, `resend_queue` | the producing end of a lane; messages that a dead broker had not consumed |
//! | `message_parts` | a message of several records on its way into the lane |
//! | `names`, `dedup` | numbers that stand for names; duplicates of re-sent messages |
//! | `partials` | messages of several records that are being received |
//! | `message`, `subscription_queue`, `lag` | received messages; those that wait; whether newer ones follow |
//! | `pending_call`, `call_options`, `request_slots` | outstanding requests: progress, options and deadlines, slots |
//! | `batch_calls` | the outstanding requests of a batch |
//! | `incoming_call`, `spares` | calls that this client serves; the memory of calls, used again |
//! | `kept_replies` | replies that wait for their requesters |
//! | `control_queue` | control requests, kept until their replies come |
//! | `connection_state`, `limits` | the state of the connection for its user; the limits of the present broker |
//! | `lock` | locks, deadlines and threads, as all rooms use them |

pub(crate) mod batch_calls;
pub(crate) mod call_options;
pub(crate) mod connection_state;
pub(crate) mod control_queue;
pub(crate) mod dedup;
pub(crate) mod incoming_call;
pub(crate) mod kept_replies;
pub(crate) mod lag;
pub(crate) mod lane;
pub(crate) mod limits;
pub(crate) mod lock;
pub(crate) mod message;
pub(crate) mod message_parts;
pub(crate) mod names;
pub(crate) mod partials;
pub(crate) mod pending_call;
pub(crate) mod request_slots;
pub(crate) mod resend_queue;
pub(crate) mod spares;
pub(crate) mod subscription_queue;

//! `engine`: a service of the broker whose replies come from an AI engine.
//!
//! `engine openai` offers a completion service and a chat service in front of an OpenAI-compatible HTTP endpoint. It
//! translates the typed messages of [`crate::wire::typed`], in either form, and holds back what an engine must not see:
//! requests that are superseded or cancelled before it has time for them. A reply is whole, or it is an error: a stream
//! that ends early, carries an error or stalls fails the request and counts at the service's breaker.
//!
//! | file | idea |
//! |---|---|
//! | `options` | the options |
//! | `serve` | the services: takes requests, replies, drains |
//! | `turns` | whose turn it is, for tasks that wait |
//! | `queue` | the queue, as a state machine |
//! | `busy` | pauses after 429 and 503, as a state machine |
//! | `completion`, `chat` | one request, from its JSON to the last chunk |
//! | `outgoing` | the reply to the requester, and what stops the work for it |
//! | `model` | the model, and the way that works for it |
//! | `way` | the choice of a way to fill in the middle, as a state machine |
//! | `markers` | the markers of models |
//! | `stops` | ends a text at a stop text |
//! | `endpoint` | HTTP, server-sent events, time limits |
//! | `event` | the JSON of events |
//! | `key` | the key |
//! | `fault` | whose fault a failure is |

mod busy;
mod chat;
mod completion;
mod endpoint;
mod event;
mod fault;
mod key;
mod markers;
mod model;
mod options;
mod outgoing;
mod queue;
mod serve;
mod stops;
mod turns;
mod way;

pub(super) use options::{EXAMPLES, EngineArgs, run};

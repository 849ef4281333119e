//! The router with hostile clients on one thread, for the fuzzer and the tests: clients are the client's ends of real
//! segments, and the time is an argument.
//!
//! | file | idea |
//! |---|---|
//! | `supervised` | a router that dies by injected faults is followed by another |
//! | `witness` | two clients that keep the rules, beside the others: each of their messages comes once and in order |
//! | `machine` | the router with all of them, and its books |
//! | `program` | the input as a program of what clients do |
//!
//! Whatever the input is, the router must not panic (but where a fault is injected, and then the next one continues),
//! the witness must notice nothing, and when all clients have ended the books must be empty.

mod machine;
mod program;
mod supervised;
mod witness;

pub(in crate::broker) use machine::Machine;
pub(in crate::broker) use program::{records, run};

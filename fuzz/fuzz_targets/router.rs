//! The whole router on one thread, with hostile clients and two that keep the rules.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lapce_ipc::broker::fuzzing::router(bytes));

//! A ring whose memory its peer rewrites between the steps of the other side.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lapce_ipc::broker::fuzzing::hostile_ring(bytes));

//! Records with any header, in both lanes of a router.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lapce_ipc::broker::fuzzing::record_header(bytes));

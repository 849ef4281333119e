//! The bytes of a typed message.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lapce_ipc::broker::fuzzing::typed_messages(bytes));

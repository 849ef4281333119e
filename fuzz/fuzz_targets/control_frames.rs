//! Bytes on the control socket, in any pieces: the decoder, the handshake, and what a session does with the frames.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lapce_ipc::broker::fuzzing::control_frames(bytes));

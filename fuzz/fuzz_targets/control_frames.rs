//! Whatever arrives on the control socket, in whatever pieces: frames or errors, never a panic, and a frame that
//! decodes encodes to the bytes that it came from.
#![no_main]

use lapce_ipc::wire::control::{self, BrokerFrame, ClientFrame};
use lapce_ipc::wire::FrameDecoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = (usize::from(input.0).max(1), input.1);
    let mut decoder = FrameDecoder::new(control::CLIENT_FRAME_BYTES_MAX);
    for piece in bytes.chunks(step) {
        decoder.push(piece);
        while let Ok(Some(body)) = decoder.next_frame() {
            let body = body.to_vec();
            let _ = control::peek_hello(&body);
            if let Ok(frame) = ClientFrame::decode(&body) {
                assert_eq!(frame.encode().unwrap()[4..], body);
            }
            if let Ok(frame) = BrokerFrame::decode(&body) {
                assert_eq!(frame.encode().unwrap()[4..], body);
            }
        }
    }
});

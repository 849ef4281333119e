//! Whatever a stranger publishes as a typed message: a valid message or an error, never a panic.
#![no_main]

use lapce_ipc::wire::typed::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = Message::decode(bytes) {
        assert_eq!(Message::decode(&message.encode().unwrap()).unwrap(), message);
    }
});

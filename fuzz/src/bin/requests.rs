#![no_main]
//! The bytes of a request become a command, or a refusal that repeats nothing of
//! them and fits the 8 KiB of metadata that clients take.
//!
//! The first byte tells which call it is.

use libfuzzer_sys::fuzz_target;
use workflow_secrets::grpc::fuzzing;
use workflow_secrets_fuzz::CANARY;

fuzz_target!(|data: &[u8]| {
    let Some((call, message)) = data.split_first() else { return };
    if let Err(told) = fuzzing::convert(*call, message) {
        assert!(!told.is_empty() && !told.contains(CANARY), "{told}");
        assert!(told.len() < 6_000, "{} bytes are told", told.len());
    }
});

#![no_main]
//! Whatever lies in the store is read or refused. What is read and written again
//! is read as the same; the fixed layouts are written again byte for byte.
//! (Protobuf may leave out fields that are not known and order them anew.)
//!
//! The first byte tells as what the rest is read.

use libfuzzer_sys::fuzz_target;
use workflow_secrets::{
    domain::{SecretName, SecretUid},
    envelope::{self, SealedRecord},
    store::{Key, StoreError, codec, fuzzing},
};

/// Reads, writes, reads, writes.
fn settles<T>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, StoreError>,
    encode: impl Fn(&T) -> Vec<u8>,
    same: impl Fn(&T, &T) -> bool,
) {
    match decode(bytes) {
        Ok(first) => {
            let written = encode(&first);
            // Defaults are not written, and nothing is made up but times and
            // authors of the first release, which an update writes.
            assert!(written.len() <= 2 * bytes.len() + 64, "it grows");
            let second = decode(&written).expect("what was written is read");
            assert!(same(&first, &second), "read as another");
            assert!(encode(&second) == written, "written in another way");
        }
        Err(error) => assert!(matches!(error, StoreError::Malformed(_))),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    let name = SecretName::parse("KEY").expect("a name");
    match kind % 11 {
        0 => settles(
            bytes,
            |b| codec::decode_metadata(&name, b),
            codec::encode_metadata,
            PartialEq::eq,
        ),
        1 => {
            let Some((uid, bytes)) = bytes.split_first_chunk() else { return };
            let key = Key::deleted(&name, SecretUid::from_bytes(*uid));
            settles(
                bytes,
                |b| codec::decode_deleted(&key, b),
                codec::encode_deleted,
                PartialEq::eq,
            );
        }
        2 => settles(bytes, codec::decode_trail, codec::encode_trail, PartialEq::eq),
        3 => settles(bytes, codec::decode_data_key, codec::encode_data_key, PartialEq::eq),
        4 => settles(bytes, codec::decode_tombstone, codec::encode_tombstone, PartialEq::eq),
        5 => settles(bytes, codec::decode_request, codec::encode_request, PartialEq::eq),
        6 => settles(bytes, |b| codec::decode_lease(&name, b), codec::encode_lease, PartialEq::eq),
        7 => settles(
            bytes,
            |b| codec::decode_usage(&name, b),
            |usage| codec::encode_usage(&name, usage),
            PartialEq::eq,
        ),
        8 => {
            let written = fuzzing::record(bytes);
            assert!(written.as_deref().is_none_or(|written| written == bytes));
            assert_eq!(written.is_some(), bytes.len() >= 8);
        }
        9 => {
            if let Ok(record) = SealedRecord::parse(bytes.to_vec()) {
                assert!(record.into_bytes() == bytes);
            }
        }
        _ => {
            let written = envelope::fuzzing::payload(bytes);
            assert!(written.is_none_or(|written| written == bytes));
        }
    }
});

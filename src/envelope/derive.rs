//! Keys derived from a data key (HKDF, RFC 5869).
//!
//! Where key bytes live, as read in aws-lc-rs 1.19.0 and aws-lc-sys 0.47.0:
//! `hkdf::Salt::extract` keeps a copy of its input on the heap and overwrites
//! it on drop; the PRK exists only on the stack of the C function `HKDF`,
//! which cleanses it; AES-GCM and HMAC contexts are cleansed when freed. But
//! the conversions from `hkdf::Okm` to `aead::UnboundKey` and `hmac::Key`
//! leave the key on the stack, so derived keys go through [`Zeroizing`]
//! buffers here, and are derived where they stay: what is moved leaves a copy
//! behind that nobody overwrites.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::{digest as sha2, hkdf, hmac};
use zeroize::Zeroizing;

use crate::domain::{DataKeyId, KeyMaterial};

// Each label names the format version and what the output is for.
const RECORD_KEY: &[u8] = b"workflow-secrets/v1/hkdf-sha512-aes-256-gcm/record-key";
const COMMITMENT: &[u8] = b"workflow-secrets/v1/hkdf-sha512-aes-256-gcm/commitment";
const FINGERPRINT: &[u8] = b"workflow-secrets/v1/hkdf-sha512-hmac-sha256/request-fingerprint";

/// Record keys that one data key keeps: those of the secrets that runs ask for again
/// and again. To derive them takes longer than all else that opening does.
const RECENT: usize = 16;

/// A workspace's data key. Cannot be printed or cloned; overwritten on drop, and with
/// it the record keys that were derived from it of late: they live no longer than
/// what they can be derived from.
pub struct DataKey {
    id: DataKeyId,
    material: KeyMaterial,
    /// By salt; what was used last comes last.
    recent: Mutex<Vec<([u8; 32], Arc<RecordKeys>)>>,
}

/// What one record is sealed with. Zeros until [`DataKey::derive`] fills it in.
#[derive(Default)]
pub(super) struct RecordKeys {
    pub(super) key: Zeroizing<[u8; 32]>,
    /// Fixes the data key: AES-GCM alone would let a record be made that opens
    /// under two keys.
    pub(super) commitment: Zeroizing<[u8; 32]>,
}

impl DataKey {
    /// A data key from its unwrapped bytes.
    pub fn new(id: DataKeyId, material: KeyMaterial) -> Self {
        Self { id, material, recent: Mutex::default() }
    }

    /// The id.
    pub fn id(&self) -> DataKeyId {
        self.id
    }

    /// HMAC-SHA-256 over `parts`, each after its length in eight bytes, under
    /// a key of its own. Tells whether two requests are the same; without the
    /// data key it cannot be computed, so a guessed value cannot be tested.
    pub fn fingerprint(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut key = Zeroizing::new([0; 32]);
        expand(&extract(hkdf::HKDF_SHA512, &[], self.material.expose()), FINGERPRINT, &mut *key);
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &*key));
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }

    /// The record keys of a stored record, which may be asked for again.
    #[allow(clippy::expect_used, reason = "zeros must not be taken for keys")]
    pub(super) fn kept_record_keys(&self, salt: &[u8; 32]) -> Arc<RecordKeys> {
        let found = |recent: &mut Vec<([u8; 32], Arc<RecordKeys>)>| {
            let at = recent.iter().position(|(of, _)| of == salt)?;
            let last = recent.remove(at);
            let keys = Arc::clone(&last.1);
            recent.push(last);
            Some(keys)
        };
        // No step under the lock leaves the list half changed.
        let lock = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = found(&mut lock()) {
            return keys;
        }
        let mut keys = Arc::<RecordKeys>::default();
        self.derive(salt, Arc::get_mut(&mut keys).expect("nobody else has it yet"));
        let mut recent = lock();
        // Another call may have been quicker.
        if let Some(keys) = found(&mut recent) {
            return keys;
        }
        if recent.len() >= RECENT {
            recent.remove(0);
        }
        recent.push((*salt, Arc::clone(&keys)));
        keys
    }

    /// Derives the record keys of a salt into `keys`.
    pub(super) fn derive(&self, salt: &[u8; 32], keys: &mut RecordKeys) {
        let prk = extract(hkdf::HKDF_SHA512, salt, self.material.expose());
        expand(&prk, RECORD_KEY, &mut *keys.key);
        expand(&prk, COMMITMENT, &mut *keys.commitment);
    }
}

/// SHA-256 over `parts`, each after its length in eight bytes. For what holds
/// no value: whoever sees the digest can test guesses.
pub fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = sha2::Context::new(&sha2::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

fn extract(algorithm: hkdf::Algorithm, salt: &[u8], secret: &[u8]) -> hkdf::Prk {
    hkdf::Salt::new(algorithm, salt).extract(secret)
}

/// Length of an output.
struct Len(usize);

impl hkdf::KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

#[allow(
    clippy::expect_used,
    reason = "HKDF refuses only outputs of over 255 hashes; ours have one"
)]
fn expand(prk: &hkdf::Prk, label: &[u8], out: &mut [u8]) {
    prk.expand(&[label], Len(out.len())).and_then(|okm| okm.fill(out)).expect("output fits");
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;

    fn data_key(byte: u8) -> DataKey {
        let material = KeyMaterial::take(&mut [byte; 32]).expect("32 bytes");
        DataKey::new(DataKeyId::from_bytes([byte; 16]), material)
    }

    #[test]
    fn hkdf_gives_the_published_vectors() {
        let vectors: Vec<Value> =
            serde_json::from_str(include_str!("../../tests/vectors/hkdf.json")).expect("JSON");
        assert_eq!(vectors.len(), 9);
        for vector in vectors {
            let bytes = |field: &str| {
                hex::decode(vector[field].as_str().expect("text")).expect("hexadecimal")
            };
            let algorithm = match vector["hash"].as_str() {
                Some("SHA-256") => hkdf::HKDF_SHA256,
                Some("SHA-512") => hkdf::HKDF_SHA512,
                other => panic!("{other:?}"),
            };
            let okm = bytes("okm");
            let mut out = vec![0; okm.len()];
            expand(&extract(algorithm, &bytes("salt"), &bytes("ikm")), &bytes("info"), &mut out);
            assert_eq!(out, okm, "{}", vector["source"]);
        }
    }

    #[test]
    fn every_use_salt_and_data_key_has_its_own_output() {
        let mut seen = HashSet::new();
        for key in [data_key(1), data_key(2)] {
            for salt in [[0; 32], [1; 32]] {
                let mut keys = RecordKeys::default();
                key.derive(&salt, &mut keys);
                assert!(seen.insert(*keys.key));
                assert!(seen.insert(*keys.commitment));
            }
            assert!(seen.insert(key.fingerprint(&[])));
        }
    }

    #[test]
    fn kept_record_keys_are_those_of_their_salt_and_few() {
        let key = data_key(1);
        let salts: Vec<[u8; 32]> = (0..=RECENT).map(|n| [u8::try_from(n).unwrap(); 32]).collect();
        let kept: Vec<_> = salts.iter().map(|salt| key.kept_record_keys(salt)).collect();
        for (salt, kept) in salts.iter().zip(&kept) {
            let mut derived = RecordKeys::default();
            key.derive(salt, &mut derived);
            assert_eq!(*derived.key, *kept.key);
            assert_eq!(*derived.commitment, *kept.commitment);
        }
        // The first made room for the last.
        assert_eq!(key.recent.lock().unwrap().len(), RECENT);
        assert_eq!(Arc::strong_count(&kept[0]), 1);
        assert!(Arc::ptr_eq(&kept[1], &key.kept_record_keys(&salts[1])));
        // Used again, the second stays; the third makes room.
        key.kept_record_keys(&[99; 32]);
        assert_eq!((Arc::strong_count(&kept[1]), Arc::strong_count(&kept[2])), (2, 1));
        drop(key);
        assert!(kept.iter().all(|keys| Arc::strong_count(keys) == 1), "gone with the data key");
    }

    #[test]
    fn fingerprints_tell_requests_apart() {
        let key = data_key(1);
        let one = key.fingerprint(&[b"ab", b"c"]);
        assert_eq!(one, data_key(1).fingerprint(&[b"ab", b"c"]));
        assert_ne!(one, key.fingerprint(&[b"a", b"bc"]));
        assert_ne!(one, key.fingerprint(&[b"abc"]));
        assert_ne!(one, key.fingerprint(&[b"ab", b"c", b""]));
        assert_ne!(one, data_key(2).fingerprint(&[b"ab", b"c"]));
    }
}

//! Sealing and opening values.
//!
//! A payload is, big-endian: version u64, expiry (flag u8, seconds i64, nanos
//! u32, all zero for none), value length u32, value, zeros up to the next size
//! of the padding.

use std::borrow::Borrow;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    constant_time,
    error::Unspecified,
};
use zeroize::Zeroizing;

use super::{
    Binding, Corrupt, DataKey, SealedRecord,
    derive::RecordKeys,
    record::{Header, PAYLOAD_OVERHEAD, TAG_LEN, padded_len, take},
};
use crate::domain::{Plaintext, Timestamp};

/// What is sealed: the value and what Resolve must know of it. To seal, the
/// value may be borrowed.
pub struct Payload<V = Plaintext> {
    /// Number of the value.
    pub version: u64,
    /// From then on it no longer resolves.
    pub expire_time: Option<Timestamp>,
    /// The value.
    pub value: V,
}

/// Why a value was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The operating system gave no random bytes.
    #[error("no randomness from the operating system")]
    Randomness,
    /// AES-GCM could not be set up: out of memory.
    #[error("cipher failed")]
    Cipher,
}

/// Seals a payload for one place. Salt and nonce are fresh from the operating
/// system each time, so each record has a key of its own.
///
/// # Errors
/// See [`SealError`]; nothing of the payload is left behind.
pub fn seal<V: Borrow<Plaintext>>(
    key: &DataKey,
    binding: &Binding<'_>,
    payload: &Payload<V>,
) -> Result<SealedRecord, SealError> {
    let _span = tracing::debug_span!("seal").entered();
    let (mut salt, mut nonce) = ([0; 32], [0; 12]);
    getrandom::fill(&mut salt).map_err(|_| SealError::Randomness)?;
    getrandom::fill(&mut nonce).map_err(|_| SealError::Randomness)?;
    let mut keys = RecordKeys::default();
    key.derive(&salt, &mut keys);
    let commitment = *keys.commitment;
    let header = Header { data_key: key.id(), revision: binding.revision, salt, nonce, commitment };

    let mut buffer = encode(payload);
    let aad = binding.associated_data(&header, key.id());
    let tag = encrypt(&keys.key, nonce, &aad, &mut buffer).map_err(|_| SealError::Cipher)?;
    Ok(SealedRecord { header, ciphertext: std::mem::take(&mut *buffer), tag })
}

/// Opens a record that was sealed with this key for this place.
///
/// # Errors
/// [`Corrupt`]: any other key, place or byte. Nothing is decrypted before the
/// key commitment is checked, and nothing is returned before the tag is.
pub fn open(
    key: &DataKey,
    binding: &Binding<'_>,
    record: &SealedRecord,
) -> Result<Payload, Corrupt> {
    let _span = tracing::debug_span!("open").entered();
    let header = &record.header;
    if header.data_key != key.id() || header.revision != binding.revision {
        return Err(Corrupt::Mismatch);
    }
    let keys = key.kept_record_keys(&header.salt);
    constant_time::verify_slices_are_equal(&*keys.commitment, &header.commitment)
        .map_err(|_| Corrupt::Commitment)?;
    let aad = binding.associated_data(header, key.id());
    let payload = decrypt(&keys.key, header.nonce, &aad, &record.ciphertext, &record.tag)
        .map_err(|_| Corrupt::Authentication)?;
    decode(&payload).ok_or(Corrupt::Content)
}

fn encrypt(
    key: &[u8; 32],
    nonce: [u8; 12],
    aad: &[u8],
    buffer: &mut [u8],
) -> Result<[u8; TAG_LEN], Unspecified> {
    let tag = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key)?).seal_in_place_separate_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(aad),
        buffer,
    )?;
    tag.as_ref().try_into().map_err(|_| Unspecified)
}

fn decrypt(
    key: &[u8; 32],
    nonce: [u8; 12],
    aad: &[u8],
    ciphertext: &[u8],
    tag: &[u8; TAG_LEN],
) -> Result<Zeroizing<Vec<u8>>, Unspecified> {
    let mut plaintext = Zeroizing::new(vec![0; ciphertext.len()]);
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key)?).open_separate_gather(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(aad),
        ciphertext,
        tag,
        &mut plaintext,
    )?;
    Ok(plaintext)
}

pub(super) fn encode<V: Borrow<Plaintext>>(payload: &Payload<V>) -> Zeroizing<Vec<u8>> {
    let value = payload.value.borrow().expose().as_bytes();
    let len = padded_len(PAYLOAD_OVERHEAD + value.len());
    // As large as it gets, so that it never moves and leaves a copy behind.
    let mut buffer = Zeroizing::new(Vec::with_capacity(len));
    buffer.extend(payload.version.to_be_bytes());
    let (seconds, nanos) = payload.expire_time.map_or((0, 0), |t| (t.seconds(), t.nanos()));
    buffer.push(u8::from(payload.expire_time.is_some()));
    buffer.extend(seconds.to_be_bytes());
    buffer.extend(nanos.to_be_bytes());
    // A value has at most 64 KiB.
    buffer.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
    buffer.extend_from_slice(value);
    buffer.resize(len, 0);
    buffer
}

/// Reads exactly what [`encode`] writes.
pub(super) fn decode(mut payload: &[u8]) -> Option<Payload> {
    let padded = payload.len();
    let version = u64::from_be_bytes(take(&mut payload)?);
    let flag = u8::from_be_bytes(take(&mut payload)?);
    let seconds = i64::from_be_bytes(take(&mut payload)?);
    let nanos = u32::from_be_bytes(take(&mut payload)?);
    let expire_time = match (flag, seconds, nanos) {
        (0, 0, 0) => None,
        (1, ..) => Some(Timestamp::new(seconds, nanos)?),
        _ => return None,
    };
    let len = usize::try_from(u32::from_be_bytes(take(&mut payload)?)).ok()?;
    let (value, padding) = payload.split_at_checked(len)?;
    if padded_len(PAYLOAD_OVERHEAD + len) != padded || padding.iter().any(|&byte| byte != 0) {
        return None;
    }
    let value = Plaintext::try_from(Zeroizing::new(value.to_vec())).ok()?;
    Some(Payload { version, expire_time, value })
}

#[cfg(test)]
mod tests;

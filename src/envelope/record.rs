//! Layout of a sealed value at rest. All integers are big-endian.
//!
//! | Bytes | Field |
//! |---|---|
//! | 4 | magic `WFS1` |
//! | 2 | suite: 1 is HKDF-SHA-512 with AES-256-GCM |
//! | 16 | data-key id |
//! | 8 | revision of the record |
//! | 32 | salt of the key derivation |
//! | 12 | nonce |
//! | 32 | key commitment |
//! | n | ciphertext; n is a size of [`padded_len`] |
//! | 16 | tag |

use super::Corrupt;
use crate::domain::{DataKeyId, MAX_VALUE_BYTES, Revision};

const MAGIC: [u8; 4] = *b"WFS1";
/// HKDF-SHA-512 and AES-256-GCM.
const SUITE: [u8; 2] = [0, 1];

/// All up to the ciphertext.
pub(super) const HEADER_LEN: usize = 106;
pub(super) const TAG_LEN: usize = 16;

/// What a payload holds besides the value: version, expiry, value length.
pub(super) const PAYLOAD_OVERHEAD: usize = 8 + 1 + 8 + 4 + 4;
const MAX_PAYLOAD_LEN: usize = padded_len(PAYLOAD_OVERHEAD + MAX_VALUE_BYTES);

/// The size a payload is padded to, so that a record's length tells little of
/// the value's: powers of two from 64 to 4,096, then multiples of 4,096.
pub(super) const fn padded_len(len: usize) -> usize {
    if len <= 64 {
        64
    } else if len <= 4096 {
        len.next_power_of_two()
    } else {
        len.next_multiple_of(4096)
    }
}

/// Splits the first `N` bytes off.
pub(super) fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

/// What precedes the ciphertext.
pub(super) struct Header {
    pub(super) data_key: DataKeyId,
    pub(super) revision: Revision,
    pub(super) salt: [u8; 32],
    pub(super) nonce: [u8; 12],
    pub(super) commitment: [u8; 32],
}

impl Header {
    pub(super) fn write_to(&self, bytes: &mut Vec<u8>) {
        bytes.extend(MAGIC);
        bytes.extend(SUITE);
        bytes.extend(self.data_key.as_bytes());
        bytes.extend(self.revision.as_u64().to_be_bytes());
        bytes.extend(self.salt);
        bytes.extend(self.nonce);
        bytes.extend(self.commitment);
    }

    /// Splits a header off. What is read is exactly what [`Self::write_to`]
    /// would write again.
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        if take(bytes)? != MAGIC || take(bytes)? != SUITE {
            return None;
        }
        Some(Self {
            data_key: DataKeyId::from_bytes(take(bytes)?),
            revision: Revision::from_u64(u64::from_be_bytes(take(bytes)?)),
            salt: take(bytes)?,
            nonce: take(bytes)?,
            commitment: take(bytes)?,
        })
    }
}

/// A sealed value as it lies in the store. Whoever holds one knows that its
/// layout is right, and nothing more: only [`super::open`] tells whether it is
/// authentic.
pub struct SealedRecord {
    pub(super) header: Header,
    pub(super) ciphertext: Vec<u8>,
    pub(super) tag: [u8; TAG_LEN],
}

impl SealedRecord {
    /// Reads the layout.
    ///
    /// # Errors
    /// [`Corrupt::Layout`]: another format or suite, or a length that no value
    /// has.
    // Taken by value: the store hands its bytes over.
    pub fn parse(mut bytes: Vec<u8>) -> Result<Self, Corrupt> {
        let mut rest = bytes.as_slice();
        let header = Header::take(&mut rest).ok_or(Corrupt::Layout)?;
        let (ciphertext, tag) = rest.split_last_chunk().ok_or(Corrupt::Layout)?;
        let (len, tag) = (ciphertext.len(), *tag);
        if len > MAX_PAYLOAD_LEN || padded_len(len) != len {
            return Err(Corrupt::Layout);
        }
        bytes.drain(..HEADER_LEN);
        bytes.truncate(len);
        Ok(Self { header, ciphertext: bytes, tag })
    }

    /// The data key that opens it, if the record is authentic.
    pub fn data_key_id(&self) -> DataKeyId {
        self.header.data_key
    }

    /// The revision it was written at, if the record is authentic.
    pub fn revision(&self) -> Revision {
        self.header.revision
    }

    /// The bytes to store.
    pub fn into_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.ciphertext.len() + TAG_LEN);
        self.header.write_to(&mut bytes);
        bytes.extend(self.ciphertext);
        bytes.extend(self.tag);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ciphertext_len: usize) -> Vec<u8> {
        let header = Header {
            data_key: DataKeyId::from_bytes([1; 16]),
            revision: Revision::from_u64(2),
            salt: [3; 32],
            nonce: [4; 12],
            commitment: [5; 32],
        };
        SealedRecord { header, ciphertext: vec![6; ciphertext_len], tag: [7; 16] }.into_bytes()
    }

    #[test]
    fn layout_is_as_documented() {
        let bytes = record(64);
        assert_eq!(bytes.len(), HEADER_LEN + 64 + TAG_LEN);
        let expected = [
            &b"WFS1"[..],
            &[0, 1],
            &[1; 16],
            &[0, 0, 0, 0, 0, 0, 0, 2],
            &[3; 32],
            &[4; 12],
            &[5; 32],
            &[6; 64],
            &[7; 16],
        ]
        .concat();
        assert_eq!(bytes, expected);
        let parsed = SealedRecord::parse(bytes).expect("parses");
        assert_eq!(parsed.data_key_id(), DataKeyId::from_bytes([1; 16]));
        assert_eq!(parsed.revision(), Revision::from_u64(2));
        assert_eq!(parsed.into_bytes(), expected);
    }

    #[test]
    fn only_sizes_of_the_padding_parse() {
        for len in [64, 128, 256, 512, 1024, 2048, 4096, 8192, 12_288, MAX_PAYLOAD_LEN] {
            assert!(SealedRecord::parse(record(len)).is_ok(), "{len}");
            assert!(SealedRecord::parse(record(len - 1)).is_err(), "{len} - 1");
            assert!(SealedRecord::parse(record(len + 1)).is_err(), "{len} + 1");
        }
        assert!(SealedRecord::parse(record(0)).is_err());
        assert!(SealedRecord::parse(record(32)).is_err());
        assert!(SealedRecord::parse(record(MAX_PAYLOAD_LEN + 4096)).is_err());
    }

    #[test]
    fn padded_sizes() {
        for (len, padded) in
            [(0, 64), (64, 64), (65, 128), (2049, 4096), (4096, 4096), (4097, 8192), (8193, 12_288)]
        {
            assert_eq!(padded_len(len), padded, "{len}");
        }
    }
}

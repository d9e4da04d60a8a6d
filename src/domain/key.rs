//! Data keys: the id, the bytes in memory, the wrapped form.

use zeroize::{Zeroize, Zeroizing};

use super::{DataKeyId, Timestamp};

/// The 32 secret bytes of a data key. They stay at one place on the heap,
/// cannot be printed or cloned, and are overwritten on drop.
pub struct KeyMaterial(Box<Zeroizing<[u8; 32]>>);

/// A key that is not 32 bytes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyMaterialLength;

impl KeyMaterial {
    /// Copies 32 bytes in and overwrites the source.
    ///
    /// # Errors
    /// The source has another length; it is overwritten all the same.
    pub fn take(source: &mut [u8]) -> Result<Self, KeyMaterialLength> {
        let mut key = Box::new(Zeroizing::new([0; 32]));
        let fits = source.len() == key.len();
        if fits {
            key.copy_from_slice(source);
        }
        source.zeroize();
        if fits { Ok(Self(key)) } else { Err(KeyMaterialLength) }
    }

    /// The bytes, for key derivation only.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A data key as the KMS wrapped it. Not secret, yet never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappedDataKey {
    /// The data key's id.
    pub id: DataKeyId,
    /// The blob to hand to Decrypt.
    pub blob: Vec<u8>,
    /// The key-encryption key, as the KMS names it.
    pub kms_key_id: String,
    /// When it was made.
    pub create_time: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_overwrites_the_source() {
        let mut source = [7; 32];
        let key = KeyMaterial::take(&mut source);
        assert_eq!(source, [0; 32]);
        assert_eq!(key.ok().map(|k| *k.expose()), Some([7; 32]));
        let mut short = [7; 31];
        assert!(KeyMaterial::take(&mut short).is_err());
        assert_eq!(short, [0; 31]);
    }
}

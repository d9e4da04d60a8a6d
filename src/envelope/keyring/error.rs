//! Why there is no data key.

use crate::{kms::KmsError, store::StoreError};

/// Why there is no data key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The KMS is unavailable, was not asked, or refuses to use the
    /// key-encryption key. Never [`KmsError::WrongCiphertext`].
    #[error(transparent)]
    Kms(KmsError),
    /// The store does not answer. Never [`StoreError::Malformed`].
    #[error(transparent)]
    Store(StoreError),
    /// The workspace was destroyed.
    #[error("workspace shredded")]
    Shredded,
    /// The data key is gone from the store while records remain. It must be
    /// restored; a new one would bury what the old one sealed.
    #[error("data key missing")]
    Missing,
    /// What is stored of the data key is wrong: it will never unwrap.
    #[error("data key corrupt: {0}")]
    Corrupt(&'static str),
}

impl From<KmsError> for KeyError {
    fn from(error: KmsError) -> Self {
        match error {
            KmsError::WrongCiphertext(why) => Self::Corrupt(why),
            KmsError::Transient(_)
            | KmsError::Down { .. }
            | KmsError::OverBudget { .. }
            | KmsError::KeyUnusable(_) => Self::Kms(error),
        }
    }
}

impl From<StoreError> for KeyError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Malformed(why) => Self::Corrupt(why),
            _ => Self::Store(error),
        }
    }
}

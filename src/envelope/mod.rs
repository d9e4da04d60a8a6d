//! Floor 2: sealed values and the data keys that seal them.
//!
//! A key-encryption key in the KMS wraps one data key per workspace; each
//! write derives its own record key from the data key (HKDF-SHA-512) and seals
//! the value with it (AES-256-GCM). [`seal`] and [`open`] do the latter,
//! [`Keyring`] brings the data keys.

mod binding;
mod cache;
mod derive;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod keyring;
mod record;
mod seal;

pub use binding::Binding;
pub use derive::{DataKey, digest};
pub use keyring::{KeyError, Keyring, KeyringConfig};
pub use record::SealedRecord;
pub use seal::{Payload, SealError, open, seal};

/// A stored value that does not open under the key and binding at hand. It
/// tells which check failed, never with which bytes. Asking again does not
/// help: what is stored is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// Not a record of a known format and suite.
    #[error("sealed value is not a record of this format")]
    Layout,
    /// Written at another revision or under another data key.
    #[error("sealed value names another revision or data key")]
    Mismatch,
    /// The key commitment differs: another data key sealed it, or its header
    /// was changed.
    #[error("sealed value was made with another key")]
    Commitment,
    /// AES-GCM refused it: changed, or bound to something else.
    #[error("sealed value fails authentication")]
    Authentication,
    /// Authentic, yet its content is not a payload.
    #[error("sealed value has malformed content")]
    Content,
}

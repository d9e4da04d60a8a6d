//! Floor 1: the key-encryption key, which never leaves its KMS.

pub mod aws;
mod guard;
pub mod local;

mod measured;

use std::time::Duration;

use async_trait::async_trait;

pub use self::{
    guard::{GuardConfig, Guarded},
    measured::MeasuredKms,
};
use crate::domain::{DataKeyId, Environment, KeyMaterial, Timestamp, WorkspaceId, WrappedDataKey};

/// What a wrapped data key is bound to. Rebuilt from the authorized request
/// each time and never read from the store, so a blob moved elsewhere does not
/// unwrap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptionContext {
    /// The deployment.
    pub environment: Environment,
    /// The workspace of the authorized request.
    pub workspace: WorkspaceId,
    /// The data key to make or unwrap.
    pub data_key: DataKeyId,
}

impl EncryptionContext {
    /// Value of the pair `service`.
    pub const SERVICE: &'static str = "workflow-secrets";

    /// The pairs, in the order of their keys' bytes.
    pub fn pairs(&self) -> [(&'static str, String); 4] {
        [
            ("data_key", self.data_key.to_string()),
            ("environment", self.environment.to_string()),
            ("service", Self::SERVICE.to_owned()),
            ("workspace", self.workspace.to_string()),
        ]
    }
}

/// Why a KMS call failed. Holds no key, no ciphertext and no response body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KmsError {
    /// Throttled, timed out, 5xx or no connection: the same call may succeed
    /// later.
    #[error("KMS unavailable: {0}")]
    Transient(&'static str),
    /// Calls failed one after another, so this one was not made.
    #[error("KMS unavailable: calls failed one after another, and are not made for a while")]
    Down {
        /// After that one may be made.
        wait: Duration,
    },
    /// The workspace has made as many calls as it may; this one was not made.
    #[error("the workspace has made too many KMS calls")]
    OverBudget {
        /// After that it may make one.
        wait: Duration,
    },
    /// The key-encryption key cannot be used: disabled, pending deletion,
    /// deleted or denied. An operator must act.
    #[error("key-encryption key unusable: {0}")]
    KeyUnusable(&'static str),
    /// The blob, its context or its key is wrong: it will never unwrap.
    #[error("data key does not unwrap: {0}")]
    WrongCiphertext(&'static str),
}

/// A key-management service: wraps and unwraps data keys.
///
/// Implementations bound each call's time and retries. [`Guarded`] bounds how
/// many there are.
#[async_trait]
pub trait Kms: Send + Sync + 'static {
    /// Makes a 256-bit data key and returns only its wrapped form; the
    /// plaintext is overwritten. Before first use it is unwrapped as any
    /// other, which proves that it can be.
    async fn generate_data_key(
        &self,
        context: &EncryptionContext,
        now: Timestamp,
    ) -> Result<WrappedDataKey, KmsError>;

    /// Unwraps a data key. The id in `context` must be that of `wrapped`.
    async fn decrypt(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDataKey,
    ) -> Result<KeyMaterial, KmsError>;

    /// Wraps a data key anew, with the key-encryption key that wraps new ones.
    /// Its plaintext does not leave the KMS. Id and time stay.
    async fn rewrap(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDataKey,
    ) -> Result<WrappedDataKey, KmsError>;

    /// The key-encryption key that wraps new data keys, as it was configured.
    fn key_name(&self) -> &str;

    /// Forgets what it remembers of workspaces that make no calls. To be called
    /// now and then.
    fn tidy(&self) {}
}

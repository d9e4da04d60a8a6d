//! Wraps data keys anew.

use aws_lc_rs::constant_time;

use super::{KeyError, Keyring};
use crate::domain::{WorkspaceId, WrappedDataKey};

impl Keyring {
    /// Wraps a data key with the key-encryption key that wraps new ones. What
    /// comes back was unwrapped, and is the same key.
    ///
    /// # Errors
    /// See [`KeyError`]. Safe to call again.
    pub async fn rewrap(
        &self,
        workspace: &WorkspaceId,
        wrapped: &WrappedDataKey,
    ) -> Result<WrappedDataKey, KeyError> {
        let context = self.0.context(workspace, wrapped.id);
        let anew = self.0.kms.rewrap(&context, wrapped).await?;
        let before = self.0.kms.decrypt(&context, wrapped).await?;
        let after = self.0.kms.decrypt(&context, &anew).await?;
        constant_time::verify_slices_are_equal(before.expose(), after.expose())
            .map_err(|_| KeyError::Corrupt("the KMS wrapped another key than asked for"))?;
        Ok(anew)
    }

    /// The key-encryption key that wraps new data keys, as it was configured.
    pub fn kms_key(&self) -> &str {
        self.0.kms.key_name()
    }
}

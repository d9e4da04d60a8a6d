//! Wraps data keys anew.

use aws_lc_rs::constant_time;

use super::{KeyError, Keyring};
use crate::{
    domain::{WorkspaceId, WrappedDataKey},
    kms::KmsError,
};

impl Keyring {
    /// Wraps a data key with the key-encryption key that wraps new ones. What
    /// comes back was unwrapped, and is the same key. Waits while the workspace
    /// has made as many KMS calls as it may: whoever wraps anew has many keys.
    ///
    /// # Errors
    /// See [`KeyError`]. Safe to call again.
    pub async fn rewrap(
        &self,
        workspace: &WorkspaceId,
        wrapped: &WrappedDataKey,
    ) -> Result<WrappedDataKey, KeyError> {
        let context = self.0.context(workspace, wrapped.id);
        let kms = &self.0.kms;
        let anew = within_budget(|| kms.rewrap(&context, wrapped)).await?;
        let before = within_budget(|| kms.decrypt(&context, wrapped)).await?;
        let after = within_budget(|| kms.decrypt(&context, &anew)).await?;
        constant_time::verify_slices_are_equal(before.expose(), after.expose())
            .map_err(|_| KeyError::Corrupt("the KMS wrapped another key than asked for"))?;
        Ok(anew)
    }

    /// The key-encryption key that wraps new data keys, as it was configured.
    pub fn kms_key(&self) -> &str {
        self.0.kms.key_name()
    }
}

/// Makes a call, again and again until the budget of the workspace allows it.
async fn within_budget<T, F>(call: impl Fn() -> F) -> Result<T, KmsError>
where
    F: Future<Output = Result<T, KmsError>>,
{
    loop {
        match call().await {
            Err(KmsError::OverBudget { wait }) => tokio::time::sleep(wait).await,
            outcome => return outcome,
        }
    }
}

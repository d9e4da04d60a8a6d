//! RotateDataKey.

use std::sync::Arc;

use super::{MAX_DATA_KEYS, WorkspaceKeys, authorize};
use crate::{
    domain::{DataKeyId, WorkspaceId},
    service::{ActiveKey, Caller, Error, Secrets, admission::Weight, audit::Action},
    store::Key,
};

/// A workspace that is to get a new data key.
pub struct RotateDataKey {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// Only if this is the active one; `None`: whichever is.
    pub data_key: Option<DataKeyId>,
}

impl Secrets {
    /// Makes a new data key for new writes; what is stored still opens with the
    /// earlier ones. If the active key is not the one named, nothing is done,
    /// so a call that names it may be repeated.
    ///
    /// # Errors
    /// [`Error::NoDataKey`], [`Error::TooManyDataKeys`] and those of every call.
    pub async fn rotate_data_key(
        self: &Arc<Self>,
        caller: &Caller,
        request: RotateDataKey,
    ) -> Result<WorkspaceKeys, Error> {
        let (secrets, who) = (Arc::clone(self), caller.clone());
        self.apart(caller.deadline, async move {
            let outcome = secrets.replace_data_key(&who, &request).await;
            let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
            (secrets.event(&who, &request.workspace, Action::RotateDataKey, reason), outcome)
        })
        .await
    }

    async fn replace_data_key(
        &self,
        caller: &Caller,
        request: &RotateDataKey,
    ) -> Result<WorkspaceKeys, Error> {
        let RotateDataKey { workspace, data_key } = request;
        authorize(&self.grants(caller, workspace))?;
        let _turn = self.turn(caller, workspace, Weight::LIGHT).await?;
        let [active] = self.read(workspace, [Key::active_data_key()]).await?;
        let Some(active) = ActiveKey::decode(active)? else {
            let left = self.store.keys(workspace, "", 1).await?;
            return Err(if left.is_empty() { Error::NoDataKey } else { Error::DataKeyMissing });
        };
        if data_key.is_none_or(|wanted| wanted == active.wrapped.id) {
            self.next_data_key(caller, workspace, active.wrapped.id).await?;
        }
        self.stored_keys(workspace).await
    }

    /// Puts a new data key in the place of this one, unless the audit stream is
    /// in trouble. Of calls at once one does it; it is told so.
    pub(super) async fn next_data_key(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
        replaced: DataKeyId,
    ) -> Result<bool, Error> {
        let keys = self.store.keys(workspace, Key::DATA_KEY, MAX_DATA_KEYS).await?;
        if keys.len() == MAX_DATA_KEYS {
            return Err(Error::TooManyDataKeys);
        }
        self.audit.flush().await.map_err(|_| Error::AuditUnavailable)?;
        let trail = self.keys_trail(caller, Action::RotateDataKey);
        let (_, started) = self.keyring.rotate(workspace, replaced, trail).await?;
        Ok(started)
    }
}

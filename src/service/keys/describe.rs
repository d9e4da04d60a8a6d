//! DescribeWorkspaceKeys.

use super::{MAX_DATA_KEYS, authorize};
use crate::{
    domain::WorkspaceId,
    service::{Caller, Error, Secrets, admission::Weight, audit::Action},
    store::{
        Key,
        codec::{self, StoredKey},
    },
};

/// A workspace whose data keys are to be told.
pub struct DescribeWorkspaceKeys {
    /// The workspace.
    pub workspace: WorkspaceId,
}

/// The data keys of a workspace, in their wrapped form.
pub struct WorkspaceKeys {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The active one first, then those it took the place of, the latest first.
    pub keys: Vec<StoredKey>,
}

impl Secrets {
    /// Tells the data keys of a workspace, never their bytes. Needs no KMS.
    ///
    /// # Errors
    /// Those of every call.
    pub async fn describe_keys(
        &self,
        caller: &Caller,
        request: DescribeWorkspaceKeys,
    ) -> Result<WorkspaceKeys, Error> {
        let workspace = &request.workspace;
        let outcome = self.in_time(caller, self.described(caller, workspace)).await;
        let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
        let event = self.event(caller, workspace, Action::DescribeKeys, reason);
        self.audited(caller.deadline, vec![event], outcome).await
    }

    async fn described(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
    ) -> Result<WorkspaceKeys, Error> {
        authorize(&self.grants(caller, workspace))?;
        let _turn = self.turn(caller, workspace, Weight::LIGHT).await?;
        self.stored_keys(workspace).await
    }

    pub(super) async fn stored_keys(
        &self,
        workspace: &WorkspaceId,
    ) -> Result<WorkspaceKeys, Error> {
        // More than may be: two rotations at once may pass the limit together.
        let limit = 2 * MAX_DATA_KEYS;
        let records = self.store.scan(workspace, Key::DATA_KEY, None, limit).await?;
        let [] = self.read(workspace, []).await?;
        let keys = records.iter().map(|(_, record)| codec::decode_data_key(&record.bytes));
        let mut keys = keys.collect::<Result<Vec<_>, _>>()?;
        keys.sort_by_key(|key| std::cmp::Reverse((key.retire_time.is_none(), key.retire_time)));
        Ok(WorkspaceKeys { workspace: workspace.clone(), keys })
    }
}

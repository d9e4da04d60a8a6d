//! ShredWorkspace.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::authorize;
use crate::{
    domain::{Revision, Timestamp, WorkspaceId},
    service::{Caller, Error, Secrets, admission::Weight, audit::Action, principal},
    store::{
        Key, Record,
        codec::{self, Tombstone},
    },
};

/// A workspace to destroy; its name was given twice.
pub struct ShredWorkspace {
    /// The workspace.
    pub workspace: WorkspaceId,
}

/// A workspace that was destroyed.
pub struct ShreddedWorkspace {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// When.
    pub time: Timestamp,
    /// By whom.
    pub by: String,
    /// Records destroyed by this call: 0 if it was repeated.
    pub records: u64,
}

impl Secrets {
    /// Destroys a workspace for good: data keys, secrets, all else there is of
    /// it, and what is remembered of its requests. A tombstone stays, and from
    /// then on every call in the workspace fails. May be repeated.
    ///
    /// # Errors
    /// Those of every call. The workspace may be destroyed all the same, unless
    /// it is [`Error::NotGranted`].
    pub async fn shred(
        self: &Arc<Self>,
        caller: &Caller,
        request: ShredWorkspace,
    ) -> Result<ShreddedWorkspace, Error> {
        let (secrets, who) = (Arc::clone(self), caller.clone());
        self.apart(caller.deadline, async move {
            let outcome = secrets.destroy(&who, &request.workspace).await;
            let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
            (secrets.event(&who, &request.workspace, Action::Shred, reason), outcome)
        })
        .await
    }

    async fn destroy(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
    ) -> Result<ShreddedWorkspace, Error> {
        authorize(&self.grants(caller, workspace))?;
        let _turn = self.turn(caller, workspace, Weight::LIGHT).await?;
        self.audit.flush().await.map_err(|_| Error::AuditUnavailable)?;
        let tombstone = Tombstone { time: self.clock.now(), by: principal(caller) };
        let bytes = codec::encode_tombstone(&tombstone);
        let tombstone = Record { revision: Revision::initial(), bytes };
        let shredded = self.store.shred(workspace, tombstone).await;
        // Also if it failed: perhaps it was carried out.
        self.keyring.evict(workspace);
        self.matchers.forget(workspace);
        let shredded = shredded?;
        let Tombstone { time, by } = codec::decode_tombstone(&shredded.tombstone.bytes)?;
        let (workspace, records) = (workspace.clone(), shredded.records);
        Ok(ShreddedWorkspace { workspace, time, by, records })
    }

    /// The workspaces whose data keys are in memory.
    pub async fn workspaces_with_keys(&self) -> BTreeSet<WorkspaceId> {
        self.keyring.workspaces().await
    }

    /// Looks, within `pass`, whether workspaces whose data keys are in memory
    /// were destroyed by another replica, and overwrites those keys. They serve
    /// no call any more, as each looks for the tombstone. To be called over and
    /// over: then no key outlives its workspace by more than two passes.
    pub async fn forget_shredded(&self, pass: Duration) {
        let cached = self.workspaces_with_keys().await;
        let pause = u32::try_from(cached.len().max(1)).map_or(Duration::ZERO, |n| pass / n);
        if cached.is_empty() {
            tokio::time::sleep(pause).await;
        }
        for workspace in cached {
            tokio::time::sleep(pause).await;
            // A store that fails is told of elsewhere, and asked again next time.
            let found = self.store.read(&workspace, &[Key::tombstone()]).await;
            if found.is_ok_and(|records| records.iter().any(Option::is_some)) {
                self.keyring.evict(&workspace);
                self.matchers.forget(&workspace);
            }
        }
    }
}

//! Data keys are rotated by themselves when they are old or have served for
//! many changes.

use std::sync::Arc;

use super::{AuditEvent, Secrets};
use crate::{
    domain::{Revision, WorkspaceId},
    service::{ActiveKey, Caller, Error, audit::Action},
    store::{Batch, Expect, Key, Operation, Record, Write, codec},
};

/// When a data key is replaced without anybody asking for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rotation {
    /// From this age on.
    pub age: Option<std::time::Duration>,
    /// After so many changes of the workspace.
    pub changes: Option<u64>,
}

impl Secrets {
    /// Rotates the data key of a workspace that was just changed, if it is due.
    /// In the background: the change does not wait for it, and its failure is
    /// no failure of the change. The next one finds it due again.
    pub(in crate::service) fn rotate_if_due(
        self: &Arc<Self>,
        caller: &Caller,
        workspace: &WorkspaceId,
        active: ActiveKey,
    ) {
        let Rotation { age, changes } = self.limits.rotation;
        let due = age.and_then(|age| active.wrapped.create_time.checked_add(age));
        let old = due.is_some_and(|due| due <= self.clock.now());
        if !old && changes.is_none() || self.ending.is_cancelled() {
            return;
        }
        let (secrets, caller, workspace) = (Arc::clone(self), caller.clone(), workspace.clone());
        self.changes.spawn(async move {
            let outcome = secrets.rotate_due(&caller, &workspace, &active, old).await;
            match outcome {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(%workspace, old, "data key rotated: it was due");
                    let event =
                        AuditEvent::new(secrets.clock.now(), &caller, Action::RotateDataKey, "ok");
                    let event = AuditEvent { workspace: Some(workspace), ..event };
                    if secrets.audit.write(vec![event.clone()]).await.is_err() {
                        tracing::error!(?event, "CHANGE MADE, AUDIT LINE NOT WRITTEN");
                    }
                }
                // Calls that these stop tell of them too.
                Err(
                    error @ (Error::KmsUnavailable { .. }
                    | Error::KmsBudgetExceeded { .. }
                    | Error::StoreUnavailable(_)
                    | Error::ConcurrentUpdate
                    | Error::WorkspaceShredded),
                ) => tracing::debug!(%workspace, %error, "data key not rotated"),
                Err(error) => tracing::warn!(%workspace, %error, "data key due, but not rotated"),
            }
        });
    }

    /// Whether it did.
    async fn rotate_due(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
        active: &ActiveKey,
        old: bool,
    ) -> Result<bool, Error> {
        let [now] = self.read(workspace, [Key::active_data_key()]).await?;
        let Some(now) = now.filter(|now| now.revision == active.revision) else {
            return Ok(false);
        };
        if !old && !self.served_long(workspace, now).await? {
            return Ok(false);
        }
        self.next_data_key(caller, workspace, active.wrapped.id).await
    }

    /// Whether the key has served for as many changes as it may. Of the first
    /// key of a workspace it is not known since when it serves: then it is from
    /// now on.
    async fn served_long(&self, workspace: &WorkspaceId, record: Record) -> Result<bool, Error> {
        let most = self.limits.rotation.changes.unwrap_or(u64::MAX);
        let revision = self.store.revision(workspace).await?.map_or(0, Revision::as_u64);
        let mut stored = codec::decode_data_key(&record.bytes)?;
        if let Some(since) = stored.since {
            return Ok(revision.saturating_sub(since.as_u64()) >= most);
        }
        stored.since = Some(Revision::from_u64(revision));
        let bytes = codec::encode_data_key(&stored);
        let operation = Operation {
            key: Key::active_data_key(),
            expect: Some(Expect::Revision(record.revision)),
            write: Write::Put(Record { revision: record.revision.next(), bytes }),
        };
        self.commit(workspace, Batch { operations: vec![operation], ..Batch::default() }).await?;
        Ok(false)
    }
}

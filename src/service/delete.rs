//! DeleteSecret.

use std::{sync::Arc, time::Duration};

use super::{
    Caller, Error, Grants, Secrets, Stored,
    audit::Action,
    change::{Change, Changed, Snapshot, may_change, remember},
    idempotency::Parts,
    keys,
};
use crate::{
    domain::{DeletedSecret, Etag, ManagedBy, RequestId, SecretName, WorkspaceId},
    store::{Batch, Expect, Key, Operation, Quota, Record, Write, codec},
};

/// A secret to delete.
pub struct DeleteSecret {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The name.
    pub name: SecretName,
    /// Delete only this state of it.
    pub etag: Option<Etag>,
    /// For good at once.
    pub permanent: bool,
    /// Idempotency key.
    pub request_id: Option<RequestId>,
}

impl Secrets {
    /// Hides a secret until its time to come back is over; deletes it for good
    /// if there is no such time or it is system-managed. Needs no KMS.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::QuotaExceeded`], [`Error::EtagMismatch`], [`Error::SystemManaged`],
    /// [`Error::UserManaged`], [`Error::RequestIdReused`] and those of every
    /// call.
    pub async fn delete(
        self: &Arc<Self>,
        caller: &Caller,
        request: DeleteSecret,
    ) -> Result<(), Error> {
        self.change(caller, request).await.map(|_| ())
    }
}

impl Change for DeleteSecret {
    const ACTION: Action = Action::Delete;

    fn workspace(&self) -> &WorkspaceId {
        &self.workspace
    }

    fn name(&self) -> &SecretName {
        &self.name
    }

    fn request_id(&self) -> Option<&RequestId> {
        self.request_id.as_ref()
    }

    fn parts<'a>(&'a self, caller: &'a Caller) -> Parts<'a> {
        Parts::of("DeleteSecret", caller, &self.workspace)
            .text(self.name.as_str())
            .optional(self.etag.as_ref().map(|etag| etag.as_str().as_bytes()))
            .newer("permanent", self.permanent.then_some(b"".as_slice()))
    }

    fn needs_value(&self) -> bool {
        // It is moved to where it may be brought back from.
        !self.permanent
    }

    fn authorize(&self, grants: &Grants) -> Result<(), Error> {
        if grants.manage_user() || grants.any_integration() {
            Ok(())
        } else {
            Err(Error::NotGranted)
        }
    }

    async fn attempt(
        &mut self,
        secrets: &Secrets,
        caller: &Caller,
        snapshot: Snapshot,
    ) -> Result<Changed, Error> {
        let grants = secrets.grants(caller, &self.workspace);
        let Snapshot { stored, value, active, .. } = snapshot;
        let Some(stored) = stored else {
            return Err(secrets.not_found(&grants, &self.workspace, &self.name).await);
        };
        may_change(&grants, &stored.metadata.managed_by)?;
        stored.check_etag(self.etag.as_ref())?;
        let delete = |key, expect| Operation { key, expect, write: Write::Delete };
        let mut operations = vec![
            delete(Key::metadata(&self.name), Some(Expect::Revision(stored.revision))),
            delete(Key::value(&self.name), keys::unmoved(value.as_ref())),
            delete(Key::lease(&self.name), None),
            delete(Key::usage(&self.name), None),
        ];
        let retention = self.retention(secrets, &stored);
        match retention {
            Some(retention) => {
                operations.extend(keys::only_moving(
                    &stored.metadata,
                    value.as_ref(),
                    active.as_ref(),
                ));
                operations.extend(hidden(secrets, &stored, value, retention)?);
            }
            None => {
                operations.extend(stored.metadata.earlier.iter().map(|earlier| {
                    delete(Key::earlier(stored.metadata.uid, earlier.version), None)
                }))
            }
        }
        let max = secrets.limits.max_secrets_per_workspace;
        let batch = Batch {
            operations,
            trail: secrets.trail(caller, Self::ACTION, &stored.metadata, self.request_id()),
            quota: retention.map(|_| Quota { kind: Key::DELETED, max }),
            request: remember(self.request_id(), self.parts(caller).fingerprint(None), None),
            ..Batch::default()
        };
        match secrets.commit_in_time(caller, &self.workspace, batch).await {
            // What is due need not wait for a sweep to make room.
            Err(Error::QuotaExceeded { .. }) if secrets.purge_due(&self.workspace).await? => {
                Err(Error::ConcurrentUpdate)
            }
            outcome => outcome.map(|()| Changed::Deleted),
        }
    }
}

impl DeleteSecret {
    /// How long the secret may come back; `None`: not at all.
    fn retention(&self, secrets: &Secrets, stored: &Stored) -> Option<Duration> {
        let retention = secrets.limits.deleted_retention;
        let kept = match &stored.metadata.managed_by {
            ManagedBy::User => !self.permanent && !retention.is_zero(),
            // A revoked token must not linger.
            ManagedBy::System(_) => false,
        };
        kept.then_some(retention)
    }
}

/// Puts a secret and its current value where they may be brought back from.
fn hidden(
    secrets: &Secrets,
    stored: &Stored,
    value: Option<Record>,
    retention: Duration,
) -> Result<Vec<Operation>, Error> {
    let Stored { metadata, revision } = stored;
    let delete_time = secrets.clock.now();
    let purge_time = delete_time.checked_add(retention).ok_or(Error::Internal("purge time"))?;
    let deleted = DeletedSecret { metadata: metadata.clone(), delete_time, purge_time };
    let marker = Operation {
        key: Key::deleted(&metadata.name, metadata.uid),
        expect: Some(Expect::Absent),
        write: Write::Put(Record {
            revision: revision.next(),
            bytes: codec::encode_deleted(&deleted),
        }),
    };
    let value = value.map(|value| Operation {
        key: Key::earlier(metadata.uid, metadata.version),
        expect: None,
        write: Write::Put(value),
    });
    Ok([marker].into_iter().chain(value).collect())
}

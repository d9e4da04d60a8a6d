//! UndeleteSecret.

use std::sync::Arc;

use super::{
    Caller, Deleted, Error, Grants, SecretView, Secrets,
    audit::Action,
    change::{Change, Changed, Snapshot, put_metadata, remember},
    idempotency::Parts,
    keys, principal,
};
use crate::{
    domain::{RequestId, SecretMetadata, SecretName, SecretUid, WorkspaceId},
    store::{Batch, Expect, Key, Operation, Quota, Write},
};

/// Deleted secrets of one name looked at in one step.
const STEP: usize = 500;

/// A deleted secret that is wanted back.
pub struct UndeleteSecret {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The name.
    pub name: SecretName,
    /// Which of that name; `None`: the one deleted last.
    pub uid: Option<SecretUid>,
    /// Idempotency key.
    pub request_id: Option<RequestId>,
}

impl Secrets {
    /// Brings a deleted secret back, with its value and all its versions. Needs
    /// no KMS.
    ///
    /// # Errors
    /// [`Error::NotFound`], also once it is purged; [`Error::Exists`];
    /// [`Error::QuotaExceeded`], [`Error::RequestIdReused`] and those of every
    /// call.
    pub async fn undelete(
        self: &Arc<Self>,
        caller: &Caller,
        request: UndeleteSecret,
    ) -> Result<SecretView, Error> {
        let workspace = request.workspace.clone();
        self.change(caller, request).await?.into_view(&workspace, self.clock.now())
    }

    /// The deleted secret of a name that may still come back.
    async fn deleted(
        &self,
        workspace: &WorkspaceId,
        name: &SecretName,
        uid: Option<SecretUid>,
    ) -> Result<Option<Deleted>, Error> {
        let now = self.clock.now();
        if let Some(uid) = uid {
            let key = Key::deleted(name, uid);
            let [record] = self.read(workspace, [key.clone()]).await?;
            let deleted = record.map(|record| Deleted::decode(&key, record)).transpose()?;
            return Ok(deleted.filter(|deleted| deleted.secret.purge_time > now));
        }
        let (prefix, mut after) = (Key::deleted_named(name), None);
        let mut last: Option<Deleted> = None;
        loop {
            let records = self.store.scan(workspace, &prefix, after.as_ref(), STEP).await?;
            let exhausted = records.len() < STEP;
            for (key, record) in records {
                let deleted = Deleted::decode(&key, record)?;
                after = Some(key);
                let later = last
                    .as_ref()
                    .is_none_or(|last| deleted.secret.delete_time > last.secret.delete_time);
                if later && deleted.secret.purge_time > now {
                    last = Some(deleted);
                }
            }
            if exhausted {
                return Ok(last);
            }
        }
    }
}

impl Change for UndeleteSecret {
    const ACTION: Action = Action::Undelete;

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
        Parts::of("UndeleteSecret", caller, &self.workspace)
            .text(self.name.as_str())
            .optional(self.uid.as_ref().map(|uid| uid.as_bytes().as_slice()))
    }

    fn needs_value(&self) -> bool {
        false
    }

    fn authorize(&self, grants: &Grants) -> Result<(), Error> {
        // Only secrets of people are there to come back.
        if grants.manage_user() { Ok(()) } else { Err(Error::NotGranted) }
    }

    async fn attempt(
        &mut self,
        secrets: &Secrets,
        caller: &Caller,
        snapshot: Snapshot,
    ) -> Result<Changed, Error> {
        if snapshot.stored.is_some() {
            return Err(Error::Exists(self.name.clone()));
        }
        let workspace = &self.workspace;
        let Some(deleted) = secrets.deleted(workspace, &self.name, self.uid).await? else {
            let grants = secrets.grants(caller, workspace);
            return Err(secrets.not_found(&grants, workspace, &self.name).await);
        };
        let old = &deleted.secret.metadata;
        let (marker, value) =
            (Key::deleted(&self.name, old.uid), Key::earlier(old.uid, old.version));
        let [unchanged, sealed] = secrets.read(workspace, [marker.clone(), value.clone()]).await?;
        if unchanged.is_none_or(|now| now.revision != deleted.revision) {
            return Err(Error::ConcurrentUpdate);
        }
        let sealed = sealed.ok_or(Error::RecordCorrupt("sealed value absent"))?;
        let revision = deleted.revision.next();
        let metadata = SecretMetadata {
            update_time: secrets.clock.now(),
            updated_by: principal(caller),
            ..old.clone()
        };
        let operation = |key, expect, write| Operation { key, expect, write };
        let gone = Some(Expect::Revision(deleted.revision));
        let active = snapshot.active.as_ref();
        let mut operations = keys::only_moving(old, Some(&sealed), active);
        let unmoved = keys::unmoved(Some(&sealed));
        operations.extend([
            put_metadata(&metadata, revision, Expect::Absent),
            operation(Key::value(&self.name), None, Write::Put(sealed)),
            operation(value, unmoved, Write::Delete),
            operation(marker, gone, Write::Delete),
        ]);
        let batch = Batch {
            operations,
            quota: Some(Quota {
                kind: Key::METADATA,
                max: secrets.limits.max_secrets_per_workspace,
            }),
            trail: secrets.trail(caller, Self::ACTION, &metadata, self.request_id()),
            request: remember(
                self.request_id(),
                self.parts(caller).fingerprint(None),
                Some((metadata.clone(), revision)),
            ),
            ..Batch::default()
        };
        secrets.commit_in_time(caller, workspace, batch).await?;
        Ok(Changed::Stored(metadata, revision))
    }
}

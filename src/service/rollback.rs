//! RollbackSecret.

use std::sync::Arc;

use super::{
    Caller, Error, Grants, SecretView, Secrets, Stored,
    audit::Action,
    change::{Change, Changed, Snapshot, may_change, put_metadata, remember},
    idempotency::Parts,
    keys, principal,
};
use crate::{
    domain::{Etag, RequestId, SecretMetadata, SecretName, TrailEntry, WorkspaceId},
    envelope::Payload,
    store::{Batch, Expect, Key, Operation},
};

/// An earlier value to make the newest one.
pub struct RollbackSecret {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The name.
    pub name: SecretName,
    /// Number of the earlier value.
    pub version: u64,
    /// Change only this state of the secret.
    pub etag: Option<Etag>,
    /// Idempotency key.
    pub request_id: Option<RequestId>,
}

impl Secrets {
    /// Makes an earlier value the newest version. Expiry and description stay
    /// as they are.
    ///
    /// # Errors
    /// [`Error::VersionNotFound`], [`Error::NotFound`],
    /// [`Error::EtagMismatch`], [`Error::ConcurrentUpdate`],
    /// [`Error::SystemManaged`], [`Error::UserManaged`],
    /// [`Error::RequestIdReused`] and those of every call.
    pub async fn rollback(
        self: &Arc<Self>,
        caller: &Caller,
        request: RollbackSecret,
    ) -> Result<SecretView, Error> {
        let workspace = request.workspace.clone();
        self.change(caller, request).await?.into_view(&workspace, self.clock.now())
    }
}

impl Change for RollbackSecret {
    const ACTION: Action = Action::Rollback;

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
        Parts::of("RollbackSecret", caller, &self.workspace)
            .text(self.name.as_str())
            .number(self.version)
            .optional(self.etag.as_ref().map(|etag| etag.as_str().as_bytes()))
    }

    fn needs_value(&self) -> bool {
        // It becomes an earlier one, and the expiry is sealed with it.
        true
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
        let old = &stored.metadata;
        let Some(wanted) = old.earlier_version(self.version) else {
            return Err(Error::VersionNotFound { name: self.name.clone(), version: self.version });
        };
        let keys = [Key::metadata(&self.name), Key::earlier(old.uid, self.version)];
        let [metadata, earlier] = secrets.read(&self.workspace, keys).await?;
        let unchanged = Stored::decode(&self.name, metadata)?;
        if unchanged.is_none_or(|now| now.revision != stored.revision) {
            return Err(Error::ConcurrentUpdate);
        }

        let (key, key_unchanged) =
            secrets.sealing_key_in_time(caller, &self.workspace, active.clone()).await?;
        let current =
            secrets.reopen(&self.workspace, &stored, value.clone(), active.clone()).await?;
        let earlier = secrets.reopen_earlier(&self.workspace, old, wanted, earlier, active).await?;
        let (now, revision) = (secrets.clock.now(), stored.revision.next());
        let mut metadata = SecretMetadata {
            version: old.version.saturating_add(1),
            value_revision: revision,
            update_time: now,
            updated_by: principal(caller),
            value_time: now,
            value_by: principal(caller),
            ..old.clone()
        };
        let payload = Payload {
            version: metadata.version,
            expire_time: current.expire_time,
            value: &earlier.value,
        };
        let unmoved = keys::unmoved(value.as_ref());
        let mut operations = Vec::from_iter(keys::moving(value.as_ref(), key.id()));
        operations.extend(secrets.keep_version(&mut metadata, old, value));
        let sealed = secrets.sealed(&self.workspace, &key, &metadata, &payload)?;
        operations.extend([
            Operation { expect: unmoved, ..sealed },
            key_unchanged,
            put_metadata(&metadata, revision, Expect::Revision(stored.revision)),
        ]);
        let fingerprint = self.parts(caller).fingerprint(None);
        let outcome = Some((metadata.clone(), revision));
        let request = remember(self.request_id(), fingerprint, outcome);
        let trail = secrets.trail_entry(TrailEntry {
            restored_version: self.version,
            ..secrets.entry(caller, Self::ACTION, &metadata, self.request_id())
        });
        let batch = Batch { operations, trail, request, ..Batch::default() };
        secrets.commit_in_time(caller, &self.workspace, batch).await?;
        Ok(Changed::Stored(metadata, revision))
    }
}

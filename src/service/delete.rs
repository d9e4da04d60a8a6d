//! DeleteSecret.

use std::sync::Arc;

use super::{
    Caller, Error, Grants, Secrets,
    audit::Action,
    change::{Change, Changed, Snapshot, may_change, remember},
    idempotency::Parts,
};
use crate::{
    domain::{Etag, RequestId, SecretName, WorkspaceId},
    store::{Batch, Expect, Key, Operation, Write},
};

/// A secret to delete.
pub struct DeleteSecret {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The name.
    pub name: SecretName,
    /// Delete only this state of it.
    pub etag: Option<Etag>,
    /// Idempotency key.
    pub request_id: Option<RequestId>,
}

impl Secrets {
    /// Deletes a secret and its value for good. Needs no KMS.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::EtagMismatch`], [`Error::SystemManaged`],
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
    }

    fn needs_value(&self) -> bool {
        false
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
        let Some(stored) = snapshot.stored else {
            return Err(secrets.not_found(&grants, &self.workspace, &self.name).await);
        };
        may_change(&grants, &stored.metadata.managed_by)?;
        stored.check_etag(self.etag.as_ref())?;
        let delete = |key, expect| Operation { key, expect, write: Write::Delete };
        let batch = Batch {
            operations: vec![
                delete(Key::metadata(&self.name), Some(Expect::Revision(stored.revision))),
                delete(Key::value(&self.name), None),
                delete(Key::lease(&self.name), None),
                delete(Key::usage(&self.name), None),
            ],
            request: remember(self.request_id(), self.parts(caller).fingerprint(None), None),
            ..Batch::default()
        };
        secrets.commit(&self.workspace, batch).await?;
        Ok(Changed::Deleted)
    }
}

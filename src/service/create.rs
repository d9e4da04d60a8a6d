//! CreateSecret.

use std::sync::Arc;

use super::{
    ActiveKey, Caller, Error, Expiry, Grants, SecretView, Secrets,
    audit::Action,
    change::{Change, Changed, Snapshot, put_metadata, remember},
    idempotency::Parts,
    principal,
};
use crate::{
    domain::{
        Description, ManagedBy, Owner, Plaintext, RequestId, Revision, SecretMetadata, SecretName,
        SecretUid, WorkspaceId,
    },
    envelope::Payload,
    store::{Batch, Expect, Key, Quota},
};

/// A new secret.
pub struct CreateSecret {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The name.
    pub name: SecretName,
    /// The value.
    pub value: Plaintext,
    /// For people.
    pub description: Description,
    /// Makes it system-managed.
    pub owner: Option<Owner>,
    /// When it stops resolving.
    pub expiry: Option<Expiry>,
    /// Idempotency key.
    pub request_id: Option<RequestId>,
    /// Store nothing.
    pub validate_only: bool,
}

impl Secrets {
    /// Stores a new secret.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::QuotaExceeded`], [`Error::RequestIdReused`]
    /// and those of every call.
    pub async fn create(
        self: &Arc<Self>,
        caller: &Caller,
        request: CreateSecret,
    ) -> Result<SecretView, Error> {
        let workspace = request.workspace.clone();
        self.change(caller, request).await?.into_view(&workspace, self.clock.now())
    }

    /// Commits a first value.
    pub(super) async fn insert(
        &self,
        caller: &Caller,
        new: Insert<'_>,
        active: Option<ActiveKey>,
    ) -> Result<Changed, Error> {
        let now = self.clock.now();
        let expire_time = new.expiry.map(|expiry| expiry.moment(now)).transpose()?;
        let revision = Revision::initial();
        let metadata = SecretMetadata {
            name: new.name.clone(),
            uid: SecretUid::random(),
            description: new.description.clone(),
            managed_by: new.owner.cloned().map_or(ManagedBy::User, ManagedBy::System),
            version: 1,
            value_revision: revision,
            create_time: now,
            update_time: now,
            expire_time,
            created_by: principal(caller),
            updated_by: principal(caller),
            value_time: now,
            value_by: principal(caller),
            earlier: vec![],
        };
        if new.validate_only {
            return Ok(Changed::Preview(metadata));
        }
        let (key, key_unchanged) = self.sealing_key_in_time(caller, new.workspace, active).await?;
        let payload = Payload { version: 1, expire_time, value: new.value };
        let value = self.sealed(new.workspace, &key, &metadata, &payload)?;
        let batch = Batch {
            operations: vec![
                put_metadata(&metadata, revision, Expect::Absent),
                value,
                key_unchanged,
            ],
            quota: Some(Quota { kind: Key::METADATA, max: self.limits.max_secrets_per_workspace }),
            trail: self.trail(caller, new.action, &metadata, new.request_id),
            request: remember(
                new.request_id,
                new.parts.fingerprint(Some(&key)),
                Some((metadata.clone(), revision)),
            ),
            ..Batch::default()
        };
        self.commit_in_time(caller, new.workspace, batch).await?;
        Ok(Changed::Stored(metadata, revision))
    }
}

/// A secret to insert, borrowed from the request that wants it.
pub(super) struct Insert<'a> {
    pub(super) workspace: &'a WorkspaceId,
    pub(super) name: &'a SecretName,
    pub(super) value: &'a Plaintext,
    pub(super) expiry: Option<Expiry>,
    pub(super) description: &'a Description,
    pub(super) owner: Option<&'a Owner>,
    pub(super) request_id: Option<&'a RequestId>,
    pub(super) parts: Parts<'a>,
    pub(super) validate_only: bool,
    pub(super) action: Action,
}

impl Change for CreateSecret {
    const ACTION: Action = Action::Create;

    fn workspace(&self) -> &WorkspaceId {
        &self.workspace
    }

    fn name(&self) -> &SecretName {
        &self.name
    }

    fn request_id(&self) -> Option<&RequestId> {
        self.request_id.as_ref().filter(|_| !self.validate_only)
    }

    fn parts<'a>(&'a self, caller: &'a Caller) -> Parts<'a> {
        Parts::of("CreateSecret", caller, &self.workspace)
            .text(self.name.as_str())
            .text(self.value.expose())
            .text(self.description.as_str())
            .owner(self.owner.as_ref())
            .time(Expiry::at(self.expiry))
            .ttl(Expiry::after(self.expiry))
    }

    fn needs_value(&self) -> bool {
        false
    }

    fn authorize(&self, grants: &Grants) -> Result<(), Error> {
        let granted = match &self.owner {
            None => grants.manage_user(),
            Some(owner) => grants.integration(&owner.integration),
        };
        if granted { Ok(()) } else { Err(Error::NotGranted) }
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
        let new = Insert {
            workspace: &self.workspace,
            name: &self.name,
            value: &self.value,
            expiry: self.expiry,
            description: &self.description,
            owner: self.owner.as_ref(),
            request_id: self.request_id(),
            parts: self.parts(caller),
            validate_only: self.validate_only,
            action: Self::ACTION,
        };
        secrets.insert(caller, new, snapshot.active).await
    }
}

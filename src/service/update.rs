//! UpdateSecret.

use std::sync::Arc;

use super::{
    ActiveKey, Caller, Error, Expiry, Grants, SecretView, Secrets, Stored,
    audit::Action,
    change::{Change, Changed, Snapshot, may_change, put_metadata, remember},
    create::Insert,
    idempotency::Parts,
    keys, lease, principal,
};
use crate::{
    domain::{
        Description, Etag, FencingToken, ManagedBy, Owner, Plaintext, RequestId, SecretMetadata,
        SecretName, Timestamp, WorkspaceId,
    },
    envelope::Payload,
    store::{Batch, Expect, Operation},
};

/// What becomes of an expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiryChange {
    /// Stays.
    Keep,
    /// Never expires.
    Clear,
    /// Expires then.
    Set(Expiry),
}

impl ExpiryChange {
    fn set(self) -> Option<Expiry> {
        match self {
            ExpiryChange::Keep | ExpiryChange::Clear => None,
            ExpiryChange::Set(expiry) => Some(expiry),
        }
    }
}

/// Changes to a secret; what is absent stays.
pub struct UpdateSecret {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The name.
    pub name: SecretName,
    /// A new value.
    pub value: Option<Plaintext>,
    /// A new description.
    pub description: Option<Description>,
    /// What becomes of the expiry.
    pub expiry: ExpiryChange,
    /// Change only this state of it.
    pub etag: Option<Etag>,
    /// Change it only while this is its newest lease.
    pub fencing_token: Option<FencingToken>,
    /// Create it if it does not exist.
    pub allow_missing: bool,
    /// Owner of the secret to create; never changes one.
    pub owner: Option<Owner>,
    /// Idempotency key.
    pub request_id: Option<RequestId>,
    /// Store nothing.
    pub validate_only: bool,
}

impl Secrets {
    /// Changes a secret. Every Resolve that starts after the answer sees it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::EtagMismatch`],
    /// [`Error::LeaseLost`], [`Error::ConcurrentUpdate`],
    /// [`Error::SystemManaged`], [`Error::UserManaged`],
    /// [`Error::RequestIdReused`] and those of every call.
    pub async fn update(
        self: &Arc<Self>,
        caller: &Caller,
        request: UpdateSecret,
    ) -> Result<SecretView, Error> {
        let workspace = request.workspace.clone();
        self.change(caller, request).await?.into_view(&workspace, self.clock.now())
    }
}

impl Stored {
    /// Refuses an etag that is not the current one.
    pub(super) fn check_etag(&self, etag: Option<&Etag>) -> Result<(), Error> {
        match etag {
            Some(etag) if *etag != Etag::of(self.metadata.uid, self.revision) => {
                Err(Error::EtagMismatch)
            }
            _ => Ok(()),
        }
    }
}

impl Change for UpdateSecret {
    const ACTION: Action = Action::Update;

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
        let token = self.fencing_token.map(|token| token.as_u64().to_be_bytes().to_vec());
        Parts::of("UpdateSecret", caller, &self.workspace)
            .text(self.name.as_str())
            .optional(self.value.as_ref().map(|value| value.expose().as_bytes()))
            .optional(self.description.as_ref().map(|text| text.as_str().as_bytes()))
            .flag(self.expiry == ExpiryChange::Clear)
            .time(Expiry::at(self.expiry.set()))
            .optional(self.etag.as_ref().map(|etag| etag.as_str().as_bytes()))
            .flag(self.allow_missing)
            .owner(self.owner.as_ref())
            .ttl(Expiry::after(self.expiry.set()))
            .newer("fencing_token", token)
    }

    fn needs_value(&self) -> bool {
        // What is replaced is opened or kept.
        self.seals()
    }

    fn needs_lease(&self) -> bool {
        self.fencing_token.is_some()
    }

    fn authorize(&self, grants: &Grants) -> Result<(), Error> {
        let granted = match &self.owner {
            Some(owner) => grants.integration(&owner.integration) || grants.manage_user(),
            None => grants.manage_user() || grants.any_integration(),
        };
        if granted { Ok(()) } else { Err(Error::NotGranted) }
    }

    async fn attempt(
        &mut self,
        secrets: &Secrets,
        caller: &Caller,
        snapshot: Snapshot,
    ) -> Result<Changed, Error> {
        let grants = secrets.grants(caller, &self.workspace);
        let Snapshot { stored, value, active, lease } = snapshot;
        let Some(stored) = stored else {
            return self.create_missing(secrets, caller, &grants, active).await;
        };
        may_change(&grants, &stored.metadata.managed_by)?;
        self.check_terms(&stored)?;
        stored.check_etag(self.etag.as_ref())?;
        let lease = self.fencing_token.map(|token| lease::newest(token, &stored, lease.as_ref()));
        let lease = lease.transpose()?;

        let now = secrets.clock.now();
        let revision = stored.revision.next();
        let mut metadata = self.changed(&stored.metadata, caller, now)?;
        if self.validate_only {
            return Ok(Changed::Preview(metadata));
        }

        let mut operations = Vec::from_iter(lease);
        let mut fingerprint_key = None;
        if self.seals() {
            metadata.value_revision = revision;
            let (key, key_unchanged) =
                secrets.sealing_key_in_time(caller, &self.workspace, active.clone()).await?;
            let unmoved = keys::unmoved(value.as_ref());
            let old = match self.reopens() {
                true => {
                    Some(secrets.reopen(&self.workspace, &stored, value.clone(), active).await?)
                }
                false => None,
            };
            if self.value.is_some() {
                operations.extend(keys::moving(value.as_ref(), key.id()));
                operations.extend(secrets.keep_version(&mut metadata, &stored.metadata, value));
            }
            let old = old.as_ref().map(|old| &old.value);
            let new = self.value.as_ref().or(old).ok_or(Error::Internal("no value to seal"))?;
            let payload = Payload {
                version: metadata.version,
                expire_time: metadata.expire_time,
                value: new,
            };
            let sealed = secrets.sealed(&self.workspace, &key, &metadata, &payload)?;
            operations.push(Operation { expect: unmoved, ..sealed });
            operations.push(key_unchanged);
            fingerprint_key = self.value.is_some().then_some(key);
        }
        operations.push(put_metadata(&metadata, revision, Expect::Revision(stored.revision)));
        let fingerprint = self.parts(caller).fingerprint(fingerprint_key.as_deref());
        let outcome = Some((metadata.clone(), revision));
        let request = remember(self.request_id(), fingerprint, outcome);
        let trail = secrets.trail(caller, Self::ACTION, &metadata, self.request_id());
        let batch = Batch { operations, trail, request, ..Batch::default() };
        secrets.commit_in_time(caller, &self.workspace, batch).await?;
        Ok(Changed::Stored(metadata, revision))
    }
}

impl UpdateSecret {
    /// Whether the value is sealed anew.
    fn seals(&self) -> bool {
        self.value.is_some() || self.expiry != ExpiryChange::Keep
    }

    /// Whether the sealed value is opened first: value and expiry are sealed
    /// together, so to change one of them, the other is sealed again.
    fn reopens(&self) -> bool {
        self.value.is_none() || self.expiry == ExpiryChange::Keep
    }

    fn changed(
        &self,
        old: &SecretMetadata,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<SecretMetadata, Error> {
        let expire_time = match self.expiry {
            ExpiryChange::Keep => old.expire_time,
            ExpiryChange::Clear => None,
            ExpiryChange::Set(expiry) => Some(expiry.moment(now)?),
        };
        let description = self.description.as_ref().unwrap_or(&old.description);
        let (value_time, value_by) = match &self.value {
            Some(_) => (now, principal(caller)),
            None => (old.value_time, old.value_by.clone()),
        };
        Ok(SecretMetadata {
            description: description.clone(),
            version: old.version.saturating_add(u64::from(self.value.is_some())),
            expire_time,
            update_time: now,
            updated_by: principal(caller),
            value_time,
            value_by,
            ..old.clone()
        })
    }

    /// Rules that depend on who manages the secret.
    fn check_terms(&self, stored: &Stored) -> Result<(), Error> {
        let current = match &stored.metadata.managed_by {
            ManagedBy::User => None,
            ManagedBy::System(owner) => Some(owner),
        };
        if self.owner.is_some() && self.owner.as_ref() != current {
            return Err(Error::field("owner", "must be the secret's owner; it never changes"));
        }
        let bound = self.etag.is_some() || self.fencing_token.is_some() || self.allow_missing;
        if current.is_some() && !bound {
            return Err(Error::field(
                "etag",
                "is required for a system-managed secret unless fencing_token or allow_missing is set",
            ));
        }
        Ok(())
    }

    async fn create_missing(
        &self,
        secrets: &Secrets,
        caller: &Caller,
        grants: &Grants,
        active: Option<ActiveKey>,
    ) -> Result<Changed, Error> {
        if !self.allow_missing || self.etag.is_some() || self.fencing_token.is_some() {
            return Err(secrets.not_found(grants, &self.workspace, &self.name).await);
        }
        let granted = match &self.owner {
            None => grants.manage_user(),
            Some(owner) => grants.integration(&owner.integration),
        };
        if !granted {
            return Err(Error::NotGranted);
        }
        let Some(value) = &self.value else {
            return Err(Error::field("value", "is required to create a missing secret"));
        };
        let none = Description::default();
        let new = Insert {
            workspace: &self.workspace,
            name: &self.name,
            value,
            description: self.description.as_ref().unwrap_or(&none),
            owner: self.owner.as_ref(),
            expiry: self.expiry.set(),
            request_id: self.request_id(),
            parts: self.parts(caller),
            validate_only: self.validate_only,
            action: Self::ACTION,
        };
        secrets.insert(caller, new, active).await
    }
}

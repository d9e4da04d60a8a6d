//! AcquireRefreshLease and ReleaseRefreshLease: one refresher at a time.
//!
//! A lease keeps refreshers from doing the same at once; it rests on clocks, so
//! it can fail where they differ by more than it lasts. That no stale value
//! overwrites a newer one does not: an update with a fencing token is committed
//! only while the token is that of the secret's newest lease and the secret has
//! the value that the lease was given for. So a new value ends a lease, whether
//! or not its holder stored it.

use std::sync::Arc;

use super::{
    Caller, Error, Grants, SecretView, Secrets, Stored,
    admission::{Turn, Weight},
    audit::{Action, AuditEvent},
    change::{ATTEMPTS, may_change},
};
use crate::{
    domain::{
        Etag, FencingToken, Holding, LeaseHolder, LeaseTtl, ManagedBy, RefreshLease, Revision,
        SecretMetadata, SecretName, Timestamp, WorkspaceId,
    },
    store::{Batch, Expect, Key, Operation, Record, Write, codec},
};

/// A lease that is wanted.
pub struct AcquireRefreshLease {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The secret to refresh.
    pub name: SecretName,
    /// Who wants it.
    pub holder: LeaseHolder,
    /// For how long.
    pub ttl: LeaseTtl,
    /// The state of the secret that needs the refresh.
    pub etag: Option<Etag>,
}

/// A lease that is given back.
pub struct ReleaseRefreshLease {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The secret.
    pub name: SecretName,
    /// Which lease.
    pub fencing_token: FencingToken,
}

/// A lease that was given.
#[derive(Debug)]
pub struct Lease {
    /// What to write with.
    pub fencing_token: FencingToken,
    /// From then on others may have it.
    pub expire_time: Timestamp,
    /// The secret as it is.
    pub secret: SecretView,
}

/// The newest lease as it lies in the store.
pub(super) struct StoredLease {
    lease: RefreshLease,
    revision: Revision,
}

impl StoredLease {
    pub(super) fn decode(name: &SecretName, record: Option<Record>) -> Result<Option<Self>, Error> {
        let Some(record) = record else { return Ok(None) };
        let lease = codec::decode_lease(name, &record.bytes)?;
        Ok(Some(Self { lease, revision: record.revision }))
    }

    /// The lease of this token, if it is the newest and still has a purpose.
    /// Its time may be over: as long as nobody else has taken it, nothing is
    /// newer.
    fn of(&self, token: FencingToken, secret: &SecretMetadata) -> bool {
        let RefreshLease { token: newest, held_by, .. } = &self.lease;
        *newest == token && held_by.is_some() && self.lease.is_of(secret)
    }
}

/// The check that makes a commit fail unless the token is still that of the
/// newest lease.
pub(super) fn newest(
    token: FencingToken,
    stored: &Stored,
    lease: Option<&StoredLease>,
) -> Result<Operation, Error> {
    let lease = lease.filter(|lease| lease.of(token, &stored.metadata)).ok_or(Error::LeaseLost)?;
    Ok(unchanged(Key::lease(&stored.metadata.name), lease.revision))
}

fn unchanged(key: Key, revision: Revision) -> Operation {
    Operation { key, expect: Some(Expect::Revision(revision)), write: Write::Nothing }
}

fn put(lease: &RefreshLease, before: Option<Revision>) -> Operation {
    let record = Record {
        revision: before.map_or_else(Revision::initial, Revision::next),
        bytes: codec::encode_lease(lease),
    };
    Operation {
        key: Key::lease(&lease.name),
        expect: Some(before.map_or(Expect::Absent, Expect::Revision)),
        write: Write::Put(record),
    }
}

/// What becomes of the newest lease when `holding` asks for it: its holder gets
/// it again under the same token, so that a call repeated, or come late, takes
/// nothing away from it.
fn granted(
    newest: Option<&RefreshLease>,
    secret: &SecretMetadata,
    holding: Holding,
    now: Timestamp,
    ttl: LeaseTtl,
) -> Result<RefreshLease, Error> {
    let open = newest.filter(|lease| lease.is_of(secret));
    let token = match open {
        Some(RefreshLease { held_by: Some(by), token, .. }) if *by == holding => *token,
        Some(RefreshLease { held_by: Some(by), expire_time, .. }) if now < *expire_time => {
            return Err(Error::LeaseHeld {
                holder: by.holder.clone(),
                until: *expire_time,
                left: expire_time.since(now),
            });
        }
        _ => newest.map_or_else(FencingToken::first, |lease| lease.token.next()),
    };
    Ok(RefreshLease {
        name: secret.name.clone(),
        uid: secret.uid,
        version: secret.version,
        token,
        held_by: Some(holding),
        expire_time: now.plus(ttl.as_duration()),
    })
}

impl Secrets {
    /// Gives the caller the right to refresh a secret, for a time.
    ///
    /// # Errors
    /// [`Error::LeaseHeld`], [`Error::NotFound`], [`Error::EtagMismatch`],
    /// [`Error::ConcurrentUpdate`], [`Error::SystemManaged`],
    /// [`Error::UserManaged`] and those of every call.
    pub async fn acquire_lease(
        self: &Arc<Self>,
        caller: &Caller,
        request: AcquireRefreshLease,
    ) -> Result<Lease, Error> {
        let (secrets, caller) = (Arc::clone(self), caller.clone());
        self.in_task(caller.deadline, async move {
            let outcome = secrets.acquire(&caller, &request).await;
            let event = AuditEvent {
                version: outcome.as_ref().ok().map(|lease| lease.secret.metadata.version),
                holder: Some(request.holder),
                secret: Some(request.name),
                ..secrets.lease_event(&caller, &request.workspace, Action::AcquireLease, &outcome)
            };
            secrets.audited_change(event, outcome).await
        })
        .await
    }

    /// Gives a lease back. One that has ended already is left as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::ConcurrentUpdate`],
    /// [`Error::SystemManaged`], [`Error::UserManaged`] and those of every
    /// call.
    pub async fn release_lease(
        self: &Arc<Self>,
        caller: &Caller,
        request: ReleaseRefreshLease,
    ) -> Result<(), Error> {
        let (secrets, caller) = (Arc::clone(self), caller.clone());
        self.in_task(caller.deadline, async move {
            let outcome = secrets.release(&caller, &request).await;
            let event = AuditEvent {
                secret: Some(request.name),
                ..secrets.lease_event(&caller, &request.workspace, Action::ReleaseLease, &outcome)
            };
            secrets.audited_change(event, outcome).await
        })
        .await
    }

    async fn acquire(
        &self,
        caller: &Caller,
        request: &AcquireRefreshLease,
    ) -> Result<Lease, Error> {
        let AcquireRefreshLease { workspace, name, holder, ttl, etag } = request;
        let _turn = self.lease_turn(caller, workspace).await?;
        for _ in 0..ATTEMPTS {
            let leasable = self.leasable(caller, workspace, name);
            let (stored, newest) = self.in_time(caller, leasable).await?;
            stored.check_etag(etag.as_ref())?;
            let holding = Holding { caller: caller.id.clone(), holder: holder.clone() };
            let before = newest.as_ref().map(|newest| newest.revision);
            let newest = newest.map(|newest| newest.lease);
            let now = self.clock.now();
            let lease = granted(newest.as_ref(), &stored.metadata, holding, now, *ttl)?;
            let unchanged = unchanged(Key::metadata(name), stored.revision);
            match self.commit_lease(caller, workspace, vec![put(&lease, before), unchanged]).await {
                Err(Error::ConcurrentUpdate) => {}
                outcome => {
                    return outcome.map(|()| Lease {
                        fencing_token: lease.token,
                        expire_time: lease.expire_time,
                        secret: SecretView::stored(workspace, stored, now),
                    });
                }
            }
        }
        Err(Error::ConcurrentUpdate)
    }

    async fn release(&self, caller: &Caller, request: &ReleaseRefreshLease) -> Result<(), Error> {
        let ReleaseRefreshLease { workspace, name, fencing_token } = request;
        let _turn = self.lease_turn(caller, workspace).await?;
        for _ in 0..ATTEMPTS {
            let leasable = self.leasable(caller, workspace, name);
            let (stored, newest) = self.in_time(caller, leasable).await?;
            let newest = newest.filter(|newest| newest.of(*fencing_token, &stored.metadata));
            let Some(StoredLease { lease, revision }) = newest else { return Ok(()) };
            let free = RefreshLease { held_by: None, ..lease };
            match self.commit_lease(caller, workspace, vec![put(&free, Some(revision))]).await {
                Err(Error::ConcurrentUpdate) => {}
                outcome => return outcome,
            }
        }
        Err(Error::ConcurrentUpdate)
    }

    /// A turn for callers who refresh secrets at all.
    async fn lease_turn(&self, caller: &Caller, workspace: &WorkspaceId) -> Result<Turn, Error> {
        if !self.grants(caller, workspace).any_integration() {
            return Err(Error::NotGranted);
        }
        self.turn(caller, workspace, Weight::LIGHT).await
    }

    /// The secret and its newest lease, if the caller may refresh it.
    async fn leasable(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
        name: &SecretName,
    ) -> Result<(Stored, Option<StoredLease>), Error> {
        let grants = self.grants(caller, workspace);
        if !grants.any_integration() {
            return Err(Error::NotGranted);
        }
        let [metadata, lease] =
            self.read(workspace, [Key::metadata(name), Key::lease(name)]).await?;
        let Some(stored) = Stored::decode(name, metadata)? else {
            return Err(self.not_found(&grants, workspace, name).await);
        };
        may_refresh(&grants, &stored.metadata.managed_by)?;
        Ok((stored, StoredLease::decode(name, lease)?))
    }

    async fn commit_lease(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
        operations: Vec<Operation>,
    ) -> Result<(), Error> {
        let batch = Batch { operations, bookkeeping: true, ..Batch::default() };
        self.commit_in_time(caller, workspace, batch).await
    }

    fn lease_event<T>(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
        action: Action,
        outcome: &Result<T, Error>,
    ) -> AuditEvent {
        let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
        self.event(caller, workspace, action, reason)
    }
}

/// People refresh nothing.
fn may_refresh(grants: &Grants, managed_by: &ManagedBy) -> Result<(), Error> {
    match managed_by {
        ManagedBy::User => Err(Error::UserManaged),
        ManagedBy::System(_) => may_change(grants, managed_by),
    }
}
